"""What the model has seen, kept for requests that begin alike."""

import copy
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import can_trim_prompt_cache, trim_prompt_cache


class PromptStore:
    """Caches of the model by the token ids they have seen; those not used for longest go first.

    Keys and values of attention can be cut back to any shared prefix. The recurrent state of an MLGRU layer cannot:
    it serves only prompts that begin with all that it has seen. Copies share memory until one of them is written to.
    """

    def __init__(self, max_bytes: int):
        self._max_bytes = max_bytes
        self._entries: OrderedDict[bytes, list[Any]] = OrderedDict()

    def nearest(self, ids: Sequence[int]) -> tuple[list[Any] | None, int]:
        """A copy of the cache that has seen most of a prompt, and how many of its ids; (None, 0) where none has.

        The last id is never among them: the model has to see one to go on.
        """
        wanted = np.array(ids, np.int32)
        best, seen = None, 0
        for key, cache in self._entries.items():
            usable = _usable(np.frombuffer(key, np.int32), wanted, can_trim_prompt_cache(cache))
            if usable > seen:
                best, seen = key, usable
        if best is None:
            return None, 0
        self._entries.move_to_end(best)
        cache = copy.deepcopy(self._entries[best])
        trim_prompt_cache(cache, len(best) // 4 - seen)
        return cache, seen

    def add(self, ids: Sequence[int], cache: list[Any]) -> None:
        """Keep a cache that has seen these ids; the caller writes to it no more."""
        if not ids:
            return
        key = np.array(ids, np.int32).tobytes()
        if can_trim_prompt_cache(cache):  # it serves all that its prefixes serve
            for other in [other for other in self._entries if key.startswith(other)]:
                del self._entries[other]
        mx.eval([layer.state for layer in cache])
        self._entries[key] = cache
        self._entries.move_to_end(key)
        while self._entries and self.num_bytes > self._max_bytes:
            self._entries.popitem(last=False)

    @property
    def num_bytes(self) -> int:
        """Size of all that is kept."""
        return sum(len(key) + sum(layer.nbytes for layer in cache) for key, cache in self._entries.items())


def _usable(seen: np.ndarray, wanted: np.ndarray, can_trim: bool) -> int:
    """How many ids of a prompt a cache saves."""
    length = min(len(seen), len(wanted) - 1)
    differs = np.flatnonzero(seen[:length] != wanted[:length])
    shared = int(differs[0]) if len(differs) else length
    return shared if can_trim or shared == len(seen) else 0
