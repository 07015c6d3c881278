"""The settings that every server has."""

from dataclasses import dataclass, field

from shared_tokenizer.chat.formats import ChatFormatChoice
from shared_tokenizer.settings import check_bounds, setting


@dataclass(frozen=True, kw_only=True)
class ServingConfig:
    """The model that is served, the address, and the limits. Raises ValueError on a value out of range."""

    model: str = setting(is_model=True)
    """Artifact, transformers or MLX directory, or GGUF file."""
    model_name: str | None = None
    """Name that clients ask for; the last part of the path by default, of the shelf name@version."""
    chat_format: ChatFormatChoice = "auto"
    """Chat format that the model was trained with; auto is that of the chat template of the adapters or the model."""
    host: str = "127.0.0.1"
    """Address to listen on. Any but this machine's own needs an api_key."""
    port: int = setting(8080, at_least=0, at_most=65535)
    """Port to listen on; 0 takes a free one."""
    allowed_hosts: list[str] = field(default_factory=list)
    """Further names or addresses by which clients call this server, with a port (name:80) if it is another one."""
    allowed_origins: list[str] = field(default_factory=list)
    """Sites whose pages may use this server, such as http://localhost:3000."""
    api_key: str | None = field(default=None, repr=False)
    """Key that clients must send. The environment variable MLXLM_API_KEY hides it from other users of this machine."""
    max_tokens: int = setting(512, at_least=1)
    """Tokens of an answer at most, if the request names no limit."""
    max_queue: int = setting(16, at_least=1)
    """Requests that may wait while one is answered; more are refused with 503."""
    max_body_bytes: int = setting(1 << 20, at_least=1)
    """Bytes of a request, at most."""
    request_timeout_s: float = setting(600.0, more_than=0)
    """Seconds from a request to the end of its answer, at most."""

    def __post_init__(self) -> None:
        check_bounds(self)
