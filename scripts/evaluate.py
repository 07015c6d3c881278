"""Loss, perplexity and bits per byte of models on the same text."""

from dataclasses import dataclass

from jaxlm.common.command_line import make_console, quiet_libraries, run_command

quiet_libraries()

from jaxlm.evaluate import evaluate_text  # noqa: E402
from jaxlm.load import load_model  # noqa: E402
from shared_tokenizer.data.evaluation_text import EvaluationText, evaluation_table  # noqa: E402


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(EvaluationText):
    """What to evaluate, on what."""

    model: list[str]
    """Run directories, artifacts, transformers or MLX directories or GGUF files, compared in one table."""
    input: list[str]
    """Files (text, jsonl, parquet, csv, ...), folders of them, or stdlib, the Python standard library's own source."""


def main(config: EvaluateConfig) -> None:
    """Evaluate models on text: nats per token, perplexity, and bits per byte, which no tokenizer can flatter."""
    texts = config.read(config.input)
    found = {}
    for path in config.model:
        model, params, tokenizer = load_model(path)
        if tokenizer is None:
            raise ValueError(f"{path}: found no tokenizer, so text cannot be evaluated")
        found[path] = evaluate_text(model, params, tokenizer, texts, config.seq_len, config.batch_size)
    make_console().print(evaluation_table(found))


if __name__ == "__main__":
    run_command(main, EvaluateConfig)
