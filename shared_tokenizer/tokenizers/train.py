"""Train a sentencepiece tokenizer, BPE or unigram, and choose the text to train it on."""

import hashlib
import heapq
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle
from typing import Literal

import sentencepiece

from shared_tokenizer.tokenizers.sentencepiece_model import BYTE_PIECES, SPACE_MARKER, PieceKind, parse_model
from shared_tokenizer.tokenizers.sentencepiece_to_json import UNIGRAM_STEP
from shared_tokenizer.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer

ModelType = Literal["bpe", "unigram"]
# Ids 0..19: unknown, begin, end and padding, then the chat and code markers of SmolLM2.
SPECIAL_TOKENS = (
    "<unk>",
    "<s>",
    "<|endoftext|>",
    "<pad>",
    "<|im_start|>",
    "<|im_end|>",
    "<repo_name>",
    "<reponame>",
    "<file_sep>",
    "<filename>",
    "<gh_stars>",
    "<issue_start>",
    "<issue_comment>",
    "<issue_closed>",
    "<jupyter_start>",
    "<jupyter_text>",
    "<jupyter_code>",
    "<jupyter_output>",
    "<jupyter_script>",
    "<empty_output>",
)
SMALLEST_VOCAB = len(SPECIAL_TOKENS) + len(BYTE_PIECES)
LARGEST_VOCAB = 1 << 24
# Characters of a training sentence. A longer text is cut, which only loses merges across the cuts.
SENTENCE_CHARACTERS = 4000
# sentencepiece marks unknown characters by this one and ignores every sentence that holds it.
UNKNOWN_SIGN = "\u2585"
# Bytes of text that a tokenizer is trained on by default.
TRAIN_SIZE = 32_000_000
# Characters. A longer text is sampled in pieces of this length.
PIECE_CHARACTERS = 1 << 16


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, *, model_type: ModelType = "bpe", special_tokens: Sequence[str] = ()
) -> SentencePieceTokenizer:
    """Train a tokenizer that decodes every text exactly, and in which a newline always ends its token.

    The first ids are SPECIAL_TOKENS and `special_tokens`. The result depends on the texts and their order alone.
    Raises ValueError where the vocabulary is too small for all bytes or too large for the corpus, and on special
    tokens that cannot be used.
    """
    special = _check_special_tokens(special_tokens, model_type)
    smallest = len(special) + len(BYTE_PIECES)
    if vocab_size <= smallest:
        raise ValueError(
            f"vocab_size: found {vocab_size}, expected more than {smallest} (every byte and the special tokens)"
        )
    if vocab_size > LARGEST_VOCAB:
        raise ValueError(f"vocab_size: found {vocab_size}, expected at most {LARGEST_VOCAB}")
    if model_type not in ("bpe", "unigram"):
        raise ValueError(f"model_type: found {model_type!r}, expected 'bpe' or 'unigram'")
    unknown, begin, end, padding, *control = special
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(texts),
            model_writer=model,
            model_type=model_type,
            vocab_size=vocab_size,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            required_chars=_required_characters(special, model_type),
            control_symbols=control,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=3,
            unk_piece=unknown,
            bos_piece=begin,
            eos_piece=end,
            pad_piece=padding,
            max_sentence_length=8 * SENTENCE_CHARACTERS,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise ValueError(_reason(str(error), vocab_size)) from error
    trained = model.getvalue()
    return SentencePieceTokenizer(trained if model_type == "bpe" else _round_scores(trained))


def _required_characters(special: Sequence[str], model_type: str) -> str:
    """Return the characters that are pieces whatever the corpus holds.

    Without a piece for the space, which a corpus may lack, sentencepiece spells a space in bytes of another character
    than tokenizer.json does. In a unigram tokenizer.json a special token differs from its spelling only if its
    characters are pieces.
    """
    characters = {SPACE_MARKER}
    if model_type == "unigram":
        characters.update("".join((*special, *BYTE_PIECES)))
    return "".join(sorted(characters))


