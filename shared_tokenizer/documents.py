"""Where text comes from: files, folders, and the corpus that every Python carries with it."""

import hashlib
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

STDLIB = "stdlib"
TEXT_SUFFIXES = frozenset(
    [
        ".txt",
        ".md",
        ".rst",
        ".py",
        ".js",
        ".ts",
        ".c",
        ".h",
        ".cc",
        ".cpp",
        ".hpp",
        ".rs",
        ".go",
        ".java",
        ".swift",
        ".html",
        ".css",
        ".sh",
        ".toml",
        ".yaml",
        ".yml",
    ]
)
# Tests repeat themselves, installed packages differ from machine to machine, and the last two are tables of data.
_STDLIB_LEFT_OUT = {"test", "tests", "site-packages", "dist-packages", "encodings", "pydoc_data"}


@dataclass(frozen=True)
class Document:
    """One text and where it came from."""

    name: str
    text: str


def read_documents(sources: Iterable[str]) -> Iterator[Document]:
    """Documents of files, folders (recursive, text files by suffix) and `stdlib`, in a stable order.

    Empty files are passed over. Raises ValueError on a source that is missing, holds no text, or is not UTF-8.
    """
    for source in sources:
        found = False
        for path, name in _text_files(source):
            text = _read(path)
            if text:
                found = True
                yield Document(name, text)
        if not found:
            raise ValueError(
                f"{source}: found no text, expected a text file, a folder of them ({' '.join(sorted(TEXT_SUFFIXES))}) "
                f"or {STDLIB!r}"
            )


def cut_documents(documents: Iterable[Document], characters: int) -> Iterator[Document]:
    """Cut documents into pieces of about `characters`, at line ends where they come in time; nothing is lost."""
    for document in documents:
        start = 0
        while start < len(document.text):
            end = document.text.find("\n", start + characters, start + 2 * characters) + 1 or start + 2 * characters
            end = min(end, len(document.text))
            yield Document(f"{document.name}:{start}", document.text[start:end])
            start = end


def _text_files(source: str) -> Iterator[tuple[Path, str]]:
    if source == STDLIB:
        root = Path(sysconfig.get_paths()["stdlib"])
        names = (path.relative_to(root) for path in root.rglob("*.py"))
        for name in sorted(name for name in names if not _STDLIB_LEFT_OUT & set(name.parts)):
            yield root / name, f"{STDLIB}/{name.as_posix()}"
        return
    path = Path(source)
    if path.is_file():
        yield path, path.name
    elif path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.is_file() and file.suffix in TEXT_SUFFIXES:
                yield file, file.relative_to(path).as_posix()
    else:
        raise ValueError(f"{source}: no such file or folder")


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not UTF-8 at byte {error.start}; convert it, for example with `iconv -t utf-8`"
        ) from error


def is_validation(text: str, fraction: float) -> bool:
    """Whether a document is held out: decided by its own hash, so stable when others come and go."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64
