"""The command `jaxlm studio`: everything of this project in a browser, on this machine."""

import importlib
from dataclasses import dataclass, field
from pathlib import Path

from jaxlm.studio.address import AddressConfig, find_key, need_pages
from jaxlm.studio.reading.folders import Folders
from shared_tokenizer.settings import check_bounds, setting


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


def main(config: StudioConfig) -> None:
    """Open the studio: choose text, train, watch, talk to a model, in a browser."""
    need_pages("studio")
    folders = open_folders(config)
    key = find_key(config)
    pages = importlib.import_module("jaxlm.studio.pages.app")
    pages.run(config, folders, key)


def open_folders(config: StudioConfig) -> Folders:
    """Return the folders of the settings. Raises ValueError where one is missing."""
    root = Path(config.root)
    if not root.is_dir():
        raise ValueError(f"root: found no folder {root}; create it, or name another one")
    for name in config.allow:
        if not Path(name).is_dir():
            raise ValueError(f"allow: found no folder {name}")
    return Folders(root, [Path(name) for name in config.allow])
