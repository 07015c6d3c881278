"""The command `mlxlm evaluate`: the loss of models on text, the same numbers as `jaxlm evaluate`."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import rich.progress

from jaxlm.common.command_line import make_console, run_command
from mlxlm.load import load_model
from mlxlm.model.language_model import LanguageModel
from mlxlm.model.loss import loss_sum
from shared_tokenizer.data.evaluation import Evaluation, evaluate_batches, text_batches
from shared_tokenizer.data.evaluation_text import EvaluationText, evaluation_table
from shared_tokenizer.data.examples import Example
from shared_tokenizer.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(EvaluationText):
    """The models to evaluate, and the text."""

    model: list[str]
    """Artifacts, transformers or MLX directories or GGUF files, compared in one table."""
    data: list[str]
    """Files (text, jsonl, parquet, csv, ...), folders of them, or stdlib, the Python standard library's own source."""
    adapter_path: str | None = None
    """Directory of adapters to add to each model."""


def evaluate_text(
    model: LanguageModel,
    tokenizer: Tokenizer,
    texts: Iterable[str],
    seq_len: int,
    batch_size: int,
    track: Callable[[Sequence[Example]], Iterable[Example]] = iter,
) -> Evaluation:
    """Evaluate on documents, in windows of `seq_len` tokens. `track` may show progress over the batches.

    Raises ValueError as `text_batches` does.
    """
    config = model.config
    batches = text_batches(tokenizer, texts, min(seq_len, config.max_seq_len), batch_size, config.vocab_size)

    def loss_of(batch: Example) -> tuple[mx.array, mx.array]:
        return loss_sum(model, {name: mx.array(batch[name]) for name in batch})

    return evaluate_batches(loss_of, track(batches), tokenizer.token_bytes)


def main(config: EvaluateConfig) -> None:
    """Evaluate models on text with MLX: nats per token, perplexity, and bits per byte."""
    console, found = make_console(), {}
    texts = config.read(config.data)
    for path in config.model:
        model, tokenizer = load_model(path, adapter_path=config.adapter_path)
        if tokenizer is None:
            raise ValueError(f"{path}: found no tokenizer, so text cannot be evaluated")
        found[path] = evaluate_text(
            model,
            tokenizer,
            texts,
            config.seq_len,
            config.batch_size,
            lambda batches, path=path: rich.progress.track(batches, path, console=console, transient=True),
        )
    console.print(evaluation_table(found))


if __name__ == "__main__":
    run_command(main)
