"""The command `jaxlm evaluate`: models on the same text, chats or tasks."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.progress import track

from jaxlm.common.command_line import make_console
from jaxlm.evaluate import evaluate_documents
from jaxlm.evaluate_config import EvaluateConfig
from jaxlm.load import load_model, model_fingerprint
from jaxlm.ops.machine.user_cache import keep_programs
from jaxlm.tasks import evaluated_model
from shared_tokenizer.data.evaluation_text import evaluation_table, write_evaluations


def main(config: EvaluateConfig) -> None:
    """Evaluate models on text: nats per token, perplexity, and bits per byte, which does not depend on the
    tokenizer; on the answers of chats; or on tasks."""
    keep_programs()
    console, found, models = make_console(), {}, {}
    if not (config.input or config.tasks):
        raise ValueError("input: found neither text nor tasks, expected --input FILES, --tasks NAMES, or both")
    tasks = config.load_tasks()
    contents = config.read(config.input) if config.input else []
    if contents:
        console.print(f"{len(contents):,} documents")
    for path in config.model:
        model, params, tokenizer = load_model(path)
        if tokenizer is None:
            raise ValueError(f"{path}: found no tokenizer, so text cannot be evaluated")
        if config.json is not None:
            models[path] = {"fingerprint": model_fingerprint(path), "tokenizer": tokenizer.fingerprint}
        if not console.is_terminal:
            console.print(f"{path} ...")

        def with_progress(batches: Sequence[Any], path: str = path) -> Iterable[Any]:
            return track(batches, path, console=console, transient=True)

        if contents:
            chat_format = config.find_chat_format(contents, path, tokenizer)
            found[path] = evaluate_documents(
                model, params, tokenizer, contents, chat_format, config, with_progress, console.print
            )
        if config.tasks:
            chat_format = config.find_task_format(path, tokenizer)
            evaluated = evaluated_model(path, model, params, tokenizer, chat_format)
            tasks.run(evaluated, log=console.print, track=with_progress)
    for table in ([evaluation_table(found)] if found else []) + tasks.tables():
        console.print(table)
    if config.json is not None:
        write_evaluations(Path(config.json), found, config, tasks.add_probes(models), len(contents))
        console.print(f"numbers: {config.json}")
