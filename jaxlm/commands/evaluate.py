"""The command `jaxlm evaluate`: models on the same text."""

from dataclasses import dataclass

from rich.progress import track

from jaxlm.common.command_line import make_console
from jaxlm.evaluate import evaluate_text
from jaxlm.load import load_model
from shared_tokenizer.data.evaluation_text import EvaluationText, as_texts, evaluation_table


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(EvaluationText):
    """The models to evaluate, and the text."""

    model: list[str]
    """Run directories, artifacts, transformers or MLX directories or GGUF files, compared in one table."""
    input: list[str]
    """Files (text, jsonl, parquet, csv, ...), folders of them, or stdlib, the Python standard library's own source."""


def main(config: EvaluateConfig) -> None:
    """Evaluate models on text: nats per token, perplexity, and bits per byte, which does not depend on the
    tokenizer."""
    console = make_console()
    texts = as_texts(config.read(config.input))
    console.print(f"{len(texts):,} documents, {sum(map(len, texts)):,} characters")
    found = {}
    for path in config.model:
        model, params, tokenizer = load_model(path)
        if tokenizer is None:
            raise ValueError(f"{path}: found no tokenizer, so text cannot be evaluated")
        if not console.is_terminal:
            console.print(f"{path} ...")
        found[path] = evaluate_text(
            model,
            params,
            tokenizer,
            texts,
            config.seq_len,
            config.batch_size,
            lambda batches, path=path: track(batches, path, console=console, transient=True),
        )
    console.print(evaluation_table(found))
