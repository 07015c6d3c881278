"""Everything that a run needs, opened before it writes a file: what may be refused is refused here.

The order is a contract: first what can be refused without reading data (mesh, batch), then the shard sets, then what
depends on them (model, schedule, prompt, batches, initial weights), and the run directory last, which writes.
"""

import contextlib
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh
from rich.console import Console

from jaxlm.checkpoints.init_from import open_initial
from jaxlm.common.architecture.config import ModelConfig, recorded_fields
from jaxlm.common.artifact.artifact import Artifact
from jaxlm.common.run.run_directory import RunDirectory
from jaxlm.common.run.schedule_changes import log_warmup
from jaxlm.common.run.stop_request import StopRequest
from jaxlm.common.sampling import check_prompt
from jaxlm.evaluate import unigram_evaluation
from jaxlm.load import model_fingerprint
from jaxlm.parallel.distributed import is_first
from jaxlm.parallel.mesh import check_batch, check_mixers, check_model, check_sequence
from jaxlm.parallel.sharding import batch_share
from jaxlm.training.objectives.choose import RunObjective
from jaxlm.training.open_run import check_tokenizer, open_run, resumed_config
from jaxlm.training.resolve import activation_dtype, resolve_model
from jaxlm.training.train_config import TrainConfig
from shared_tokenizer.data.batches import Batch, BatchOrder, training_batches
from shared_tokenizer.data.data_sets import DataSets
from shared_tokenizer.data.evaluation import Evaluation
from shared_tokenizer.data.examples import Example
from shared_tokenizer.data.shards import TokenShards
from shared_tokenizer.data.staged_batches import StagedBatches, Stream
from shared_tokenizer.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True)
class TrainingData:
    """The batches of both splits."""

    fingerprint: str
    """sha256 of the shard sets' manifests."""
    train: Stream
    """Endless; this process's share of each batch."""
    example: Example
    """One training example: the arrays that every batch has."""
    val: list[Batch]
    """Whole micro-batches, the same on every process."""
    unigram: Evaluation
    """Loss of the held-out batches under the frequencies of the training tokens."""
    tokens_per_epoch: int
    """Tokens of one pass over the training examples, all hosts together."""


@dataclass(frozen=True)
class TrainingInputs:
    """Everything that a run works with."""

    config: TrainConfig
    model_config: ModelConfig
    tokenizer: Tokenizer
    data: TrainingData
    objective: RunObjective
    initial: Artifact | None
    """The model of `init_from`, checked and not yet read; None to start fresh."""
    run: RunDirectory
    mesh: Mesh
    stop: StopRequest


def open_sets(config: TrainConfig, mesh: Mesh) -> DataSets:
    """Open the shard sets of a run.

    Raises ValueError where mesh and batch do not go together, then where the sets are damaged, empty or do not.
    """
    _check_offload(config, mesh.devices.flat[0])
    if config.batch_size != "auto":
        check_batch(mesh, config.batch_size, config.grad_accumulation_steps)
    for length in config.sequence_lengths:
        check_sequence(mesh, length, config.loss_chunks)
    sets = _open_sets(config, config.seq_len, verify=config.verify_data)
    taught = config.with_stored_teacher(sets, config.seq_len)
    if taught is not sets and config.seq_len_schedule is not None:
        raise ValueError(
            f"seq_len_schedule: found with the stored teacher {config.teacher}, whose examples have one length; name "
            "the teacher itself, or leave the schedule out"
        )
    return taught


def _check_offload(config: TrainConfig, device: Any) -> None:
    """Raise ValueError where the optimizer's state cannot be in the memory of the host."""
    if config.offload is None:
        return
    if device.platform == "cpu":
        raise ValueError("offload: found optimizer on CPUs, whose memory is that of the host; leave it out")
    if activation_dtype(config.dtype, device) == jnp.float16:
        raise ValueError(
            "offload: found optimizer with float16, whose loss scale keeps two states of it on the device; set --dtype "
            "bfloat16 or float32"
        )


