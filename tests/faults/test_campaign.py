"""A small campaign of faults; and the campaign itself notices what goes wrong."""

import errno
import os
import signal
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.commands import run
from tests.faults import campaign
from tests.faults.flips import SEALED, Sealed, flip_sealed
from tests.faults.injected import Injection
from tests.faults.mutated_files import Format, read_one
from tests.faults.mutators import mutate
from tests.faults.trial import Failure, Kind, Outcome
from tests.faults.workplace import Workplace, make_workplace

# A small campaign: these commands run once undisturbed, and each of these kinds with these seeds.
JOBS = ("train-ternary", "train-dense", "finetune-lora", "prepare-trained", "prepare-given", "tokenizer")
SMALL = {
    "kill train": 1,
    "kill prepare": 2,
    "kill tokenizer": 2,
    "disk full prepare": 1,
    "disk error tokenizer": 1,
    "read-only prepare": 1,
    "two at once prepare": 1,
    "signal finetune": 1,
    "output ends finetune": 1,
    "flip in a begun preparation": 2,
    "flip run directory of fine-tuning": 1,
}
LEFT_OUT = ("latent", "MLX directory", "dequantized", "transformers", "of MLX", "GGUF", "server", "bombs")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Workplace:
    """Small inputs of the commands, and their undisturbed results."""
    return make_workplace(tmp_path_factory.mktemp("faults"), JOBS)


def test_a_small_campaign_finds_nothing(workplace, monkeypatch):
    monkeypatch.setattr("tests.faults.mutated_files.PER_TRIAL", 25)
    tried = Counter[str]()
    for kind in campaign.all_kinds():
        reads = kind.name.startswith(("flip", "mutated")) and not any(part in kind.name for part in LEFT_OUT)
        begins = "begun" in kind.name or "run directory" in kind.name
        for seed in range(SMALL.get(kind.name, int(reads and not begins))):
            outcome = campaign.run_trial(kind, workplace.path, seed)
            found = [f"{kind.name}, trial {seed}: {failure.what}: {failure.text}" for failure in outcome.failures]
            assert not found, "\n".join(found)
            tried[kind.name] += outcome.tried
    assert tried["kill train"] >= 1 and tried["signal finetune"] >= 1
    assert sum(tried.values()) >= 700


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (TypeError("no"), "crashed"),
        (ValueError("a number is wrong"), "untidy"),
        (MemoryError(), "crashed"),
        (OSError(errno.EIO, "no"), "untidy"),
        (OverflowError("too large"), "untidy"),
    ],
)
def test_a_reader_that_fails_badly_is_noticed(tmp_path, error, what):
    def read(path: Path) -> None:
        raise error

    outcome = Outcome()
    read_one(Format("any", "any.txt", lambda _: [], read), tmp_path / "any.txt", outcome, "here")
    assert [failure.what for failure in outcome.failures] == [what]


def test_a_reader_that_hangs_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.faults.mutated_files.LONGEST_S", 0.1)

    def read(path: Path) -> None:
        begun = time.process_time()
        while time.process_time() < begun + 5:
            pass

    outcome = Outcome()
    read_one(Format("any", "any.txt", lambda _: [], read), tmp_path / "any.txt", outcome, "here")
    assert [failure.what for failure in outcome.failures] == ["hung"]


def test_a_reader_that_refuses_by_name_is_right(tmp_path):
    def read(path: Path) -> None:
        raise ValueError(f"{path}: damaged")

    outcome = Outcome()
    read_one(Format("any", "any.txt", lambda _: [], read), tmp_path / "any.txt", outcome, "here")
    assert (outcome.tried, outcome.failures) == (1, [])


def test_a_directory_that_is_opened_unverified_is_noticed(tmp_path):
    def copy(workplace: Workplace, folder: Path) -> Path:
        (folder / "sealed").mkdir()
        (folder / "sealed" / "file").write_bytes(b"content")
        return folder / "sealed"

    careless = Sealed("careless", copy, lambda workplace, folder, directory: [])
    outcome = flip_sealed(careless, Workplace(tmp_path), tmp_path, np.random.default_rng(0))
    assert {failure.what for failure in outcome.failures} == {"silent"}
    assert len(outcome.failures) == outcome.tried


def test_an_error_of_a_trial_itself_is_noticed(tmp_path):
    def trial(workplace, folder, rng):
        raise KeyError("gone")

    outcome = campaign.run_trial(Kind("broken", trial), tmp_path, 1)
    assert [failure.what for failure in outcome.failures] == ["crashed"]


def test_faults_are_made_where_they_are_asked_for(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "for name in 'abc':\n"
        "    with open(f'{sys.argv[1]}/{name}', 'w') as file:\n"
        "        file.write(name)\n"
    )
    for fault, code, written in (("kill", -signal.SIGKILL, "a"), ("read_only", 1, "a"), ("none", 0, "abc")):
        output = tmp_path / fault
        output.mkdir()
        injection = Injection(root=str(output), log=str(tmp_path / f"{fault}.txt"), fault=fault, at=2)
        assert run(*injection.words(script, output)).returncode == code
        assert "".join(path.read_text() for path in sorted(output.iterdir())) == written
        assert (tmp_path / f"{fault}.txt").read_text().startswith(f"1 open {output}/a\n")
    output = tmp_path / "full"
    output.mkdir()
    pipes = tuple(str(tmp_path / name) for name in ("stdout", "stderr"))
    for pipe in pipes:
        os.mkfifo(pipe)
    ends = [os.open(pipe, os.O_RDWR | os.O_NONBLOCK) for pipe in pipes]
    injection = Injection(root=str(output), log=str(tmp_path / "full.txt"), fault="full", at=2, outputs=pipes)
    assert run(*injection.words(script, output)).returncode == 1
    assert b"File too large" in os.read(ends[1], 10_000)
    assert [path.stat().st_size for path in sorted(output.iterdir())] == [1, 0]
    for end in ends:
        os.close(end)


def test_mutations_depend_on_the_seed_alone_and_change_something():
    content = b'{"text": "def f(x): 1", "rows": [1, 2.5, {"a": null}]}'
    found = [mutate(content, content, np.random.default_rng(seed)) for seed in range(200)]
    assert found == [mutate(content, content, np.random.default_rng(seed)) for seed in range(200)]
    assert sum(result != content for result in found) > 180
    assert len(set(found)) > 150


def test_the_table_counts_what_went_wrong(capsys, tmp_path):
    rows = {"kill train": campaign.Row(2, 5, [(7, Failure("lost", "all")), (8, Failure("lost", "more"))], 3.0)}
    campaign.show(rows)
    campaign.write_json(tmp_path / "result.json", rows, 1)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("kill train"))
    assert line.split() == ["kill", "train", "5", "2", "-", "-", "-", "-", "3"]
    assert '"trial": 7' in (tmp_path / "result.json").read_text()


def test_every_kind_has_a_name_of_its_own_and_can_be_repeated():
    names = [kind.name for kind in campaign.all_kinds()]
    assert len(names) == len(set(names)) and len(names) > 50
    assert (
        campaign.repeat_command(Kind("kill train", lambda *_: Outcome()), 7) == 'make faults ONLY="kill train" TRIAL=7'
    )
    assert len(SEALED) >= 10
