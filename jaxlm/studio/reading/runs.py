"""The runs below the root: found by their settings files, summarized by what they have written, noted by people."""

import json
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from jaxlm.common.architecture.presets import PRESETS
from jaxlm.common.run.complete_checkpoints import checkpoint_steps
from jaxlm.common.run.identity import differences
from jaxlm.common.run.run_directory import CONFIG, LOCK, RunDirectory
from jaxlm.studio.reading.file_lock import is_locked
from jaxlm.studio.reading.folders import Folders
from jaxlm.studio.reading.metrics_tail import last_lines
from shared_tokenizer.manifest import write_file

SETTINGS_FILES = (CONFIG, "finetune.yaml")
NOTES = "notes.json"
RunState = Literal["training", "done", "stopped", "unreadable"]
# A run is a folder at most so deep below the root; folders of these names hold none.
_DEEPEST = 5
_NO_RUNS = frozenset(
    ["node_modules", "__pycache__", "site-packages", "checkpoints", "artifact", "tokenizer", "damaged"]
)
_LONGEST_NOTE = 4000
# Settings that say where a run is or how far it went, not what it is.
_PLACES = ("output_dir", "resume", "schedule_changes")
# Settings of a run that one from its weights does not take over; fields of a model that its tokenizer gives.
_NOT_TAKEN = frozenset([*_PLACES, "data_dir", "data", "init_from", "model"])
_TOKENIZERS = frozenset(["vocab_size", "bos_id", "eos_id", "pad_id"])