def _open_sets(config: TrainConfig, seq_len: int, *, verify: bool) -> DataSets:
    return DataSets.open(
        [Path(directory) for directory in config.data_dir],
        seq_len,
        packing=config.packing,
        document_mask=config.document_mask,
        verify=verify,
        pairs=config.compares_pairs,
    )


def open_inputs(
    config: TrainConfig,
    sets: DataSets,
    objective: RunObjective,
    mesh: Mesh,
    console: Console,
    stack: contextlib.ExitStack,
) -> TrainingInputs:
    """Open all that a run of chosen sizes needs, until `stack` is closed.

    Raises ValueError on settings, data or a run directory that do not fit, before any file is written.
    """
    tokenizer = sets.tokenizer
    config = resumed_config(config, console.print)
    assert config.lengths  # which checks its steps
    model_config = resolve_model(config, tokenizer)
    _validate(config, model_config, objective, mesh, tokenizer)
    objective.check_model(model_config)
    stop = stack.enter_context(StopRequest())
    for line in sets.packing_reports():
        console.print(line)
    data = _open_data(config, model_config, sets, mesh)
    fingerprints = {"data": data.fingerprint, "tokenizer": tokenizer.fingerprint, **objective.fingerprints}
    initial = None
    run = RunDirectory(Path(config.output_dir))
    if config.init_from is not None and not (config.resume and run.steps_saved):
        initial = open_initial(
            Path(config.init_from), model_config, console.print, insert_sub_norm=config.insert_sub_norm
        )
        fingerprints["init_from"] = model_fingerprint(config.init_from)
    log_warmup(config, console.print)
    if is_first():  # one process writes, and holds the lock

        def check(run: RunDirectory) -> None:
            check_tokenizer(run, tokenizer.fingerprint)

        stack.enter_context(open_run(config, recorded_fields(model_config), fingerprints, check, console.print))
    return TrainingInputs(config, model_config, tokenizer, data, objective, initial, run, mesh, stop)


def _validate(
    config: TrainConfig, model_config: ModelConfig, objective: RunObjective, mesh: Mesh, tokenizer: Tokenizer
) -> None:
    """Raise ValueError where the settings do not go together with the models, the mesh or the tokenizer."""
    check_model(mesh, model_config)
    if objective.teacher is not None:
        check_mixers(mesh, objective.teacher, "the teacher")
    if config.sample_tokens:
        prompt = tokenizer.encode_to_continue(config.sample_prompt)
        check_prompt(prompt, model_config.vocab_size, model_config.max_seq_len)


def _open_data(config: TrainConfig, model_config: ModelConfig, sets: DataSets, mesh: Mesh) -> TrainingData:
    batch_size, parts = config.sequences_per_step, config.grad_accumulation_steps
    # Batches of the size of a micro-batch, so that evaluation fits where training does.
    val = sets.evaluation_batches(batch_size // parts, config.eval_batches * parts)
    part = batch_share(mesh)

    def stream(length: int) -> Stream:
        train = sets.train if length == config.seq_len else _open_sets(config, length, verify=False).train
        order = BatchOrder(config.lengths.sequences(length, batch_size), config.seed, *part)
        return iter(training_batches(train, order, config.data_weights or None))

    stages = [(stage.begin, functools.partial(stream, stage.length)) for stage in config.lengths.stages]
    tokens = [TokenShards.open(directory, "train") for directory in sets.directories]
    return TrainingData(
        fingerprint=sets.fingerprint,
        # Checkpoints of a run of one length hold the state of its one stream.
        train=StagedBatches(stages) if len(stages) > 1 else stream(config.seq_len),
        example=sets.train[0][0],
        val=val,
        unigram=unigram_evaluation(tokens, model_config.vocab_size, val, sets.tokenizer.token_bytes),
        tokens_per_epoch=sets.train_examples * config.rows_per_example * config.seq_len,
    )
