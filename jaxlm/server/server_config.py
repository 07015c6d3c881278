"""The settings of the command `jaxlm server`."""

from dataclasses import dataclass

from jaxlm.common.serving.serving_config import ServingConfig
from shared_tokenizer.settings import setting


@dataclass(frozen=True, kw_only=True)
class ServerConfig(ServingConfig):
    """The model that is served, the address, and the limits. Raises ValueError on a value out of range."""

    max_batch: int = setting(32, at_least=1)
    """Texts that are generated together, at most."""
