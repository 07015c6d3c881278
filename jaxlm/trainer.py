"""Trainer: the loop around the training step, and everything that must survive its end."""

import contextlib
import math
import shlex
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import grain
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxlm.checkpoint import Checkpoints
from jaxlm.data import Batch, host_batches
from jaxlm.device_memory import check_state_fits, check_step_fits
from jaxlm.distributed import SharedStop, all_or_none, is_first
from jaxlm.evaluate import Evaluation, evaluate, make_loss_function, unigram_evaluation
from jaxlm.export import export_artifact
from jaxlm.generate import generate
from jaxlm.host_allocator import keep_freed_memory
from jaxlm.init_from import initial_params
from jaxlm.metrics import coverage_table, plot_losses
from jaxlm.model import LanguageModel
from jaxlm.optimizer import learning_rate_schedule, make_optimizer
from jaxlm.run_directory import MetricsLog, RunDirectory, open_run, read_metrics
from jaxlm.sharding import (
    batch_sharding,
    batch_share,
    batch_ways,
    check_batch,
    check_model,
    describe_mesh,
    global_batch,
    make_mesh,
    place,
    tree_shardings,
)
from jaxlm.spec.command_line import make_console
from jaxlm.spec.config import ModelConfig
from jaxlm.spec.manifest import sealed_directory, verify_manifest
from jaxlm.spec.sampling import Sampling, check_prompt
from jaxlm.stop_request import StopRequest, StopRequested
from jaxlm.ternary_linear import Params, TernaryWeight, quantize_params, with_ternary
from jaxlm.train_config import TrainConfig, activation_dtype, resolve_model
from jaxlm.train_step import TrainState, init_state, make_train_step
from shared_tokenizer.data_sets import DataSets
from shared_tokenizer.shards import TokenShards
from shared_tokenizer.tokenizer import Tokenizer

Result = TypeVar("Result")


def train(config: TrainConfig) -> bool:
    """Train as configured. Returns True when all steps are done, False when a signal ended the run early.

    Raises ValueError on settings, data or a run directory that do not fit, FloatingPointError when the loss
    is no longer finite. In either case the last checkpoint stays as it was.
    """
    keep_freed_memory()
    if config.compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", config.compilation_cache_dir)
    console = make_console()
    console.quiet = not is_first()
    with contextlib.ExitStack() as stack:
        return all_or_none(lambda: _prepare(config, console, stack)).run()


def _prepare(config: TrainConfig, console: Console, stack: contextlib.ExitStack) -> "_Trainer":
    """Open all that a run needs, until `stack` is closed; what may be refused is, before any file is written."""
    mesh = make_mesh(config.mesh)
    check_batch(mesh, config.batch_size, config.grad_accumulation_steps)
    sets = DataSets.open(
        [Path(directory) for directory in config.data_dir],
        config.seq_len,
        packing=config.packing,
        document_mask=config.document_mask,
        verify=verify_manifest if config.verify_data else lambda directory: None,
    )
    tokenizer = sets.tokenizer
    model_config = resolve_model(config, tokenizer)
    check_model(mesh, model_config)
    learning_rate_schedule(config.optimizer, config.num_train_steps)
    stop = stack.enter_context(StopRequest())
    if config.sample_tokens:
        prompt = tokenizer.encode_prompt(config.sample_prompt)
        check_prompt(prompt, model_config.vocab_size, model_config.max_seq_len)
    for line in sets.packing_reports():
        console.print(line)
    data = _Data(config, model_config, sets, mesh)
    initial = None
    if config.init_from is not None:
        initial = initial_params(Path(config.init_from), model_config, console.print)
    # One process writes, and holds the lock.
    opened = open_run(config, asdict(model_config)) if is_first() else None
    run = RunDirectory(Path(config.output_dir)) if opened is None else stack.enter_context(opened)
    return _Trainer(config, model_config, tokenizer, data, initial, run, mesh, stop, console)


class _Data:
    """Batches of both splits, opened before the run directory is touched."""

    def __init__(self, config: TrainConfig, model: ModelConfig, sets: DataSets, mesh: Mesh):
        self.fingerprint = sets.fingerprint
        share = batch_share(mesh)
        self.train = iter(host_batches(sets, config.batch_size, config.seed, config.data_weights or None, share))
        self.val = sets.evaluation_batches(config.batch_size, config.eval_batches)
        tokens = [TokenShards.open(directory, "train") for directory in sets.directories]
        self.unigram = unigram_evaluation(tokens, model.vocab_size, self.val, sets.tokenizer.token_bytes)


