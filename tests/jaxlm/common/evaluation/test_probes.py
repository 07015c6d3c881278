import collections
import hashlib
import math

import pytest
import scipy.stats

from jaxlm.common.evaluation.probe_rows import CLOSERS, OPENERS, held_out_library
from jaxlm.common.evaluation.probes import ProbeResult, make_probes, probe_table, run_probes, wilson_interval
from tests.jaxlm.common.evaluation.fake_models import fake_model

LIBRARY = [
    "".join(f"{' ' * 4 * (n % 3)}value_{n} = compute(value_{n - 1}, {n % 7}) + offset\n" for n in range(100, 160)),
]


@pytest.fixture(scope="module")
def probes():
    return make_probes(library=lambda: LIBRARY)


def probe(probes, name):
    return next(probe for probe in probes if probe.name == f"probe_{name}")


def test_rows_are_the_same_everywhere(probes):
    # Another digest makes all accuracies of earlier versions incomparable.
    rows = [(row.context, row.choices, row.answer) for probe in probes for row in probe.rows]
    assert hashlib.sha256(repr(rows).encode()).hexdigest()[:16] == "567bbdcf4bc89b33"
    assert {len(probe.rows) for probe in probes} == {240}
    assert [probe.chance for probe in probes] == [1 / 4] * 7 + [1 / 3] * 2 + [1 / 2, 1 / 2, 1 / 4, 1 / 3]


def test_each_choice_of_a_group_is_the_answer_once(probes):
    for each in probes:
        size = len(each.rows[0].choices)
        for start in range(0, len(each.rows), size):
            group = each.rows[start : start + size]
            assert {row.choices for row in group} == {group[0].choices}
            assert [row.answer for row in group] == list(range(size))
            assert len({row.context for row in group}) == size
            assert len(set(group[0].choices)) == size


def test_choices_are_equally_long_but_for_verbs_and_lines_of_code(probes):
    for each in probes:
        for row in each.rows:
            lengths = [len(choice.strip()) for choice in row.choices]
            if "agreement" not in each.name:
                assert max(lengths) <= min(lengths) * 9 / 8


def test_who_knows_the_frequencies_of_tokens_only_is_right_as_often_as_by_chance(probes, tokenizer):
    ids = tokenizer.encode("".join(row.context for probe in probes for row in probe.rows))
    counts = collections.Counter(ids)
    model, _ = fake_model(tokenizer, lambda before, token: math.log((counts[token] + 1) / len(ids)), max_seq_len=5000)
    for result, each in zip(run_probes(model, probes), probes, strict=True):
        assert result.accuracy == pytest.approx(each.chance)
        assert result.interval[0] < each.chance < result.interval[1]


def test_who_knows_the_answer_is_right(probes, tokenizer):
    answers = {
        (row.context, choice): row.answer == index
        for probe in probes
        for row in probe.rows
        for index, choice in enumerate(row.choices)
    }
    known = {
        tuple(tokenizer.encode_prompt(context + choice)) for (context, choice), is_right in answers.items() if is_right
    }
    model, seen = fake_model(tokenizer, lambda before, token: float((*before, token) in known), max_seq_len=5000)
    assert all(result.accuracy == 1 for result in run_probes(model, probes))
    assert len(seen) == sum(len(row.choices) for probe in probes for row in probe.rows)


def test_the_answer_of_brackets_closes_the_innermost_open_one(probes):
    for row in probe(probes, "brackets").rows + probe(probes, "brackets_nested").rows:
        stack = []
        for letter in row.context:
            if letter in OPENERS:
                stack.append(CLOSERS[OPENERS.index(letter)])
            elif letter in CLOSERS:
                assert stack.pop() == letter
        assert row.choices[row.answer] == stack[-1]


def test_answers_follow_from_the_contexts(probes):
    for distance in (8, 24, 48):
        for row in probe(probes, f"induction_{distance}").rows:
            *before, cue = row.context.split()
            assert before[before.index(cue) + 1] == row.choices[row.answer].strip()
            assert distance <= len(before) - before.index(cue) - 1 <= distance + 8
    for distance in (6, 16, 32):
        for row in probe(probes, f"copy_{distance}").rows:
            line, again = row.context.split("\n")
            assert len(line.split()) == distance and line.startswith(again + row.choices[row.answer])
    for row in probe(probes, "addition").rows:
        first, second = row.context.splitlines()[-1].removesuffix(" =").split(" + ")
        assert int(first) + int(second) == int(row.choices[row.answer])
        assert all(10 <= int(number) <= 99 for number in (first, second, *row.choices))
    for row in probe(probes, "recall").rows:
        *told, asked = row.context.split(". ")
        assert f"{asked}{row.choices[row.answer]}" in told
    for row in probe(probes, "next_line").rows:
        assert row.context + row.choices[row.answer] in LIBRARY[0]
        assert not any(choice in f"\n{row.context}" for choice in row.choices)


def test_the_noun_beside_the_verb_of_agreement_across_has_the_other_number(probes):
    for row in probe(probes, "agreement_across").rows:
        first, last = row.context.split(" ")[2], row.context.split(" ")[-1]
        assert (first.endswith("s"), last.endswith("s")) == (row.answer == 1, row.answer == 0)


def test_source_code_without_similar_lines_is_refused():
    with pytest.raises(ValueError, match="next_line: found no three lines of one depth and length"):
        make_probes(library=lambda: ["x = 1\n" * 100])


def test_files_of_the_library_are_those_that_are_held_out():
    texts = held_out_library()
    assert 10 < len(texts) < 200
    assert texts == held_out_library()


def test_the_interval_is_wilsons():
    for right, rows in ((5, 10), (0, 20), (20, 20), (60, 240)):
        wanted = scipy.stats.binomtest(right, rows).proportion_ci(method="wilson")
        assert wilson_interval(right, rows) == pytest.approx((wanted.low, wanted.high), abs=1e-6)


def test_the_table_has_chance_and_intervals_of_each_model(probes):
    results = [
        ProbeResult(probe.name, 240, 240 if probe.name == "probe_recall" else 60, probe.chance) for probe in probes
    ]
    table = probe_table(probes, {"one": results, "two": results})
    cells = [list(column.cells) for column in table.columns]
    row = cells[0].index("probe_recall")
    assert [column[row] for column in cells] == [
        "probe_recall",
        "who has which of six things",
        "25",
        *["100.0 (98 to 100)"] * 2,
    ]
    assert results[0].as_json()["chance"] == 0.25


def test_contexts_longer_than_the_model_lose_their_start_aloud(probes, tokenizer):
    lines = []
    model, seen = fake_model(tokenizer, lambda before, token: 0.0, max_seq_len=40)
    run_probes(model, [probe(probes, "induction_24")], log=lines.append)
    assert {len(row) for row in seen} == {41}
    assert lines == [
        "960 of 960 rows are longer than the context of 40 tokens of fake: the start of their contexts is left out"
    ]
