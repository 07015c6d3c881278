"""The command `mlxlm evaluate`: the loss of models on text, the same numbers as `jaxlm evaluate`."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import rich.progress

from jaxlm.common.command_line import make_console, run_command
from jaxlm.common.evaluation.scoring import ScoredPlaces
from jaxlm.common.evaluation.text_scores import evaluate_windows
from mlxlm.load import load_model
from mlxlm.model.language_model import LanguageModel
from mlxlm.score import score_places
from shared_tokenizer.data.evaluation import Evaluation, text_batches
from shared_tokenizer.data.evaluation_text import EvaluationText, as_texts, evaluation_table
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

    def score(batch: Example, places: np.ndarray, targets: np.ndarray) -> ScoredPlaces:
        inputs: dict[str, Any] = {name: array for name, array in batch.items() if name in ("inputs", "segment_ids")}
        return score_places(model, inputs, places, targets)

    return evaluate_windows(score, track(batches), tokenizer)


def main(config: EvaluateConfig) -> None:
    """Evaluate models on text with MLX: nats per token, perplexity, and bits per byte."""
    console, found = make_console(), {}
    texts = as_texts(config.read(config.data))
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
