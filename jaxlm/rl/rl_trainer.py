"""Training by rewards: sample answers, reward them, take a step, and keep everything that must survive the end.

It works on one device of one process.
"""

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from typing import Any, SupportsFloat, TypeVar

import jax
import numpy as np
from rich.console import Console

from jaxlm.checkpoints.checkpoint import Checkpoints
from jaxlm.checkpoints.export import export_artifact
from jaxlm.checkpoints.weights import artifact_params
from jaxlm.common.architecture.config import recorded_fields
from jaxlm.common.command_line import make_console
from jaxlm.common.next_command import next_command
from jaxlm.common.run.result import new_result, place_result
from jaxlm.common.run.same_run import check_same_settings, fixed_settings
from jaxlm.common.run.stop_request import StopRequested
from jaxlm.common.run.training_loop import train_steps, write_event, write_sample
from jaxlm.common.run.training_report import ReportPlan, TrainingReport
from jaxlm.common.trackers.trackers import Trackers, open_trackers
from jaxlm.ops.ternary_linear import Params, quantize_params, ternarize, with_ternary
from jaxlm.parallel.mesh import describe_mesh, make_mesh
from jaxlm.parallel.mesh_config import MeshConfig
from jaxlm.parallel.sharding import place
from jaxlm.rl.reward_plot import draw_rewards
from jaxlm.rl.rl_config import RLConfig
from jaxlm.rl.rl_inputs import RLInputs, open_rl_inputs
from jaxlm.rl.rollouts import advantages_of, make_batch, rollout_metrics
from jaxlm.training.abstract_step import abstract_step
from jaxlm.training.device_memory import check_state_fits
from jaxlm.training.host_allocator import keep_freed_memory, release_freed_memory
from jaxlm.training.known_answers import check_known_answers
from jaxlm.training.objectives.policy_gradient import policy_gradient
from jaxlm.training.open_run import run_settings
from jaxlm.training.optimizer import make_optimizer
from jaxlm.training.resolve import describe_model
from jaxlm.training.train_step import TrainState, init_state
from shared_tokenizer.data.batches import Batch
from shared_tokenizer.manifest import sealed_directory
from shared_tokenizer.settings import with_defaults

Result = TypeVar("Result")
# Sampler and trainer run the same layers on the same weights. In float32 their log-probabilities differ by rounding: by
# up to 5e-5, and in a ternary model by up to 1e-2 where an activation lies at the border of two codes.
LARGEST_RATIO_ERROR = 1e-2
# Fewest rows of the batch of expert iteration, whose size follows the answers that pass.
_FEWEST_ROWS = 8


class _Position:
    """The place in the prompts, which the step alone decides."""

    def get_state(self) -> Any:
        return {}

    def set_state(self, state: Any) -> None:
        pass


def train_rl(config: RLConfig) -> bool:
    """Train as configured. Returns True when all steps are done, False when a signal ended the run early.

    Raises ValueError on settings, prompts, a verifier or a run directory that do not fit, FloatingPointError when the
    loss is no longer finite. In either case the last checkpoint stays as it was.
    """
    keep_freed_memory()
    console = make_console()
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with contextlib.ExitStack() as stack:
        inputs = open_rl_inputs(config, console, stack)
        checkpoints = stack.enter_context(contextlib.closing(_open_checkpoints(inputs, console)))
        trackers = stack.enter_context(
            open_trackers(config.report_to, inputs.run, RLConfig.settings_file, console.print)
        )
        stack.enter_context(jax.set_mesh(mesh))
        return _train(inputs, checkpoints, trackers, console)


def _open_checkpoints(inputs: RLInputs, console: Console) -> Checkpoints:
    config, path = inputs.config, inputs.run.path / RLConfig.settings_file
    settings = json.loads(
        json.dumps(fixed_settings(RLConfig, run_settings(config, recorded_fields(inputs.model.config))))
    )

    def check_settings(before: Mapping[str, Any]) -> None:
        check_same_settings(path, RLConfig, with_defaults(RLConfig, before), settings)

    return Checkpoints(
        inputs.run.checkpoints,
        keep_last=config.keep_last_checkpoints,
        keep_best=config.keep_best_checkpoints,
        tokenizer_fingerprint=inputs.tokenizer.fingerprint,
        data_fingerprint=inputs.source.fingerprint,
        log=console.print,
        settings=settings,
        check_settings=check_settings,
    )


