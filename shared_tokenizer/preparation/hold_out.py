"""Check, before a tokenizer is trained, that both splits will hold documents; cut long texts where too few would."""

from collections import Counter
from dataclasses import dataclass, field, replace

from shared_tokenizer.data.shards import SPLITS
from shared_tokenizer.preparation.prepare_config import PrepareConfig
from shared_tokenizer.preparation.prepare_slice import DIGEST_BYTES, PrepareOptions, kept_documents
from shared_tokenizer.preparation.reporter import Reporter
from shared_tokenizer.preparation.summary import Summary
from shared_tokenizer.sources.documents import is_validation
from shared_tokenizer.sources.slices import Plan

# Documents shorter than this on average are not cut: nobody means the pieces.
LEAST_CHARACTERS_TO_CUT = 2000
LARGEST_PIECE, SMALLEST_PIECE = 10_000, 200
# Pieces per expected document of validation; with 5 one split remains empty once in 150 times.
_PIECES = 5


@dataclass
class _Found:
    """The documents that were read until each split had one, or all of them."""

    splits: Counter[str] = field(default_factory=Counter)
    characters: int = 0
    by_name: bool = False
    summary: Summary = field(default_factory=Summary)

    @property
    def documents(self) -> int:
        return sum(self.splits.values())

    @property
    def missing(self) -> str | None:
        return next((split for split in SPLITS if not self.splits[split]), None)


def with_both_splits(config: PrepareConfig, plan: Plan, reporter: Reporter) -> PrepareConfig:
    """Return the settings by which both splits hold documents: those given, or with long texts cut.

    Raises ValueError where a split would be empty, more rows are bad than allowed, or the rest of a file is lost.
    Where there is no document at all, the settings are returned as they are.
    """
    options = config.options
    found = _read(plan, options, config.max_bad_rows)
    if not found.documents or found.missing is None:
        return config
    is_long = found.characters >= LEAST_CHARACTERS_TO_CUT * found.documents
    if is_long and not found.by_name and not options.document_characters and options.max_samples is None:
        share = min(options.val_fraction, 1 - options.val_fraction)
        size = min(LARGEST_PIECE, max(SMALLEST_PIECE, int(found.characters * share / _PIECES)))
        while size >= SMALLEST_PIECE // 2:
            if _read(plan, replace(options, document_characters=size), config.max_bad_rows).missing is None:
                reporter.log(
                    f"{found.documents:,} {'texts are' if found.documents > 1 else 'text is'} too few to hold one out: "
                    f"cut into pieces of about {size:,} characters (--document_characters {size})"
                )
                return replace(config, document_characters=size)
            size //= 2
    raise ValueError(_advice(config, found))


def _read(plan: Plan, options: PrepareOptions, max_bad_rows: int) -> _Found:
    found, digests = _Found(), set()
    slices = plan.slices
    if options.max_samples is None:  # else their order matters
        slices = sorted(slices, key=lambda part: not part.holds_validation)
    for part in slices:
        for _, document in kept_documents(part, options, max_bad_rows, found.summary):
            if options.dedup:
                if document.digest[:DIGEST_BYTES] in digests:
                    continue
                digests.add(document.digest[:DIGEST_BYTES])
            found.splits["val" if is_validation(document, options.val_fraction) else "train"] += 1
            found.characters += sum(map(len, document.texts))
            found.by_name |= document.split is not None
            if found.missing is None or found.documents == options.max_samples:
                return found
    return found


def _advice(config: PrepareConfig, found: _Found) -> str:
    """Return the message about a split that holds nothing."""
    ways = ["give more documents"]
    if found.by_name:
        ways = ["the files that are named after it hold no document; fill them, or set splits to ignore"]
    elif config.document_characters:
        ways.append(f"a smaller document_characters than {config.document_characters}")
    if config.max_samples is not None:
        ways.append(f"a larger max_samples than {config.max_samples}")
    if not found.by_name:
        larger_or_smaller = "larger" if found.missing == "val" else "smaller"
        ways.append(f"a {larger_or_smaller} val_fraction than {config.val_fraction}")
        if not config.document_characters:
            size = max(SMALLEST_PIECE, min(LARGEST_PIECE, found.characters // 50))
            ways.append(f"or cut long files with --document_characters {size}")
    return f"{found.missing} split: found none of the {found.documents} documents in it; {', '.join(ways)}"
