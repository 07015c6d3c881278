"""The compiled programs of a run: the training step of each phase, and the loss of a held-out batch."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from rich.console import Console

from jaxlm.checkpoints.checkpoint import Checkpoints
from jaxlm.checkpoints.init_from import open_initial
from jaxlm.checkpoints.weights import artifact_params
from jaxlm.common.artifact.artifact import Artifact
from jaxlm.common.objectives.length_course import LengthCourse
from jaxlm.common.objectives.quantization_course import Phase, QuantizationCourse
from jaxlm.common.objectives.reference import reference_column
from jaxlm.common.run.identity import read_identity
from jaxlm.common.run.summary import format_bytes
from jaxlm.evaluate import make_loss_function
from jaxlm.load import model_fingerprint
from jaxlm.model.language_model import LanguageModel
from jaxlm.ops.backward_products import step_options
from jaxlm.ops.ternary_linear import Params, TernaryWeight, quantize_params
from jaxlm.parallel.distributed import SharedStop, all_or_none, is_first
from jaxlm.parallel.sharding import batch_sharding, global_batch, parts_of, place
from jaxlm.training.abstract_step import batch_of, step_of_run, with_shardings
from jaxlm.training.device_memory import (
    bytes_per_device,
    check_extras_fit,
    check_state_fits,
    check_step_fits,
    compiled_memory,
    free_bytes,
)
from jaxlm.training.host_allocator import release_freed_memory
from jaxlm.training.inputs import TrainingInputs
from jaxlm.training.known_answers import check_known_answers
from jaxlm.training.objectives.objective import Extras, make_sums_function
from jaxlm.training.objectives.preference import answer_log_probs
from jaxlm.training.optimizer import make_optimizer
from jaxlm.training.resolve import training_model
from jaxlm.training.train_step import Metrics, TrainState, init_state, step_weights
from shared_tokenizer.data.batches import Batch
from shared_tokenizer.data.data_sets import DataSets

Result = TypeVar("Result")


@dataclass(frozen=True)
class Kind:
    """Key of a compiled program: the phase of quantization and the length of the sequences."""

    phase: Phase
    length: int


Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
# Sums of a held-out batch: nats and tokens, of pairs the `Sums` of the objective.
HeldOutSums = Callable[[Params, Batch], Any]


@dataclass(frozen=True)
class Program:
    """The compiled programs, each of which takes a batch of this process's share as numpy arrays."""

    model: LanguageModel
    course: QuantizationCourse
    lengths: LengthCourse
    steps: Mapping[Kind, Step]
    losses: Mapping[Phase, HeldOutSums]

    def take_step(self, number: int, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """Take the step of this number, counted from 1."""
        return self.steps[_kind(self.course, self.lengths, number - 1)](state, batch)

    def weights(self, state: TrainState) -> tuple[Params, HeldOutSums]:
        """Return the weights that the last step computed with, updated, and the loss of a batch for them."""
        last = max(0, int(state.step) - 1)
        phase = self.course.phase(last)
        return step_weights(state.params, state.ternary, self.course, phase, last), self.losses[phase]


def _kind(course: QuantizationCourse, lengths: LengthCourse, step: int) -> Kind:
    return Kind(course.phase(step), lengths.length(step))


def kinds_of_steps(course: QuantizationCourse, lengths: LengthCourse, first: int, last: int) -> list[Kind]:
    """Return the kinds of the steps `first` to `last`, counted from 0, in their order."""
    changes = {first, *course.begins, *(stage.begin for stage in lengths.stages)}
    return list(dict.fromkeys(_kind(course, lengths, step) for step in sorted(changes) if first <= step <= last))


class ProgramBuilder:
    """Makes the first state of a run, then compiles its programs. A stop is noticed while either is under way."""

    def __init__(self, inputs: TrainingInputs, stop: SharedStop, console: Console):
        self._inputs, self._stop, self._console = inputs, stop, console
        self._config, self._mesh = inputs.config, inputs.mesh
        self.model = training_model(inputs.config, inputs.model_config, inputs.mesh.devices.flat[0])
        _, self._state_shapes = step_of_run(self._config, self.model, self._mesh, inputs.objective.function)
        self._shardings = jax.tree.map(lambda leaf: leaf.sharding, self._state_shapes)

    def check_device(self) -> None:
        """Compare known answers on a device of this process. Raises ValueError where one is wrong, on all processes."""
        device = self._mesh.local_devices[0]
        model = self.model
        options = step_options(device.platform, model.dtype, model.backward_dtype, model.config.hidden_size)
        count = all_or_none(
            lambda: check_known_answers(
                device, model.dtype, model.attention, model.backward_dtype, has_onednn=bool(options)
            )
        )
        self._console.print(f"known answers: {count} arrays of a training step are as numpy computes them")

    def first_state(self, checkpoints: Checkpoints) -> TrainState:
        """Return the state to train from: fresh, of `init_from`, or of the newest checkpoint.

        Of a checkpoint, the data iterator is set to its position too. Raises ValueError where the state does not fit
        the devices, or the checkpoint belongs to another tokenizer or other data.
        """
        inputs, shardings = self._inputs, self._shardings
        check_state_fits(self._state_shapes, jax.local_devices()[0])
        optimizer = make_optimizer(self._config.recipe, self._config.schedule_steps)
        # Made where it will live: no device ever holds more than its part.
        initialise = jax.jit(lambda: init_state(self.model, optimizer, self._config.seed), out_shardings=shardings)
        state = self._watch(lambda: jax.block_until_ready(initialise()))
        restored = checkpoints.restore_latest(state.params, state.optimizer_state(), inputs.data.train)
        if restored is not None:
            self._console.print(f"resuming after step {restored.step}")
            step = place(np.int32(restored.step), shardings.step)
            return state.restored(step, restored.params, restored.opt_state, self._ternary(restored.params))
        initial = self._initial()
        if initial is not None:
            params = place(artifact_params(initial), shardings.params)
            return state.replace(params=params, ternary=self._ternary(params))
        return state

    def _initial(self) -> Artifact | None:
        """Return the model that `init_from` names, None without one.

        A resumed run opens it only here, where none of its checkpoints is complete. Raises ValueError where it is not
        the model that the run began with.
        """
        inputs, path = self._inputs, self._config.init_from
        if inputs.initial is not None or path is None:
            return inputs.initial
        if (identity := read_identity(inputs.run.path)) is not None:
            identity.check_fingerprints(inputs.run.path, {"init_from": model_fingerprint(path)})
        insert = self._config.insert_sub_norm
        return open_initial(Path(path), inputs.model_config, self._console.print, insert_sub_norm=insert)

    def _ternary(self, params: Params) -> dict[str, TernaryWeight]:
        quantize = jax.jit(quantize_params, static_argnums=1, out_shardings=self._shardings.ternary)
        return quantize(params, self._inputs.model_config)

    def compile(self, state: TrainState) -> Program:
        """Compile the programs of all phases to come. Raises ValueError where a step does not fit the devices."""
        # Evaluation may come before the next step: the phase of the last one counts too.
        first, last = max(0, int(state.step) - 1), self._config.total_steps - 1
        extras = self._extras(state)
        course, lengths = self._config.course, self._config.lengths
        kinds = kinds_of_steps(course, lengths, first, last)
        steps = {kind: self._compile_step(kind, state, extras) for kind in kinds}
        losses: dict[Phase, HeldOutSums] = {
            phase: self._compile_loss(phase, state, extras) for phase in course.phases(first, last)
        }
        release_freed_memory()
        return Program(self.model, course, lengths, steps, losses)

    def _compile_step(self, kind: Kind, state: TrainState, extras: Extras) -> Step:
        config, mesh, phase = self._config, self._mesh, kind.phase
        sequences = config.lengths.sequences(kind.length, config.sequences_per_step)
        words = [phase] * (phase != "ternary") + [f"{kind.length} tokens"] * (len(config.lengths.stages) > 1)
        name = f" ({', '.join(words)})" if words else ""
        example: Any = self._inputs.data.example
        if len(config.lengths.stages) > 1:
            example = {name: array[: kind.length] for name, array in example.items()}
        batch = batch_of(mesh, sequences, example)
        jitted, _ = step_of_run(config, self.model, mesh, self._inputs.objective.function, phase)
        step = self._phase(f"compiling the training step{name}", lambda: jitted.lower(state, batch, extras).compile())
        device = jax.local_devices()[0]
        check_step_fits(step, sequences, parts_of("batch"), config.grad_accumulation_steps, device)
        self._print_memory(state, extras, compiled_memory(step).temporaries, free_bytes(device))
        return lambda state, batch: step(state, global_batch(mesh, batch), extras)

    def _compile_loss(self, phase: Phase, state: TrainState, extras: Extras) -> HeldOutSums:
        config, mesh = self._config, self._mesh
        name = "" if phase == "ternary" else f" ({phase})"
        weights = step_weights(state.params, state.ternary, config.course, phase, 0)
        val_batch = self._place(self._inputs.data.val[0])
        # Every process reads the loss.
        replicated = NamedSharding(mesh, PartitionSpec())
        if config.compares_pairs:
            sums, operands = make_sums_function(self._inputs.objective.function, self.model, replicated), (extras,)
        else:
            sums, operands = make_loss_function(self.model, replicated), ()
        compiled_loss = self._phase(
            f"compiling the evaluation{name}", lambda: sums.lower(weights, val_batch, *operands).compile()
        )
        return lambda weights, batch: compiled_loss(weights, self._place(batch), *operands)

    def _extras(self, state: TrainState) -> Extras:
        """Return the extras of the objective on the mesh. Raises ValueError where they do not fit the devices."""
        host, pairs = self._inputs.objective.read_extras(), self._inputs.objective.reference
        if pairs is not None:
            host = {"reference": self._reference(state, pairs)}
        shapes = with_shardings(self._mesh, host)
        check_extras_fit(shapes, jax.local_devices()[0])
        return place(host, jax.tree.map(lambda leaf: leaf.sharding, shapes))

    def _reference(self, state: TrainState, pairs: DataSets) -> np.ndarray:
        """Return the log-probabilities `[pairs, 2]` of all answers under the weights of the first step."""
        inputs, config = self._inputs, self._config
        phase, identity = config.course.phase(0), read_identity(inputs.run.path)
        assert identity is not None
        origin = {
            "reference": identity.fingerprints["init_from"],
            "data": inputs.data.fingerprint,
            "seq_len": config.seq_len,
            "phase": phase,
            "dtype": np.dtype(self.model.dtype).name,
        }

        def log_probs() -> Callable[[Batch], np.ndarray]:
            params, ternary = state.params, state.ternary
            if int(state.step) and (initial := self._initial()) is not None:
                params = place(artifact_params(initial), self._shardings.params)
                ternary = self._ternary(params)
            weights = step_weights(params, ternary, config.course, phase, 0)
            answers = jax.jit(
                partial(answer_log_probs, self.model, loss_chunks=config.loss_chunks),
                out_shardings=NamedSharding(self._mesh, PartitionSpec()),
            )
            return lambda batch: np.asarray(answers(weights, self._place(batch)))

        return self._watch(
            lambda: reference_column(
                inputs.run.reference,
                origin,
                pairs,
                config.sequences_per_step // config.grad_accumulation_steps,
                log_probs,
                is_writer=is_first(),
                log=self._console.print,
            )
        )

    def _print_memory(self, state: TrainState, extras: Extras, step: int, free: int | None) -> None:
        parts = f"state {format_bytes(bytes_per_device(state))}, "
        if nbytes := bytes_per_device(extras):
            parts += f"{' and '.join(extras)} {format_bytes(nbytes)}, "
        known = "" if free is None else f" of {format_bytes(free)} free"
        self._console.print(f"memory per device: {parts}a step {format_bytes(step)}{known}")

    def _place(self, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        """Return a batch that every process holds in full as arrays over the mesh."""
        return place(dict(batch), dict.fromkeys(batch, batch_sharding(self._mesh)))

    def _watch(self, work: Callable[[], Result]) -> Result:
        def in_mesh() -> Result:
            # The work may be done by another thread, which has a mesh of its own.
            with jax.set_mesh(self._mesh):
                return work()

        return self._stop.watch(in_mesh)

    def _phase(self, name: str, work: Callable[[], Result]) -> Result:
        start = time.perf_counter()
        self._console.print(f"{name} ...")
        result = self._watch(work)
        self._console.print(f"{name}: {time.perf_counter() - start:.1f} s")
        return result
