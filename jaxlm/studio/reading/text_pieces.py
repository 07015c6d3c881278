"""A text as the pieces that a tokenizer cuts it into, and a chat as tokens, those that are learned marked."""

from dataclasses import dataclass
from pathlib import Path

from jaxlm.studio.reading.shown_text import shown
from shared_tokenizer.load import load_tokenizer
from shared_tokenizer.tokenizers.tokenizer import Tokenizer

LONGEST_TEXT = 4000


@dataclass(frozen=True)
class TextPiece:
    """One token: its text, its id, its bytes."""

    text: str
    id: int
    size: int


@dataclass(frozen=True)
class Pieces:
    """The tokens of a text."""

    pieces: tuple[TextPiece, ...]
    bytes_per_token: float
    gives_back: bool
    """True where decoding gives back the text."""
    is_cut: bool


class OpenTokenizers:
    """Tokenizers that were opened, by their place and the time of their files; the last few are kept."""

    def __init__(self, most: int = 4):
        self._most = most
        self._open: dict[tuple[Path, int], Tokenizer] = {}

    def get(self, path: Path) -> Tokenizer:
        """Open a tokenizer. Raises ValueError where there is none, or it cannot be read."""
        key = (path, path.stat().st_mtime_ns if path.exists() else 0)
        if key not in self._open:
            self._open[key] = load_tokenizer(path, log=lambda line: None)
            while len(self._open) > self._most:
                del self._open[next(iter(self._open))]
        return self._open[key]


def cut_into_pieces(text: str, tokenizer: Tokenizer) -> Pieces:
    """Return the pieces of a text, of its first characters where it is long. Raises ValueError on half a character."""
    cut = text[:LONGEST_TEXT]
    ids, spelled = tokenizer.encode(cut), {token: name for name, token in tokenizer.special_tokens.items()}
    pieces = []
    for token in ids:
        piece = tokenizer.pieces[token] if token < len(tokenizer.pieces) else b""
        if token in spelled:
            words = spelled[token]
        else:
            try:
                words = piece.decode("utf-8")
            except UnicodeDecodeError:
                words = "".join(f"<{byte:02X}>" for byte in piece)
        pieces.append(TextPiece(shown(words), token, len(piece)))
    size = len(cut.encode("utf-8"))
    return Pieces(tuple(pieces), size / max(1, len(ids)), tokenizer.decode(ids) == cut, len(text) > len(cut))
