"""Any text -> token shards, training a tokenizer first if none is given."""

import time
from pathlib import PurePath
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxlm.common.command_line import make_console
from jaxlm.common.next_command import next_command
from shared_tokenizer.preparation.prepare import prepare
from shared_tokenizer.preparation.prepare_config import PrepareConfig
from shared_tokenizer.preparation.report import with_ratio
from shared_tokenizer.preparation.summary import Summary


class _Terminal:
    """Prints what is worth reading, and a bar of the slices with speeds."""

    def __init__(self, console: Console):
        self._console, self._start = console, time.perf_counter()
        columns = (
            TextColumn("slices"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
        )
        self.progress = Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)
        self._task: Any = None

    @property
    def has_worked(self) -> bool:
        return self._task is not None

    def log(self, line: str) -> None:
        self._console.print(line)

    def show_progress(self, done: int, total: int, so_far: Summary) -> None:
        if self._task is None:
            self._start = time.perf_counter()
            self._task = self.progress.add_task("slices", total=total, speed="")
        seconds = max(time.perf_counter() - self._start, 1e-9)
        size = sum(split["bytes"] for split in so_far.splits.values())
        speed = (
            f"{so_far.documents / seconds:,.0f} documents/s  {so_far.tokens / seconds:,.0f} tokens/s  "
            f"{size / max(so_far.tokens, 1):.2f} bytes per token"
        )
        self.progress.update(self._task, completed=done, speed=speed)
        if not self._console.is_terminal and done == total:
            self._console.print(speed)


def main(config: PrepareConfig) -> None:
    """Turn text into token shards, training a tokenizer first if none is given."""
    console = make_console()
    terminal = _Terminal(console)
    with terminal.progress:
        manifest = prepare(config, terminal)
    if not terminal.has_worked:
        console.print(f"{config.output_dir}: holds this corpus already")
    for split, found in manifest["splits"].items():
        ratio = with_ratio(found)["bytes_per_token"]
        console.print(
            f"{split}: {found['documents']:,} documents, {found['tokens']:,} tokens, {ratio:.2f} bytes per token"
        )
    pairs = manifest.get("pairs", False)
    if pairs:
        console.print("each two documents are a pair, the chosen answer and then the rejected one")
    console.print(f"shards: {config.output_dir}")
    objective = ("--objective", "orpo" if pairs else "sft") if manifest["masked"] else ()
    start = ("--init_from", "MODEL") if pairs or (objective and config.tokenizer) else ()
    run = f"runs/{PurePath(config.output_dir).name}"
    console.print(
        f"next:   {next_command('train', *objective, *start, '--data_dir', config.output_dir, '--output_dir', run)}"
    )
