"""Numbers of a group of samples: advantages, pass@k, majorities."""

from collections import Counter
from collections.abc import Sequence

import numpy as np


def group_advantages(rewards: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return the distance of rewards from the mean of their group, in its standard deviations, float32 `[N]`.

    That is GRPO (arXiv 2402.03300), for rewards `[N]` and group numbers `[N]`. The division gives prompts of rare
    rewards more weight; a small ternary model learns from them what it cannot do yet.
    """
    _, index, counts = np.unique(groups, return_inverse=True, return_counts=True)
    distances = rewards.astype(np.float64)
    distances -= (np.bincount(index, distances) / counts)[index]
    deviations = np.sqrt(np.bincount(index, np.square(distances)) / counts)[index]
    is_equal = deviations < 1e-6  # of a group whose rewards are all the same
    return np.where(is_equal, 0, distances / np.where(is_equal, 1, deviations)).astype(np.float32)


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Return the unbiased estimate of the chance that one of k samples passes: 1 - C(n-c, k) / C(n, k).

    n are the samples, c those of them that passed (arXiv 2107.03374). Raises ValueError where k is more than n.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"k: found {k}, expected 1 to the {samples} samples")
    if samples - passed < k:
        return 1.0
    return float(1 - np.prod(1 - k / np.arange(samples - passed + 1, samples + 1)))


def mean_pass_at_k(passed: np.ndarray, k: int) -> float:
    """Return the mean pass@k of prompts, whose samples passed or not: bool `[prompts, samples]`."""
    return float(np.mean([pass_at_k(passed.shape[1], int(row.sum()), k) for row in passed]))


def majority(answers: Sequence[str]) -> int:
    """Return the index of the first answer that is given most often (self-consistency, arXiv 2203.11171).

    Spaces around an answer do not count.
    """
    stripped = [answer.strip() for answer in answers]
    counts = Counter(stripped)
    return max(range(len(stripped)), key=lambda index: (counts[stripped[index]], -index))


def mean_majority(answers: Sequence[Sequence[str]], passed: np.ndarray, k: int, draws: int = 50) -> float:
    """Return the share of prompts whose majority among k samples passes, bool `[prompts, samples]`.

    It is the mean over `draws` random choices of k samples, the same in every call.
    """
    rng, found = np.random.default_rng(0), list[bool]()
    for texts, row in zip(answers, passed, strict=True):
        for _ in range(draws):
            chosen: list[int] = rng.choice(len(texts), k, replace=False).tolist()
            found.append(row[chosen[majority([texts[index] for index in chosen])]])
    return float(np.mean(found))
