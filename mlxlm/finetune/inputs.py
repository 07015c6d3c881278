"""Everything that a fine-tuning run needs. What may be refused is refused here, and then nothing is left behind."""

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import mlx.core as mx
from rich.console import Console

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.artifact.artifact import Artifact
from jaxlm.common.formats.open_model import open_model
from jaxlm.common.run.run_config import steps_of_epochs
from jaxlm.common.run.run_directory import RunDirectory, open_run_directory, record_run, recorded_settings
from jaxlm.common.run.schedule_changes import log_warmup, with_schedule_changes
from jaxlm.common.run.stop_request import StopRequest
from jaxlm.common.sampling import check_prompt
from mlxlm.adapters.adapter_config import AdapterConfig
from mlxlm.adapters.adapters import add_adapters, base_fingerprint
from mlxlm.finetune.data import ProcessBatches
from mlxlm.finetune.finetune_config import LONGEST_DEFAULT, FinetuneConfig
from mlxlm.finetune.objectives.choose import RunObjective, choose_objective
from mlxlm.finetune.processes import any_of, is_first
from mlxlm.finetune.qat import latent_model, round_latents
from mlxlm.finetune.warm_start import warm_start_model
from mlxlm.load import built_model
from mlxlm.model.language_model import LanguageModel
from shared_tokenizer.data.data_sets import DataSets
from shared_tokenizer.data.examples import Example
from shared_tokenizer.data.shards import MANIFEST
from shared_tokenizer.load import find_tokenizer, tokenizer_directory
from shared_tokenizer.preparation.prepare import prepare
from shared_tokenizer.preparation.prepare_config import PrepareConfig, TextConfig
from shared_tokenizer.preparation.summary import Summary
from shared_tokenizer.tokenizers.tokenizer import Tokenizer

SETTINGS = FinetuneConfig.settings_file
DEFAULT_EPOCHS = 1.0


@dataclass(frozen=True)
class FinetuneInputs:
    """Everything that a run works with."""

    config: FinetuneConfig
    """With the number of steps, and the history of its changes."""
    artifact: Artifact
    """The model as it is on disk."""
    model: LanguageModel
    """With its trainable parameters unfrozen and all else frozen."""
    objective: RunObjective
    adapters: AdapterConfig | None
    """Those of method lora."""
    fingerprints: dict[str, str]
    """sha256 of all that the run depends on, by name."""
    tokenizer: Tokenizer
    tokenizer_dir: Path
    """The directory of its files."""
    train: ProcessBatches
    val: list[Example]
    """Whole batches, the same on every process."""
    has_steps_of_data: bool
    """True if the number of steps follows from the amount of data."""
    seq_len: int
    """Tokens per sequence."""
    tokens_per_epoch: int
    """Tokens of one pass over the training examples, all processes together."""
    run: RunDirectory
    stop: StopRequest

    @property
    def num_train_steps(self) -> int:
        """Optimizer steps in all."""
        return self.config.total_steps

    @property
    def tokens_per_step(self) -> int:
        """Tokens that an optimizer step sees, all processes together."""
        return self.config.batch_size * self.config.rows_per_example * self.seq_len


def open_inputs(config: FinetuneConfig, console: Console, stack: contextlib.ExitStack) -> FinetuneInputs:
    """Open all that a run needs, until `stack` is closed.

    Raises ValueError on settings, a model, data or a run directory that do not fit; a new run directory is taken away
    then. The settings are written when all is known, so that a start that a kill ends before begins anew.
    """
    artifact = open_model(Path(config.model))
    tokenizer = find_tokenizer(Path(config.model), artifact.tokenizer_metadata)
    seq_len = _seq_len(config, artifact.config)
    mx.random.seed(config.seed)
    model, adapters, fingerprint = _trainable(config, artifact)
    if config.method == "qat" and artifact.kind == "packed":
        console.print(f"{config.model}: holds no latent weights; they are made from its codes and scales")
    run = stack.enter_context(_run_directory(config, console))
    sets = _open_data(config, tokenizer, run, seq_len, console)
    if sets.tokenizer.vocab_size > artifact.config.vocab_size:
        raise ValueError(
            f"data: found shards of a tokenizer of {sets.tokenizer.vocab_size} tokens, expected at most the "
            f"model's vocab_size {artifact.config.vocab_size}"
        )
    fingerprints = {"model": fingerprint, "tokenizer": sets.tokenizer.fingerprint, "data": sets.fingerprint}
    objective = choose_objective(config, Path(config.model), artifact.config, sets, seq_len, config.loss_chunks)
    fingerprints |= objective.fingerprints
    for line in sets.packing_reports():
        console.print(line)
    train = ProcessBatches(sets, config.batch_size, config.seed)
    has_steps_of_data = config.num_train_steps is None
    config = _with_steps(config, sets.train_examples, run, console)
    assert config.course  # which checks its steps
    if config.sample_tokens:
        prompt = sets.tokenizer.encode_to_continue(config.sample_prompt)
        check_prompt(prompt, artifact.config.vocab_size, artifact.config.max_seq_len)
    val = sets.evaluation_batches(config.batch_size, config.eval_batches)
    error = None
    if is_first():
        try:
            record_run(run, asdict(config), fingerprints, SETTINGS)
        except (ValueError, OSError) as found:
            error = found
    _agree(error)
    return FinetuneInputs(
        config=config,
        artifact=artifact,
        model=model,
        objective=objective,
        adapters=adapters,
        fingerprints=fingerprints,
        tokenizer=sets.tokenizer,
        tokenizer_dir=sets.tokenizer_dir,
        train=train,
        val=val,
        has_steps_of_data=has_steps_of_data,
        seq_len=seq_len,
        tokens_per_epoch=sets.train_examples * config.rows_per_example * seq_len,
        run=run,
        stop=stack.enter_context(StopRequest()),
    )


