"""The command `jaxlm demo`: one model to talk to, for others, or a folder of it for the Hugging Face hub."""

import importlib
import re
from dataclasses import dataclass
from pathlib import Path

from jaxlm.studio.address import AddressConfig, find_key, need_pages
from jaxlm.studio.space import write_space
from shared_tokenizer.settings import check_bounds, setting


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


def main(config: DemoConfig) -> None:
    """Show one model to others: a page to talk to it, and nothing else."""
    if config.export is not None:
        folder = Path(config.export)
        write_space(Path(config.model), folder)
        print(f"space: {folder}\nnext:  hf upload OWNER/NAME {folder} . --repo-type space")
        return
    need_pages("demo")
    key = find_key(config, is_public=config.public)
    importlib.import_module("jaxlm.studio.pages.demo").run(config, key)