def sample_texts(texts: Iterable[str], size_bytes: int) -> list[str]:
    """Return the texts with the smallest sha256, in its order, of at most about `size_bytes` of UTF-8.

    No more than that is held in memory. Long texts are cut into pieces first, so that none of them fills the sample or
    is dropped as a whole. Everything is kept where everything fits. Raises ValueError where `size_bytes` is below 1.
    """
    if size_bytes < 1:
        raise ValueError(f"size_bytes: found {size_bytes}, expected at least 1")
    heap: list[tuple[int, int, str]] = []  # negated hash, so that the largest is first; bytes; text
    held, limit = 0, -1 << 256
    for piece in _pieces(texts):
        content = piece.encode("utf-8")
        order = -int.from_bytes(hashlib.sha256(content).digest(), "big")
        # No hash above a dropped one is kept, so the sample does not depend on the order of the input.
        if order <= limit:
            continue
        heapq.heappush(heap, (order, len(content), piece))
        held += len(content)
        while held > size_bytes and len(heap) > 1:
            limit, size, _ = heapq.heappop(heap)
            held -= size
    return [piece for _, _, piece in sorted(heap, reverse=True)]


def _pieces(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for start in range(0, len(text), PIECE_CHARACTERS):
            yield text[start : start + PIECE_CHARACTERS]


def _check_special_tokens(more: Sequence[str], model_type: str) -> tuple[str, ...]:
    special = (*SPECIAL_TOKENS, *more)
    for i, token in enumerate(more, len(SPECIAL_TOKENS)):
        if not token or token != token.strip() or SPACE_MARKER in token or not token.isprintable():
            raise ValueError(f"special_tokens: found {token!r}, expected printable text without spaces at either end")
        if len(token) == 1:
            raise ValueError(
                f"special_tokens: found {token!r}, a single character, which texts would spell by this token; expected "
                "two characters or more, such as <|name|>"
            )
        if model_type == "unigram" and " " in token:
            raise ValueError(f"special_tokens: found {token!r}, expected no space in a token of a unigram model")
        if token in special[:i] or token in BYTE_PIECES:
            raise ValueError(f"special_tokens: found {token!r}, which the vocabulary already holds; leave it out")
    return special


def _reason(error: str, vocab_size: int) -> str:
    """Return the error of the setting vocab_size that a message of sentencepiece means."""
    if found := re.search(r"required_chars.*?(\d+) vs (\d+)", error, re.DOTALL):
        return f"vocab_size: found {vocab_size}, expected at least {found[2]} for the characters of this corpus"
    if found := re.search(r"value <= (\d+)", error):
        return f"vocab_size: found {vocab_size}, expected at most {found[1]} for a corpus of this size; give more text"
    last = error.strip().splitlines()[-1]
    return f"tokenizer: sentencepiece could not train {vocab_size} tokens on this corpus: {last}"


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    """Yield texts in short parts, with a digit after each newline.

    Digits are pieces of their own, so no piece continues after a newline. Two digits alternate, because unigram
    proposes only pieces that more than one character follows.
    """
    digits = cycle("01")
    for text in texts:
        for start in range(0, len(text), SENTENCE_CHARACTERS):
            part = text[start : start + SENTENCE_CHARACTERS].replace(UNKNOWN_SIGN, " ")
            yield re.sub("\n", lambda newline: newline[0] + next(digits), part)


def _round_scores(model: bytes) -> bytes:
    """Round the scores to multiples of UNIGRAM_STEP: their sums are exact, so all libraries choose the same ids."""
    parsed = parse_model(model)
    for piece in parsed.pieces:
        if piece.type == PieceKind.NORMAL:
            piece.score = round(piece.score / UNIGRAM_STEP) * UNIGRAM_STEP
    return parsed.SerializeToString()
