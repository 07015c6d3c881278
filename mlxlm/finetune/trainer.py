"""The trainer of the Mac: open, take the steps, and keep everything that must survive the end."""

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, SupportsFloat

import mlx.core as mx
import numpy as np
from rich.console import Console

from jaxlm.common.artifact.artifact import save_artifact
from jaxlm.common.command_line import make_console
from jaxlm.common.next_command import next_command
from jaxlm.common.objectives.pair_evaluation import evaluate_pairs
from jaxlm.common.objectives.reference import reference_column
from jaxlm.common.run.result import new_result, place_result
from jaxlm.common.run.same_run import check_same_settings, fixed_settings
from jaxlm.common.run.stop_request import StopRequested
from jaxlm.common.run.summary import run_table
from jaxlm.common.run.training_loop import sample_settings, train_steps, write_event, write_sample
from jaxlm.common.run.training_report import ReportPlan, TrainingReport
from jaxlm.common.trackers.trackers import Trackers, open_trackers
from mlxlm.adapters.adapter_directory import save_adapters
from mlxlm.finetune.checkpoint import Checkpoints
from mlxlm.finetune.finetune_config import FinetuneConfig
from mlxlm.finetune.inputs import SETTINGS, FinetuneInputs, open_inputs
from mlxlm.finetune.memory import FinetuneMemory, finetune_memory
from mlxlm.finetune.objectives.preference import answer_log_probs
from mlxlm.finetune.optimizer import make_optimizer
from mlxlm.finetune.processes import any_of, is_first
from mlxlm.finetune.qat import ternary_paths
from mlxlm.finetune.train_step import TrainStep
from mlxlm.finetune.trained_tensors import TrainedTensors
from mlxlm.finetune.warm_start import QuantizationRamp
from mlxlm.generate import generate
from mlxlm.model.known_answers import check_known_answers
from mlxlm.model.loss import Batch, loss_sum
from shared_tokenizer.data.evaluation import Evaluation, evaluate_batches
from shared_tokenizer.data.examples import Example
from shared_tokenizer.settings import with_defaults

# With fewer steps, a run that was given epochs says how to train longer.
FEW_STEPS = 20


def finetune(config: FinetuneConfig) -> bool:
    """Fine-tune as configured. Returns True when all steps are done, False when a signal ended the run early.

    Raises ValueError on settings, a model, data or a run directory that do not fit, FloatingPointError when the loss is
    no longer finite, OSError when a checkpoint cannot be written. In any case the last checkpoint stays as it was.
    """
    console = make_console()
    console.quiet = not is_first()
    with contextlib.ExitStack() as stack:
        inputs = open_inputs(config, console, stack)
        check_known_answers()
        tracked = inputs.run if is_first() else None
        trackers = stack.enter_context(open_trackers(config.report_to, tracked, SETTINGS, console.print))
        run = _Run(inputs, trackers, console)
        mx.reset_peak_memory()
        try:
            run.log_event(f"training from step {run.step.step} to {inputs.num_train_steps}")
            train_steps(run, inputs.config, run.report, run.step.step + 1, inputs.num_train_steps)
            evaluation = run.evaluate(inputs.num_train_steps)
        except StopRequested as request:
            run.save(None)
            saved = f"saved step {run.step.step}" if run.step.step else "nothing to save yet"
            run.log_event(f"{request}: {saved}")
            _print_resume_command(f"{request}: {saved}", inputs, console)
            return False
        except Exception as error:
            run.log_event(f"ended by an error: {error}")
            raise
        run.save(evaluation)
        run.finish(evaluation)
        run.log_event(f"done: step {run.step.step}")
        return True


