"""Trainer: the loop around the training step, and everything that must survive its end."""

import contextlib
import functools
import shlex
from typing import Any

import mlx.core as mx
from rich.console import Console

from jaxlm.common.architecture.parameters import parameters
from jaxlm.common.artifact.artifact import save_artifact
from jaxlm.common.command_line import make_console
from jaxlm.common.run.metrics_log import read_metrics
from jaxlm.common.run.stop_request import StopRequested
from jaxlm.common.run.summary import plot_losses
from jaxlm.common.run.training_report import TrainingReport
from jaxlm.common.sampling import Sampling
from mlxlm.adapters.adapter_directory import save_adapters
from mlxlm.adapters.adapters import base_fingerprint
from mlxlm.finetune.checkpoint import Checkpoints
from mlxlm.finetune.distillation import DistillationLoss
from mlxlm.finetune.finetune_config import FinetuneConfig
from mlxlm.finetune.inputs import SETTINGS, FinetuneInputs, open_inputs
from mlxlm.finetune.optimizer import AdamW
from mlxlm.finetune.processes import any_of, is_first
from mlxlm.finetune.qat import ternary_paths
from mlxlm.finetune.train_step import LossSum, TrainStep
from mlxlm.finetune.warm_start import QuantizationRamp
from mlxlm.generate import generate
from mlxlm.model.layers import to_numpy
from mlxlm.model.loss import loss_sum
from mlxlm.model.trees import flat_arrays
from shared_tokenizer.data.evaluation import Evaluation, evaluate_batches
from shared_tokenizer.data.examples import Example


def finetune(config: FinetuneConfig) -> bool:
    """Fine-tune as configured. Returns True when all steps are done, False when a signal ended the run early.

    Raises ValueError on settings, a model, data or a run directory that do not fit, FloatingPointError when the loss is
    no longer finite, OSError when a checkpoint cannot be written. In any case the last checkpoint stays as it was.
    """
    console = make_console()
    console.quiet = not is_first()
    with contextlib.ExitStack() as stack:
        return _Trainer(open_inputs(config, console, stack), console).run()


