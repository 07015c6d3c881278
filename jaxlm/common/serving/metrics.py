"""The numbers of a server for Prometheus, counted when a request has ended: the engine does not count."""

import os
import subprocess
from collections.abc import Collection
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from jaxlm.common.serving.engine import Engine
from jaxlm.common.serving.request_watch import AnsweredRequest

# Seconds: from a cached prompt on a fast chip to a long answer on a slow one.
BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
STATM = Path("/proc/self/statm")


class Metrics:
    """The counters of one server, in a registry of its own."""

    def __init__(self, engine: Engine):
        self.paths: Collection[str] = ()
        """Paths of the routes; requests for others count as `other`, so clients cannot make up labels."""
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "jaxlm_requests", "Requests that have ended.", ["endpoint", "status"], registry=registry
        )
        self._prompt = Counter("jaxlm_prompt_tokens", "Tokens of prompts.", registry=registry)
        self._cached = Counter(
            "jaxlm_cached_prompt_tokens", "Tokens of prompts whose caches were in memory.", registry=registry
        )
        self._generated = Counter("jaxlm_generated_tokens", "Tokens of answers.", registry=registry)
        self._first = Histogram(
            "jaxlm_time_to_first_token_seconds",
            "Seconds from a request to its first token.",
            registry=registry,
            buckets=BOUNDS,
        )
        self._seconds = Histogram(
            "jaxlm_request_seconds",
            "Seconds from a request to the end of its answer.",
            ["endpoint"],
            registry=registry,
            buckets=BOUNDS,
        )
        for name, about, read in (
            ("jaxlm_running_texts", "Texts that are being generated or scored.", lambda: len(engine.running)),
            ("jaxlm_waiting_requests", "Requests that wait.", lambda: engine.num_waiting),
            ("jaxlm_prompt_store_bytes", "Caches of earlier prompts.", lambda: engine.prompt_store_bytes),
            ("process_resident_memory_bytes", "Memory of the process.", resident_bytes),
        ):
            Gauge(name, about, registry=registry).set_function(read)

    def count(self, answered: AnsweredRequest) -> None:
        """Count a request that has ended."""
        endpoint = answered.path if answered.path in self.paths else "other"
        self._requests.labels(endpoint, answered.status).inc()
        self._seconds.labels(endpoint).observe(answered.seconds)
        if not answered.generations:
            return
        self._prompt.inc(answered.prompt_tokens)
        self._cached.inc(answered.cached_tokens)
        self._generated.inc(answered.generated_tokens)
        if (seconds := answered.first_token_seconds) is not None:
            self._first.observe(seconds)

    def text(self) -> bytes:
        """Return all numbers in Prometheus' text format."""
        return generate_latest(self._registry)


def resident_bytes() -> int:
    """Return the memory that the process occupies now; 0 where the system does not say."""
    if STATM.is_file():
        return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    try:
        found = subprocess.run(["ps", "-o", "rss=", "-p", str(os.getpid())], capture_output=True, check=True, timeout=5)
        return int(found.stdout) * 1024
    except (OSError, ValueError, subprocess.SubprocessError):
        return 0
