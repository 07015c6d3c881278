"""The report of a study: results.json, a table in markdown, and pictures."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from jaxlm.common.run.summary import format_bytes
from jaxlm.common.run.training_report import duration
from jaxlm.study.pictures import draw
from jaxlm.study.results import RunResult, VariantResult, as_fields, by_variant
from jaxlm.study.statistics import CONFIDENCE
from jaxlm.study.study import Study
from shared_tokenizer.manifest import write_file

RESULTS, TABLE = "results.json", "table.md"
# In a cell of the table: no number, and the variant that the others are compared with.
NONE, BASE = "-", "base"
# Between two columns of a terminal, and the columns that any terminal is shown: variant, runs, bits per byte.
_GAP, _LEAST_COLUMNS = 2, 3
HEADINGS = (
    "variant",
    "runs",
    "bits per byte",
    "deviation",
    "to base",
    "test text",
    "deviation",
    "to base",
    "tokens/s",
    "time",
    "memory",
    "file",
    "zeros",
    "flips",
)


def write_report(study: Study, found: Sequence[RunResult], directory: Path) -> None:
    """Write results.json, table.md and the pictures of the runs that have ended. Replaces those of earlier reports."""
    directory.mkdir(parents=True, exist_ok=True)
    variants = by_variant(study, found)
    content = {
        "question": study.question,
        "settings": study.settings,
        "variants": study.variants,
        "base": study.base,
        "seeds": study.seeds,
        "evaluate": study.evaluate,
        "seconds": round(sum(run.seconds for run in found), 1),
        "runs": [as_fields(run) for run in found],
    }
    write_file(directory / RESULTS, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
    write_file(directory / TABLE, _markdown(study, variants).encode())
    draw(study, variants, directory)


def terminal_table(study: Study, found: Sequence[RunResult], width: int) -> Table:
    """Return the table for a terminal of a width in characters: with the columns that fit, and the names of the others.

    Names of variants that do not fit are folded, never cut.
    """
    rows = _rows(study, by_variant(study, found))
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) + _GAP for column in columns]
    shown = len(columns)
    while sum(widths[:shown]) - _GAP > width and shown > _LEAST_COLUMNS:
        shown -= 1
    rest = ", ".join(rows[0][shown:])
    table = Table(title=study.question, box=None, pad_edge=False, caption=f"{TABLE} has {rest} too" if rest else None)
    table.add_column(rows[0][0], overflow="fold")
    for heading in rows[0][1:shown]:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows[1:]:
        table.add_row(*row[:shown])
    return table


def _rows(study: Study, variants: Sequence[VariantResult]) -> list[list[str]]:
    """Return the headings and a row for each variant, without the columns that no variant has a number for."""
    rows = [
        [
            variant.name,
            f"{len(variant.runs)} of {len(study.seeds)}" + (f", {variant.failed} failed" if variant.failed else ""),
            *_compared(study, variant, "bits_per_byte"),
            *_compared(study, variant, "test_bits_per_byte"),
            _text("{:,.0f}", variant.mean("tokens_per_second")),
            duration(variant.mean("seconds") or 0.0),
            _text("{}", _bytes(variant.mean("peak_bytes"))),
            format_bytes(variant.runs[0].artifact_bytes),
            _text("{:.1%}", variant.mean("zero_fraction")),
            _text("{:.3%}", variant.mean("flip_rate")),
        ]
        for variant in variants
    ]
    columns = [column for column in zip(HEADINGS, *rows, strict=True) if set(column[1:]) != {NONE}]
    return [list(row) for row in zip(*columns, strict=True)]


def _compared(study: Study, variant: VariantResult, name: str) -> list[str]:
    """Return the mean of bits per byte, its deviation, and the difference to the base."""
    found = variant.sample(name)
    if found is None:
        return [NONE] * 3
    to_base = BASE if variant.name == study.base else _text("{}", variant.difference(name))
    return [f"{found.mean:.4f}", _text("{:.4f}", found.deviation), to_base]


def _text(form: str, value: Any) -> str:
    return NONE if value is None else form.format(value)


def _bytes(value: float | None) -> str | None:
    return None if value is None else format_bytes(value)


def _markdown(study: Study, variants: Sequence[VariantResult]) -> str:
    headings, *rows = _rows(study, variants)
    rows = [headings, ["---"] + ["---:"] * (len(headings) - 1), *rows]
    table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
    return (
        f"# {study.question}\n\n{table}\n\n"
        f"Mean over seeds {', '.join(map(str, study.seeds))}. To base: difference in bits per byte to "
        f"`{study.base}`, paired by seed, with the {CONFIDENCE:.0%} confidence interval.{_test_text(study)} "
        f"{_origins(variants)}.\n"
    )


def _origins(variants: Sequence[VariantResult]) -> str:
    """Return machines and dates of the runs, each once."""
    runs = [run for variant in variants for run in variant.runs]
    return "; ".join(sorted({f"{run.machine}, {run.date}" for run in runs if run.machine is not None}))


def _test_text(study: Study) -> str:
    """Return the sentence that names the text of the evaluation."""
    names = (study.evaluate or {}).get("input")
    return f" Test text: {', '.join([names] if isinstance(names, str) else names)}." if names else ""
