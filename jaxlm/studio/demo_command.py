"""The command `jaxlm demo`: one model to talk to, for others, or a folder of it for the Hugging Face hub."""

import importlib
from pathlib import Path

from jaxlm.studio.address import find_key, need_pages
from jaxlm.studio.space import write_space
from jaxlm.studio.studio_config import DemoConfig


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
