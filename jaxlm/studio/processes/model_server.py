"""Models that people talk to: a server of OpenAI's API per model or checkpoint, started when it is first asked.

The server is a process that ends with this one. Text comes from it as it is generated.
"""

import asyncio
import json
import re
import secrets
import shutil
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxlm.common.run.run_directory import CONFIG, RunDirectory
from jaxlm.common.serving.command import KEY_VARIABLE
from jaxlm.studio.processes.jobs import Command, Job, Jobs
from jaxlm.studio.processes.recipes import near
from jaxlm.studio.processes.waiting_line import WaitingLine
from jaxlm.studio.reading.metrics_tail import tail_of
from jaxlm.studio.reading.runs import settings_file

_URL = re.compile(r"(?m)^.+: (http://127\.0\.0\.1:\d+/v1)$")
_START_SECONDS = 300.0
# Servers that are kept open; each holds a model in memory.
MOST_SERVERS = 3
IDLE_SECONDS = 900.0
# Answers that a server writes at a time: JAX begins a text when those before it have ended, MLX adds it to them.
_AT_ONCE = {"server": 1, "mlx-server": 8}


@dataclass(frozen=True)
class Talker:
    """A model that can be asked: a directory or file, or one checkpoint of a run."""

    path: Path
    step: int | None = None
    """Checkpoint of a run; None for its newest, and for models."""


@dataclass
class OpenServer:
    """A server that answers."""

    talker: Talker
    job: Job
    url: str
    key: str = field(repr=False)
    name: str
    has_chat: bool
    line: WaitingLine
    used: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Choice:
    """Settings by which the next token is chosen."""

    max_tokens: int = 128
    temperature: float = 0.8
    top_p: float = 0.95
    seed: int = 0
    stop: tuple[str, ...] = ()
    """Texts that end the answer."""


class ModelServers:
    """The servers of one studio."""

    def __init__(self, jobs: Jobs, state: Path, cwd: Path):
        self._jobs, self._state, self._cwd = jobs, state, cwd
        self._open: dict[Talker, OpenServer] = {}
        self._locks: dict[Talker, asyncio.Lock] = {}

    async def open(self, talker: Talker) -> OpenServer:
        """Return the server of a model, started if need be. Raises ValueError with the end of its log if it fails."""
        async with self._locks.setdefault(talker, asyncio.Lock()):
            found = self._open.get(talker)
            if found is not None and found.job.state == "running":
                found.used = time.monotonic()
                return found
            self._make_room()
            server = await self._start(talker)
            self._open[talker] = server
            return server

    def close_idle(self) -> None:
        """End the servers that nobody asked for a while."""
        for talker, server in list(self._open.items()):
            if time.monotonic() - server.used > IDLE_SECONDS or server.job.state != "running":
                self._close(talker)

    def close(self) -> None:
        """End all servers."""
        for talker in list(self._open):
            self._close(talker)

    def is_open(self, talker: Talker) -> bool:
        """Return True if a server answers for a model."""
        return talker in self._open and self._open[talker].job.state == "running"

    def _close(self, talker: Talker) -> None:
        self._open.pop(talker).job.kill()

    def _make_room(self) -> None:
        while len(self._open) >= MOST_SERVERS:
            self._close(min(self._open, key=lambda talker: self._open[talker].used))

    async def _start(self, talker: Talker) -> OpenServer:
        key = secrets.token_urlsafe(24)
        command = self._command(talker)
        job = self._jobs.start_tied(
            "serve", f"talk to {talker.path.name}", talker.path, command, cwd=self._cwd,
            environment={KEY_VARIABLE: key},
        )  # fmt: skip
        end = time.monotonic() + _START_SECONDS
        while time.monotonic() < end:
            text = tail_of(job.log, 1 << 16).decode("utf-8", "replace")
            if found := _URL.search(text):
                name = found[0].rpartition(": ")[0]
                line = WaitingLine(_AT_ONCE[command.name])
                return OpenServer(talker, job, found[1], key, name, "chat/completions" in text, line)
            if job.state != "running":
                raise ValueError(_last_error(text) or f"{talker.path}: its server ended: {text[-400:]}")
            await asyncio.sleep(0.1)
        job.kill()
        raise ValueError(f"{talker.path}: its server did not answer within {_START_SECONDS:.0f} s")

    def _command(self, talker: Talker) -> Command:
        """Return the command that serves a model; the adapters of a fine-tuning run with their model, from MLX."""
        path = talker.path
        if settings_file(path) == "finetune.yaml":
            model = _finetuned_model(path)
            words = ("--model", model, "--adapter_path", near(path / "adapters"))
            return Command("mlx-server", (*words, "--port", "0"))
        if talker.step is not None:
            path = checkpoint_view(path, talker.step, self._state / "views")
        return Command("server", ("--model", near(path), "--port", "0"))


