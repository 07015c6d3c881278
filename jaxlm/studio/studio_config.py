"""Settings of the studio and of the demo."""

import re
from dataclasses import dataclass, field

from shared_tokenizer.settings import check_bounds, setting


@dataclass(frozen=True, kw_only=True)
class AddressConfig:
    """Host, port and names of the pages."""

    host: str = "127.0.0.1"
    """Address to listen on. Any but this machine's own needs a key in the
    environment variable JAXLM_STUDIO_KEY."""
    port: int = setting(8090, at_least=0, at_most=65535)
    """Port to listen on; 0 takes a free one."""
    allowed_hosts: list[str] = field(default_factory=list)
    """Further names or addresses by which browsers call the pages."""


@dataclass(frozen=True, kw_only=True)
class StudioConfig(AddressConfig):
    """The folders and the address of the studio. Raises ValueError on a value out of range."""

    root: str = setting(".", by_position=True)
    """Folder of data, runs and models; the name of the flag may be left out."""
    allow: list[str] = field(default_factory=list)
    """Further folders whose texts and models may be read."""
    max_upload_mb: int = setting(2000, at_least=1)
    """Megabytes of one upload, at most."""

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True, kw_only=True)
class DemoConfig(AddressConfig):
    """The model that is shown, the address, and the limits. Raises ValueError on a value out of range."""

    model: str = setting(is_model=True)
    """Run directory, artifact, transformers or MLX directory, or GGUF file."""
    port: int = setting(8091, at_least=0, at_most=65535)
    """Port to listen on; 0 takes a free one."""
    public: bool = False
    """Ask nobody for a key, on any host: all who reach the address may ask."""
    prefix: str = ""
    """Path at which a proxy shows the demo, such as /some/prefix."""
    max_prompt_chars: int = setting(4000, at_least=1, at_most=100_000)
    """Characters of a prompt or question, at most."""
    max_tokens: int = setting(512, at_least=1, at_most=4096)
    """Tokens of an answer, at most."""
    export: str | None = None
    """Folder to write in place of serving: a Space of the Hugging Face hub,
    with the model and this project's own files."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)*", self.prefix) or ".." in self.prefix:
            raise ValueError(f"prefix: found {self.prefix!r}, expected a path such as /some/prefix, or nothing")
