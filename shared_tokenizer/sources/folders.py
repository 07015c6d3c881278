"""A folder as people have it -> the files to read, and the names of all others with the reason."""

import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from shared_tokenizer.readers.readers import format_of, suffix_of
from shared_tokenizer.sources.file_rules import FileRules

# A folder with this file is a directory that this project has written (shared_tokenizer.manifest), not a text.
SEAL = "MANIFEST.sha256"
_SYSTEM_FOLDERS = frozenset(["__MACOSX", "__pycache__", "_delta_log", "_temporary", "node_modules"])
# Files that describe a data set and hold none of it.
_DESCRIPTIONS = frozenset(
    ["dataset_infos.json", "dataset_info.json", "dataset_dict.json", "_metadata", "_common_metadata", "_SUCCESS"]
)
_CARDS = frozenset(
    ["readme", "license", "licence", "copying", "notice", "citation", "authors", "contributing", "changelog"]
)
_CARD_KEYS = ("license:", "task_categories:", "dataset_info:", "configs:", "size_categories:", "language:", "tags:")
_NAMES_SHOWN = 3


@dataclass
class Listing:
    """The files of a folder, each with its format, and the names that are left out, by reason."""

    files: list[tuple[Path, str]] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    unknown: Counter[str] = field(default_factory=Counter)
    """Files of an unknown kind, counted by their extension."""
    patterns: set[str] = field(default_factory=set)
    """Patterns of the user that matched a name."""

    def add(self, other: "Listing") -> None:
        """Add what another folder leaves out."""
        for reason, names in other.left_out.items():
            self.left_out[reason] += names
        self.unknown += other.unknown
        self.patterns |= other.patterns

    @property
    def description(self) -> str:
        """Return in words what is left out; empty where that is nothing."""
        parts = [
            f"{len(names)} {reason} ({', '.join(sorted(names)[:_NAMES_SHOWN])}{', ...' * (len(names) > _NAMES_SHOWN)})"
            for reason, names in self.left_out.items()
        ]
        if self.unknown:
            kinds = ", ".join(
                f"{count} {suffix or 'without extension'}" for suffix, count in self.unknown.most_common()
            )
            parts.append(f"{sum(self.unknown.values())} of unknown kind ({kinds})")
        return ", ".join(parts)


def list_folder(folder: Path, rules: FileRules, leave_out: Collection[Path]) -> Listing:
    """List a folder. Nothing below the folders of `leave_out` is looked at. Raises OSError where it cannot be read."""
    found = Listing()
    for path in _walk(folder, found, leave_out):
        name = printable(path.relative_to(folder))
        if not path.is_file():
            found.left_out["broken links" if path.is_symlink() else "that are no files"].append(name)
            continue
        chosen = [pattern for pattern in rules.include if _matches(name, pattern)]
        excluded = [pattern for pattern in rules.exclude if _matches(name, pattern)]
        found.patterns |= {*chosen, *excluded}
        if excluded:
            found.left_out["by --exclude"].append(name)
        elif rules.include and not chosen:
            found.left_out["by --include"].append(name)
        elif path.name in _DESCRIPTIONS or (path.name == "state.json" and (path.parent / "dataset_info.json").exists()):
            found.left_out["that describe a data set"].append(name)
        elif file_format := format_of(path):
            found.files.append((path, file_format))
        elif any(suffix_of(path) and pattern.lower().endswith(suffix_of(path)) for pattern in chosen):
            found.files.append((path, "text"))  # its kind was named
        else:
            found.unknown[suffix_of(path)] += 1
    _leave_out_cards(folder, found, rules)
    found.files.sort()
    return found


def printable(path: Path) -> str:
    """Return a path as UTF-8 text; bytes that are not UTF-8 are escaped."""
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")


def _matches(name: str, pattern: str) -> bool:
    """Return True if a pattern matches a file's name, or its path from the folder on, or a folder on the way."""
    pattern = pattern.removesuffix("/")
    parts = name.split("/")
    paths = ["/".join(parts[: i + 1]) for i in range(len(parts))]
    return any(fnmatchcase(each, pattern) for each in (*parts, *paths))


def _walk(folder: Path, found: Listing, leave_out: Collection[Path]) -> Iterator[Path]:
    """Yield every file below a folder, without hidden ones and without sealed directories (shard sets, models)."""

    def refuse(error: OSError) -> None:
        raise error

    for root, folders, names in os.walk(folder, onerror=refuse):
        where = Path(root)
        if SEAL in names:
            folders.clear()
            found.left_out["sealed directories"].append(f"{printable(where.relative_to(folder))}/")
            continue
        for name in sorted(folders):
            path = where / name
            reason = "hidden" if name.startswith(".") or name in _SYSTEM_FOLDERS else None
            if reason is None and path.is_symlink():
                reason = "links to folders"
            is_ours = path.resolve() in leave_out
            if reason is not None and not is_ours:
                found.left_out[reason].append(f"{printable(path.relative_to(folder))}/")
            if reason is not None or is_ours:
                folders.remove(name)
        for name in names:
            path = where / name
            if name.startswith((".", "~$")):  # "~$": the lock of an office program
                found.left_out["hidden"].append(printable(path.relative_to(folder)))
            else:
                yield path


def _leave_out_cards(folder: Path, found: Listing, rules: FileRules) -> None:
    """Take out README and its like where they describe data: by their header, or where all else is rows."""
    others = any(file_format == "text" and not _is_card(path) for path, file_format in found.files)
    rows = any(file_format != "text" for _, file_format in found.files)
    for path, file_format in list(found.files):
        name = printable(path.relative_to(folder))
        is_wanted = name in rules.include or path.name in rules.include
        if file_format == "text" and _is_card(path) and not is_wanted and ((rows and not others) or _has_header(path)):
            found.files.remove((path, file_format))
            found.left_out["that describe a data set"].append(name)


def _is_card(path: Path) -> bool:
    return path.suffix.lower() in (".md", ".txt", ".rst") and path.stem.lower() in _CARDS


def _has_header(path: Path) -> bool:
    """Return True if a file begins with the header that a card of the hub has."""
    with path.open("rb") as file:
        head = file.read(1 << 14).decode("utf-8", "replace").removeprefix("\ufeff")
    if not head.startswith("---"):
        return False
    lines: Iterable[str] = head.splitlines()[1:]
    return any(line.startswith(_CARD_KEYS) for line in lines)