class _Run:
    """The state between two steps, and what is done there (see `TrainingRun` in jaxlm/common/run/training_loop.py)."""

    def __init__(self, inputs: FinetuneInputs, trackers: Trackers, console: Console):
        config, model = inputs.config, inputs.model
        self.inputs, self.config, self.model, self.console = inputs, config, model, console
        model.grad_checkpoint = config.grad_checkpoint
        ternary = ternary_paths(model.config) if config.method == "qat" else []
        optimizer = make_optimizer(config.recipe, config.schedule_steps)
        self.step = TrainStep(model, optimizer, config.grad_accumulation_steps, ternary, inputs.objective.function)
        self.ramp = QuantizationRamp(model, config.course)
        self.sums = mx.compile(self._held_out_sums, inputs=[model.state])
        self.reference = self._reference()
        self.checkpoints = self._open_checkpoints()
        self._print_start()
        self._restore()
        plan = ReportPlan(
            inputs.num_train_steps, config.log_every_steps, inputs.tokens_per_step, inputs.tokens_per_epoch
        )
        run = inputs.run if is_first() else None
        self.report = TrainingReport(
            plan, run, self.step.step, lambda: self.checkpoints.latest, console, follower=trackers
        )

    def _held_out_sums(self, batch: Batch) -> tuple[Any, ...]:
        """Return the nats and tokens of a held-out batch, of pairs the sums of the objective."""
        if self.config.compares_pairs:
            return tuple(self.inputs.objective.function(self.model, batch))
        return loss_sum(self.model, batch, self.config.loss_chunks)

    def _reference(self) -> np.ndarray | None:
        """Return the log-probabilities `[pairs, 2]` of all answers under the model before its first step, or None."""
        inputs, config, pairs = self.inputs, self.config, self.inputs.objective.reference
        if pairs is None:
            return None
        chunks = config.loss_chunks
        origin = {
            "reference": inputs.fingerprints["model"],
            "data": inputs.fingerprints["data"],
            "seq_len": inputs.seq_len,
            "method": config.method,
            "latent_dtype": config.latent_dtype,
        }

        def log_probs() -> Callable[[Example], np.ndarray]:
            self.model.eval()
            answers = mx.compile(lambda batch: answer_log_probs(self.model, batch, chunks), inputs=[self.model.state])
            return lambda batch: np.array(answers({name: mx.array(batch[name]) for name in batch}))

        return reference_column(
            inputs.run.reference,
            origin,
            pairs,
            config.batch_size // config.grad_accumulation_steps,
            log_probs,
            is_writer=is_first(),
            log=self.console.print,
        )

    def _as_arrays(self, example: Example | Batch) -> Batch:
        """Return a batch as MLX arrays, with the log-probabilities of its pairs under the reference."""
        batch = {name: mx.array(example[name]) for name in example}
        if self.reference is not None:
            batch["reference"] = mx.array(self.reference[np.array(batch["pair"])])
        return batch

    def _open_checkpoints(self) -> Checkpoints:
        inputs = self.inputs
        fixed = json.loads(json.dumps(fixed_settings(FinetuneConfig, asdict(self.config))))

        def check_settings(before: Mapping[str, Any]) -> None:
            check_same_settings(
                inputs.run.path / SETTINGS, FinetuneConfig, with_defaults(FinetuneConfig, before), fixed
            )

        return Checkpoints(
            inputs.run.checkpoints,
            keep_last=self.config.keep_last_checkpoints,
            belongs_to=inputs.fingerprints,
            log=self.console.print,
            settings=fixed,
            check_settings=check_settings,
        )

    def log_event(self, text: str) -> None:
        """Add a line to run.log."""
        if is_first():
            write_event(self.inputs.run, text)

    def _print_start(self) -> None:
        inputs, config = self.inputs, self.config
        trainable = sum(array.size for array in self.step.parameters.values())
        self.console.print(
            run_table(
                config.model,
                self.model.config,
                steps=inputs.num_train_steps,
                batch=f"{config.batch_size} {'pairs of 2 ' if config.compares_pairs else ''}x {inputs.seq_len}",
                tokens_per_step=inputs.tokens_per_step,
                tokens_per_epoch=inputs.tokens_per_epoch,
            )
        )
        self.console.print(f"method {config.method}: {trainable:,} trainable parameters")
        self.console.print(str(self._memory()))
        if inputs.has_steps_of_data and inputs.num_train_steps < FEW_STEPS:
            self.console.print(
                f"note: all of this data is {inputs.num_train_steps} step(s), too few to learn much; "
                "--num_train_steps takes more"
            )

    def _memory(self) -> FinetuneMemory:
        config = self.config
        micro_batch = config.batch_size // config.grad_accumulation_steps // mx.distributed.init().size()
        return finetune_memory(
            self.model,
            self.step.parameters,
            self.step.optimizer_state,
            max(micro_batch, 1) * config.rows_per_example * self.inputs.seq_len,
            grad_checkpoint=config.grad_checkpoint,
            loss_chunks=config.loss_chunks,
            num_layers=config.num_layers or self.model.config.num_layers,
            is_latent=config.method == "qat",
            teacher_bytes=self.inputs.objective.teacher_bytes,
        )

    def _restore(self) -> None:
        """Go on from the newest checkpoint, if there is one."""
        restored = self.checkpoints.restore_latest(self.step.parameters, self.step.optimizer_state)
        if restored is not None:
            self.console.print(f"resuming after step {restored.step}")
            self.step.restore(restored.step, restored.parameters, restored.optimizer_state)
            self.inputs.train.set_state(restored.data_state)
            self.ramp.set_step(restored.step)

    def take_step(self, step: int) -> Mapping[str, SupportsFloat]:
        self.model.train()
        # The random choices of a step depend on (seed, step, process) alone.
        group = mx.distributed.init()
        mx.random.seed((self.config.seed + step) * group.size() + group.rank())
        self.ramp.set_step(step)
        metrics = dict[str, Any](self.step(self._as_arrays(next(self.inputs.train))))
        return metrics | self.ramp.metrics | {"perf/peak_memory_bytes": mx.get_peak_memory()}

    def check_stop(self) -> None:
        requested = self.inputs.stop.requested
        if any_of(requested is not None):
            raise StopRequested(requested or "another process")

    def evaluate(self, step: int) -> Evaluation:
        self.model.eval()
        with self.report.pause():
            batches, token_bytes = self.inputs.val, self.inputs.tokenizer.token_bytes
            if self.config.compares_pairs:
                found = evaluate_pairs(self._batch_sums, batches, token_bytes, self.check_stop)
                self.report.held_out(step, found.values | self.ramp.metrics, found.words)
            else:
                found = evaluate_batches(self._batch_sums, batches, token_bytes, self.check_stop)
                self.report.evaluation(step, found.loss, found.bits_per_byte, self.ramp.metrics)
        return found

    def _batch_sums(self, batch: Example) -> Any:
        sums = self.sums(self._as_arrays(batch))
        mx.eval(sums)
        return sums

    def sample(self, step: int) -> str:
        config, tokenizer = self.config, self.inputs.tokenizer
        if config.sample_tokens == 0 or not is_first():
            return ""
        self.model.eval()
        with self.report.pause():
            prompt = tokenizer.encode_to_continue(config.sample_prompt)
            ids = []
            for token in generate(self.model, prompt, sample_settings(config, step), tokenizer.stop_ids):
                ids.append(token)
                # A sample is whole or missing. Of several processes only this one samples, so all wait for it; the last
                # sample is followed by the result.
                if mx.distributed.init().size() == 1 and step != self.inputs.num_train_steps:
                    self.check_stop()
            text = config.sample_prompt + tokenizer.decode(ids)
            write_sample(self.inputs.run.samples, step, text)
        return text

    def save(self, evaluation: Evaluation | None) -> None:
        with self.report.pause():  # which refuses a state that is not finite: it must not be saved
            done = self.step
            if is_first() and done.step not in (0, self.checkpoints.latest):
                self.checkpoints.save(done.step, done.parameters, done.optimizer_state, self.inputs.train.get_state())

    def finish(self, evaluation: Evaluation) -> None:
        """Write the last sample and the adapters or artifact, and print the result and the next commands."""
        inputs, log = self.inputs, self.console.print
        text = self.sample(self.step.step)
        result = inputs.run.artifact if inputs.adapters is None else inputs.run.adapters
        if is_first():
            new = new_result(result)
            self._export(new)
            place_result(new, result, self.config.schedule_changes, log)
        if text:
            log(f"--- sample\n{text}\n---")
        log(f"held-out loss    {evaluation}")
        if warning := self.report.overfitting(evaluation.loss):
            log(warning)
        log(f"peak memory      {mx.get_peak_memory() / 2**30:.2f} GiB")
        if inputs.adapters is None:
            log(f"{inputs.artifact.kind} artifact  {result}")
            log(f"write with it:   {next_command('mlx-generate', '--model', str(result), '--prompt', '...')}")
        else:
            chosen = ("--model", self.config.model, "--adapter_path", str(result))
            log(f"adapters         {result}")
            log(f"chat with them:  {next_command('mlx-chat', *chosen)}")
            merged = ("--output_dir", str(inputs.run.path / "merged"))
            log(f"merge them:      {next_command('mlx-merge', *chosen, *merged)}")

    def _export(self, directory: Path) -> None:
        inputs = self.inputs
        if inputs.adapters is not None:
            save_adapters(directory, self.model, inputs.adapters, inputs.tokenizer_dir)
            return
        config = self.model.config
        tensors = TrainedTensors(inputs.artifact, config, self.step.parameters)
        save_artifact(directory, config, tensors.kind, tensors.read, tokenizer_dir=inputs.tokenizer_dir)
        if tensors.codes:
            share = tensors.changed / tensors.codes
            self.console.print(f"codes changed    {tensors.changed:,} of {tensors.codes:,} trained ({share:.2%})")


def _print_resume_command(what: str, inputs: FinetuneInputs, console: Console) -> None:
    command = next_command("mlx-finetune", "--config", str(inputs.run.path / SETTINGS), "--resume", "true")
    console.print(f"{what}. Resume with\n  {command}")
