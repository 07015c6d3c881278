"""Lines about rows of an input: chats and texts, special tokens that are spelled out, columns that are not used."""

import itertools
from collections import Counter

from shared_tokenizer.chat.rendered import FORMS, Spellings
from shared_tokenizer.preparation.prepare_config import PrepareConfig
from shared_tokenizer.preparation.reporter import Reporter
from shared_tokenizer.preparation.summary import Summary
from shared_tokenizer.sources.documents import Document, cut_document
from shared_tokenizer.sources.slices import Plan
from shared_tokenizer.tokenizers.tokenizer import Tokenizer
from shared_tokenizer.tokenizers.train import SPECIAL_TOKENS

# Share of texts above which spelled special tokens are no chance: prose about web pages or models stays below it, and
# texts of which more are chats lose or learn something that nobody asked for.
MOST_SPELLED = 0.01
# Share of chats above which their messages do not speak about special tokens, but are written out with them.
MOST_SPELLED_CHATS = 0.5
SAMPLE = 1000
_FORM_NAMES = {form.name for form in FORMS}


def refuse_rendered_sample(config: PrepareConfig, plan: Plan, given: Tokenizer | None) -> None:
    """Raise ValueError where most of the first texts spell special tokens: before a tokenizer is trained on them.

    An input that is smaller than the sample is judged as a whole.
    """
    if config.text_format != "auto":
        return
    special = (*SPECIAL_TOKENS, *config.special_tokens) if given is None else given.special_tokens
    spellings, summary = Spellings(special), Summary()
    documents = (document for part in plan.slices for _, document in part.read() if isinstance(document, Document))
    pieces = (piece for whole in documents for piece in cut_document(whole, config.document_characters))
    read = texts = chats = 0
    for piece in itertools.islice(pieces, SAMPLE):
        read += 1
        texts += isinstance(piece.content, str)
        chats += len(piece.chats)
        summary.add_spellings(piece, spellings)
    _refuse_spelled(summary, texts, MOST_SPELLED if read < SAMPLE else 0.5)
    _refuse_spelled_chats(summary, chats)


def report_rows(summary: Summary, config: PrepareConfig, reporter: Reporter) -> None:
    """Log the special tokens that are spelled out and the columns that were not used.

    Raises ValueError where `text_format` auto finds more than MOST_SPELLED of the texts, or MOST_SPELLED_CHATS of the
    chats, to spell special tokens.
    """
    texts = summary.documents - summary.counts["conversations"]
    if config.text_format == "auto":
        _refuse_spelled(summary, texts, MOST_SPELLED)
        _refuse_spelled_chats(summary, summary.counts["conversations"])
    for kind, count in (("texts", texts), ("chats", summary.counts["conversations"])):
        found = summary.spelled.get(kind, Counter())
        if found[""]:
            reporter.log(f"{_spelled_line(found, count, kind)}; {_consequence(kind, config)}")
        for form in sorted(_FORM_NAMES & set(found)):
            reporter.log(
                f"{found[form]:,} of {count:,} texts are chats written out as {form}: learned as they stand, questions "
                "too; --text_format rendered reads them as chats"
            )
    for source, counts in sorted(summary.sources.items()):
        chats, unused = counts["chats"], summary.unused.get(source, Counter())
        if chats and chats < counts["documents"]:
            reporter.log(f"{source}: {chats:,} chats and {counts['documents'] - chats:,} texts")
        if unused:
            names = ", ".join(f"{name} ({number:,} rows)" for name, number in unused.items())
            reporter.log(f"{source}: columns not used: {names}")


def _consequence(kind: str, config: PrepareConfig) -> str:
    if kind == "chats":
        return "they stay letters of the messages"
    if config.text_format == "rendered":
        return "encoded as special tokens, every one of them learned"
    way_out = "" if config.text_format == "letters" else "; --text_format rendered encodes them as special tokens"
    return f"learned as letters{way_out}"


def _refuse_spelled(summary: Summary, texts: int, most: float) -> None:
    found = summary.spelled.get("texts", Counter())
    if found[""] > most * texts:
        raise ValueError(
            f"{_spelled_line(found, texts, 'texts')}: found more than {MOST_SPELLED:.0%}, expected texts without them; "
            "--text_format rendered encodes them as special tokens and reads whole chats as turns, --text_format "
            "letters learns them as letters"
        )


def _refuse_spelled_chats(summary: Summary, chats: int) -> None:
    found = summary.spelled.get("chats", Counter())
    if found[""] > MOST_SPELLED_CHATS * chats:
        raise ValueError(
            f"{_spelled_line(found, chats, 'chats')}: found more than {MOST_SPELLED_CHATS:.0%}, expected messages "
            "without them; --text_format rendered reads a question and its answer that are written out as turns, "
            "--text_format letters learns them as letters of the messages"
        )


def _spelled_line(found: Counter[str], count: int, kind: str) -> str:
    names = ", ".join(
        f"{name} ({number:,})" for name, number in found.most_common() if name and name not in _FORM_NAMES
    )
    return f"{found['']:,} of {count:,} {kind} spell special tokens: {names}"
