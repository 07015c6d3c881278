"""Settings that a run leaves to its device: preset, batch_size, remat and backward_dtype, where they are `auto`.

Sizes are chosen by compiling: the compiler knows the memory of a step, so nothing is allocated, and nothing crashes.
Where a formula leaves no doubt that a step fits, it is not compiled for that.
"""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.model_flops import model_flops
from jaxlm.common.architecture.model_size import TOKENS_PER_PARAMETER
from jaxlm.common.architecture.parameters import parameter_count
from jaxlm.common.architecture.presets import PRESETS
from jaxlm.common.architecture.training_memory import training_memory
from jaxlm.common.run.run_directory import is_run_directory, read_run_config
from jaxlm.ops.backward_products import native_dtype
from jaxlm.parallel.distributed import least_of_all
from jaxlm.parallel.mesh import check_model
from jaxlm.parallel.sharding import parts_of
from jaxlm.training.abstract_step import batch_of, step_of_run, with_shardings
from jaxlm.training.device_memory import GIB, bytes_per_device, compiled_memory, free_bytes
from jaxlm.training.objectives.choose import RunObjective
from jaxlm.training.objectives.objective import Objective
from jaxlm.training.resolve import activation_dtype, remat_forms, resolve_model, runs_unrolled, training_model
from jaxlm.training.train_config import TrainConfig
from shared_tokenizer.data.data_sets import DataSets
from shared_tokenizer.data.examples import Example
from shared_tokenizer.tokenizers.tokenizer import Tokenizer

# Share of the free memory; the rest is for samples, programs and other work on the machine.
_SHARE = 0.9
# Share of the budget up to which the formula of a step's memory is trusted; its error is far below the rest.
_SURE_SHARE = 0.5
# What a step needs if it saves all activations, over what the formula says: 0.9 to 2.1 for presets (13 steps of 2.6M to
# 25M parameters), up to 3.3 for 4 to 12 layers of width 128.
_ALL_SAVED = 3.5
_MIB = 2**20


@dataclass(frozen=True)
class StepInputs:
    """Parts of a step that are the same for all sizes of a run."""

    objective: Objective
    example: Example
    """An example of the training data."""
    extras: Any
    """Shapes of the objective's extras, with shardings."""


@dataclass(frozen=True)
class Device:
    """The devices of a run, and the memory that it may need of each."""

    mesh: Mesh
    budget: float
    """Bytes of each device's memory."""
    inputs: StepInputs

    @property
    def data_parallel_size(self) -> int:
        """Devices that share a batch."""
        return parts_of("batch", self.mesh)


