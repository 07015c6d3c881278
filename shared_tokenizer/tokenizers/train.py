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
# Ids 0..19: unknown, begin, end and padding, then the chat and code markers that SmolLM2 knows.
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
# sentencepiece wants sentences; a piece of this many characters loses nothing but merges across its ends.
SENTENCE_CHARACTERS = 4000
# sentencepiece's sign for an unknown character: it passes over any sentence that holds one.
UNKNOWN_SIGN = "\u2585"
# Bytes of text that a tokenizer is trained on, unless told otherwise.
TRAIN_SIZE = 32_000_000
# A longer text is sampled in pieces of this.
PIECE_CHARACTERS = 1 << 16


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, *, model_type: ModelType = "bpe", special_tokens: Sequence[str] = ()
) -> SentencePieceTokenizer:
    """Train a tokenizer whose decoding gives back every text exactly and in which a newline ends its token.

    The ids begin with SPECIAL_TOKENS and `special_tokens`. The same texts in the same order give the same model.
    Raises ValueError where the vocabulary is too small to hold every byte, or too large for the corpus.
    """
    special = _check_special_tokens(special_tokens)
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
            # tokenizer.json keeps a special token apart from its spelling only where its characters are pieces.
            required_chars="".join(sorted(set("".join((*special, *BYTE_PIECES))))) if model_type == "unigram" else "",
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


def sample_texts(texts: Iterable[str], size_bytes: int) -> list[str]:
    """About `size_bytes` of UTF-8 at most, in memory too: the texts with the smallest sha256, in its order.

    Long texts are cut into pieces first, so that one of them neither fills the sample nor is left out whole.
    Everything is kept where everything fits.
    """
    if size_bytes < 1:
        raise ValueError(f"size_bytes: found {size_bytes}, expected at least 1")
    heap: list[tuple[int, int, str]] = []  # the largest hash first; then bytes, text
    held, limit = 0, -1 << 256
    for piece in _pieces(texts):
        content = piece.encode("utf-8")
        order = -int.from_bytes(hashlib.sha256(content).digest(), "big")
        # What was once given up stays out, and all that comes after it: the order of the input says nothing.
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


def _check_special_tokens(more: Sequence[str]) -> tuple[str, ...]:
    special = (*SPECIAL_TOKENS, *more)
    for i, token in enumerate(more, len(SPECIAL_TOKENS)):
        if not token or token != token.strip() or SPACE_MARKER in token or not token.isprintable():
            raise ValueError(f"special_tokens: found {token!r}, expected printable text without spaces around it")
        if token in special[:i] or token in BYTE_PIECES:
            raise ValueError(f"special_tokens: found {token!r}, which the vocabulary holds already; leave it out")
    return special


def _reason(error: str, vocab_size: int) -> str:
    """What sentencepiece's message means for the user's one setting."""
    if found := re.search(r"required_chars.*?(\d+) vs (\d+)", error, re.DOTALL):
        return f"vocab_size: found {vocab_size}, expected at least {found[2]} for the characters of this corpus"
    if found := re.search(r"value <= (\d+)", error):
        return f"vocab_size: found {vocab_size}, but this corpus is too small for more than {found[1]}"
    last = error.strip().splitlines()[-1]
    return f"tokenizer: sentencepiece could not train {vocab_size} tokens on this corpus: {last}"


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    """Texts in short parts, with a digit after each newline: as digits stand alone, no piece goes on after it.

    Two digits in turn, because unigram proposes only pieces that more than one character follows.
    """
    digits = cycle("01")
    for text in texts:
        for start in range(0, len(text), SENTENCE_CHARACTERS):
            part = text[start : start + SENTENCE_CHARACTERS].replace(UNKNOWN_SIGN, " ")
            yield re.sub("\n", lambda newline: newline[0] + next(digits), part)


def _round_scores(model: bytes) -> bytes:
    """The scores as multiples of UNIGRAM_STEP: their sums are exact, so the same text has the same ids anywhere."""
    parsed = parse_model(model)
    for piece in parsed.pieces:
        if piece.type == PieceKind.NORMAL:
            piece.score = round(piece.score / UNIGRAM_STEP) * UNIGRAM_STEP
    return parsed.SerializeToString()
