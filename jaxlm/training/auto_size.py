"""Sizes that a run leaves to its device: `--preset auto` and `--batch_size auto`.

They are chosen by compiling: the compiler says what memory a step needs, so nothing is allocated, and nothing crashes.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import jax
from jax.sharding import Mesh

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.model_flops import model_flops
from jaxlm.common.architecture.model_size import TOKENS_PER_PARAMETER
from jaxlm.common.architecture.parameters import parameter_count
from jaxlm.common.architecture.presets import PRESETS
from jaxlm.common.run.run_directory import is_run_directory, read_run_config
from jaxlm.parallel.distributed import least_of_all
from jaxlm.parallel.sharding import check_model, make_mesh
from jaxlm.training.abstract_step import abstract_batch, step_of_run
from jaxlm.training.device_memory import GIB, bytes_per_device, compiled_memory, free_bytes
from jaxlm.training.resolve import resolve_model, training_model
from jaxlm.training.train_config import TrainConfig
from shared_tokenizer.data.data_sets import DataSets
from shared_tokenizer.tokenizers.tokenizer import Tokenizer

# Of the memory that is free; the rest is for samples, programs and what else happens on the machine.
_SHARE = 0.9
_MIB = 2**20
_SMALLEST = "ternary-tiny"


@dataclass(frozen=True)
class Device:
    """What a run has to itself."""

    mesh: Mesh
    budget: float
    """Bytes of each device's memory."""

    @property
    def ways(self) -> int:
        """Devices that share a batch."""
        return self.mesh.shape["data"] * self.mesh.shape["fsdp"]


@dataclass(frozen=True)
class Choice:
    """A run whose sizes are numbers."""

    config: TrainConfig
    nbytes: float
    """What a step needs of each device."""

    @property
    def tokens(self) -> int:
        """Of the whole run."""
        return self.config.tokens_per_step * self.config.total_steps


def choose_sizes(config: TrainConfig, sets: DataSets, say: Callable[[str], None]) -> TrainConfig:
    """The config with its `auto` sizes chosen, and `say` told why. All processes choose the same; a run that is resumed
    keeps its own.

    Raises ValueError where no step fits the device, or where the device does not say what memory it has.
    """
    if "auto" not in (config.preset, config.batch_size):
        return config
    if config.resume and is_run_directory(Path(config.output_dir)):
        return _as_recorded(config)
    device = Device(make_mesh(config.mesh), _budget())
    examples = sets.train_examples
    if config.preset == "auto":
        choice = _choose_preset(config, sets.tokenizer, examples, device, say)
    else:
        choice = _choose_batch(config, resolve_model(config, sets.tokenizer), examples, device)
    if choice is None:
        what = "every preset" if config.preset == "auto" else config.preset
        raise ValueError(
            f"memory: found {device.budget / GIB:.2f} GiB for a run on each device, too little for the smallest step "
            f"of {what}; set --remat blocks, a shorter seq_len, a smaller preset or batch_size, or a larger --mesh.fsdp"
        )
    chosen = choice.config
    if config.batch_size == "auto":
        micro_batch = chosen.sequences_per_step // chosen.grad_accumulation_steps
        say(
            f"batch_size auto: {chosen.batch_size} sequences, {chosen.tokens_per_step:,} tokens a step, as "
            f"{chosen.grad_accumulation_steps} micro-batch(es) of {micro_batch}: {choice.nbytes / GIB:.2f} of "
            f"{device.budget / GIB:.2f} GiB on each device"
        )
    return chosen


def suitable_batch(config: ModelConfig, seq_len: int, num_train_steps: int) -> float:
    """Tokens of an optimizer step that suit a run of C operations in all: 0.2920 C^0.3271 (arXiv 2401.02954, section
    3.1). The batch is itself a factor of C, which is solved for.
    """
    scale, exponent = 0.2920, 0.3271
    operations = model_flops(config, 1, seq_len) / seq_len * num_train_steps
    return (scale * operations**exponent) ** (1 / (1 - exponent))


def largest_fitting(most: int, needed: Callable[[int], float], budget: float) -> int:
    """The largest number, of `most` at most, that fits the budget: by the line through the needs of two, then asked
    again. 0 where not even 1 fits. `needed` must grow with the number, and is infinite where nobody knows.
    """
    high, needed_by_high = most, needed(most)
    if needed_by_high <= budget:
        return most
    if (needed_by_one := needed(1)) > budget:
        return 0
    while high > 2:
        on_line = 1 + int((high - 1) * (budget - needed_by_one) / (needed_by_high - needed_by_one))
        number = high // 2 if math.isinf(needed_by_high) else min(on_line, high - 1)
        needed_by_number = needed(number)
        if needed_by_number <= budget:
            return number
        high, needed_by_high = number, needed_by_number
    return 1