def choose_sizes(
    config: TrainConfig, sets: DataSets, objective: RunObjective, mesh: Mesh, log: Callable[[str], None]
) -> TrainConfig:
    """Return the settings with the `auto` sizes and forms chosen, and log why. All processes choose the same.

    A preset is taken if it fits the device and gets TOKENS_PER_PARAMETER tokens per parameter, the largest first; then
    the batch in the fewest micro-batches that fit. A resumed run keeps its own. Raises ValueError where no step fits,
    or where the device does not report its memory.
    """
    if "auto" not in (config.preset, config.batch_size, config.remat, config.backward_dtype):
        return config
    if config.resume and is_run_directory(Path(config.output_dir)):
        return _as_recorded(config)
    if config.backward_dtype == "auto" and _is_faster_in_bfloat16(config, mesh):
        config = replace(config, backward_dtype="bfloat16")
    if "auto" not in (config.preset, config.batch_size, config.remat):
        return config
    if "auto" not in (config.preset, config.batch_size):
        return _choose_remat(config, sets, objective, mesh, log)
    device = Device(mesh, _budget(), _step_inputs(sets, objective, mesh))
    candidates = _candidates(config, sets.tokenizer, device.mesh)
    larger = "there is none larger"
    for name, model_config in candidates.items():
        named = replace(config, preset=name)
        sequences = _batch_size(named, model_config, sets.train_examples, device)
        parameters = parameter_count(model_config)
        tokens_each = sequences * config.seq_len * config.total_steps / parameters
        if config.preset == "auto" and tokens_each < TOKENS_PER_PARAMETER and name != list(candidates)[-1]:
            larger = f"{name} would get {tokens_each:.3g}, expected {TOKENS_PER_PARAMETER}"
            continue
        fitting = (
            _split_to_fit(form, model_config, sequences, device, may_split=not _is_chosen_none(named, form))
            for form in _forms(named, model_config, mesh)
        )
        found = next((each for each in fitting if each is not None), None)
        if found is None:
            larger = f"{name} does not fit the device"
            continue
        chosen, nbytes = found
        if config.preset == "auto":
            tokens_each = chosen.tokens_per_step * chosen.total_steps / parameters
            log(f"preset auto: {name}, {parameters:,} parameters with {tokens_each:.3g} tokens for each ({larger})")
        if config.batch_size == "auto":
            micro_batch = chosen.sequences_per_step // chosen.grad_accumulation_steps
            log(
                f"batch_size auto: {chosen.batch_size} sequences, {chosen.tokens_per_step:,} tokens a step, as "
                f"{chosen.grad_accumulation_steps} micro-batch(es) of {micro_batch}: {nbytes / GIB:.2f} of "
                f"{device.budget / GIB:.2f} GiB on each device"
            )
        if config.remat == "auto":
            log(_remat_line(chosen.remat, f"{nbytes / GIB:.2f} of {device.budget / GIB:.2f} GiB on each device"))
        return chosen
    raise ValueError(
        f"memory: found {device.budget / GIB:.2f} GiB for a run on each device, too little for the smallest step of "
        f"{'every preset' if config.preset == 'auto' else config.preset}; set "
        f"{'' if config.remat in ('auto', 'blocks') else '--remat auto, '}a shorter seq_len, a smaller preset or "
        "batch_size, or a larger --mesh.fsdp or --mesh.sequence"
    )


def _choose_remat(
    config: TrainConfig, sets: DataSets, objective: RunObjective, mesh: Mesh, log: Callable[[str], None]
) -> TrainConfig:
    """Return the settings, whose sizes are given, with the fastest form of gradient checkpointing that fits.

    Where none fits it is the smallest; the trainer refuses that step.
    """
    model_config = resolve_model(config, sets.tokenizer)
    forms = list(_forms(config, model_config, mesh))
    if (budget := _budget_if_known()) is None:
        log(_remat_line(forms[0].remat, "the device does not report its memory"))
        return forms[0]
    device = Device(mesh, budget, _step_inputs(sets, objective, mesh))
    for form in forms:
        if (nbytes := _surely_enough(form, model_config, mesh)) <= _SURE_SHARE * budget:
            log(_remat_line(form.remat, f"at most {nbytes / GIB:.2f} of {budget / GIB:.2f} GiB on each device"))
            return form
        nbytes = _step_bytes(form, model_config, device)
        if nbytes <= budget:
            log(_remat_line(form.remat, f"{nbytes / GIB:.2f} of {budget / GIB:.2f} GiB on each device"))
            return form
        log(f"remat auto: not {form.remat}, a step needs {nbytes / GIB:.2f} of {budget / GIB:.2f} GiB on each device")
    return forms[-1]


def _is_faster_in_bfloat16(config: TrainConfig, mesh: Mesh) -> bool:
    """Return True where the gradients' products of float32 activations have a native kernel in bfloat16: on one CPU.

    A step takes 0.72 to 0.80 of its time with them. The loss was the same within noise: +0.0018 +- 0.0038 bits per byte
    (studies/backward_dtype.yaml, three seeds).
    """
    device = mesh.devices.flat[0]
    is_float32 = activation_dtype(config.dtype, device) == np.float32
    return is_float32 and mesh.size == 1 and device.platform == "cpu" and native_dtype() == "bfloat16"


