"""Trainer: the loop around the training step, and everything that must survive its end."""

import contextlib
import shlex
import time
import warnings
from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from rich.console import Console

from jaxlm.checkpoints.checkpoint import Checkpoints
from jaxlm.checkpoints.export import export_artifact
from jaxlm.common.command_line import make_console
from jaxlm.common.run.metrics_log import read_metrics
from jaxlm.common.run.stop_request import StopRequested
from jaxlm.common.run.summary import coverage_table, plot_losses
from jaxlm.common.run.training_report import TrainingReport
from jaxlm.common.sampling import Sampling
from jaxlm.evaluate import evaluate, make_loss_function
from jaxlm.generate import generate
from jaxlm.ops.cpu import compiler_options
from jaxlm.ops.ternary_linear import Params, TernaryWeight, quantize_params, with_ternary
from jaxlm.parallel.distributed import SharedStop, all_or_none, is_first
from jaxlm.parallel.sharding import (
    batch_sharding,
    batch_ways,
    describe_mesh,
    global_batch,
    place,
)
from jaxlm.training.abstract_step import abstract_batch, step_of_run
from jaxlm.training.auto_size import choose_sizes
from jaxlm.training.device_memory import check_state_fits, check_step_fits
from jaxlm.training.host_allocator import keep_freed_memory, release_freed_memory
from jaxlm.training.inputs import TrainingInputs, open_inputs, open_sets
from jaxlm.training.optimizer import make_optimizer
from jaxlm.training.train_config import TrainConfig, describe_model, training_model
from jaxlm.training.train_step import TrainState, init_state
from shared_tokenizer.data.batches import Batch
from shared_tokenizer.data.evaluation import Evaluation
from shared_tokenizer.manifest import sealed_directory

Result = TypeVar("Result")


def train(config: TrainConfig) -> bool:
    """Train as configured. Returns True when all steps are done, False when a signal ended the run early.

    Raises ValueError on settings, data or a run directory that do not fit, FloatingPointError when the loss
    is no longer finite. In either case the last checkpoint stays as it was.
    """
    keep_freed_memory()
    if config.compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", config.compilation_cache_dir)
        # Said in our words when the step is compiled.
        warnings.filterwarnings("ignore", "Error writing persistent compilation cache .*onednn")
    console = make_console()
    console.quiet = not is_first()
    with contextlib.ExitStack() as stack:
        sets = all_or_none(lambda: open_sets(config))
        chosen = all_or_none(lambda: choose_sizes(config, sets, console.print))
        # No name holds the inputs: the weights among them are let go once they are placed.
        return _Trainer(all_or_none(lambda: open_inputs(chosen, sets, console, stack)), console).run()


