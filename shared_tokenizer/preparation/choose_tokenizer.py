"""The tokenizer and the chat format of a preparation: given ones, or a tokenizer trained on a sample of the input."""

import contextlib
import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

from shared_tokenizer.chat.chat_format import ChatFormat
from shared_tokenizer.chat.formats import CHATML, named_chat_format
from shared_tokenizer.chat.messages import Message, encode_chat
from shared_tokenizer.chat.recognition import recognise_text
from shared_tokenizer.chat.template import disagreement, read_chat_format, read_chat_template
from shared_tokenizer.chat.template_format import TemplateFormat
from shared_tokenizer.load import load_tokenizer, tokenizer_place
from shared_tokenizer.preparation.prepare_config import PrepareConfig
from shared_tokenizer.preparation.reporter import Reporter
from shared_tokenizer.preparation.summary import refuse_lost_rest
from shared_tokenizer.sources.documents import Document, Rejected
from shared_tokenizer.sources.files import SNIFFED_ROWS
from shared_tokenizer.sources.slices import Plan
from shared_tokenizer.tokenizers.tokenizer import Tokenizer
from shared_tokenizer.tokenizers.train import sample_texts, train_tokenizer

# The tokenizer's sample is drawn from enough slices to hold this many times its size.
OVERSAMPLING = 4
# In the identity of a set: the format of the tokenizer's chat template.
TEMPLATE_FORMAT = "chat_template"
# Text that a given tokenizer is tried on, and the share of it that a message is worth: some normalize accents.
_SEEN_BYTES, _REPORTED_LOSS = 1 << 20, 0.001
# A chat that every format can write, to find out whether the tokenizer has the tokens of one.
PROBE = (Message("user", "a"), Message("assistant", "b"))


def load_given_tokenizer(config: PrepareConfig, reporter: Reporter) -> Tokenizer | None:
    """Return the tokenizer that the settings name, None where one is to be trained.

    Logs a warning where it lacks bytes. Raises ValueError where it cannot be read.
    """
    if config.tokenizer is None:
        return None
    place = tokenizer_place(Path(config.tokenizer))
    if place != Path(config.tokenizer):
        reporter.log(f"tokenizer: {place}")
    tokenizer = load_tokenizer(place)
    if tokenizer.missing_bytes:
        lost = " ".join(f"{byte:02X}" for byte in sorted(tokenizer.missing_bytes))
        reporter.log(f"the tokenizer has no token for bytes {lost}: characters that need one are left out")
    return tokenizer


def report_lost_text(plan: Plan, tokenizer: Tokenizer, reporter: Reporter) -> None:
    """Log the share of the text's first bytes that are in no token, where the tokenizer does not know all of them."""
    texts, held, lost = _first_texts(plan), 0, 0
    for text in texts:
        size = len(text.encode("utf-8"))
        held += size
        lost += max(0, size - int(tokenizer.token_bytes[tokenizer.encode(text)].sum()))
    if lost >= _REPORTED_LOSS * held and lost:
        reporter.log(
            f"the tokenizer does not know all of this text: {lost / held:.1%} of the first {held:,} bytes are in no "
            "token, so they are not learned; another --tokenizer, or --vocab_size N to train one, keeps all"
        )


def _first_texts(plan: Plan) -> Iterator[str]:
    """Yield the first texts of every slice, of about `_SEEN_BYTES` in all."""
    for part in plan.slices:
        left = _SEEN_BYTES // len(plan.slices)
        for _, document in part.read():
            if isinstance(document, Document):
                yield from (text[:left] for text in document.texts)
                left -= document.size_bytes
            if left <= 0:
                break


def train_on_sample(config: PrepareConfig, plan: Plan, reporter: Reporter) -> Tokenizer:
    """Train a tokenizer on a sample of the input. Raises ValueError where there is no text, or too little of it."""
    assert config.vocab_size is not None
    reporter.log(f"training a tokenizer of {config.vocab_size} tokens")
    rejected: list[Rejected] = []
    sample = sample_texts(_texts_to_sample(plan, OVERSAMPLING * config.train_size, rejected), config.train_size)
    if not sample:
        first = f"; {len(rejected)} bad rows, first {rejected[0].where}: {rejected[0].reason}" if rejected else ""
        raise ValueError(f"{config.input_name}: found no text to train a tokenizer on{first}")
    return train_tokenizer(
        sample, config.vocab_size, model_type=config.model_type, special_tokens=config.special_tokens
    )


def _texts_to_sample(plan: Plan, size_bytes: int, rejected: list[Rejected]) -> Iterator[str]:
    """Yield the texts of slices in random order, until they hold `size_bytes` of UTF-8; add the bad rows to a list."""
    slices, size = list(plan.slices), 0
    Random(0).shuffle(slices)
    for part in slices:
        for _, document in part.read():
            if isinstance(document, Rejected):
                refuse_lost_rest(document)
                rejected += [document] if document.kind is None else []
            elif document.split != "val":
                size += document.size_bytes
                yield from document.texts
        if size >= size_bytes:
            return


def template_identity(config: PrepareConfig, plan: Plan) -> dict[str, str]:
    """Return what the chats of a set owe to the given tokenizer's template: its format, or its digest where it is run.

    Empty where the template is not read.
    """
    directory = _given_directory(config)
    if config.chat_format != "auto" or not plan.holds_chats or directory is None:
        return {}
    template = read_chat_template(directory)
    if template is None:
        return {}
    known = recognise_text(template)
    if known is None:
        return {"chat_template_sha256": hashlib.sha256(template.encode()).hexdigest()}
    return {TEMPLATE_FORMAT: known.name}


def _given_directory(config: PrepareConfig) -> Path | None:
    given = tokenizer_place(Path(config.tokenizer)) if config.tokenizer else None
    return given if given is None or given.is_dir() else given.parent


def choose_chat_format(
    config: PrepareConfig, plan: Plan, tokenizer: Tokenizer, reporter: Reporter
) -> ChatFormat | None:
    """Return the format in which the chats of the input are written, None where the input holds none.

    Logs a warning where the tokenizer's own chat template is known to write another one than the settings name.
    Raises ValueError where the tokenizer lacks a special token that the format needs, and where its template cannot
    write a conversation to learn from.
    """
    if not plan.holds_chats:
        return None
    directory = _given_directory(config)
    if config.chat_format != "auto":
        found = named_chat_format(config.chat_format)
        template = None if directory is None else read_chat_template(directory)
        if template is not None and (warning := disagreement(template, found)):
            reporter.log(warning)
    else:
        found = None if directory is None else read_chat_format(directory)
        found = found or _rendered_format(plan, tokenizer) or CHATML
    encode_chat(PROBE, tokenizer, found)
    if isinstance(found, TemplateFormat):
        reporter.log("chats are written as the tokenizer's own chat template writes them, which is run for it")
    return found


def _rendered_format(plan: Plan, tokenizer: Tokenizer) -> ChatFormat | None:
    """Return the format that most of the first chats were written out in, None where the tokenizer cannot write it."""
    documents = (document for part in plan.slices for _, document in part.read() if isinstance(document, Document))
    forms = Counter(document.form for document in itertools.islice(documents, SNIFFED_ROWS) if document.form)
    for name, _ in forms.most_common(1):
        with contextlib.suppress(ValueError):
            encode_chat(PROBE, tokenizer, named_chat_format(name))
            return named_chat_format(name)
    return None
