"""Caches of earlier prompts, reused by requests that share a prefix with them."""

import copy
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import can_trim_prompt_cache, trim_prompt_cache


@dataclass(frozen=True)
class _Entry:
    cache: list[Any]
    num_bytes: int
    """Size of the ids and the cache."""


class PromptStore:
    """Caches of models by the token ids that they hold, at most `max_bytes`; the least recently used goes first.

    All models of a server share the bytes; each finds only what was stored under its own `owner`. Keys and values of
    attention can be cut back to any shared prefix. The recurrent state of an MLGRU layer cannot, so it serves only
    prompts that begin with all of its ids. Copies share memory until one of them is written to.
    """

    def __init__(self, max_bytes: int):
        self._max_bytes = max_bytes
        self._entries: OrderedDict[tuple[Hashable, bytes], _Entry] = OrderedDict()
        self.num_bytes = 0
        """Size of all ids and caches in the store; other threads may read it."""

    def nearest(self, ids: Sequence[int], owner: Hashable = None) -> tuple[list[Any] | None, int]:
        """Return a copy of the cache with the longest prefix of a prompt, and the prefix's length; else (None, 0).

        The prefix never includes the prompt's last id: the model needs one id to continue.
        """
        wanted = np.array(ids, np.int32)
        best, longest = None, 0
        for (of, key), entry in self._entries.items():
            if of != owner:
                continue
            usable = _usable(np.frombuffer(key, np.int32), wanted, can_trim_prompt_cache(entry.cache))
            if usable > longest:
                best, longest = key, usable
        if best is None:
            return None, 0
        self._entries.move_to_end((owner, best))
        cache = copy.deepcopy(self._entries[owner, best].cache)
        trim_prompt_cache(cache, len(best) // 4 - longest)
        return cache, longest

    def add(self, ids: Sequence[int], cache: list[Any], owner: Hashable = None) -> None:
        """Store a cache that holds these ids; the caller must not write to it any more."""
        if not ids:
            return
        key = np.array(ids, np.int32).tobytes()
        replaced = [(owner, key)] if (owner, key) in self._entries else []
        if can_trim_prompt_cache(cache):  # it serves all prompts that its prefixes serve
            replaced = [(of, other) for of, other in self._entries if of == owner and key.startswith(other)]
        for place in replaced:
            self.num_bytes -= self._entries.pop(place).num_bytes
        mx.eval([layer.state for layer in cache])
        entry = _Entry(cache, len(key) + sum(layer.nbytes for layer in cache))
        self._entries[owner, key] = entry
        self.num_bytes += entry.num_bytes
        while self.num_bytes > self._max_bytes:
            self.num_bytes -= self._entries.popitem(last=False)[1].num_bytes


def _usable(cached: np.ndarray, wanted: np.ndarray, can_trim: bool) -> int:
    """Return the number of ids of a prompt that a cache saves."""
    length = min(len(cached), len(wanted) - 1)
    differs = np.flatnonzero(cached[:length] != wanted[:length])
    shared = int(differs[0]) if len(differs) else length
    return shared if can_trim or shared == len(cached) else 0
