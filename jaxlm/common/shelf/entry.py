"""The entry of a model on the shelf: what is known of it, written once and read often."""

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxlm.common.model_name import ENTRY, ModelName, model_on_shelf
from shared_tokenizer.manifest import DamagedError, write_file

LONGEST_NOTES = 4000
_LICENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,63}")
_DIGEST = "entry_sha256"


@dataclass(frozen=True)
class Entry:
    """One model on the shelf."""

    added: str
    """Time, with its zone."""
    form: str
    """packed, latent, mlx, gguf or transformers."""
    family: str
    """Model type of transformers, or the architecture of a GGUF file."""
    parameters: int
    ternary_parameters: int
    vocab_size: int
    max_seq_len: int
    bytes: int
    """Bytes of all files."""
    sha256: str
    """Fingerprint of the model, as runs and evaluations record it."""
    chunks_sha256: str
    """Digest of chunks.json, which holds those of the files."""
    source: str
    """Where it came from: a path, or a repository of the hub with its commit."""
    licence: str | None = None
    notes: str = ""
    run: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Name, settings, steps and tokens of the run that trained it, and the fingerprints of its data, tokenizer and
    parents; empty where none is known."""
    evaluation: dict[str, float] = dataclasses.field(default_factory=dict)
    """Step, held-out loss in nats per token and bits per byte, as the run measured them last; empty without a run."""

    @property
    def bits_per_byte(self) -> float | None:
        """Held-out bits per byte, None where no run is known."""
        return self.evaluation.get("bits_per_byte")


@dataclass(frozen=True)
class Shelved:
    """An entry with its name and place."""

    name: ModelName
    folder: Path
    entry: Entry

    @property
    def model(self) -> Path:
        """Directory or file that a command takes for the model."""
        return model_on_shelf(self.folder)


def check_licence(licence: str | None) -> str | None:
    """Return a licence as the hub writes it. Raises ValueError where it is none."""
    if licence is not None and not _LICENCE.fullmatch(licence):
        raise ValueError(f"licence: found {licence[:80]!r}, expected an identifier such as apache-2.0 or mit")
    return None if licence is None else licence.lower()


def check_notes(notes: str) -> str:
    """Return notes. Raises ValueError where they are too long."""
    if len(notes) > LONGEST_NOTES:
        raise ValueError(f"notes: found {len(notes):,} characters, expected at most {LONGEST_NOTES:,}")
    return notes


def write_entry(folder: Path, entry: Entry) -> None:
    """Write entry.json, with its own digest as the last field."""
    text = _text(dataclasses.asdict(entry))
    content = {**dataclasses.asdict(entry), _DIGEST: hashlib.sha256(text).hexdigest()}
    write_file(folder / ENTRY, _text(content))


def read_entry(folder: Path) -> Entry:
    """Read entry.json. Raises DamagedError where it is not as it was written."""
    path = folder / ENTRY
    try:
        content = json.loads(path.read_bytes())
        digest = content.pop(_DIGEST)
        if hashlib.sha256(_text(content)).hexdigest() != digest:
            raise ValueError("its digest is of another text")
        names = {field.name for field in dataclasses.fields(Entry)}  # a later version may have more
        return Entry(**{name: value for name, value in content.items() if name in names})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(
            f"{path}: damaged ({error}); the model beside it is {model_on_shelf(folder)}: add that, and remove this one"
        ) from error


def printable(text: str) -> str:
    """Return a text with marks that steer a terminal or turn the direction of writing shown as escapes."""
    return "".join(mark if mark.isprintable() else mark.encode("unicode_escape").decode() for mark in text)


def _text(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