def _as_recorded(config: TrainConfig) -> TrainConfig:
    """The sizes that were chosen when the run began."""
    recorded = read_run_config(Path(config.output_dir))
    if config.preset == "auto":
        config = replace(config, preset=recorded["preset"])
    if config.batch_size == "auto":
        names = ("batch_size", "grad_accumulation_steps")
        config = replace(config, **{name: recorded[name] for name in names})
    return config


def _budget() -> float:
    """Bytes that a run may need of each device, the same on every process."""
    free = [free_bytes(device) for device in jax.local_devices()]
    least = least_of_all(min(-1 if nbytes is None else nbytes // _MIB for nbytes in free))
    if least < 0:
        raise ValueError("auto: found a device that does not say what memory it has; set preset and batch_size")
    return _SHARE * least * _MIB


def _choose_preset(
    config: TrainConfig, tokenizer: Tokenizer, examples: int, device: Device, say: Callable[[str], None]
) -> Choice | None:
    """The largest ternary preset that fits and that the run's tokens suffice for; if they do for none, the smallest."""
    presets = _ternary_presets(config, tokenizer, device.mesh)
    larger = "there is none larger"
    for name, model in presets.items():
        named, parameters = replace(config, preset=name), parameter_count(model)
        tokens = _batch_size(named, model, examples, device) * config.seq_len * config.total_steps
        if tokens < TOKENS_PER_PARAMETER * parameters and name != list(presets)[-1]:
            larger = f"{name} would get {tokens / parameters:.3g}, expected {TOKENS_PER_PARAMETER}"
            continue
        choice = _choose_batch(named, model, examples, device)
        if choice is not None:
            say(
                f"preset auto: {name}, {parameters:,} parameters with {choice.tokens / parameters:.3g} tokens for each "
                f"({larger})"
            )
            return choice
        larger = f"{name} does not fit the device"
    return None


def _ternary_presets(config: TrainConfig, tokenizer: Tokenizer, mesh: Mesh) -> dict[str, ModelConfig]:
    """Those with attention that go together with the other settings, largest first. Raises ValueError where the
    smallest does not.
    """
    found = {}
    for name, preset in PRESETS.items():
        if preset.linear == "ternary" and preset.token_mixer == ("attention",):
            try:
                model = resolve_model(replace(config, preset=name), tokenizer)
                check_model(mesh, model)
            except ValueError:
                continue
            found[name] = model
    if not found:
        check_model(mesh, resolve_model(replace(config, preset=_SMALLEST), tokenizer))
    # Of presets that the settings make equal, the first is the last resort.
    return dict(reversed(sorted(found.items(), key=lambda item: parameter_count(item[1]))))


def _batch_size(config: TrainConfig, model: ModelConfig, examples: int, device: Device) -> int:
    """Sequences of a step, before they are split."""
    if config.batch_size != "auto":
        return config.batch_size
    suitable = suitable_batch(model, config.seq_len, config.total_steps) / config.seq_len
    return device.ways * max(1, min(round(suitable / device.ways), examples // device.ways))


def _choose_batch(config: TrainConfig, model: ModelConfig, examples: int, device: Device) -> Choice | None:
    """A batch in the fewest micro-batches that fit; None where the smallest does not."""
    check_model(device.mesh, model)
    if config.batch_size != "auto":
        nbytes = _step_bytes(config, model, device)
        return Choice(config, nbytes) if nbytes <= device.budget else None
    rows = _batch_size(config, model, examples, device) // device.ways

    def split(micro_rows: int) -> TrainConfig:
        parts = math.ceil(rows / micro_rows)
        return replace(config, batch_size=device.ways * parts * (rows // parts), grad_accumulation_steps=parts)

    @functools.cache
    def needed(micro_rows: int) -> float:
        return _step_bytes(split(micro_rows), model, device)

    micro_rows = largest_fitting(rows, needed, device.budget)
    return Choice(split(micro_rows), needed(micro_rows)) if micro_rows else None


def _step_bytes(config: TrainConfig, model: ModelConfig, device: Device) -> float:
    """What the compiled step needs of each device; infinite where the compiler turns it down."""
    decoder = training_model(config, model, device.mesh.devices.flat[0])
    step, state = step_of_run(config, decoder, device.mesh)
    if bytes_per_device(state) > device.budget:
        return math.inf
    batch = abstract_batch(device.mesh, config.sequences_per_step, config.seq_len, config.document_mask)
    try:
        with jax.set_mesh(device.mesh):
            compiled = step.lower(state, batch).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            return math.inf
        raise
    on_host = device.mesh.devices.flat[0].platform == "cpu"
    # A checkpoint is copied in the host's memory before it is written.
    checkpoint = bytes_per_device((state.params, state.opt_state)) if on_host else 0
    return compiled_memory(compiled).total + checkpoint
