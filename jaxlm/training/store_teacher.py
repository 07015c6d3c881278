"""The command `jaxlm store-teacher`: the likeliest tokens of a teacher at every position of token shards."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import track

from jaxlm.checkpoints.weights import frozen_params
from jaxlm.common.command_line import make_console
from jaxlm.common.formats.files_fingerprint import files_fingerprint
from jaxlm.common.formats.open_model import model_path
from jaxlm.common.objectives.stored_teacher import stored_of
from jaxlm.common.objectives.teacher import open_teacher
from jaxlm.common.objectives.teacher_storage import store_teacher
from jaxlm.model.language_model import LanguageModel
from jaxlm.ops.logits import head_logits
from jaxlm.ops.ternary_linear import Params
from jaxlm.training.resolve import activation_dtype
from jaxlm.training.store_teacher_config import StoreTeacherConfig
from shared_tokenizer.data.data_sets import DataSets
from shared_tokenizer.data.examples import Example


def main(config: StoreTeacherConfig) -> None:
    """Compute the likeliest tokens of a teacher at every position of the training examples once. Runs then learn
    from the directory (--teacher DIR) without computing the teacher in every step."""
    console, path = make_console(), Path(config.teacher)
    sets = DataSets.open(
        [Path(directory) for directory in config.data_dir],
        config.seq_len,
        packing=config.packing,
        document_mask=config.document_mask,
        verify=config.verify_data,
    )
    teacher = open_teacher(path, sets.tokenizer, config.seq_len)
    if config.teacher_top_k >= teacher.config.vocab_size:
        raise ValueError(
            f"teacher_top_k: found {config.teacher_top_k}, expected at most {teacher.config.vocab_size - 1}, one less "
            "than the tokens of the vocabulary"
        )
    model = LanguageModel(teacher.config, activation_dtype("auto", jax.devices()[0]))
    stored = stored_of(
        sets,
        config.seq_len,
        document_mask=config.document_mask,
        teacher=files_fingerprint(model_path(path)),
        top_k=config.teacher_top_k,
        temperature=config.teacher_temperature,
        vocab_size=teacher.config.vocab_size,
        dtype=np.dtype(model.dtype).name,
    )
    tokens = sum(stored.examples) * stored.seq_len
    console.print(f"{tokens:,} tokens, {stored.record.itemsize} bytes each: {tokens * stored.record.itemsize:,} bytes")
    params = frozen_params(teacher)
    compiled = jax.jit(lambda params, batch: likeliest_tokens(model, params, batch, stored.top_k, stored.temperature))

    def likeliest(batch: Example) -> Any:
        return jax.tree.map(np.asarray, compiled(params, dict(batch)))

    store_teacher(
        Path(config.output_dir),
        sets,
        stored,
        likeliest,
        config.batch_size,
        console.print,
        lambda files: track(files, "files", console=console, transient=True),
    )
    console.print(f"stored teacher  {config.output_dir}")


def likeliest_tokens(model: LanguageModel, params: Params, batch: Any, top_k: int, temperature: float) -> Any:
    """Return the ids and log-probabilities `[B, L, k]` of the likeliest tokens, and the rest `[B, L]` (`Stored`)."""
    arrays = batch["inputs"], batch["positions"], batch.get("segment_ids")
    operands: Any = model.apply({"params": params}, *arrays, method="head_operands")
    x, weight = operands

    def of_row(x: jax.Array) -> Any:
        log_probs = jax.nn.log_softmax(head_logits(x[None], weight, soft_cap=model.config.logit_softcap)[0])
        best, ids = jax.lax.top_k(log_probs, top_k)
        others = jnp.put_along_axis(log_probs, ids, -jnp.inf, axis=-1, inplace=False)
        return ids, best, jax.nn.logsumexp(others / temperature, axis=-1)

    return jax.lax.map(of_row, x)  # one row at a time: the logits of a row are [L, V]
