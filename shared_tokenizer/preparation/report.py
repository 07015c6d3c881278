"""What a preparation found, in numbers and as a picture."""

import io
from typing import Any

from shared_tokenizer.preparation.prepare_slice import Summary


def statistics(summary: Summary) -> dict[str, Any]:
    """Everything that was counted, for stats.json."""
    return {
        "documents": summary.documents,
        "tokens": summary.tokens,
        "left_out": {name: summary.counts[name] for name in ("bad_rows", "empty", "short", "duplicates")},
        "conversations": summary.counts["conversations"],
        "first_bad_rows": summary.bad_rows,
        "splits": {name: with_ratio(counts) for name, counts in sorted(summary.splits.items())},
        "sources": {name: with_ratio(counts) for name, counts in sorted(summary.sources.items())},
        "documents_by_length": {
            f"{2 ** int(bits) // 2}-{2 ** int(bits) - 1} tokens": summary.lengths[bits]
            for bits in sorted(summary.lengths, key=int)
        },
    }


def with_ratio(counts: dict[str, int]) -> dict[str, Any]:
    """Counts with the bytes that a token stands for."""
    return {**counts, "bytes_per_token": round(counts["bytes"] / max(counts["tokens"], 1), 4)}


def draw_lengths(summary: Summary) -> bytes:
    """A PNG of how long the documents are."""
    # Imported here: workers need no picture.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    bits = range(min(map(int, summary.lengths)), max(map(int, summary.lengths)) + 1)
    axes.bar([str(2**bit // 2) for bit in bits], [summary.lengths[str(bit)] for bit in bits], width=0.9)
    axes.set_xlabel("tokens in a document, from")
    axes.set_ylabel("documents")
    axes.set_title(f"{summary.documents:,} documents, {summary.tokens:,} tokens")
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()