@dataclass(frozen=True)
class Run:
    """A run by what it has written."""

    path: Path
    name: str
    """Path from the root on."""
    state: RunState
    kind: str
    """`train` of JAX, or `finetune` of MLX."""
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False)
    latest: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Last numbers, by the names of metrics.jsonl."""
    checkpoints: tuple[int, ...] = ()
    started: float = 0.0
    """Time of its identity, in seconds since 1970."""
    changed: float = 0.0
    """Time of its last number."""
    tags: tuple[str, ...] = ()
    note: str = ""

    @property
    def step(self) -> int:
        """Last step with a number or a checkpoint."""
        return max([*self.checkpoints, int(self.latest.get("step", 0))], default=0)

    @property
    def steps(self) -> int | None:
        """Steps in all, None where they are not known yet."""
        found = self.settings.get("num_train_steps")
        return found if isinstance(found, int) else None

    @property
    def model(self) -> str:
        """Preset of a training, model of a fine-tuning."""
        found = self.settings.get("preset") if self.kind == "train" else self.settings.get("model")
        return str(found) if isinstance(found, str) else str(self.settings.get("method", ""))

    @property
    def has_model(self) -> bool:
        """True where the run holds a whole model, not only adapters or checkpoints."""
        return RunDirectory(self.path).artifact.is_dir()

    @property
    def is_ternary(self) -> bool:
        """True where a training of JAX has ternary layers, whose zeros and flips it writes from its first step on."""
        found = self.settings.get("model")
        return isinstance(found, dict) and found.get("linear") == "ternary"

    @property
    def seconds_left(self) -> float | None:
        """Seconds to the last step at the last speed; None where they are not known."""
        milliseconds, steps = self.latest.get("perf/step_time_ms"), self.steps
        if self.state != "training" or not milliseconds or steps is None:
            return None
        return max(0.0, (steps - self.step) * milliseconds / 1000 - max(0.0, time.time() - self.changed))

    @property
    def process(self) -> int | None:
        """Process that trains, None where none does."""
        return lock_owner(self.path / LOCK) if self.state == "training" else None


class Runs:
    """The runs below a root. What has not changed on disk is not read again."""

    def __init__(self, folders: Folders):
        self._folders = folders
        self._settings: dict[Path, tuple[Any, dict[str, Any]]] = {}
        self._numbers: dict[Path, tuple[Any, dict[str, Any]]] = {}

    def all(self) -> list[Run]:
        """Return the runs, the newest first."""
        found = [self.read(path) for path in self._paths(self._folders.root, 0)]
        return sorted(found, key=lambda run: (run.started, run.name), reverse=True)

    def get(self, text: str) -> Run:
        """Return the run of a path. Raises ValueError where there is none, or outside of the allowed folders."""
        path = self._folders.resolve(text)
        if settings_file(path) is None:
            raise ValueError(f"{self._folders.short(path)}: found no run there")
        return self.read(path)

    def _paths(self, folder: Path, depth: int) -> Iterator[Path]:
        try:
            entries = list(os.scandir(folder))
        except OSError:
            return
        if any(entry.name in SETTINGS_FILES for entry in entries) and settings_file(folder) is not None:
            yield folder
            return
        if depth < _DEEPEST and not any(entry.name == "MANIFEST.sha256" for entry in entries):
            for entry in entries:
                if entry.is_dir(follow_symlinks=False) and entry.name[0] != "." and entry.name not in _NO_RUNS:
                    yield from self._paths(Path(entry.path), depth + 1)

    def read(self, path: Path) -> Run:
        """Return the run of a directory; a damaged file makes it unreadable, not an error."""
        name, run = self._folders.short(path), RunDirectory(path)
        file = settings_file(path) or CONFIG
        kind = "train" if file == CONFIG else "finetune"
        try:
            settings = self._read_settings(path, file)
            latest, changed = self._read_latest(run.metrics)
            notes = read_notes(path)
            checkpoints = tuple(checkpoint_steps(run.checkpoints)) if run.checkpoints.is_dir() else ()
            started = _first_time(path / "identity.json", path / file)
        except (OSError, ValueError):
            return Run(path, name, "unreadable", kind)
        steps = settings.get("num_train_steps")
        step = max([*checkpoints, int(latest.get("step", 0))], default=0)
        is_done = (run.artifact.exists() or run.adapters.exists()) and (not isinstance(steps, int) or step >= steps)
        state: RunState = "training" if is_locked(path / LOCK) else "done" if is_done else "stopped"
        tags, note = tuple(notes["tags"]), str(notes["note"])
        return Run(path, name, state, kind, settings, latest, checkpoints, started, changed, tags, note)

    def _read_settings(self, path: Path, file: str) -> dict[str, Any]:
        """Return the settings of a run, from its identity, which is JSON, or else its settings file."""
        identity = path / "identity.json"
        source = identity if identity.is_file() else path / file
        stamp = _stamp(source)
        if path in self._settings and self._settings[path][0] == stamp:
            return self._settings[path][1]
        if source == identity:
            content = json.loads(source.read_text("utf-8"))["settings"]
        else:
            content = yaml.safe_load(source.read_text("utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"{source}: expected the settings of a run")
        self._settings[path] = (stamp, content)
        return content

    def _read_latest(self, path: Path) -> tuple[dict[str, Any], float]:
        """Return the last numbers of a metrics.jsonl and the time when it was written."""
        if not path.is_file():
            return {}, 0.0
        stamp = _stamp(path)
        if path not in self._numbers or self._numbers[path][0] != stamp:
            merged: dict[str, Any] = {}
            for line in last_lines(path):
                merged |= line
            self._numbers[path] = (stamp, merged)
        return self._numbers[path][1], path.stat().st_mtime


def settings_file(path: Path) -> str | None:
    """Return the name of the settings file of a run, None where a folder is no run."""
    for name in SETTINGS_FILES:
        if (path / name).is_file() and ((path / "identity.json").is_file() or (path / "metrics.jsonl").is_file()):
            return name
    return None


def read_notes(path: Path) -> dict[str, Any]:
    """Return the tags and the note that a person gave a run. A damaged file counts as none."""
    try:
        found = json.loads((path / NOTES).read_text("utf-8"))
        return {"tags": [str(tag) for tag in found["tags"]], "note": str(found["note"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {"tags": [], "note": ""}


def write_notes(path: Path, tags: Sequence[str], note: str) -> None:
    """Write the tags and the note of a run next to its files. Raises ValueError on a note that is too long."""
    if len(note) > _LONGEST_NOTE:
        raise ValueError(f"note: found {len(note):,} characters, expected at most {_LONGEST_NOTE:,}")
    kept = list(dict.fromkeys(tag.strip()[:40] for tag in tags if tag.strip()))[:20]
    write_file(path / NOTES, (json.dumps({"tags": kept, "note": note}, indent=1) + "\n").encode())


def lock_owner(path: Path) -> int | None:
    """Return the process that holds the lock of a run, None where none does."""
    if not is_locked(path):
        return None
    words = path.read_text("utf-8", "replace").split()
    return int(words[1]) if len(words) > 1 and words[0] == "pid" and words[1].isdigit() else None


def stop_run(run: Run) -> None:
    """Ask the process of a run to save and leave. Raises ValueError where none is at work."""
    _signal(run, signal.SIGTERM)


def kill_run(run: Run) -> None:
    """End the process of a run at once. Raises ValueError where none is at work."""
    _signal(run, signal.SIGKILL)


def _signal(run: Run, number: signal.Signals) -> None:
    pid = run.process
    if pid is None:
        raise ValueError(f"{run.name}: no process is at work there")
    os.kill(pid, number)


def setting_differences(runs: Sequence[Run]) -> list[tuple[str, list[Any]]]:
    """Return the settings in which runs differ: the dotted name, and the value of each run."""
    names = {name for run in runs[1:] for name, _, _ in differences(runs[0].settings, run.settings)}
    shown = sorted(name for name in names if name.partition(".")[0] not in _PLACES)
    return [(name, [_at(run.settings, name) for run in runs]) for name in shown]


def settings_to_take(run: Run) -> dict[str, str]:
    """Return the settings of a training as words for a new one from its weights: what is its own place is left out.

    Of the model only fields are named that differ from its preset, without those of the tokenizer.
    """
    model = run.settings.get("model")
    base = PRESETS.get(str(run.settings.get("preset")))
    found = _words({name: value for name, value in run.settings.items() if name not in _NOT_TAKEN})
    if base is not None and isinstance(model, Mapping):
        fields = json.loads(json.dumps(asdict(base)))
        own = {name: value for name, value in model.items() if fields.get(name) != value and name not in _TOKENIZERS}
        found |= {f"model.{name}": _word(value) for name, value in own.items()}
    return found


def _words(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return settings as words by dotted name, lists and mappings as JSON, without those that are None or empty."""
    found: dict[str, str] = {}
    for name, value in settings.items():
        if name == "optimizer" and isinstance(value, Mapping):
            found |= {f"{name}.{inner}": words for inner, words in _words(value).items()}
        elif value not in (None, "", [], {}):
            found[name] = _word(value)
    return found


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value) if isinstance(value, list | Mapping) else str(value)


def _at(settings: Mapping[str, Any], name: str) -> Any:
    found: Any = settings
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _stamp(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _first_time(*paths: Path) -> float:
    return next((path.stat().st_mtime for path in paths if path.is_file()), 0.0)