class _Trainer:
    def __init__(
        self,
        config: TrainConfig,
        model_config: ModelConfig,
        tokenizer: Tokenizer,
        data: _Data,
        initial: Params | None,
        run: RunDirectory,
        mesh: Mesh,
        stop: StopRequest,
        console: Console,
    ):
        self._config, self._model_config, self._tokenizer = config, model_config, tokenizer
        self._data, self._initial = data, initial
        self._run, self._mesh, self._stop, self._console = run, mesh, SharedStop(stop), console
        self._whole = NamedSharding(mesh, PartitionSpec())
        dtype = activation_dtype(config.dtype)
        self._model = LanguageModel(model_config, dtype, config.unroll_layers, config.remat)
        self._optimizer = make_optimizer(config.optimizer, config.num_train_steps)
        self._iterator: grain.DatasetIterator[Batch] = data.train
        self._state: TrainState | None = None  # of the last whole step
        self._pending: tuple[int, dict[str, jax.Array]] | None = None
        self._last_log = (0, 0.0)  # step and time of the last line
        self._progress = _progress_bar(console)

    def run(self) -> bool:
        config = self._config
        self._checkpoints = Checkpoints(
            self._run.checkpoints,
            keep_last=config.keep_last_checkpoints,
            keep_best=config.keep_best_checkpoints,
            tokenizer_fingerprint=self._tokenizer.fingerprint,
            data_fingerprint=self._data.fingerprint,
            say=self._console.print,
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

        def fresh() -> TrainState:
            return init_state(self._model_config, self._optimizer, self._config.seed)

        shapes = jax.eval_shape(fresh)
        self._shardings = shardings = tree_shardings(self._mesh, shapes)
        check_state_fits(shapes, shardings, jax.local_devices()[0])
        # Made where it will live: no device ever holds more than its part.
        initialise = jax.jit(fresh, out_shardings=shardings)
        state = self._watch(lambda: jax.block_until_ready(initialise()))
        restored = self._checkpoints.restore_latest(state.params, state.opt_state, self._iterator)
        if restored is not None:
            self._console.print(f"resuming after step {restored.step}")
            step = place(np.int32(restored.step), shardings.step)
            state = TrainState(step, restored.params, restored.opt_state, self._ternary(restored.params))
        elif self._initial is not None:
            params, self._initial = place(self._initial, shardings.params), None
            state = state.replace(params=params, ternary=self._ternary(params))
        if is_first():
            self._metrics = MetricsLog(self._run.metrics, int(state.step))
        self._state = state
        return state

    def _ternary(self, params: Params) -> dict[str, TernaryWeight]:
        quantize = jax.jit(quantize_params, static_argnums=1, out_shardings=self._shardings.ternary)
        return quantize(params, self._model_config)

    def _compile(self, state: TrainState) -> tuple[Callable, Callable]:
        config = self._config
        schedule = learning_rate_schedule(config.optimizer, config.num_train_steps)
        shardings = (self._shardings, self._whole)  # the numbers of a step are read by every process
        step = make_train_step(
            self._model,
            self._optimizer,
            schedule,
            config.grad_accumulation_steps,
            loss_chunks=config.loss_chunks,
            out_shardings=shardings,
        )
        batch = self._place(self._data.val[0])
        compiled = self._phase("compiling the training step", lambda: step.lower(state, batch).compile())
        check_step_fits(compiled, config.batch_size, batch_ways(), jax.local_devices()[0])
        loss = make_loss_function(self._model, self._whole)
        weights = with_ternary(state.params, state.ternary)
        compiled_loss = self._phase("compiling the evaluation", lambda: loss.lower(weights, batch).compile())
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
        first = int(state.step)
        self._last_log = (first, time.perf_counter())
        with self._progress:
            task = self._progress.add_task("training", total=config.num_train_steps, completed=first, loss="", speed="")
            for step in range(first + 1, config.num_train_steps + 1):
                state, metrics = step_function(state, global_batch(self._mesh, next(self._iterator)))
                # The device works on this step while the last one's numbers are read.
                self._report(task)
                self._pending = (step, metrics)
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
            self._report(task)
        return state

    def _report(self, task: Any = None) -> None:
        """Read the pending step's numbers, stop the run if they are not finite, log them if it is time."""
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        loss = float(metrics["train/loss"])
        for name in ("train/loss", "train/grad_norm", "train/param_norm"):
            if not math.isfinite(value := float(metrics[name])):
                raise FloatingPointError(
                    f"step {step}: {name} is {value}; the last checkpoint is of step {self._checkpoints.latest}. "
                    "Lower optimizer.learning_rate and start a new run"
                )
        speed = self._log(step, metrics) if self._is_log_step(step) else None
        if task is not None:
            shown: dict[str, Any] = {} if speed is None else {"speed": f"{speed:,.0f} tokens/s"}
            self._progress.update(task, completed=step, loss=f"loss {loss:.4f}", **shown)

    def _is_log_step(self, step: int) -> bool:
        return step == 1 or step % self._config.log_every_steps == 0 or step == self._config.num_train_steps

    def _log(self, step: int, metrics: dict[str, jax.Array]) -> float:
        config = self._config
        last_step, last_time = self._last_log
        now = time.perf_counter()
        self._last_log = (step, now)
        tokens_per_step = config.batch_size * config.seq_len
        speed = (step - last_step) * tokens_per_step / (now - last_time)
        line = {"step": step, **{name: float(value) for name, value in metrics.items()}}
        line |= {
            "data/tokens_seen": step * tokens_per_step,
            "perf/tokens_per_second": round(speed, 1),
            "perf/step_time_ms": round(1000 * (now - last_time) / max(1, step - last_step), 2),
        }
        self._write_metrics(line)
        if not self._console.is_terminal:
            eta = (config.num_train_steps - step) * tokens_per_step / speed
            health = ""
            if "ternary/flip_rate" in line:
                health = f"  zeros {line['ternary/zero_fraction']:.1%}  flips {line['ternary/flip_rate']:.2%}"
            self._console.print(
                f"step {step}/{config.num_train_steps}  loss {line['train/loss']:.4f}{health}  "
                f"{speed:,.0f} tokens/s  {eta:.0f} s left"
            )
        return speed

    def _evaluate(self, state: TrainState, step: int) -> Evaluation:
        """Held-out loss; raises StopRequested between batches."""
        self._report()
        weights = with_ternary(state.params, state.ternary)
        start = time.perf_counter()
        found = evaluate(self._loss_function, weights, self._data.val, self._tokenizer.token_bytes, self._stop.check)
        line = {"step": step, "val/loss": found.loss, "val/bits_per_byte": found.bits_per_byte}
        tokens_seen = step * self._config.batch_size * self._config.seq_len
        self._write_metrics(line | {"data/tokens_seen": tokens_seen})
        self._console.print(f"step {step}  held-out loss {found.loss:.4f}  {found.bits_per_byte:.4f} bits per byte")
        self._forgive(time.perf_counter() - start)
        return found

    def _sample(self, state: TrainState, step: int) -> str:
        """Write a text sample to samples.txt; its random choices depend on (seed, step) alone."""
        if self._config.sample_tokens == 0:
            return ""
        self._report()
        start = time.perf_counter()
        prompt = self._tokenizer.encode_prompt(self._config.sample_prompt)
        sampling = Sampling(
            max_tokens=self._config.sample_tokens, temperature=0.7, top_p=0.95, seed=self._config.seed + step
        )
        weights = with_ternary(state.params, state.ternary)
        ids = []
        for token in generate(self._model, weights, prompt, sampling, self._tokenizer.eos_id):
            self._stop.check()
            ids.append(token)
        text = self._config.sample_prompt + self._tokenizer.decode(ids)
        if is_first():
            with self._run.samples.open("a", encoding="utf-8") as file:
                file.write(f"=== step {step}\n{text}\n")
        self._forgive(time.perf_counter() - start)
        return text

    def _write_metrics(self, line: dict[str, Any]) -> None:
        if is_first():
            self._metrics.write(line)

    def _forgive(self, seconds: float) -> None:
        """Keep time spent beside training out of the training speed."""
        step, before = self._last_log
        self._last_log = (step, before + seconds)

    def _save(self, state: TrainState, evaluation: Evaluation | None) -> None:
        self._report()  # what is not finite must not be saved
        step = int(state.step)
        if step == self._checkpoints.latest:
            return
        loss = None if evaluation is None else evaluation.loss
        self._checkpoints.save(step, state.params, state.opt_state, self._iterator, loss)

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


def _progress_bar(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),  # all of it fits in 80 columns
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, disable=not console.is_terminal)
