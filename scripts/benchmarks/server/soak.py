"""Many clients for minutes: answers equal those given alone, memory stays flat, and no error but the busy one."""

import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measuring.http_client import Answer, ask, ask_together, free_port, server_process
from benchmarks.server.serve import ServeBenchmark, save_model

from jaxlm.common.command_line import make_console

# Share of the requests whose client leaves before the end, and of those that choose tokens by chance.
LEAVING, SAMPLED = 0.2, 0.2
# Prompts whose answers are known, and tokens of the answers at most.
PROMPTS, MOST_TOKENS = 40, 48


@dataclass(frozen=True, kw_only=True)
class SoakBenchmark:
    """Settings of the soak."""

    preset: str = "ternary-tiny"
    """Model, with weights that were never trained."""
    clients: int = 32
    """Clients that ask at the same time, again and again."""
    minutes: float = 5.0
    """Minutes that they ask."""
    seed: int = 0
    """Seed of their choices."""


class _Soak:
    def __init__(self, settings: SoakBenchmark, port: int, prompts: list[str]):
        self._settings, self._port, self._prompts = settings, port, prompts
        self._alone = [self._ask(prompt) for prompt in prompts]
        self._until = time.monotonic() + 60 * settings.minutes
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter()
        self.differing: list[tuple[str, str]] = []

    def _ask(self, prompt: str, **fields: Any) -> Answer:
        leave_after = fields.pop("leave_after", None)
        body = {"model": "model", "prompt": prompt, "max_tokens": MOST_TOKENS, "temperature": 0.0} | fields
        return ask(self._port, body, leave_after)

    def client(self, number: int) -> None:
        """Ask until the time is over."""
        chance = random.Random(self._settings.seed * 1000 + number)
        while time.monotonic() < self._until:
            index = chance.randrange(len(self._prompts))
            fields: dict[str, Any] = {"max_tokens": chance.randint(1, MOST_TOKENS)}
            if chance.random() < LEAVING:
                fields["leave_after"] = chance.randint(1, 8)
            if chance.random() < SAMPLED:
                fields |= {"temperature": 0.8, "seed": chance.randrange(1000), "n": chance.randint(1, 2)}
            answer = self._ask(self._prompts[index], **fields)
            with self._lock:
                self._count(answer, index, fields)
            if answer.status == 503:
                time.sleep(0.2)

    def _count(self, answer: Answer, index: int, fields: dict[str, Any]) -> None:
        if answer.status != 200:
            self.counts[f"status {answer.status}"] += 1
        elif "leave_after" in fields:
            self.counts["client left"] += 1
        elif "temperature" in fields:
            self.counts["sampled"] += 1
        elif self._alone[index].text.startswith(answer.text):
            self.counts["equal to the answer alone"] += 1
        else:
            self.counts["different"] += 1
            self.differing.append((self._alone[index].text, answer.text))


def benchmark(settings: SoakBenchmark) -> None:
    """Print what became of the requests, and the server's memory over time."""
    console = make_console()
    with tempfile.TemporaryDirectory() as folder:
        directory, prompts = save_model(ServeBenchmark(preset=settings.preset), Path(folder))
        port = free_port()
        words = ["-m", "mlxlm.server", "--model", str(directory), "--model_name", "model", "--port", str(port)]
        with server_process([sys.executable, *words, "--prompt_cache_bytes", "50000000"], port) as process:
            soak = _Soak(settings, port, prompts[:PROMPTS])
            memory: list[tuple[float, int]] = []
            watcher = threading.Thread(target=_watch, args=(process, memory), daemon=True)
            watcher.start()
            ask_together(settings.clients, soak.client)
            console.print(", ".join(f"{count:,} {name}" for name, count in sorted(soak.counts.items())))
            for alone, found in soak.differing[:5]:
                console.print(f"different:\n  alone {alone!r}\n  found {found!r}", markup=False)
            parts = [memory[len(memory) * part // 5] for part in range(5)] + [memory[-1]]
            console.print("resident MB: " + ", ".join(f"{size:,} at {seconds:,.0f} s" for seconds, size in parts))


def _watch(process: subprocess.Popen[bytes], memory: list[tuple[float, int]]) -> None:
    """Note the resident memory of a process in MB every second."""
    began = time.monotonic()
    while process.poll() is None:
        found = subprocess.run(["ps", "-o", "rss=", "-p", str(process.pid)], capture_output=True, text=True)
        if found.stdout.strip():
            memory.append((time.monotonic() - began, int(found.stdout) // 1024))
        time.sleep(1)