def _forms(config: TrainConfig, model_config: ModelConfig, mesh: Mesh) -> Iterator[TrainConfig]:
    """Yield the settings with each form of gradient checkpointing that they allow, the fastest first."""
    device = mesh.devices.flat[0]
    for remat in remat_forms(config.remat, model_config, activation_dtype(config.dtype, device), device):
        yield replace(config, remat=remat, unroll_layers=runs_unrolled(config, remat))


def _is_chosen_none(config: TrainConfig, form: TrainConfig) -> bool:
    """Return whether auto saves all activations, which gains less than more micro-batches cost."""
    return config.remat == "auto" and form.remat == "none"


def _remat_line(remat: str, reason: str) -> str:
    return f"remat auto: {remat}, the fastest that fits: {reason}"


def _surely_enough(config: TrainConfig, model_config: ModelConfig, mesh: Mesh) -> float:
    """Return the bytes that a step needs at most by the formula of `products`; infinite where it does not hold.

    It holds for one device, and the state that several devices share is counted as if each had all of it.
    """
    if len(model_config.token_mixer) > 1 or config.objective not in ("next_token", "sft"):
        return math.inf
    rows = config.sequences_per_step // config.grad_accumulation_steps
    activation_bytes = np.dtype(activation_dtype(config.dtype, mesh.devices.flat[0])).itemsize
    each = -(-rows // parts_of("batch", mesh))
    has_muon = config.optimizer.name == "muon"
    length = config.seq_len // parts_of("length", mesh)
    products = training_memory(model_config, each, length, activation_bytes, has_muon=has_muon).total
    return products * (_ALL_SAVED if config.remat == "none" else 1)


def _step_inputs(sets: DataSets, objective: RunObjective, mesh: Mesh) -> StepInputs:
    extras = jax.tree.map(np.asarray, objective.read_extras())
    if objective.reference is not None:
        extras = {"reference": np.zeros((sets.train_examples, 2), np.float32)}
    return StepInputs(objective.function, sets.train[0][0], with_shardings(mesh, extras))


def suitable_batch(config: ModelConfig, seq_len: int, num_train_steps: int) -> float:
    """Return the tokens of a step that suit a run of C operations in all: 0.2920 C^0.3271 (arXiv 2401.02954, 3.1).

    The batch is itself a factor of C = k * batch, so batch = (0.2920 k^0.3271)^(1 / (1 - 0.3271)).
    """
    scale, exponent = 0.2920, 0.3271
    operations_per_token = model_flops(config, 1, seq_len) / seq_len * num_train_steps
    return (scale * operations_per_token**exponent) ** (1 / (1 - exponent))


def largest_fitting(most: int, needed: Callable[[int], float], budget: float) -> int:
    """Return the largest number, at most `most`, whose need fits the budget; 0 where not even 1 fits.

    It is guessed by the line through the needs of two numbers, then asked again: every question is a compilation.
    `needed` must grow with the number; it is infinite where the need is unknown.
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
    """Return the settings with what was chosen when the run began."""
    recorded = read_run_config(Path(config.output_dir))
    if config.preset == "auto":
        config = replace(config, preset=recorded["preset"])
    if config.remat == "auto":
        # Old runs did not record the form, which was `products`.
        remat = "products" if recorded["remat"] == "auto" else recorded["remat"]
        config = replace(config, remat=remat, unroll_layers=recorded["unroll_layers"])
    if config.backward_dtype == "auto":
        config = replace(config, backward_dtype=recorded.get("backward_dtype", "auto"))
    if config.batch_size == "auto":
        names = ("batch_size", "grad_accumulation_steps")
        config = replace(config, **{name: recorded[name] for name in names})
    return config


def _budget() -> float:
    """Return the bytes that a run may need of each device, the same on every process."""
    if (known := _budget_if_known()) is None:
        raise ValueError("auto: found a device that does not say what memory it has; set preset and batch_size")
    return known


def _budget_if_known() -> float | None:
    free = [free_bytes(device) for device in jax.local_devices()]
    least = least_of_all(min(-1 if nbytes is None else nbytes // _MIB for nbytes in free))
    return None if least < 0 else _SHARE * least * _MIB


def _candidates(config: TrainConfig, tokenizer: Tokenizer, mesh: Mesh) -> dict[str, ModelConfig]:
    """Return the presets to try with their models, the largest first: the one that is named, or all ternary ones.

    Raises ValueError where the other settings rule out the named one, or all of them, with the reason of the first.
    """

    def model_of(name: str) -> ModelConfig:
        model_config = resolve_model(replace(config, preset=name), tokenizer)
        check_model(mesh, model_config)
        return model_config

    if config.preset != "auto":
        return {config.preset: model_of(config.preset)}
    found: dict[str, ModelConfig] = {}
    reasons: list[ValueError] = []
    for name, preset in PRESETS.items():
        if preset.linear == "ternary" and preset.token_mixer == ("attention",):
            try:
                found[name] = model_of(name)
            except ValueError as reason:
                reasons.append(reason)
    if not found:
        raise reasons[0]
    # Of presets that the settings make equal, the first is the last resort.
    return dict(reversed(sorted(found.items(), key=lambda item: parameter_count(item[1]))))


def _batch_size(config: TrainConfig, model_config: ModelConfig, examples: int, device: Device) -> int:
    """Return the sequences of a step, all micro-batches together: at most one epoch."""
    if config.batch_size != "auto":
        return config.batch_size
    ways = device.data_parallel_size
    suitable = suitable_batch(model_config, config.seq_len, config.total_steps) / config.seq_len
    return ways * max(1, min(round(suitable / ways), examples // ways))


def _split_to_fit(
    config: TrainConfig, model_config: ModelConfig, sequences: int, device: Device, *, may_split: bool
) -> tuple[TrainConfig, float] | None:
    """Return the settings in the fewest micro-batches that fit, and the bytes of a step; None where none fits.

    Without `may_split` a single one has to fit.
    """
    if config.batch_size != "auto":
        nbytes = _step_bytes(config, model_config, device)
        return (config, nbytes) if nbytes <= device.budget else None
    ways = device.data_parallel_size
    rows = sequences // ways

    def split(micro_rows: int) -> TrainConfig:
        parts = math.ceil(rows / micro_rows)
        return replace(config, batch_size=ways * parts * (rows // parts), grad_accumulation_steps=parts)

    @functools.cache
    def needed(micro_rows: int) -> float:
        return _step_bytes(split(micro_rows), model_config, device)

    if not may_split:
        return (split(rows), needed(rows)) if needed(rows) <= device.budget else None
    micro_rows = largest_fitting(rows, needed, device.budget)
    return (split(micro_rows), needed(micro_rows)) if micro_rows else None


def _step_bytes(config: TrainConfig, model_config: ModelConfig, device: Device) -> float:
    """Return the bytes that the compiled step needs of each device; infinite where it cannot be compiled for lack."""
    first = device.mesh.devices.flat[0]
    model, inputs = training_model(config, model_config, first), device.inputs
    step, state = step_of_run(config, model, device.mesh, inputs.objective)
    if bytes_per_device((state, inputs.extras)) > device.budget:
        return math.inf
    batch = batch_of(device.mesh, config.sequences_per_step, inputs.example)
    try:
        with jax.set_mesh(device.mesh):
            compiled = step.lower(state, batch, inputs.extras).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            return math.inf
        raise
    # On a CPU a checkpoint is copied in the same memory before it is written.
    checkpoint = bytes_per_device((state.params, state.opt_state)) if first.platform == "cpu" else 0
    return compiled_memory(compiled).total + checkpoint