def _with_steps(config: FinetuneConfig, examples: int, run: RunDirectory, console: Console) -> FinetuneConfig:
    """Return the settings with their number of steps, and of a resumed run with the history of its schedule."""
    recorded = recorded_settings(run.path, FinetuneConfig, SETTINGS) if config.resume and run.steps_saved else None
    config = replace(config, num_train_steps=_num_train_steps(config, examples), num_epochs=None)
    if recorded is not None:
        if recorded["num_train_steps"] is None:  # of an earlier version
            steps = steps_of_epochs(recorded["num_epochs"] or DEFAULT_EPOCHS, examples, config.batch_size)
            recorded = {**recorded, "num_train_steps": steps}
        config = with_schedule_changes(config, recorded, run.steps_saved, console.print)
    log_warmup(config, console.print)
    return config


def _seq_len(config: FinetuneConfig, model: ModelConfig) -> int:
    if config.seq_len is None:
        return min(LONGEST_DEFAULT, model.max_seq_len)
    if config.seq_len > model.max_seq_len:
        raise ValueError(
            f"seq_len: found {config.seq_len}, expected at most the model's context of {model.max_seq_len}"
        )
    return config.seq_len


def _num_train_steps(config: FinetuneConfig, examples: int) -> int:
    if config.num_train_steps is not None:
        return config.num_train_steps
    return steps_of_epochs(config.num_epochs or DEFAULT_EPOCHS, examples, config.batch_size)


def _trainable(config: FinetuneConfig, artifact: Artifact) -> tuple[LanguageModel, AdapterConfig | None, str]:
    """Return the model as the method trains it, its adapters, and its fingerprint before."""
    has_quantized = artifact.config.has_packed_form
    if config.method == "lora":
        model = built_model(artifact)
        fingerprint = base_fingerprint(model)
        return model, add_adapters(model, config.adapters()), fingerprint
    if config.quantize is None and has_quantized != (config.method == "qat"):
        fitting = "qat" if has_quantized else "full"
        raise ValueError(f"method: found {config.method!r}, expected 'lora' or {fitting!r} for this model")
    if config.quantize is not None:
        model = warm_start_model(artifact, insert_sub_norm=config.insert_sub_norm)
        return model, None, base_fingerprint(model)
    model = latent_model(artifact, num_layers=config.num_layers)
    fingerprint = base_fingerprint(model)
    if config.latent_dtype == "bfloat16":
        round_latents(model)
    return model, None, fingerprint


@contextlib.contextmanager
def _run_directory(config: FinetuneConfig, console: Console) -> Iterator[RunDirectory]:
    """Let the first process make and lock the run directory before the others go on."""
    path = Path(config.output_dir)
    with contextlib.ExitStack() as stack:
        run, error = RunDirectory(path), None
        if is_first():
            try:
                opened = open_run_directory(
                    path,
                    FinetuneConfig,
                    asdict(config),
                    resume=config.resume,
                    settings_file=SETTINGS,
                    log=console.print,
                )
                run = stack.enter_context(opened)
            except (ValueError, OSError) as found:
                error = found
        _agree(error)
        yield run


def _agree(error: Exception | None) -> None:
    """Raise the error of this process, or say that the first process has one."""
    if any_of(error is not None):
        raise error or ValueError(f"process {mx.distributed.init().rank()}: ended, because the first process did")


def _open_data(
    config: FinetuneConfig, tokenizer: Tokenizer | None, run: RunDirectory, seq_len: int, console: Console
) -> DataSets:
    """Open the shard sets that are named, and make one of all texts and chats that are named."""
    shards = [Path(path) for path in config.data if (Path(path) / MANIFEST).is_file()]
    texts = [path for path in config.data if Path(path) not in shards]
    if texts:
        error = None
        if is_first():
            try:
                _prepare(config, texts, tokenizer, run, console)
            except (ValueError, OSError) as found:
                error = found
        _agree(error)
        shards.append(run.data)
    sets = DataSets.open(
        shards,
        seq_len,
        packing=config.packing,
        document_mask=config.document_mask,
        verify=config.verify_data,
        pairs=config.compares_pairs,
    )
    if tokenizer is not None and tokenizer.fingerprint != sets.tokenizer.fingerprint:
        raise ValueError(
            f"data: shards were made with tokenizer {sets.tokenizer.fingerprint[:12]}..., expected the model's "
            f"{tokenizer.fingerprint[:12]}...; name the text itself, or prepare it with the model's tokenizer"
        )
    return config.with_stored_teacher(sets, seq_len)


def _prepare(
    config: FinetuneConfig, texts: list[str], tokenizer: Tokenizer | None, run: RunDirectory, console: Console
) -> None:
    """Write texts and chats as token shards into the run directory, by the model's own tokenizer and chat template."""
    if tokenizer is None:
        raise ValueError(f"{config.model}: found no tokenizer, so text cannot be read; name token shards as data")
    with tokenizer_directory(Path(config.model), tokenizer) as source:
        settings = PrepareConfig(
            output_dir=str(run.data),
            input=texts,
            tokenizer=str(source),
            num_workers=1,
            **{field.name: getattr(config, field.name) for field in fields(TextConfig)},
        )
        prepare(settings, _Reporter(console))


class _Reporter:
    def __init__(self, console: Console):
        self._console = console

    def log(self, line: str) -> None:
        self._console.print(line)

    def show_progress(self, done: int, total: int, so_far: Summary) -> None:
        pass
