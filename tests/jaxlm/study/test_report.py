import pytest
from rich.console import Console

from jaxlm.study.report import terminal_table
from jaxlm.study.results import read_recorded, read_results
from jaxlm.study.study import read_study
from jaxlm.study.train_run import Job
from tests.pages import ROOT


@pytest.fixture(scope="module")
def long_study(tmp_path_factory):
    """Return the committed study `long` and its recorded runs."""
    study = read_study(ROOT / "studies/long.yaml")
    recorded = read_recorded(study, ROOT / "studies/long/results.json")
    jobs = [Job(run, tmp_path_factory.mktemp("runs"), ()) for run in study.runs()]
    return study, read_results(jobs, recorded)


def lines_of(study, found, width):
    console = Console(width=width)
    with console.capture() as captured:
        console.print(terminal_table(study, found, width))
    return captured.get().splitlines()


@pytest.mark.parametrize("width", [40, 80, 120, 200])
def test_a_terminal_shows_whole_names_and_whole_numbers(long_study, width):
    study, found = long_study
    lines = lines_of(study, found, width)
    assert all(len(line) <= width for line in lines)
    assert not any("…" in line for line in lines)
    numbers = {f"{run.bits_per_byte:.4f}" for run in found}
    assert all(any(number in line for line in lines) for number in numbers)
    if width >= 80:
        assert all(any(line.startswith(name) for line in lines) for name in study.variants)


def test_columns_that_do_not_fit_are_named(long_study):
    narrow, wide = (lines_of(*long_study, width) for width in (80, 200))
    assert "table.md has to base, tokens/s, time, memory, file, zeros, flips too" in narrow[-1]
    assert not any("table.md" in line for line in wide) and any("flips" in line for line in wide)
