"""A latent artifact with sub-norms that its model does not have: gains of 1 next to its tensors."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from jaxlm.common.architecture.parameters import stored_tensors
from jaxlm.common.artifact.artifact import Artifact


def with_sub_norms(artifact: Artifact) -> Artifact:
    """Return a latent artifact with sub-norms of gain 1. Raises ValueError where its model has sub-norms."""
    if artifact.config.sub_norm:
        raise ValueError("insert_sub_norm: the model has sub-norms already; leave insert_sub_norm out")
    config = replace(artifact.config, sub_norm=True)
    stored = tuple(stored_tensors(config, artifact.kind, artifact.float_dtype))
    new = {each.name: each.shape for each in stored if each.name not in artifact.tensors}
    return replace(artifact, config=config, stored=stored, tensors=_WithOnes(artifact.tensors, new))


class _WithOnes(Mapping[str, np.ndarray]):
    """Tensors by name, and ones of some further shapes."""

    def __init__(self, tensors: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]):
        self._tensors, self._shapes = tensors, shapes

    def __getitem__(self, name: str) -> np.ndarray:
        return np.ones(self._shapes[name], np.float32) if name in self._shapes else self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter([*self._tensors, *self._shapes])

    def __len__(self) -> int:
        return len(self._tensors) + len(self._shapes)
