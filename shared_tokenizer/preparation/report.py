"""Statistics of a preparation: numbers for stats.json and a histogram of document lengths."""

import io
from typing import Any

from shared_tokenizer.preparation.summary import Summary

PLACES_SHOWN = 3
_LEFT_OUT = {"empty": "empty", "short": "shorter than min_text_length", "duplicates": "copies of an earlier one"}
_NO_PAIRS = {"unpaired": "without a chosen or a rejected answer", "equal_answers": "with equal answers"}


def statistics(summary: Summary) -> dict[str, Any]:
    """Return all counts, as stats.json holds them."""
    return {
        "documents": summary.documents,
        "tokens": summary.tokens,
        "left_out": {name: summary.counts[name] for name in ("bad_rows", "empty", "short", "duplicates")}
        | {name: summary.counts[name] for name in _NO_PAIRS if summary.counts[name]},
        "conversations": summary.counts["conversations"],
        "first_bad_rows": summary.bad_rows,
        **({"pairs": summary.counts["pairs"]} if summary.counts["pairs"] else {}),
        **({"first_rows_that_compare_nothing": summary.no_pairs} if summary.no_pairs else {}),
        "spelled_out": {kind: dict(sorted(found.items())) for kind, found in sorted(summary.spelled.items())},
        "columns_not_used": {name: dict(sorted(found.items())) for name, found in sorted(summary.unused.items())},
        "splits": {name: with_ratio(counts) for name, counts in sorted(summary.splits.items())},
        "sources": {name: with_ratio(counts) for name, counts in sorted(summary.sources.items())},
        "documents_by_length": {
            f"{2 ** int(bits) // 2}-{2 ** int(bits) - 1} tokens": summary.lengths[bits]
            for bits in sorted(summary.lengths, key=int)
        },
    }


def skipped_lines(summary: Summary) -> list[str]:
    """Return the number of rows that were skipped and the first places, and the documents that were left out."""
    lines = []
    if count := summary.counts["bad_rows"]:
        shown = summary.bad_rows[:PLACES_SHOWN]
        lines = [f"skipped {count:,} rows that cannot be read{', the first:' if count > len(shown) else ':'}"]
        lines += [f"  {line}" for line in shown]
    if left_out := [f"{summary.counts[name]:,} {words}" for name, words in _LEFT_OUT.items() if summary.counts[name]]:
        lines.append(f"documents left out: {', '.join(left_out)}")
    if no_pairs := [f"{summary.counts[name]:,} {words}" for name, words in _NO_PAIRS.items() if summary.counts[name]]:
        lines.append(f"pairs left out: {', '.join(no_pairs)}, the first:")
        lines += [f"  {line}" for line in summary.no_pairs[:PLACES_SHOWN]]
    return lines


def with_ratio(counts: dict[str, int]) -> dict[str, Any]:
    """Return counts plus their ratio of UTF-8 bytes per token."""
    return {**counts, "bytes_per_token": round(counts["bytes"] / max(counts["tokens"], 1), 4)}


def draw_lengths(summary: Summary) -> bytes:
    """Return a histogram of document lengths in tokens, as the bytes of a PNG."""
    # Imported here: workers do not draw.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    bits = range(min(map(int, summary.lengths)), max(map(int, summary.lengths)) + 1)
    axes.bar([str(2**bit // 2) for bit in bits], [summary.lengths[str(bit)] for bit in bits], width=0.9)
    axes.set_xlabel("tokens per document, from")
    axes.set_ylabel("documents")
    axes.set_title(f"{summary.documents:,} documents, {summary.tokens:,} tokens")
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()
