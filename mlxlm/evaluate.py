"""The command `mlxlm evaluate`: the loss of models on text, the same numbers as `jaxlm evaluate`."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rich.progress

from jaxlm.common.command_line import make_console, run_command
from jaxlm.common.evaluation.scoring import ScoredPlaces
from jaxlm.common.evaluation.text_scores import evaluate_contents, evaluate_windows
from mlxlm.evaluate_config import EvaluateConfig
from mlxlm.load import load_model, model_fingerprint
from mlxlm.model.language_model import LanguageModel
from mlxlm.score import score, score_places
from mlxlm.tasks import evaluated_model
from shared_tokenizer.chat.chat_format import ChatFormat
from shared_tokenizer.data.evaluation import Evaluation, text_batches
from shared_tokenizer.data.evaluation_text import (
    Content,
    EvaluationText,
    evaluation_table,
    write_evaluations,
)
from shared_tokenizer.data.examples import Example
from shared_tokenizer.tokenizers.tokenizer import Tokenizer


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


def evaluate_documents(
    model: LanguageModel,
    tokenizer: Tokenizer,
    contents: Sequence[Content],
    chat_format: ChatFormat | None,
    settings: EvaluationText,
    track: Callable[[Sequence[Any]], Iterable[Any]] = iter,
    log: Callable[[str], None] = print,
) -> Evaluation:
    """Evaluate on texts in windows, and on the answers of chats; without a chat format chats are texts.

    Raises ValueError as `text_batches` and `evaluate_chats` do.
    """
    return evaluate_contents(
        contents,
        chat_format,
        lambda texts: evaluate_text(model, tokenizer, texts, settings.seq_len, settings.batch_size, track),
        lambda rows, contexts: score(model, rows, contexts, track=track),
        tokenizer,
        model.config.max_seq_len,
        log,
    )


def main(config: EvaluateConfig) -> None:
    """Evaluate models with MLX on text: nats per token, perplexity, and bits per byte; on the answers of chats; or on
    tasks."""
    console, found, models = make_console(), {}, {}
    if not (config.input or config.tasks):
        raise ValueError("input: found neither text nor tasks, expected --input FILES, --tasks NAMES, or both")
    tasks = config.load_tasks()
    contents = config.read(config.input) if config.input else []
    for path in config.model:
        model, tokenizer = load_model(path, adapter_path=config.adapter_path)
        if tokenizer is None:
            raise ValueError(f"{path}: found no tokenizer, so text cannot be evaluated")
        if config.json is not None:
            models[path] = {
                "fingerprint": model_fingerprint(path, config.adapter_path),
                "tokenizer": tokenizer.fingerprint,
            }

        def with_progress(batches: Sequence[Any], path: str = path) -> Iterable[Any]:
            return rich.progress.track(batches, path, console=console, transient=True)

        if contents:
            chat_format = config.find_chat_format(contents, path, tokenizer, config.adapter_path)
            found[path] = evaluate_documents(
                model, tokenizer, contents, chat_format, config, with_progress, console.print
            )
        if config.tasks:
            chat_format = config.find_task_format(path, tokenizer)
            tasks.run(evaluated_model(path, model, tokenizer, chat_format), log=console.print, track=with_progress)
    for table in ([evaluation_table(found)] if found else []) + tasks.tables():
        console.print(table)
    if config.json is not None:
        write_evaluations(Path(config.json), found, config, tasks.add_probes(models), len(contents))
        console.print(f"numbers: {config.json}")


if __name__ == "__main__":
    run_command(main)
