"""Our server and mlx-lm's on the same directory: tokens/s and time to the first token by the number of clients."""

import contextlib
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from benchmarks.measuring.http_client import Answer, ask, ask_together, free_port, server_process
from rich.table import Table

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.initial_weights import initial_weights
from jaxlm.common.architecture.presets import preset
from jaxlm.common.artifact.artifact import save_artifact
from jaxlm.common.command_line import make_console
from jaxlm.conversion.convert import Conversion, convert
from mlxlm.model.model_file import model_file_source
from shared_tokenizer.sources.documents import read_documents
from shared_tokenizer.tokenizers.train import train_tokenizer

# Documents that the tokenizer is trained on, and whose beginnings are the prompts.
DOCUMENTS = 300


@dataclass(frozen=True, kw_only=True)
class ServeBenchmark:
    """Settings of the measurement."""

    preset: str = "ternary-tiny"
    """Model, with weights that were never trained and a context of 1,024 tokens."""
    vocab_size: int = 4096
    """Tokens of its vocabulary."""
    clients: list[int] = field(default_factory=lambda: [1, 4, 8, 16])
    """Numbers of clients that ask at the same time."""
    prompt_characters: int = 200
    """Characters of a prompt; each client has another one."""
    tokens: int = 64
    """Tokens to generate for each client."""
    turns: int = 5
    """Timed turns of each server and number of clients."""
    before: str | None = None
    """Another checkout of this project, whose server is measured too."""


def benchmark(settings: ServeBenchmark) -> None:
    """Print tokens/s of all clients together, and the time to the first token of each."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        directory, prompts = save_model(settings, Path(folder))
        ports = _start_servers(settings, directory, stack)
        found: dict[tuple[str, int], list[tuple[float, list[Answer]]]] = {}
        for turn in range(settings.turns + 1):
            for clients in settings.clients:
                for name, port in ports.items():
                    timed = _take_turn(settings, port, prompts, clients, directory if name == "mlx-lm" else None)
                    if turn:  # the first warms up
                        found.setdefault((name, clients), []).append(timed)
        make_console().print(_table(settings, list(ports), found))


def save_model(settings: ServeBenchmark, folder: Path) -> tuple[Path, list[str]]:
    """Write the model as the directory that both servers read. Returns it, and the prompts."""
    texts = [document.text for document in islice(read_documents(["stdlib"]), DOCUMENTS)]
    tokenizer = train_tokenizer(texts, settings.vocab_size)
    ends = {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id}
    config: ModelConfig = replace(preset(settings.preset), vocab_size=tokenizer.vocab_size, max_seq_len=1024, **ends)
    (folder / "tokenizer").mkdir()
    tokenizer.save(folder / "tokenizer")
    save_artifact(folder / "artifact", config, "latent", initial_weights(config, 0), tokenizer_dir=folder / "tokenizer")
    directory = folder / "mlx"
    convert(folder / "artifact", directory, Conversion(form="mlx", model_file=model_file_source()), lambda *_: None)
    return directory, [text[: settings.prompt_characters] for text in texts if len(text) > settings.prompt_characters]


def _start_servers(settings: ServeBenchmark, directory: Path, stack: contextlib.ExitStack) -> dict[str, int]:
    """Start all servers, and return their ports by name."""
    root = Path(__file__).parents[2]
    checkouts = {"ours": root} | ({} if settings.before is None else {"ours before": Path(settings.before)})
    ports = {}
    for name, checkout in checkouts.items():
        ports[name] = free_port()
        words = ["-m", "mlxlm.server", "--model", str(directory), "--model_name", "model", "--port", str(ports[name])]
        command = [sys.executable, *words, "--max_queue", "64"]
        stack.enter_context(server_process(command, ports[name], folder=checkout))
    ports["mlx-lm"] = free_port()
    words = ["-m", "mlx_lm", "server", "--model", str(directory), "--port", str(ports["mlx-lm"]), "--trust-remote-code"]
    stack.enter_context(server_process([sys.executable, *words], ports["mlx-lm"]))
    return ports


def _take_turn(
    settings: ServeBenchmark, port: int, prompts: list[str], clients: int, directory: Path | None
) -> tuple[float, list[Answer]]:
    """Return the seconds of all clients together, and their answers."""

    def work(number: int) -> Answer:
        fields = {"model": str(directory or "model"), "prompt": prompts[number % len(prompts)]}
        # No token is the end that likely: each answer has its full length.
        return ask(port, fields | {"max_tokens": settings.tokens, "temperature": 0.0})

    began = time.perf_counter()
    answers = ask_together(clients, work)
    seconds = time.perf_counter() - began
    if failed := [answer for answer in answers if answer.status != 200]:
        raise RuntimeError(f"port {port}: found status {failed[0].status}: {failed[0].text[:200]}")
    return seconds, answers


def _table(
    settings: ServeBenchmark, names: list[str], found: dict[tuple[str, int], list[tuple[float, list[Answer]]]]
) -> Table:
    table = Table(title=f"{settings.preset}, {settings.tokens} tokens each; medians of {settings.turns} turns")
    for heading in ("server", "clients", "tokens/s", "of one client", "first token, ms", "slowest first"):
        table.add_column(heading, justify="left" if heading == "server" else "right")
    for name in names:
        alone = 0.0
        for clients in settings.clients:
            turns = found[name, clients]
            speed = statistics.median(sum(answer.tokens for answer in answers) / seconds for seconds, answers in turns)
            alone = alone or speed
            firsts = [1000 * answer.first_s for _, answers in turns for answer in answers]
            times = (f"{statistics.median(firsts):,.0f}", f"{max(firsts):,.0f}")
            table.add_row(name, str(clients), f"{speed:,.1f}", f"{speed / alone:.2f}", *times)
    return table
