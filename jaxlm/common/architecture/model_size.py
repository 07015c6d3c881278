"""A well-proportioned model of about so many parameters. Nothing is allocated, so any size may be asked for."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, TypeVar

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.parameters import parameter_count
from jaxlm.common.architecture.presets import bitnet, mmfree

# arXiv 2203.15556 (Chinchilla): where compute is best spent. Small models that are to be used a lot are given more.
TOKENS_PER_PARAMETER = 20
Number = TypeVar("Number", int, float)
Architecture = Literal["ternary", "mmfree", "dense"]
_KINDS = {"ternary": bitnet, "mmfree": mmfree, "dense": ModelConfig}

LARGEST = 10**12
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
# Widths are multiples of it: llama.cpp's ternary types take 256 inputs of a matrix together.
MULTIPLE = 256
_MLP_RATIO = 8 / 3
# Within this share of the size asked for, proportions alone decide.
TOLERANCE = 0.01
# A miss of 2 % beyond that weighs as much as a depth or width that is off by a factor of e.
_MISS_WEIGHT = 50
# Dense models from here on have a head of their own. Ternary ones never do: llama.cpp knows none for them.
_UNTIED = 5 * 10**9

# From so many parameters on, by table of the vocabulary (an untied head is a second one): a tenth to a quarter of a
# small model is vocabulary, and less and less of a large one. 32,000 is Llama 2's, 128,256 that of Llama 3.
_VOCAB_SIZES = {
    0: 1024,
    2_500_000: 2048,
    4_000_000: 4096,
    30_000_000: 8192,
    70_000_000: 16384,
    150_000_000: 32000,
    6_000_000_000: 128256,
}
_MAX_SEQ_LENS = {0: 512, 20_000_000: 1024, 100_000_000: 2048, 2_000_000_000: 4096}
_EMBEDDING_RANGES = {0: 0.1, 100_000_000: 0.02}


@dataclass(frozen=True)
class _Shape:
    """One point of the grid."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    parameters: int

    @property
    def distortion(self) -> float:
        """How far it is from the proportions of well-known models, in e-folds of depth and of width."""
        depth = self.num_layers / _good_depth(self.hidden_size)
        width = self.intermediate_size / (_MLP_RATIO * self.hidden_size)
        return abs(math.log(depth)) + abs(math.log(width))


def parse_size(text: str) -> int:
    """Parameters from a number with or without a unit: "350M", "1.5B", "300b", "1200000".

    Raises ValueError where it is no such number, not above 0, or above 1T.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMBT]?)", text.strip().upper(), re.ASCII)
    if found is None:
        raise ValueError(f"params: found {text!r}, expected a number of parameters such as 350M, 1.5B or 1200000")
    parameters = int(Decimal(found[1]) * _UNITS[found[2]])
    if not 0 < parameters <= LARGEST:
        raise ValueError(f"params: found {text!r}, expected more than 0 and at most 1T")
    return parameters


def config_of_size(parameters: int, arch: Architecture, vocab_size: int | None = None) -> ModelConfig:
    """The best-proportioned model within 1 % of so many parameters, or where the grid has none, the best trade.

    Over the whole range, sizes are met within 1.1 % from 1B on, 1.5 % from 100M, 3 % from 10M and 10 % from 1M.
    `vocab_size` takes the place of the one that suits the size. Raises ValueError where the vocabulary and the smallest
    block are more than what was asked for.
    """
    tied = arch == "ternary" or (arch == "dense" and parameters < _UNTIED)
    suiting: int = _from(_VOCAB_SIZES, parameters if tied else parameters // 2)
    vocabulary = suiting if vocab_size is None else vocab_size
    rest, block, _ = _count_rule(arch, vocabulary, tied, next(_hidden_sizes()))
    if parameters < rest + block:
        raise ValueError(
            f"params: found {parameters:,}, expected at least {rest + block:,} with a vocabulary of {vocabulary:,}; "
            "ask for more, or set a smaller vocab_size"
        )

    def badness(shape: _Shape) -> float:
        miss = abs(shape.parameters / parameters - 1)
        return shape.distortion + _MISS_WEIGHT * max(0.0, miss - TOLERANCE)

    best = min(_shapes(arch, vocabulary, tied, parameters), key=badness)
    return dataclasses.replace(
        _config(arch, vocabulary, tied, best.hidden_size, best.intermediate_size, best.num_layers),
        max_seq_len=_from(_MAX_SEQ_LENS, parameters),
        embedding_range=_from(_EMBEDDING_RANGES, parameters),
    )


def _shapes(arch: Architecture, vocab_size: int, tied: bool, parameters: int) -> Iterator[_Shape]:
    """For every width, and width of the feed-forward, the two depths next to the size."""
    for hidden in _hidden_sizes():
        rest, narrowest, step = _count_rule(arch, vocab_size, tied, hidden)
        if rest > parameters:
            return
        least = 2 * hidden if hidden > MULTIPLE else hidden  # the smallest models need every shape there is
        for steps in range(least // MULTIPLE, 4 * hidden // MULTIPLE + 1):
            block = narrowest + (steps - 1) * step
            below = (parameters - rest) // block
            for layers in {max(1, below), below + 1}:
                yield _Shape(hidden, MULTIPLE * steps, layers, rest + layers * block)


@functools.cache
def _count_rule(arch: Architecture, vocab_size: int, tied: bool, hidden: int) -> tuple[int, int, int]:
    """What models of a width have: parameters outside of blocks, of a block with a feed-forward of MULTIPLE, and of
    each MULTIPLE more. Their count is linear in the depth, and in the feed-forward's width.
    """
    one, two, wide = (
        parameter_count(_config(arch, vocab_size, tied, hidden, intermediate, layers))
        for intermediate, layers in ((MULTIPLE, 1), (MULTIPLE, 2), (2 * MULTIPLE, 1))
    )
    return 2 * one - two, two - one, wide - one


def _from(table: dict[int, Number], parameters: int) -> Number:
    """The last entry that begins at or below so many parameters."""
    return next(table[least] for least in reversed(table) if least <= parameters)


def _hidden_sizes() -> Iterator[int]:
    """Widths whose heads divide into groups, ever further apart."""
    yield from range(256, 2048, 256)
    yield from range(2048, 4096, 512)
    yield from range(4096, 32769, 1024)


def _good_depth(hidden: int) -> float:
    """Layers for a width: one for 128 from 4096 on (Llama 7B and 13B, GPT-3), and fewer by the root of the width below
    it."""
    return hidden / min(128.0, 2 * math.sqrt(hidden))


def _config(
    arch: Architecture, vocab_size: int, tied: bool, hidden: int, intermediate: int, layers: int
) -> ModelConfig:
    return _KINDS[arch](
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_layers=layers,
        tie_word_embeddings=tied,
        **({} if arch == "mmfree" else _heads(hidden)),
    )


def _heads(hidden: int) -> dict[str, int]:
    """Query heads, and the key/value heads that groups of them share."""
    num_heads = hidden // (64 if hidden < 2048 else 128)
    if hidden >= 4096:
        return {"num_heads": num_heads, "num_kv_heads": 8}  # as Llama 3 has from 8B to 405B
    return {"num_heads": num_heads, "num_kv_heads": num_heads // (2 if hidden < 1024 else 4)}
