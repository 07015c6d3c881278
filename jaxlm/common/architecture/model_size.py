"""The config of a well-proportioned model of a given number of parameters. Nothing is allocated, so any size works."""

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

# Compute-optimal tokens per parameter (Chinchilla, arXiv 2203.15556). Small models for heavy use are trained on more.
TOKENS_PER_PARAMETER = 20
Number = TypeVar("Number", int, float)
Architecture = Literal["ternary", "mmfree", "dense"]
_KINDS = {"ternary": bitnet, "mmfree": mmfree, "dense": ModelConfig}

LARGEST = 10**12
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
# Every width is a multiple: a block of llama.cpp's ternary types holds 256 inputs of a matrix.
MULTIPLE = 256
_MLP_RATIO = 8 / 3
# Below this relative error of the size, proportions alone decide.
TOLERANCE = 0.01
# An error of 2 % beyond that counts as much as a depth or width that is wrong by a factor of e.
_ERROR_WEIGHT = 50
# Dense models of this size or more have an untied head. Ternary ones never do: llama.cpp has no such architecture.
_UNTIED = 5 * 10**9

# Each table below maps the smallest number of parameters to a value. An untied head is a second vocabulary table, so it
# halves the number that is looked up here. The vocabulary takes a tenth to a quarter of a small model, and less of a
# larger one. 32,000 is the vocabulary of Llama 2, 128,256 that of Llama 3.
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
_EMBEDDING_RANGES = {0: 0.05, 100_000_000: 0.02}
# Of ternary models: small ones train better without (studies/layer_form.yaml), the released large ones have them.
_HAS_SUB_NORMS = {0: False, 100_000_000: True}


@dataclass(frozen=True)
class _Shape:
    """One candidate of the grid of widths and depths."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    parameters: int

    @property
    def distortion(self) -> float:
        """Distance from the proportions of well-known models, as a sum of log ratios of depth and width."""
        depth = self.num_layers / _good_depth(self.hidden_size)
        width = self.intermediate_size / (_MLP_RATIO * self.hidden_size)
        return abs(math.log(depth)) + abs(math.log(width))


def parse_size(text: str) -> int:
    """Return the number of parameters that a text names, with or without a unit: "350M", "1.5B", "300b", "1200000".

    Raises ValueError where the text is no such number, or where the number is 0 or above 1T.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMBT]?)", text.strip().upper(), re.ASCII)
    if found is None:
        raise ValueError(f"params: found {text!r}, expected a number of parameters such as 350M, 1.5B or 1200000")
    parameters = int(Decimal(found[1]) * _UNITS[found[2]])
    if not 0 < parameters <= LARGEST:
        raise ValueError(f"params: found {text!r}, expected more than 0 and at most 1T")
    return parameters


def config_of_size(parameters: int, arch: Architecture, vocab_size: int | None = None) -> ModelConfig:
    """Return the best-proportioned model within 1 % of the number of parameters.

    Where the grid has none, the model trades size against proportions. The error of the size is at most 1.1 % from 1B
    parameters on, 1.5 % from 100M, 3 % from 10M and 10 % from 1M. `vocab_size` replaces the vocabulary that suits the
    size. Raises ValueError where the vocabulary and one smallest block already have more parameters.
    """
    tied = arch == "ternary" or (arch == "dense" and parameters < _UNTIED)
    suiting: int = _lookup(_VOCAB_SIZES, parameters if tied else parameters // 2)
    vocabulary = suiting if vocab_size is None else vocab_size
    outside, block, _ = _count_rule(arch, vocabulary, tied, next(_hidden_sizes()))
    if parameters < outside + block:
        raise ValueError(
            f"params: found {parameters:,}, expected at least {outside + block:,} with a vocabulary of {vocabulary:,}; "
            "ask for more, or set a smaller vocab_size"
        )

    def penalty(shape: _Shape) -> float:
        error = abs(shape.parameters / parameters - 1)
        return shape.distortion + _ERROR_WEIGHT * max(0.0, error - TOLERANCE)

    best = min(_candidates(arch, vocabulary, tied, parameters), key=penalty)
    return dataclasses.replace(
        _config(arch, vocabulary, tied, best.hidden_size, best.intermediate_size, best.num_layers),
        max_seq_len=_lookup(_MAX_SEQ_LENS, parameters),
        embedding_range=_lookup(_EMBEDDING_RANGES, parameters),
        sub_norm=arch == "ternary" and _lookup(_HAS_SUB_NORMS, parameters),
    )


def _candidates(arch: Architecture, vocab_size: int, tied: bool, parameters: int) -> Iterator[_Shape]:
    """Yield, for every hidden and intermediate size, the two depths just below and above the number of parameters."""
    for hidden in _hidden_sizes():
        outside, narrowest, step = _count_rule(arch, vocab_size, tied, hidden)
        if outside > parameters:
            return
        least = 2 * hidden if hidden > MULTIPLE else hidden  # the smallest models need more candidates
        for steps in range(least // MULTIPLE, 4 * hidden // MULTIPLE + 1):
            block = narrowest + (steps - 1) * step
            below = (parameters - outside) // block
            for layers in {max(1, below), below + 1}:
                yield _Shape(hidden, MULTIPLE * steps, layers, outside + layers * block)


@functools.cache
def _count_rule(arch: Architecture, vocab_size: int, tied: bool, hidden: int) -> tuple[int, int, int]:
    """Return the parameter counts of a hidden size: outside of blocks, of a block with intermediate_size MULTIPLE, and
    of each further MULTIPLE of intermediate_size in a block.

    The count of a model is linear in its depth and in its intermediate_size, so three models determine the rule.
    """
    one, two, wide = (
        parameter_count(_config(arch, vocab_size, tied, hidden, intermediate, layers))
        for intermediate, layers in ((MULTIPLE, 1), (MULTIPLE, 2), (2 * MULTIPLE, 1))
    )
    return 2 * one - two, two - one, wide - one


def _lookup(table: dict[int, Number], parameters: int) -> Number:
    """Return the entry of the largest key that is at most the number of parameters."""
    return next(table[least] for least in reversed(table) if least <= parameters)


def _hidden_sizes() -> Iterator[int]:
    """Yield hidden sizes whose heads divide into groups, in growing steps."""
    yield from range(256, 2048, 256)
    yield from range(2048, 4096, 512)
    yield from range(4096, 32769, 1024)


def _good_depth(hidden: int) -> float:
    """Return the number of layers that suits a hidden size: hidden / 128 from 4096 on, as in Llama 7B and 13B and in
    GPT-3, and sqrt(hidden) / 2 below."""
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
    """Return the number of query heads and of key/value heads."""
    num_heads = hidden // (64 if hidden < 2048 else 128)
    if hidden >= 4096:
        return {"num_heads": num_heads, "num_kv_heads": 8}  # as Llama 3 has from 8B to 405B
    return {"num_heads": num_heads, "num_kv_heads": num_heads // (2 if hidden < 1024 else 4)}
