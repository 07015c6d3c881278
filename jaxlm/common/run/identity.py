"""identity.json: what a run is, written before anything else of it and compared whenever the run is opened.

It holds all settings, the fingerprints of data, tokenizer and models, and the digests of the settings file as the
trainer wrote it. Its own digest is its last entry, so a flipped bit anywhere in it is found.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from shared_tokenizer.manifest import DamagedError, write_file

IDENTITY = "identity.json"
_DIGEST = "sha256"


@dataclass(frozen=True)
class RunIdentity:
    """The settings of a run and what it belongs to."""

    settings: Mapping[str, Any]
    """All settings as plain values, as the settings file holds them."""
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    """Fingerprints of what the run depends on (data, tokenizer, model, teacher), by name; empty until it is known."""
    settings_digests: tuple[str, ...] = ()
    """sha256 of the settings file as it was written last, and of the one before."""

    def wrote(self, text: bytes) -> "RunIdentity":
        """Return the identity with one more digest of the settings file."""
        return replace(self, settings_digests=(_sha256(text), *self.settings_digests[:1]))

    def knows(self, text: bytes) -> bool:
        """Return True if the settings file is one that the trainer wrote."""
        return _sha256(text) in self.settings_digests

    def check_fingerprints(self, run: Path, now: Mapping[str, str]) -> None:
        """Raise ValueError where the run belongs to other data, or another tokenizer or model, than it is given now."""
        for what, found in now.items():
            before = self.fingerprints.get(what)
            if before is not None and before != found:
                raise ValueError(
                    f"{run}: was trained with {what} {before[:12]}..., found {found[:12]}...; resume with the same "
                    f"{what}, or start a new run in another output_dir"
                )


def read_identity(run: Path) -> RunIdentity | None:
    """Return the identity of a run; None for runs of earlier versions, which have none.

    Raises DamagedError where the file is not as it was written.
    """
    path = run / IDENTITY
    if not path.is_file():
        return None
    text = path.read_bytes()
    try:
        content = json.loads(text.decode("utf-8"))
        found = RunIdentity(
            dict(content["settings"]), dict(content["fingerprints"]), tuple(content["settings_digests"])
        )
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path) from error
    if text != _file_content(found):
        raise _damaged(path)
    return found


def write_identity(run: Path, identity: RunIdentity) -> None:
    """Write identity.json atomically."""
    write_file(run / IDENTITY, _file_content(identity))


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield the dotted name, the value before and the value now of every setting that differs."""
    for name in sorted(set(before) | set(now)):
        old, new = before.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from differences(old, new, f"{prefix}{name}.")
        elif old != new or isinstance(old, bool) != isinstance(new, bool):
            yield f"{prefix}{name}", old, new


def _file_content(identity: RunIdentity) -> bytes:
    content = {
        "settings": identity.settings,
        "fingerprints": identity.fingerprints,
        "settings_digests": list(identity.settings_digests),
    }
    digest = _sha256(json.dumps(content, sort_keys=True).encode())
    return (json.dumps(content | {_DIGEST: digest}, indent=1) + "\n").encode()


def _sha256(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


def _damaged(path: Path) -> DamagedError:
    return DamagedError(
        f"{path}: damaged, it is not as the trainer wrote it; restore it from a copy, or remove it: the settings are "
        "then taken from the settings file next to it, and data and tokenizer are compared with the checkpoints"
    )
