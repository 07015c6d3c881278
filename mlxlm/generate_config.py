"""The settings of the command `mlxlm generate`."""

from dataclasses import dataclass

from jaxlm.common.sampling import GenerateConfig


@dataclass(frozen=True, kw_only=True)
class AdaptedGenerateConfig(GenerateConfig):
    """A model, its adapters, a prompt, and the choice of tokens."""

    adapter_path: str | None = None
    """Directory of adapters to add to the model."""