def _train(inputs: RLInputs, checkpoints: Checkpoints, trackers: Trackers, console: Console) -> bool:
    """Do all steps that are left. Returns False where a stop was asked for."""
    config, run = inputs.config, None
    try:
        if not (inputs.run.tokenizer.is_dir() and any(inputs.run.tokenizer.iterdir())):
            with sealed_directory(inputs.run.tokenizer) as directory:
                inputs.tokenizer.save(directory)
        run = _Run(inputs, checkpoints, trackers, console)
        write_event(inputs.run, f"training from step {int(run.state.step)} to {config.total_steps}")
        if run.first_step == 1:
            run.evaluate(0)
        train_steps(run, config, run.report, run.first_step, config.total_steps)
        inputs.stop.check()
        found = run.evaluate(config.total_steps)
        run.save(found)
        checkpoints.finish()
        run.finish(found)
    except StopRequested as request:
        saved = "nothing to save yet"
        if run is not None:
            run.save(None)
            checkpoints.finish()
            saved = f"saved step {int(run.state.step)}"
        write_event(inputs.run, f"{request}: {saved}")
        command = next_command("train-rl", "--resume", "true", "--output_dir", str(inputs.run.path))
        console.print(f"{request}: {saved}. Resume with\n  {command}")
        return False
    except Exception as error:
        write_event(inputs.run, f"ended by an error: {error}")
        raise
    write_event(inputs.run, f"done: step {config.total_steps}")
    return True


