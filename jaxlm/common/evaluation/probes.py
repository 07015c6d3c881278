"""The probes: a suite of small multiple-choice tasks that needs nothing installed, no data and no network.

They show what a mean loss hides: if a model of a few million parameters copies, looks up, keeps brackets and agreement
apart, and how far back. The rows are the same for all models (a fixed seed); only those of source code depend on the
version of Python. A choice counts by the sum of the log-probabilities of its tokens, without a division by its length:
choices of a row are equally long in characters, and each is the answer equally often.
"""

import json
import math
import platform
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from jaxlm.common.evaluation.continuations import encode_pair, loglikelihoods
from jaxlm.common.evaluation.evaluated_model import EvaluatedModel
from jaxlm.common.evaluation.probe_rows import (
    FLAT,
    NESTED,
    Choices,
    Groups,
    addition,
    agreement,
    brackets,
    copying,
    held_out_library,
    induction,
    next_line,
    recall,
)
from jaxlm.common.evaluation.scoring import Track

SEED, NUM_ROWS = 0, 240
SUITE = "probes"
# Of a normal distribution: 95 % of it lie within so many standard deviations.
NORMAL_95 = 1.959964


@dataclass(frozen=True)
class Probe:
    """A task: its rows, and the accuracy of a guess."""

    name: str
    asks: str
    rows: list[Choices]

    @property
    def chance(self) -> float:
        """Return the expected accuracy of a guess."""
        return 1 / len(self.rows[0].choices)


@dataclass(frozen=True)
class ProbeResult:
    """The rows that a model answered right."""

    probe: str
    num_rows: int
    num_right: int
    chance: float

    @property
    def accuracy(self) -> float:
        """Return the fraction of rows that were answered right."""
        return self.num_right / self.num_rows

    @property
    def interval(self) -> tuple[float, float]:
        """Return the 95 % confidence interval of the accuracy (Wilson's score interval)."""
        return wilson_interval(self.num_right, self.num_rows)

    def as_json(self) -> dict[str, Any]:
        """Return the result as values of JSON."""
        low, high = self.interval
        numbers = {"accuracy": self.accuracy, "low_95": low, "high_95": high, "chance": self.chance}
        return numbers | {"rows": self.num_rows, "right": self.num_right}


def wilson_interval(num_right: int, num_rows: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a fraction (Wilson's score interval)."""
    fraction, z2 = num_right / num_rows, NORMAL_95**2 / num_rows
    middle, half = fraction + z2 / 2, math.sqrt(z2 * (fraction * (1 - fraction) + z2 / 4))
    return (middle - half) / (1 + z2), (middle + half) / (1 + z2)


def make_probes(num_rows: int | None = None, library: Callable[[], list[str]] = held_out_library) -> list[Probe]:
    """Return the probes with `num_rows` rows each, by default NUM_ROWS.

    `library` returns files of source code, by default those of Python's own library that `prepare` holds out.
    """
    suite: dict[str, tuple[str, Groups]] = {
        **{f"copy_{n}": (f"a line of {n} words, written again", copying(n)) for n in (6, 16, 32)},
        **{f"induction_{n}": (f"a word whose pair stood {n} words before", induction(n)) for n in (8, 24, 48)},
        "recall": ("who has which of six things", recall),
        "brackets": ("bracket that closes the open one", brackets(FLAT)),
        "brackets_nested": ("bracket that closes the innermost of several", brackets(NESTED)),
        "agreement": ("verb after its subject", agreement(across=False)),
        "agreement_across": ("verb after a noun of the other number", agreement(across=True)),
        "addition": ("sum of two-digit numbers", addition),
        "next_line": (f"next line of Python {platform.python_version()}'s library", next_line(library())),
    }
    return [
        Probe(
            f"probe_{name}",
            asks,
            # A seed for each, so that a change of one changes no other.
            list(islice(chain.from_iterable(groups(random.Random(f"{name} {SEED}"))), num_rows or NUM_ROWS)),
        )
        for name, (asks, groups) in suite.items()
    ]


def run_probes(
    model: EvaluatedModel, probes: Sequence[Probe], *, log: Callable[[str], None] = print, track: Track = iter
) -> list[ProbeResult]:
    """Return the results of a model, in the order of the probes. Of equal choices the first counts."""
    pairs = [
        encode_pair(row.context, choice, model.tokenizer)
        for probe in probes
        for row in probe.rows
        for choice in row.choices
    ]
    nats = iter([each.nats for each in loglikelihoods(model, pairs, log=log, track=track)])
    results = list[ProbeResult]()
    for probe in probes:
        found = [list(islice(nats, len(row.choices))) for row in probe.rows]
        right = [scores.index(max(scores)) == row.answer for scores, row in zip(found, probe.rows, strict=True)]
        results.append(ProbeResult(probe.name, len(right), sum(right), probe.chance))
    return results


def probe_table(probes: Sequence[Probe], found: Mapping[str, Sequence[ProbeResult]]) -> Any:
    """Return a rich table with a row for each probe and a column for each model: accuracy and its interval."""
    from rich.table import Table

    table = Table(title=f"Probes of {len(probes[0].rows)} rows: accuracy in %, with its 95 % interval")
    table.add_column("probe")
    table.add_column("asks for")
    table.add_column("chance", justify="right")
    for name in found:
        table.add_column(name, justify="right", overflow="fold")
    for probe, results in zip(probes, zip(*found.values(), strict=True), strict=True):
        table.add_row(probe.name, probe.asks, f"{100 * probe.chance:.0f}", *map(_cell, results))
    return table


def _cell(result: ProbeResult) -> str:
    low, high = result.interval
    return f"{100 * result.accuracy:.1f} ({100 * low:.0f} to {100 * high:.0f})"


def write_tasks(directory: Path, probes: Sequence[Probe] | None = None) -> list[str]:
    """Write the probes as tasks of lm-evaluation-harness, a YAML and a JSONL file each, and return their names.

    They name their data by its absolute path, as the harness wants it. `probes` are the tasks of a group. Raises
    FileExistsError where the directory exists already.
    """
    directory = directory.resolve()
    directory.mkdir(parents=True)
    chosen = make_probes() if probes is None else probes
    for probe in chosen:
        data = directory / f"{probe.name}.jsonl"
        rows = ({"context": row.context, "choices": row.choices, "answer": row.answer} for row in probe.rows)
        data.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        # JSON is YAML.
        task = {
            "task": probe.name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "context",
            "doc_to_choice": "choices",
            "doc_to_target": "answer",
            "target_delimiter": "",
            "num_fewshot": 0,
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
            "metadata": {"version": 1.0},
        }
        (directory / f"{probe.name}.yaml").write_text(json.dumps(task, indent=1) + "\n", encoding="utf-8")
    names = [probe.name for probe in chosen]
    group = {"group": SUITE, "task": names, "metadata": {"version": 1.0}}
    (directory / f"{SUITE}.yaml").write_text(json.dumps(group, indent=1) + "\n", encoding="utf-8")
    return names
