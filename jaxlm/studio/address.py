"""The address that pages are served at, and the key that opens them."""

import importlib.util
import os

from jaxlm.common.serving.command import is_every_address, is_local
from jaxlm.studio.processes.jobs import KEY_VARIABLE
from jaxlm.studio.studio_config import AddressConfig


def need_pages(extra: str) -> None:
    """Raise ValueError where the library of the pages is not installed; `extra` of this project brings it."""
    if importlib.util.find_spec("nicegui") is None:
        raise ValueError(f"{extra}: found no nicegui, expected it installed; pip install '.[{extra}]', or make {extra}")


def find_key(config: AddressConfig, *, is_public: bool = False) -> str | None:
    """Return the key of the environment, None where it has none.

    Raises ValueError where the host needs one, or where browsers cannot name it. With `is_public` no host needs one.
    """
    key = os.environ.pop(KEY_VARIABLE, None)
    if key is not None and (len(key) < 12 or not key.isascii() or key.split() != [key]):
        raise ValueError(f"{KEY_VARIABLE}: found {len(key)} characters, expected one word of 12 or more in ASCII")
    if is_local(config.host):
        return key
    if key is None and not is_public:
        raise ValueError(
            f"host: found {config.host}, where other machines can reach the pages, and no key; set "
            f"{KEY_VARIABLE}, or leave host at 127.0.0.1"
        )
    if is_every_address(config.host) and not config.allowed_hosts:
        raise ValueError(
            f"host: found {config.host}, which browsers cannot use as a name, and no allowed_hosts; give the names "
            "or addresses that browsers use"
        )
    return key
