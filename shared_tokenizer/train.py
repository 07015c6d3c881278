"""Train a sentencepiece BPE."""

import io
import re
from collections.abc import Iterable, Iterator

import sentencepiece

from shared_tokenizer.tokenizer import Tokenizer

CHAT_MARKERS = ("<|im_start|>", "<|im_end|>")
# unknown, begin, end, pad, the chat markers and the 256 bytes.
SMALLEST_VOCAB = 4 + len(CHAT_MARKERS) + 256
# sentencepiece wants sentences; a piece of this many characters loses nothing but merges across its ends.
SENTENCE_CHARACTERS = 4000


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a BPE whose decoding gives back every text exactly.

    Raises ValueError where the vocabulary is too small to hold every byte, or too large for the corpus.
    """
    if vocab_size <= SMALLEST_VOCAB:
        raise ValueError(
            f"vocab_size: found {vocab_size}, expected more than {SMALLEST_VOCAB} (every byte and the special tokens)"
        )
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            control_symbols=list(CHAT_MARKERS),
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=3,
            max_sentence_length=8 * SENTENCE_CHARACTERS,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise ValueError(_reason(str(error), vocab_size)) from error
    return Tokenizer(model.getvalue())


def _reason(error: str, vocab_size: int) -> str:
    """What sentencepiece's message means for the user's one setting."""
    if found := re.search(r"required_chars.*?(\d+) vs (\d+)", error, re.DOTALL):
        return f"vocab_size: found {vocab_size}, expected at least {found[2]} for the characters of this corpus"
    if found := re.search(r"value <= (\d+)", error):
        return f"vocab_size: found {vocab_size}, but this corpus is too small for more than {found[1]}"
    last = error.strip().splitlines()[-1]
    return f"tokenizer: sentencepiece could not train {vocab_size} tokens on this corpus: {last}"


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for start in range(0, len(text), SENTENCE_CHARACTERS):
            yield text[start : start + SENTENCE_CHARACTERS]
