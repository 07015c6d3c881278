"""Tokens as texts, for lists of log-probabilities."""

from collections.abc import Iterable

from shared_tokenizer.tokenizers.tokenizer import Tokenizer


class TokenSpelling:
    """The texts of single tokens. Bytes that are no UTF-8 by themselves are spelled `bytes:\\xe2`, as OpenAI does."""

    def __init__(self, tokenizer: Tokenizer):
        self._pieces = tokenizer.pieces
        self._special = {token: text for text, token in tokenizer.special_tokens.items()}

    def bytes_of(self, token: int) -> bytes:
        """Return the bytes of a token; those of a special token are its spelling."""
        if token in self._special:
            return self._special[token].encode()
        return self._pieces[token] if token < len(self._pieces) else b""

    def text(self, token: int) -> str:
        """Return the text of a token."""
        piece = self.bytes_of(token)
        try:
            return piece.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)

    def texts(self, tokens: Iterable[int]) -> list[str]:
        """Return the texts of several tokens; later ones of equal text are `token_id:N`, so all differ."""
        found: dict[str, None] = {}
        for token in tokens:
            text = self.text(token)
            found[text if text not in found else f"token_id:{token}"] = None
        return list(found)
