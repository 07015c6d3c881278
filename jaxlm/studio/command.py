"""The command `jaxlm studio`: everything of this project in a browser, on this machine."""

import importlib.util
import os
from dataclasses import dataclass, field
from pathlib import Path

from jaxlm.studio.processes.jobs import KEY_VARIABLE
from jaxlm.studio.reading.folders import Folders
from shared_tokenizer.settings import check_bounds, setting


@dataclass(frozen=True, kw_only=True)
class StudioConfig:
    """The folders and the address of the studio. Raises ValueError on a value out of range."""

    root: str = setting(".", by_position=True)
    """Folder of data, runs and models; the name of the flag may be left out."""
    allow: list[str] = field(default_factory=list)
    """Further folders whose texts and models may be read."""
    host: str = "127.0.0.1"
    """Address to listen on. Any but this machine's own needs a key in the
    environment variable JAXLM_STUDIO_KEY."""
    port: int = setting(8090, at_least=0, at_most=65535)
    """Port to listen on; 0 takes a free one."""
    allowed_hosts: list[str] = field(default_factory=list)
    """Further names or addresses by which browsers call the studio."""
    max_upload_mb: int = setting(2000, at_least=1)
    """Megabytes of one upload, at most."""

    def __post_init__(self) -> None:
        check_bounds(self)


def main(config: StudioConfig) -> None:
    """Open the studio: choose text, train, watch, talk to a model, in a browser."""
    if importlib.util.find_spec("nicegui") is None:
        raise ValueError("studio: found no nicegui, expected it installed; pip install '.[studio]', or make studio")
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


def find_key(config: StudioConfig) -> str | None:
    """Return the key of the environment, None where it has none. Raises ValueError where the host needs one."""
    from jaxlm.common.serving.command import is_every_address, is_local

    key = os.environ.pop(KEY_VARIABLE, None)
    if key is not None and (len(key) < 12 or not key.isascii() or key.split() != [key]):
        raise ValueError(f"{KEY_VARIABLE}: found {len(key)} characters, expected one word of 12 or more in ASCII")
    if not is_local(config.host):
        if key is None:
            raise ValueError(
                f"host: found {config.host}, where other machines can reach the studio, and no key; set "
                f"{KEY_VARIABLE}, or leave host at 127.0.0.1"
            )
        if is_every_address(config.host) and not config.allowed_hosts:
            raise ValueError(
                f"host: found {config.host}, which browsers cannot use as a name, and no allowed_hosts; give the names "
                "or addresses that browsers use"
            )
    return key