def checkpoint_view(run: Path, step: int, views: Path) -> Path:
    """Return a run directory of links that has one checkpoint of a run. Raises ValueError where there is none."""
    checkpoint = RunDirectory(run).checkpoints / str(step)
    if not checkpoint.is_dir():
        raise ValueError(f"{run}: has no checkpoint of step {step} any more, choose another one")
    view = views / f"{run.name}-step-{step}"
    shutil.rmtree(view, ignore_errors=True)
    (view / "checkpoints").mkdir(parents=True)
    for name in (CONFIG, "identity.json", "tokenizer"):
        if (run / name).exists():
            (view / name).symlink_to(run / name)
    (view / "checkpoints" / str(step)).symlink_to(checkpoint)
    return view


async def ask(
    server: OpenServer, asked: str | Sequence[Mapping[str, str]], choice: Choice
) -> AsyncGenerator[str, None]:
    """Yield the answer to a chat, or the continuation of a text, piece by piece. Raises ValueError if it is refused."""
    import httpx

    server.used = time.monotonic()
    is_chat = not isinstance(asked, str)
    body: dict[str, Any] = {"model": server.name, "stream": True, "max_tokens": choice.max_tokens}
    body |= {"temperature": choice.temperature, "top_p": choice.top_p, "seed": choice.seed}
    body |= {"stop": list(choice.stop)} if choice.stop else {}
    body |= {"messages": list(asked)} if is_chat else {"prompt": asked}
    route = "chat/completions" if is_chat else "completions"
    headers = {"Authorization": f"Bearer {server.key}"}
    try:
        async with (
            httpx.AsyncClient(timeout=httpx.Timeout(600, connect=10), trust_env=False) as client,
            client.stream("POST", f"{server.url}/{route}", json=body, headers=headers) as response,
        ):
            if response.status_code != 200:
                raise ValueError(_refusal(await response.aread()))
            async for line in response.aiter_lines():
                if text := _piece(line, is_chat):
                    server.used = time.monotonic()
                    yield text
    except httpx.HTTPError as error:
        raise ValueError(f"{server.name}: its server does not answer ({error or type(error).__name__})") from error


def _piece(line: str, is_chat: bool) -> str:
    """Return the text of a line of the stream, empty where it has none. Raises ValueError on an error in the stream."""
    if not line.startswith("data: ") or line == "data: [DONE]":
        return ""
    content = json.loads(line.removeprefix("data: "))
    if "error" in content:
        raise ValueError(str(content["error"].get("message", content["error"])))
    choices = content.get("choices") or [{}]
    return (choices[0].get("delta", {}).get("content") if is_chat else choices[0].get("text")) or ""


def _refusal(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body[:400].decode("utf-8", "replace")


def _last_error(text: str) -> str | None:
    found = [line for line in text.splitlines() if line.startswith("error: ")]
    return found[-1].removeprefix("error: ") if found else None


def _finetuned_model(run: Path) -> str:
    import yaml

    content = yaml.safe_load((run / "finetune.yaml").read_text("utf-8"))
    if not (run / "adapters").is_dir():
        raise ValueError(f"{run}: has no adapters yet; wait for its end")
    return str(content["model"])