class _Trainer:
    def __init__(self, inputs: FinetuneInputs, console: Console):
        self._inputs, self._config, self._console = inputs, inputs.config, console
        self._model, self._run, self._stop = inputs.model, inputs.run, inputs.stop
        optimizer = AdamW(inputs.config.optimizer, inputs.num_train_steps)
        ternary = ternary_paths(inputs.model.config) if inputs.config.method == "qat" else []
        self._model.grad_checkpoint = inputs.config.grad_checkpoint
        self._train_step = TrainStep(
            self._model, optimizer, inputs.config.grad_accumulation_steps, ternary, self._loss()
        )
        self._ramp = QuantizationRamp(self._model, inputs.quantize_steps)
        self._loss_sum = mx.compile(
            lambda batch: loss_sum(self._model, batch, inputs.config.loss_chunks), inputs=[self._model.state]
        )

    def _loss(self) -> LossSum:
        """What is trained on; what is evaluated is always the cross-entropy."""
        config, teacher = self._config, self._inputs.teacher
        if teacher is None:
            return functools.partial(loss_sum, chunks=config.loss_chunks)
        return DistillationLoss(teacher, config.teacher_weight, config.teacher_temperature, config.loss_chunks)

    def run(self) -> bool:
        self._start()
        try:
            self._loop()
            evaluation = self._evaluate(self._inputs.num_train_steps)
        except StopRequested as request:
            self._save()
            self._say_how_to_resume(str(request))
            return False
        self._save()
        self._finish(evaluation)
        return True

    def _start(self) -> None:
        """Begin anew, or where the newest checkpoint is."""
        inputs, say = self._inputs, self._console.print
        taught_by = {} if inputs.teacher is None else {"teacher": base_fingerprint(inputs.teacher)}
        count = sum(array.size for array in self._train_step.parameters.values())
        say(f"method {self._config.method}: {count:,} trainable parameters, {inputs.num_train_steps} steps")
        self._checkpoints = Checkpoints(
            self._run.checkpoints,
            keep_last=self._config.keep_last_checkpoints,
            belongs_to={
                "model": inputs.fingerprint,
                "tokenizer": inputs.tokenizer.fingerprint,
                "data": inputs.data_fingerprint,
                **taught_by,
            },
            say=say,
        )
        restored = self._checkpoints.restore_latest(self._train_step.parameters, self._train_step.optimizer_state)
        if restored is not None:
            say(f"resuming after step {restored.step}")
            self._train_step.restore(restored.step, restored.parameters, restored.optimizer_state)
            inputs.train.set_state(restored.data_state)
            self._ramp.set_step(restored.step)
        self._report = TrainingReport(
            inputs,
            self._run.metrics if is_first() else None,
            self._train_step.step,
            lambda: self._checkpoints.latest,
            self._console,
        )

    def _loop(self) -> None:
        config, last = self._config, self._inputs.num_train_steps
        mx.reset_peak_memory()
        with self._report.training():
            for step in range(self._train_step.step + 1, last + 1):
                self._model.train()
                self._seed(step)
                self._ramp.set_step(step)
                metrics: dict[str, Any] = dict(self._train_step(next(self._inputs.train)))
                # The device works on this step while the last one's numbers are read.
                metrics |= self._ramp.metrics
                self._report.step(step, metrics | {"perf/peak_memory_bytes": mx.get_peak_memory()})
                self._check_stop()
                if _due(step, config.eval_every_steps, last):
                    self._evaluate(step)
                if _due(step, config.sample_every_steps, last):
                    self._sample(step)
                if _due(step, config.checkpoint_every_steps, last):
                    self._save()
            self._report.flush()

    def _seed(self, step: int) -> None:
        """Make the random choices of a step depend on (seed, step, process) alone."""
        group = mx.distributed.init()
        mx.random.seed((self._config.seed + step) * group.size() + group.rank())

    def _check_stop(self) -> None:
        """Raise StopRequested where any process was asked to stop."""
        if any_of(self._stop.requested is not None):
            raise StopRequested(self._stop.requested or "another process")

    def _evaluate(self, step: int) -> Evaluation:
        """Held-out loss; raises StopRequested between batches."""
        self._model.eval()
        with self._report.pause():
            batches, token_bytes = self._inputs.val, self._inputs.tokenizer.token_bytes
            found = evaluate_batches(self._batch_loss, batches, token_bytes, self._check_stop)
            self._report.evaluation(step, found.loss, found.bits_per_byte, self._ramp.metrics)
        return found

    def _batch_loss(self, batch: Example) -> tuple[float, int]:
        nats, tokens = self._loss_sum({name: mx.array(batch[name]) for name in batch})
        return float(nats), int(tokens)

    def _sample(self, step: int) -> str:
        """Write a text sample to samples.txt; its random choices depend on (seed, step) alone."""
        if self._config.sample_tokens == 0 or not is_first():
            return ""
        self._model.eval()
        with self._report.pause():
            prompt = self._inputs.tokenizer.encode_prompt(self._config.sample_prompt)
            sampling = Sampling(
                max_tokens=self._config.sample_tokens, temperature=0.7, top_p=0.95, seed=self._config.seed + step
            )
            ids = []
            for token in generate(self._model, prompt, sampling, self._inputs.tokenizer.eos_id):
                ids.append(token)
                if self._stop.requested:
                    break
            text = self._config.sample_prompt + self._inputs.tokenizer.decode(ids)
            with self._run.samples.open("a", encoding="utf-8") as file:
                file.write(f"=== step {step}\n{text}\n")
        return text

    def _save(self) -> None:
        with self._report.pause():  # which refuses what is not finite: it must not be saved
            done = self._train_step
            if is_first() and done.step not in (0, self._checkpoints.latest):
                self._checkpoints.save(done.step, done.parameters, done.optimizer_state, self._inputs.train.get_state())

    def _finish(self, evaluation: Evaluation) -> None:
        text, say = self._sample(self._train_step.step), self._console.print
        if is_first():
            plot_losses(read_metrics(self._run.metrics), self._run.loss_plot)
            self._export()
        if text:
            say(f"--- sample\n{text}\n---")
        say(f"held-out loss {evaluation.loss:.4f} nats per token  {evaluation.bits_per_byte:.4f} bits per byte")
        say(f"peak memory {mx.get_peak_memory() / 2**30:.2f} GiB")
        say(f"{'latent artifact' if self._inputs.adapters is None else 'adapters'}: {self._result}")

    @property
    def _result(self) -> Any:
        return self._run.artifact if self._inputs.adapters is None else self._run.adapters

    def _export(self) -> None:
        """Write what was trained, unless an earlier start of this run did."""
        if self._result.exists():
            return
        if self._inputs.adapters is not None:
            save_adapters(self._run.adapters, self._model, self._inputs.adapters, self._inputs.tokenizer_dir)
            return
        held, config = flat_arrays(self._model.parameters()), self._model.config
        attributes = {parameter.name: parameter.attribute for parameter in parameters(config)}
        save_artifact(
            self._run.artifact,
            config,
            "latent",
            lambda name: to_numpy(held[attributes[name]]),
            tokenizer_dir=self._inputs.tokenizer_dir,
        )

    def _say_how_to_resume(self, signal_name: str) -> None:
        settings = shlex.quote(str(self._run.path / SETTINGS))
        saved = f"saved step {self._train_step.step}" if self._train_step.step else "nothing to save yet"
        self._console.print(
            f"{signal_name}: {saved}. Resume with\n  python -m mlxlm.finetune --config {settings} --resume true"
        )


def _due(step: int, every: int, last: int) -> bool:
    """Whether something done every `every` steps is due; the last step's is done after the loop."""
    return every > 0 and step % every == 0 and step != last
