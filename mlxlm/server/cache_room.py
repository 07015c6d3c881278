"""The memory for the caches of texts that are generated together."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import ArraysCache

from mlxlm.model.language_model import LanguageModel

# Of the memory that the model and the caches of earlier prompts leave. The rest is for the steps, and other programs.
SHARE = 0.5
GIB = 1 << 30


@dataclass(frozen=True)
class CacheRoom:
    """Bytes of memory for the caches of the texts that run."""

    max_bytes: int
    bytes_per_token: int
    """Keys and values of all layers."""
    bytes_per_text: int
    """Recurrent states of all layers."""

    def holds(self, lengths: Sequence[int]) -> bool:
        """Return True if there is room for texts of these lengths together: each is padded to the longest one."""
        return self.size(len(lengths), max(lengths)) <= self.max_bytes

    def size(self, num_texts: int, length: int) -> int:
        """Return the bytes of texts of one length."""
        return num_texts * (length * self.bytes_per_token + self.bytes_per_text)

    def summary(self, max_batch: int, max_seq_len: int) -> str:
        """Return a line for the user: the bound, and what the largest batch needs."""
        needed = self.size(max_batch, max_seq_len)
        largest = f"{max_batch} texts of {max_seq_len:,} tokens need {needed / GIB:.2f} GiB"
        line = f"caches of texts: at most {self.max_bytes / GIB:.2f} GiB; {largest}"
        return line if needed <= self.max_bytes else f"{line}, so fewer long ones run together and the others wait"


def cache_room(model: LanguageModel, prompt_cache_bytes: int, memory_bytes: int | None = None) -> CacheRoom:
    """Return the room beside a model that is in memory and the caches of earlier prompts, on this machine."""
    memory = device_bytes() if memory_bytes is None else memory_bytes
    cache: list[Any] = model.make_cache()
    # Computed, though only shapes and dtypes are read: what a model keeps of its first call, such as frequencies, could
    # otherwise not be computed by the engine's thread, as arrays belong to the streams of the thread that made them.
    mx.eval(model(mx.array([[0]]), cache))
    states = [layer for layer in cache if isinstance(layer, ArraysCache)]
    keys = [layer for layer in cache if not isinstance(layer, ArraysCache)]
    tokens = sum(array.nbytes // array.shape[2] for layer in keys for array in (layer.keys, layer.values))
    texts = sum(layer.nbytes for layer in states)
    left = max(0, memory - model_bytes(model) - prompt_cache_bytes)
    return CacheRoom(int(SHARE * left), tokens, texts)


def model_bytes(model: LanguageModel) -> int:
    """Return the size of a model's arrays."""
    found = dict[int, int]()
    for module in model.modules():
        for value in module.values():
            if isinstance(value, mx.array):
                found[id(value)] = value.nbytes
    return sum(found.values())


def device_bytes() -> int:
    """Return the memory of the device: what Metal recommends to use, or that of the machine."""
    info = mx.device_info()
    recommended = info.get("max_recommended_working_set_size")
    return int(recommended) if recommended else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