class _Trainer:
    def __init__(self, inputs: TrainingInputs, console: Console):
        config, model_config, mesh = inputs.config, inputs.model_config, inputs.mesh
        self._config, self._model_config, self._mesh = config, model_config, mesh
        self._tokenizer, self._data, self._initial = inputs.tokenizer, inputs.data, inputs.initial
        self._run, self._stop, self._console = inputs.run, SharedStop(inputs.stop), console
        self._model = training_model(config, model_config, mesh.devices.flat[0])
        self._iterator = inputs.data.train
        self._state: TrainState | None = None  # of the last whole step

    def run(self) -> bool:
        config = self._config
        self._checkpoints = Checkpoints(
            self._run.checkpoints,
            keep_last=config.keep_last_checkpoints,
            keep_best=config.keep_best_checkpoints,
            tokenizer_fingerprint=self._tokenizer.fingerprint,
            data_fingerprint=self._data.fingerprint,
            log=self._console.print,
        )
        try:
            with jax.set_mesh(self._mesh):
                return self._run_to_the_end()
        finally:
            self._checkpoints.close()

    def _run_to_the_end(self) -> bool:
        if is_first() and not self._run.tokenizer.exists():
            with sealed_directory(self._run.tokenizer) as directory:
                self._tokenizer.save(directory)
        self._console.print(coverage_table(self._model_config))
        self._console.print(describe_mesh(self._mesh))
        self._console.print(describe_model(self._model))
        try:
            state = self._start()
            step_function, self._loss_function = self._compile(state)
            state = self._loop(state, step_function)
            self._stop.check()
            evaluation = self._evaluate(state, self._config.num_train_steps)
            self._save(state, evaluation)
            self._checkpoints.finish()
            self._finish(state, evaluation)
        except StopRequested as request:
            if self._state is not None:
                self._save(self._state, None)
                self._checkpoints.finish()
            self._say_how_to_resume(str(request))
            return False
        return True

    def _start(self) -> TrainState:
        """The state to train from: fresh, from an artifact, or restored with the data iterator in its place."""
        config = self._config
        self._step, shapes = step_of_run(config, self._model, self._mesh)
        self._shardings = shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)
        check_state_fits(shapes, jax.local_devices()[0])
        optimizer = make_optimizer(config.optimizer, config.num_train_steps)
        # Made where it will live: no device ever holds more than its part.
        initialise = jax.jit(lambda: init_state(self._model, optimizer, config.seed), out_shardings=shardings)
        state = self._watch(lambda: jax.block_until_ready(initialise()))
        restored = self._checkpoints.restore_latest(state.params, state.optimizer_memory(), self._iterator)
        if restored is not None:
            self._console.print(f"resuming after step {restored.step}")
            step = place(np.int32(restored.step), shardings.step)
            state = state.restored(step, restored.params, restored.opt_state, self._ternary(restored.params))
        elif self._initial is not None:
            params, self._initial = place(self._initial, shardings.params), None
            state = state.replace(params=params, ternary=self._ternary(params))
        self._report = TrainingReport(
            config,
            self._run.metrics if is_first() else None,
            int(state.step),
            lambda: self._checkpoints.latest,
            self._console,
        )
        self._state = state
        return state

    def _ternary(self, params: Params) -> dict[str, TernaryWeight]:
        quantize = jax.jit(quantize_params, static_argnums=1, out_shardings=self._shardings.ternary)
        return quantize(params, self._model_config)

    def _compile(self, state: TrainState) -> tuple[Callable, Callable]:
        config = self._config
        if config.compilation_cache_dir and compiler_options(self._mesh.devices.flat[0].platform):
            self._console.print(
                "compilation_cache_dir: the training step is not kept there, for its oneDNN products cannot be"
            )
        batch = abstract_batch(self._mesh, config.sequences_per_step, config.seq_len, config.document_mask)
        compiled = self._phase("compiling the training step", lambda: self._step.lower(state, batch).compile())
        check_step_fits(
            compiled, config.sequences_per_step, batch_ways(), config.grad_accumulation_steps, jax.local_devices()[0]
        )
        whole = NamedSharding(self._mesh, PartitionSpec())  # the loss is read by every process
        loss = make_loss_function(self._model, whole)
        weights = with_ternary(state.params, state.ternary)
        val_batch = self._place(self._data.val[0])
        compiled_loss = self._phase("compiling the evaluation", lambda: loss.lower(weights, val_batch).compile())
        release_freed_memory()
        return compiled, lambda weights, batch: compiled_loss(weights, self._place(batch))

    def _place(self, batch: Batch) -> dict[str, jax.Array]:
        """A batch that every process has whole."""
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

    def _loop(self, state: TrainState, step_function: Callable) -> TrainState:
        config = self._config
        with self._report.training():
            first = int(state.step) + 1
            for step in range(first, config.num_train_steps + 1):
                state, metrics = step_function(state, global_batch(self._mesh, next(self._iterator)))
                if step == first:
                    release_freed_memory()
                # The device works on this step while the last one's numbers are read.
                self._report.step(step, metrics)
                self._state = state
                self._stop.check_step()
                evaluation = None
                if _due(step, config.eval_every_steps, config.num_train_steps):
                    evaluation = self._evaluate(state, step)
                if _due(step, config.sample_every_steps, config.num_train_steps):
                    self._sample(state, step)
                if _due(step, config.checkpoint_every_steps, config.num_train_steps):
                    self._save(state, evaluation)
                self._checkpoints.poll()
            self._report.flush()
        return state

    def _evaluate(self, state: TrainState, step: int) -> Evaluation:
        """Held-out loss; raises StopRequested between batches."""
        with self._report.pause():
            weights = with_ternary(state.params, state.ternary)
            token_bytes = self._tokenizer.token_bytes
            found = evaluate(self._loss_function, weights, self._data.val, token_bytes, self._stop.check)
            self._report.evaluation(step, found.loss, found.bits_per_byte)
        return found

    def _sample(self, state: TrainState, step: int) -> str:
        """Write a text sample to samples.txt; its random choices depend on (seed, step) alone."""
        config = self._config
        if config.sample_tokens == 0:
            return ""
        with self._report.pause():
            prompt = self._tokenizer.encode_prompt(config.sample_prompt)
            sampling = Sampling(max_tokens=config.sample_tokens, temperature=0.7, top_p=0.95, seed=config.seed + step)
            weights = with_ternary(state.params, state.ternary)
            ids = []
            for token in generate(self._model, weights, prompt, sampling, self._tokenizer.eos_id):
                self._stop.check()
                ids.append(token)
            text = config.sample_prompt + self._tokenizer.decode(ids)
            if is_first():
                with self._run.samples.open("a", encoding="utf-8") as file:
                    file.write(f"=== step {step}\n{text}\n")
        return text

    def _save(self, state: TrainState, evaluation: Evaluation | None) -> None:
        with self._report.pause():  # which refuses what is not finite: it must not be saved
            step = int(state.step)
            if step == self._checkpoints.latest:
                return
            loss = None if evaluation is None else evaluation.loss
            self._checkpoints.save(step, state.params, state.optimizer_memory(), self._iterator, loss)

    def _finish(self, state: TrainState, evaluation: Evaluation) -> None:
        say = self._console.print
        text = self._sample(state, self._config.num_train_steps)
        if is_first():
            plot_losses(read_metrics(self._run.metrics), self._run.loss_plot)
        kind = "packed" if self._model_config.has_packed_form else "latent"
        # All processes have to see the same.
        # None begins to write before all have looked.
        if not all_or_none(self._run.artifact.exists):
            export_artifact(
                self._run.artifact, self._model_config, state.params, kind, tokenizer_dir=self._run.tokenizer
            )
        if text:
            say(f"--- sample\n{text}\n---")
        unigram = self._data.unigram
        say(f"held-out loss      {evaluation.loss:.4f} nats per token  {evaluation.bits_per_byte:.4f} bits per byte")
        say(f"of a unigram model {unigram.loss:.4f} nats per token  {unigram.bits_per_byte:.4f} bits per byte")
        say(f"{kind} artifact: {self._run.artifact}")

    def _say_how_to_resume(self, signal_name: str) -> None:
        config = shlex.quote(str(self._run.path / "config.yaml"))
        saved = "nothing to save yet" if self._state is None else f"saved step {int(self._state.step)}"
        everywhere = "" if self._config.distributed.alone else " on every host, each with its --distributed flags,"
        self._console.print(
            f"{signal_name}: {saved}. Resume{everywhere} with\n"
            f"  python scripts/train_jax.py --config {config} --resume true"
        )


def _due(step: int, every: int, last: int) -> bool:
    """Whether something done every `every` steps is due; the last step's is done after the loop."""
    return every > 0 and step % every == 0 and step != last
