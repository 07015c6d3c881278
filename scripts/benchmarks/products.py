"""Products of a linear layer by form and route: forward in bytes and floats, and the two of the backward pass."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from jaxlm.common.command_line import make_console
from jaxlm.ops.backward_products import features_gradient, native_dtype, native_route, weight_gradient
from jaxlm.ops.int8_product import scaled_product
from jaxlm.training.host_allocator import keep_freed_memory
from shared_tokenizer.settings import check_bounds, setting

_BY_TOKEN = (((0,), (0,)), ((), ()))  # contracted
# Sums of products of such integers are exact in bfloat16 operands and float32 sums.
_LARGEST_EXACT = 7


@dataclass(frozen=True, kw_only=True)
class ProductsBenchmark:
    """Settings of the measurement."""

    shapes: list[str] = field(
        default_factory=lambda: ["256x256", "512x512", "768x256", "256x768", "512x1536", "1536x512", "1536x1536"]
    )
    """Outputs x inputs of the layers."""
    tokens: int = setting(2048, at_least=1)
    """Rows that are multiplied."""
    turns: int = setting(15, at_least=1)
    """Calls of each, in turns."""

    def __post_init__(self) -> None:
        check_bounds(self)
        for shape in self.shapes:
            sizes = shape.split("x")
            if len(sizes) != 2 or not all(size.isdecimal() and int(size) for size in sizes):
                raise ValueError(f"shapes: found {shape!r}, expected outputs and inputs such as 768x256")


def benchmark(settings: ProductsBenchmark) -> None:
    """Print GFLOP/s of every form for every shape, and check that those of small integers are exact."""
    keep_freed_memory()  # as a training step does
    columns = None
    table = Table(title=f"GFLOP/s (best of {settings.turns}), {settings.tokens:,} tokens")
    for shape in settings.shapes:
        outputs, inputs = map(int, shape.split("x"))
        forms = _forms(settings.tokens, outputs, inputs)
        if columns is None:
            columns = list(forms)
            table.add_column("outputs x inputs")
            for name in columns:
                table.add_column(name, justify="right")
        seconds = _in_turns(forms, settings.turns)
        operations = 2 * settings.tokens * outputs * inputs
        table.add_row(shape, *(f"{operations / seconds[name] / 1e9:,.0f}" for name in columns))
    console = make_console()
    console.print(table)
    console.print(f"native kernel: {native_route().reason}")
    console.print(
        "y = x W^T, dx = dy W, dW = dy^T x; bytes: int8 products, scaled; all sums of small integers are exact"
    )


def _forms(tokens: int, outputs: int, inputs: int) -> dict[str, Callable[[], Any]]:
    """Return calls of each form, compiled. Raises ValueError where one is not exact."""
    rng = np.random.default_rng(0)
    codes, x = rng.integers(-1, 2, (outputs, inputs)), rng.integers(-_LARGEST_EXACT, 8, (tokens, inputs))
    dy = rng.integers(-_LARGEST_EXACT, 8, (tokens, outputs))
    y, dx, dw = (product.astype(np.float32) for product in (x @ codes.T, dy @ codes, dy.T @ x))
    as_codes, as_bytes = jnp.asarray(codes, jnp.int8), jnp.asarray(x, jnp.int8)
    ones, scale = jnp.ones((tokens, 1), jnp.float32), jnp.ones((1, 1), jnp.float32)
    weight, features, gradient = (jnp.asarray(array, jnp.float32) for array in (codes, x, dy))

    def in_bfloat16(by_xla: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *operands: by_xla(*(operand.astype(jnp.bfloat16) for operand in operands))

    def product(x: Any, w: Any) -> Any:
        return jnp.matmul(x, w.T, preferred_element_type=jnp.float32)

    def dx_of(dy: Any, w: Any) -> Any:
        return jnp.matmul(dy, w, preferred_element_type=jnp.float32)

    def dw_of(dy: Any, x: Any) -> Any:
        return jax.lax.dot_general(dy, x, _BY_TOKEN, preferred_element_type=jnp.float32)

    forms: dict[str, tuple[np.ndarray, Callable[..., Any], tuple[Any, ...]]] = {
        "y, bytes": (y, lambda *of: scaled_product(*of, jnp.float32), (as_bytes, as_codes, ones)),
        "y, float32": (y, product, (features, weight)),
        "y, bfloat16": (y, in_bfloat16(product), (features, weight)),
        "dx, float32": (dx, dx_of, (gradient, weight)),
        "dx, bfloat16": (dx, in_bfloat16(dx_of), (gradient, weight)),
        "dW, float32": (dw, dw_of, (gradient, features)),
        "dW, bfloat16": (dw, in_bfloat16(dw_of), (gradient, features)),
    }
    if (kernel := native_dtype()) is not None:
        forms |= {
            "dx, kernel": (dx, lambda *of: features_gradient(*of, kernel), (gradient, as_codes, scale)),
            "dW, kernel": (dw, lambda *of: weight_gradient(*of, kernel), (gradient, as_bytes, ones)),
        }
    return {name: _checked(name, *form) for name, form in forms.items()}


def _checked(
    name: str, right: np.ndarray, function: Callable[..., Any], operands: tuple[Any, ...]
) -> Callable[[], Any]:
    compiled = jax.jit(function).lower(*operands).compile()
    if not np.array_equal(compiled(*operands), right):
        raise ValueError(f"{name}: products of small integers are not exact here")
    return lambda: jax.block_until_ready(compiled(*operands))


def _in_turns(forms: Mapping[str, Callable[[], Any]], turns: int) -> dict[str, float]:
    """Return the seconds of the fastest call of each form."""
    seconds = dict.fromkeys(forms, float("inf"))
    for _ in range(turns):
        for name, call in forms.items():
            start = time.perf_counter()
            call()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    return seconds
