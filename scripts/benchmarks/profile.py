"""Where the time of a training step goes: the operations of the compiled step, timed by jax's profiler, by kind."""

import re
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import jax
from benchmarks.measuring.training_step import compiled_step
from rich.table import Table

from jaxlm.common.architecture.presets import preset
from jaxlm.common.command_line import make_console
from shared_tokenizer.settings import check_bounds, setting

# The first kind whose pattern is found in the path of an operation: "jit(step)/.../mlp/up_proj/dot_general".
KINDS = {
    "optimizer": r"\boptimizer\b",
    "ternary weights": r"\bternarize\b",
    "products of the loss": r"\bloss\b.*(dot_general|ffi_call)",
    "products of attention": r"self_attn/.*while.*dot_general",
    "products of linear layers": r"dot_general|unsigned_product|ffi_call",
    "elementwise, loss": r"\bloss\b",
    "copies": r"(dynamic_update_slice|dynamic_slice|slice|concatenate|transpose|copy|pad|gather|scatter[^/]*)$",
    "norms and quantizers": r"norm|\bquantize\b",
    "elementwise, attention": r"self_attn",
    "elementwise, feed-forward": r"/mlp/",
}
_OTHER = "other"
# They hold other operations, whose time would count twice.
_CONTAINERS = re.compile(r"(while|call|conditional|tuple)(\.|$)")
_OPERATION = re.compile(r'^\s*(?:ROOT )?%?(\S+) = .*?metadata=\{op_name="([^"]*)"', re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class ProfileBenchmark:
    """Settings of the measurement."""

    presets: list[str] = field(default_factory=lambda: ["ternary-tiny", "ternary-25m"])
    """Models to train."""
    batch_size: int = setting(8, at_least=1)
    """Sequences per step."""
    seq_len: int = setting(256, at_least=2)
    """Tokens per sequence."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of activations."""
    backward_dtype: Literal["float32", "bfloat16"] | None = None
    """Precision of the operands of the gradients' products; null for that of activations."""
    steps: int = setting(5, at_least=1)
    """Steps that are recorded."""
    operations: int = setting(8, at_least=0)
    """Single operations to list, the longest first."""

    def __post_init__(self) -> None:
        check_bounds(self)


def benchmark(settings: ProfileBenchmark) -> None:
    """Print the milliseconds of a step by the kind of operation, and its longest operations."""
    for name in settings.presets:
        config = replace(preset(name), max_seq_len=max(settings.seq_len, preset(name).max_seq_len))
        compiled, state, batch = compiled_step(
            config,
            settings.batch_size,
            settings.seq_len,
            dtype=settings.dtype,
            backward_dtype=settings.backward_dtype,
        )
        paths = dict(_OPERATION.findall(compiled.as_text()))
        seconds = _seconds(compiled, state, batch, settings.steps)
        _print(settings, name, paths, {operation: s for operation, s in seconds.items() if operation in paths})


def kind_of(path: str) -> str:
    """Return the kind of an operation by its path in the program."""
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, path)), _OTHER)


def _seconds(compiled: Any, state: Any, batch: Any, steps: int) -> Counter[str]:
    """Return the seconds per step of each operation, summed over threads."""
    state, _ = jax.block_until_ready(compiled(state, batch))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(steps):
                state, _ = jax.block_until_ready(compiled(state, batch))
        (file,) = Path(folder).rglob("*.xplane.pb")
        profile = jax.profiler.ProfileData.from_file(str(file))
        seconds: Counter[str] = Counter()
        for plane in profile.planes:
            for line in plane.lines:
                for event in line.events:
                    if not _CONTAINERS.match(event.name):
                        seconds[event.name] += event.duration_ns / 1e9 / steps
    return seconds


def _print(settings: ProfileBenchmark, name: str, paths: Mapping[str, str], seconds: Mapping[str, float]) -> None:
    kinds: Counter[str] = Counter()
    for operation, value in seconds.items():
        kinds[kind_of(paths[operation])] += value
    total = sum(kinds.values())
    precision = settings.dtype + (f", gradients' products {settings.backward_dtype}" if settings.backward_dtype else "")
    table = Table(title=f"{name}, {settings.batch_size} x {settings.seq_len} tokens a step, {precision}")
    table.add_column("operations")
    for heading in ("ms, of all threads", "share"):
        table.add_column(heading, justify="right")
    for kind, value in kinds.most_common():
        table.add_row(kind, f"{1000 * value:.1f}", f"{value / total:.0%}")
    table.add_section()
    for operation, value in Counter(seconds).most_common(settings.operations):
        table.add_row("/".join(paths[operation].split("/")[-3:]), f"{1000 * value:.1f}", f"{value / total:.0%}")
    make_console().print(table)
