"""The trainer: open, compile, take the steps, and keep everything that must survive the end."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, SupportsFloat

import jax
from rich.console import Console

from jaxlm.checkpoints.checkpoint import Checkpoints
from jaxlm.checkpoints.export import export_artifact
from jaxlm.common.architecture.config import recorded_fields
from jaxlm.common.command_line import make_console
from jaxlm.common.next_command import next_command
from jaxlm.common.objectives.pair_evaluation import evaluate_pairs
from jaxlm.common.run.result import new_result, place_result
from jaxlm.common.run.same_run import check_same_settings, fixed_settings
from jaxlm.common.run.stop_request import StopRequested
from jaxlm.common.run.summary import run_table
from jaxlm.common.run.training_loop import sample_settings, train_steps, write_event, write_sample
from jaxlm.common.run.training_report import ReportPlan, TrainingReport
from jaxlm.common.trackers.trackers import Trackers, open_trackers
from jaxlm.evaluate import evaluate
from jaxlm.generate import generate
from jaxlm.ops.machine.user_cache import keep_programs
from jaxlm.parallel.distributed import SharedStop, all_or_none, is_first
from jaxlm.parallel.mesh import describe_mesh, make_mesh
from jaxlm.training.auto_size import choose_sizes
from jaxlm.training.host_allocator import keep_freed_memory, release_freed_memory
from jaxlm.training.inputs import TrainingInputs, open_inputs, open_sets
from jaxlm.training.objectives.choose import choose_objective
from jaxlm.training.open_run import run_settings
from jaxlm.training.program import Program, ProgramBuilder
from jaxlm.training.resolve import describe_model, resolve_steps
from jaxlm.training.train_config import TrainConfig
from jaxlm.training.train_step import ALL_TERNARY, TrainState
from shared_tokenizer.data.evaluation import Evaluation
from shared_tokenizer.manifest import sealed_directory
from shared_tokenizer.settings import with_defaults


def train(config: TrainConfig) -> bool:
    """Train as configured. Returns True when all steps are done, False when a signal ended the run early.

    Raises ValueError on settings, data or a run directory that do not fit, FloatingPointError when the loss is no
    longer finite. In either case the last checkpoint stays as it was.
    """
    keep_freed_memory()
    keep_programs(config.compilation_cache_dir)
    console = make_console()
    console.quiet = not is_first()
    with contextlib.ExitStack() as stack:
        mesh = all_or_none(lambda: make_mesh(config.mesh))
        sets = all_or_none(lambda: open_sets(config, mesh))
        with_steps = resolve_steps(config, sets.train_examples)
        base = None if config.init_from is None else Path(config.init_from)
        objective = all_or_none(lambda: choose_objective(config, sets, config.seq_len, config.loss_chunks, base))
        resolved = all_or_none(lambda: choose_sizes(with_steps, sets, objective, mesh, console.print))
        inputs = all_or_none(lambda: open_inputs(resolved, sets, objective, mesh, console, stack))
        checkpoints = stack.enter_context(contextlib.closing(_open_checkpoints(inputs, console)))
        run = inputs.run if is_first() else None
        trackers = stack.enter_context(open_trackers(config.report_to, run, TrainConfig.settings_file, console.print))
        stack.enter_context(jax.set_mesh(inputs.mesh))
        return _train(inputs, checkpoints, trackers, console)


def _open_checkpoints(inputs: TrainingInputs, console: Console) -> Checkpoints:
    fixed = fixed_settings(TrainConfig, run_settings(inputs.config, recorded_fields(inputs.model_config)))
    settings = json.loads(json.dumps(fixed))  # tuples are lists there

    def check_settings(before: Mapping[str, Any]) -> None:
        if before:  # checkpoints of earlier versions hold none
            path = inputs.run.path / TrainConfig.settings_file
            check_same_settings(path, TrainConfig, with_defaults(TrainConfig, before), settings)

    return Checkpoints(
        inputs.run.checkpoints,
        keep_last=inputs.config.keep_last_checkpoints,
        keep_best=inputs.config.keep_best_checkpoints,
        tokenizer_fingerprint=inputs.tokenizer.fingerprint,
        data_fingerprint=inputs.data.fingerprint,
        log=console.print,
        settings=settings,
        check_settings=check_settings,
    )


def _train(inputs: TrainingInputs, checkpoints: Checkpoints, trackers: Trackers, console: Console) -> bool:
    """Do all steps that are left. Returns False where a stop was asked for."""
    config, stop, run = inputs.config, SharedStop(inputs.stop), None
    try:
        _print_start(inputs, console)
        builder = ProgramBuilder(inputs, stop, console)
        console.print(f"{describe_mesh(inputs.mesh)}; {describe_model(builder.model)}")
        builder.check_device()
        run = _Run(inputs, checkpoints, stop, builder.first_state(checkpoints), trackers, console)
        run.program = builder.compile(run.state)
        _log_event(inputs, f"training from step {int(run.state.step)} to {config.total_steps}")
        train_steps(run, config, run.report, int(run.state.step) + 1, config.total_steps)
        stop.check()
        evaluation = run.evaluate(config.total_steps)
        run.save(evaluation)
        checkpoints.finish()
        run.finish(evaluation)
    except StopRequested as request:
        if run is not None:
            run.save(None)
            checkpoints.finish()
        saved = "nothing to save yet" if run is None else f"saved step {int(run.state.step)}"
        _log_event(inputs, f"{request}: {saved}")
        _print_resume_command(f"{request}: {saved}", inputs, console)
        return False
    except Exception as error:
        if run is not None:
            _log_event(inputs, f"ended by an error: {error}")
        raise
    _log_event(inputs, f"done: step {config.total_steps}")
    return True


def _log_event(inputs: TrainingInputs, text: str) -> None:
    if is_first():
        write_event(inputs.run, text)


class _Run:
    """The state between two steps, and what is done there (see `TrainingRun` in jaxlm/common/run/training_loop.py)."""

    program: Program

    def __init__(
        self,
        inputs: TrainingInputs,
        checkpoints: Checkpoints,
        stop: SharedStop,
        state: TrainState,
        trackers: Trackers,
        console: Console,
    ):
        self.inputs, self.checkpoints, self.stop, self.console = inputs, checkpoints, stop, console
        self.state = state
        config, first = inputs.config, int(state.step)
        self.first_step = first + 1
        plan = ReportPlan(
            config.total_steps, config.log_every_steps, config.tokens_per_step, inputs.data.tokens_per_epoch
        )
        run = inputs.run if is_first() else None
        self.report = TrainingReport(plan, run, first, lambda: checkpoints.latest, console, follower=trackers)

    def take_step(self, step: int) -> Mapping[str, SupportsFloat]:
        self.checkpoints.poll()
        self.state, metrics = self.program.take_step(step, self.state, next(self.inputs.data.train))
        if step == self.first_step:
            release_freed_memory()
        return metrics | self._share(step) | self._length(step)

    def _share(self, step: int) -> dict[str, float]:
        """Return the share of quantization of a step, where the run does not quantize from its first one on."""
        course = self.inputs.config.course
        return {} if course == ALL_TERNARY else {"quantize/lambda": course.share(step - 1)}

    def _length(self, step: int) -> dict[str, float]:
        """Return the length of the sequences of a step, where it changes in the run."""
        lengths = self.inputs.config.lengths
        return {"data/seq_len": lengths.length(step - 1)} if len(lengths.stages) > 1 else {}

    def check_stop(self) -> None:
        self.stop.check_step()

    def evaluate(self, step: int) -> Evaluation:
        with self.report.pause():
            weights, loss = self.program.weights(self.state)
            token_bytes, val = self.inputs.tokenizer.token_bytes, self.inputs.data.val
            if self.inputs.config.compares_pairs:
                found = evaluate_pairs(lambda batch: loss(weights, batch), val, token_bytes, self.stop.check)
                self.report.held_out(step, found.values | self._share(step), found.words)
            else:
                found = evaluate(loss, weights, val, token_bytes, self.stop.check)
                self.report.evaluation(step, found.loss, found.bits_per_byte, self._share(step))
        return found

    def sample(self, step: int) -> str:
        config, tokenizer = self.inputs.config, self.inputs.tokenizer
        if config.sample_tokens == 0:
            return ""
        with self.report.pause():
            prompt = tokenizer.encode_to_continue(config.sample_prompt)
            weights, _ = self.program.weights(self.state)
            ids, sampling = [], sample_settings(config, step)
            for token in generate(self.program.model, weights, prompt, sampling, tokenizer.stop_ids):
                self.stop.check()
                ids.append(token)
            text = config.sample_prompt + tokenizer.decode(ids)
            if is_first():
                write_sample(self.inputs.run.samples, step, text)
        return text

    def save(self, evaluation: Evaluation | None) -> None:
        with self.report.pause():  # which refuses a state that is not finite: it must not be saved
            step = int(self.state.step)
            if step != self.checkpoints.latest:
                # The best checkpoint is one of the model that is trained for: no float one on the way to it.
                is_ternary = self.inputs.config.course.share(step - 1) == 1
                loss = evaluation.loss if evaluation is not None and is_ternary else None
                self.checkpoints.save(
                    step, self.state.params, self.state.optimizer_state(), self.inputs.data.train, loss
                )

    def finish(self, evaluation: Evaluation) -> None:
        """Write the last sample and the artifact, and print the result and the next commands."""
        inputs, log = self.inputs, self.console.print
        text = self.sample(inputs.config.total_steps)
        kind = "packed" if inputs.model_config.has_packed_form else "latent"
        new = new_result(inputs.run.artifact) if is_first() else inputs.run.artifact
        export_artifact(new, inputs.model_config, self.state.params, kind, tokenizer_dir=inputs.run.tokenizer)
        if is_first():
            place_result(new, inputs.run.artifact, inputs.config.schedule_changes, log)
        if text:
            log(f"--- sample\n{text}\n---")
        log(f"held-out loss    {evaluation}")
        if warning := self.report.overfitting(evaluation.loss):
            log(warning)
        if not inputs.config.compares_pairs:
            log(f"unigram model    {inputs.data.unigram}")
        log(f"{kind} artifact  {inputs.run.artifact}")
        log(f"loss curve       {inputs.run.loss_plot}")
        log(f"write with it:   {next_command('generate', '--model', str(inputs.run.path), '--prompt', '...')}")
        name, *words = ("mlx-generate", "--prompt", "...") if inputs.config.objective == "next_token" else ("mlx-chat",)
        log(f"on a Mac:        {next_command(name, '--model', str(inputs.run.artifact), *words)}")


def _print_start(inputs: TrainingInputs, console: Console) -> None:
    """Save the tokenizer of a fresh run, and print what will be trained."""
    if is_first() and not (inputs.run.tokenizer.is_dir() and any(inputs.run.tokenizer.iterdir())):
        with sealed_directory(inputs.run.tokenizer) as directory:
            inputs.tokenizer.save(directory)
    config = inputs.config
    console.print(
        run_table(
            config.preset,
            inputs.model_config,
            steps=config.total_steps,
            batch=", then ".join(
                f"{config.lengths.sequences(stage.length, config.sequences_per_step)} "
                f"{'pairs of 2 ' if config.compares_pairs else ''}x {stage.length}"
                for stage in config.lengths.stages
            ),
            tokens_per_step=config.tokens_per_step,
            tokens_per_epoch=inputs.data.tokens_per_epoch,
        )
    )


def _print_resume_command(what: str, inputs: TrainingInputs, console: Console) -> None:
    everywhere = "" if inputs.config.distributed.alone else " on every host, each with its --distributed flags,"
    command = next_command("train", "--config", str(inputs.run.path / "config.yaml"), "--resume", "true")
    console.print(f"{what}. Resume{everywhere} with\n  {command}")
