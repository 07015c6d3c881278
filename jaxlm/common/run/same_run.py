"""Comparison of a run's settings: those it began with, those in its settings file, and those it is given now."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from jaxlm.common.run.identity import IDENTITY, RunIdentity, differences
from shared_tokenizer.settings import resumable_fields


def check_same_settings(path: Path, settings_class: type, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise ValueError, naming every difference, where a setting that may not change on resume has changed.

    `path` is the settings file of the run, for the message.
    """
    may_change = resumable_fields(settings_class)
    found = [
        f"{name} was {old!r} and is now {new!r}"
        for name, old, new in differences(before, now)
        if name.partition(".")[0] not in may_change
    ]
    if found:
        raise ValueError(
            f"{path.parent}: belongs to another config: {'; '.join(found)}. Resume with "
            f"--config {path} or choose another output_dir"
        )


def fixed_settings(settings_class: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that may not change on resume: a checkpoint holds them too."""
    may_change = resumable_fields(settings_class)
    return {name: value for name, value in settings.items() if name not in may_change}


def check_settings_file(
    path: Path,
    identity: RunIdentity,
    content: Mapping[str, Any],
    now: Mapping[str, Any],
    may_change: Collection[str] = (),
) -> str:
    """Compare a settings file that the trainer did not write with the identity of its run.

    `content` is that of the file; what has no effect on the settings `now` passes. Returns the changes in words where
    the settings `may_change`, and raises ValueError on those of others.
    """
    in_file, in_effect = _flat(content), _flat(now)
    found = [
        (name, f"{name} was {old!r} and is now {in_effect[name]!r}")
        for name, old, new in differences(identity.settings, content)
        if name in in_effect and (in_effect[name] == new if name in in_file else in_effect[name] != old)
    ]
    if refused := [words for name, words in found if name.partition(".")[0] not in may_change]:
        raise ValueError(
            f"{path}: was changed since it was written: {'; '.join(refused)}. Correct these lines, or remove the file: "
            f"{IDENTITY} holds the settings too, for --resume --output_dir {path.parent}"
        )
    return "; ".join(words for _, words in found)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return settings by dotted name, the groups of them too."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found[f"{prefix}{name}"] = value
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
    return found