class _Run:
    """The state between two steps, and what is done there (see `TrainingRun` in jaxlm/common/run/training_loop.py)."""

    def __init__(self, inputs: RLInputs, checkpoints: Checkpoints, trackers: Trackers, console: Console):
        self._inputs, self._checkpoints, self._console = inputs, checkpoints, console
        self._mesh = jax.sharding.get_mesh()
        config, model = inputs.config, inputs.model
        device = self._mesh.devices.flat[0]
        console.print(f"{describe_mesh(self._mesh)}; {describe_model(model)}")
        check_known_answers(device, model.dtype, model.attention)
        self._objective = policy_gradient(config.temperature, config.kl_weight)
        self._jitted, shapes = abstract_step(
            model,
            self._mesh,
            recipe=config.recipe,
            num_train_steps=config.schedule_steps,
            grad_accumulation_steps=config.grad_accumulation_steps,
            objective=self._objective,
        )
        check_state_fits(shapes, device)
        self.state, self._reference = self._first_state(shapes)
        self._programs: dict[int, Callable[..., Any]] = {}
        first = int(self.state.step)
        self.first_step = first + 1
        tokens = config.samples_per_step * inputs.length
        plan = ReportPlan(config.total_steps, config.log_every_steps, tokens, tokens * inputs.source.steps_per_epoch)
        self.report = TrainingReport(
            plan, inputs.run, first, lambda: checkpoints.latest, console, draw_rewards, trackers
        )

    def take_step(self, step: int) -> Mapping[str, SupportsFloat]:
        self._checkpoints.poll()
        config, inputs = self._inputs.config, self._inputs
        rollouts = inputs.source.rollouts(inputs.sampler, self._weights(), step, inputs.stop.check)
        if rollouts.faults:
            found = ", ".join(f"{count} {kind}" for kind, count in sorted(rollouts.faults.items()))
            self._console.print(
                f"warning: step {step}: no reward where the verifier failed ({found}): {rollouts.first_fault}"
            )
        advantages = advantages_of(rollouts.turns, config.method, config.pass_reward)
        turns, rows = rollouts.turns, inputs.rows
        if config.method == "expert_iteration":
            kept = np.flatnonzero(advantages)
            turns, advantages = [turns[index] for index in kept], advantages[kept]
            rows = _rows_for(len(turns), rows)
        batch = make_batch(turns, advantages, rows, inputs.length, config.method)
        self.state, metrics = self._program(batch)(self.state, batch, self._reference)
        if step == self.first_step:
            release_freed_memory()
            self._check_ratio(float(metrics["train/ratio_error"]))
        return metrics | rollout_metrics(rollouts, config.pass_reward)

    def check_stop(self) -> None:
        self._inputs.stop.check()

    def evaluate(self, step: int) -> dict[str, float]:
        with self.report.pause():
            found = self._inputs.source.evaluate(self._inputs.sampler, self._weights(), self._inputs.stop.check)
            words = "  ".join(f"{name.removeprefix('val/')} {value:.3f}" for name, value in found.items())
            if step == 0:  # before training: a line of the log, as metrics.jsonl begins with step 1
                write_event(self._inputs.run, f"held-out, before training: {words}")
                self._console.print(f"before training: held-out {words}")
            else:
                self.report.held_out(step, found, f"held-out {words}")
        return found

    def sample(self, step: int) -> str:
        with self.report.pause():
            text = self._inputs.source.show(self._inputs.sampler, self._weights())
            write_sample(self._inputs.run.samples, step, text)
        return text

    def save(self, evaluation: dict[str, float] | None) -> None:
        with self.report.pause():  # which refuses a state that is not finite: it must not be saved
            step = int(self.state.step)
            if step != self._checkpoints.latest:
                # Checkpoints keep those of the lowest number.
                loss = None if evaluation is None else -next(iter(evaluation.values()))
                self._checkpoints.save(step, self.state.params, self.state.optimizer_state(), _Position(), loss)

    def finish(self, evaluation: dict[str, float]) -> None:
        """Write the last sample and the artifact, and print the result and the next command."""
        inputs, log = self._inputs, self._console.print
        text = self.sample(inputs.config.total_steps)
        kind = "packed" if inputs.model.config.has_packed_form else "latent"
        new = new_result(inputs.run.artifact)
        export_artifact(new, inputs.model.config, self.state.params, kind, tokenizer_dir=inputs.run.tokenizer)
        place_result(new, inputs.run.artifact, inputs.config.schedule_changes, log)
        log(f"--- answers\n{text}\n---")
        for name, value in evaluation.items():
            log(f"held-out {name.removeprefix('val/'):<10} {value:.4f}")
        log(f"{kind} artifact  {inputs.run.artifact}")
        log(f"rewards          {inputs.run.reward_plot}")
        log(f"write with it:   {next_command('generate', '--model', str(inputs.run.path), '--prompt', '...')}")

    def _weights(self) -> Params:
        return with_ternary(self.state.params, self.state.ternary)

    def _first_state(self, shapes: TrainState) -> tuple[TrainState, Params | None]:
        """Return the state to train from, and the reference of the KL divergence where it has a weight."""
        inputs, model = self._inputs, self._inputs.model
        shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)
        optimizer = make_optimizer(inputs.config.recipe, inputs.config.schedule_steps)
        initialise = jax.jit(lambda: init_state(model, optimizer, inputs.config.seed), out_shardings=shardings)
        state = self._watch(lambda: jax.block_until_ready(initialise()))
        quantize = jax.jit(quantize_params, static_argnums=1, out_shardings=shardings.ternary)
        restored = self._checkpoints.restore_latest(state.params, state.optimizer_state(), _Position())
        start = None if inputs.initial is None else artifact_params(inputs.initial)
        reference = None
        if inputs.config.kl_weight:
            assert start is not None
            reference = jax.jit(ternarize, static_argnums=1)(start, model.config)
        if restored is not None:
            self._console.print(f"resuming after step {restored.step}")
            step, ternary = place(np.int32(restored.step), shardings.step), quantize(restored.params, model.config)
            return state.restored(step, restored.params, restored.opt_state, ternary), reference
        if start is None:
            raise ValueError(
                f"{inputs.run.path}: found no complete checkpoint to resume from; remove its damaged checkpoints, and "
                "resume: the run then starts from init_from again"
            )
        params = place(start, shardings.params)
        return state.replace(params=params, ternary=quantize(params, model.config)), reference

    def _program(self, batch: Batch) -> Callable[..., Any]:
        """Return the compiled step for batches of this size."""
        rows = len(batch["inputs"])
        if rows not in self._programs:
            start = time.perf_counter()
            self._programs[rows] = self._watch(lambda: self._jitted.lower(self.state, batch, self._reference).compile())
            self._console.print(f"compiling the training step of {rows} rows: {time.perf_counter() - start:.1f} s")
        return self._programs[rows]

    def _watch(self, work: Callable[[], Result]) -> Result:
        def in_mesh() -> Result:
            # The work is done by another thread, which has a mesh of its own.
            with jax.set_mesh(self._mesh):
                return work()

        return self._inputs.stop.watch(in_mesh)

    def _check_ratio(self, error: float) -> None:
        """Raise ValueError where the sampler's log-probabilities are not those of the trainer, in float32."""
        self._console.print(f"importance ratio of sampler and trainer: 1 within {error:.1e}, the mean over tokens")
        if self._inputs.model.dtype == np.float32 and error > LARGEST_RATIO_ERROR:
            raise ValueError(
                f"importance ratio: found a mean distance of {error:.3g} from 1, expected "
                f"at most {LARGEST_RATIO_ERROR}: the sampler does not compute what the trainer does here; report it"
            )


def _rows_for(count: int, most: int) -> int:
    """Return the rows of a batch of so many answers: few sizes, so that few programs are compiled."""
    rows = min(most, _FEWEST_ROWS)
    while rows < count:
        rows = min(most, 4 * rows)
    return rows
