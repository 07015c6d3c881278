"""The command `jaxlm studio`: everything of this project in a browser, on this machine."""

import importlib
from pathlib import Path

from jaxlm.studio.address import find_key, need_pages
from jaxlm.studio.reading.folders import Folders
from jaxlm.studio.studio_config import StudioConfig


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
