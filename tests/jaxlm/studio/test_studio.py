import dataclasses

import pytest

from jaxlm.common.command_line import parse
from jaxlm.studio.processes.recipes import FINETUNE
from jaxlm.studio.reading.folders import Folders
from jaxlm.studio.studio import Draft, Studio
from mlxlm.finetune.finetune_config import FinetuneConfig
from tests.jaxlm.studio.reading.test_runs import make_run


@pytest.fixture
def studio(tmp_path):
    return Studio(Folders(tmp_path), tmp_path)


def test_the_first_draft_trains_with_one_click(studio):
    output, commands = studio.commands(studio.draft())
    assert output == studio.folders.root / "runs" / "first"
    assert [command.name for command in commands] == ["prepare", "train"]
    words = commands[0].words
    assert words[:2] == ("--input", "stdlib") and "--vocab_size" in words
    assert commands[1].argv[1:4] == ["-m", "jaxlm", "train"]


def test_a_draft_outlives_the_studio(studio, tmp_path):
    draft = studio.draft()
    draft.train["seed"] = "7"
    studio.keep(draft)
    assert Studio(Folders(tmp_path), tmp_path).draft() == draft
    (tmp_path / ".studio" / "draft.json").write_text("[")
    assert studio.draft() == Draft()
    studio.dark = True
    assert Studio(Folders(tmp_path), tmp_path).dark is True


def tuning(studio, **change):
    draft = studio.draft(FINETUNE)
    draft.train |= {"model": "models/mine", "num_train_steps": "2", "keys": '["q_proj"]'}
    return dataclasses.replace(draft, **{"input": ["chats.jsonl", "texts"]} | change)


def test_a_fine_tuning_is_one_command_with_its_own_defaults(studio):
    output, (command,) = studio.commands(tuning(studio))
    assert output == studio.folders.root / "runs" / "tuned"
    assert command.argv[1:4] == ["-m", "mlxlm", "finetune"]
    root = studio.folders.root
    assert parse(FinetuneConfig, list(command.words)) == FinetuneConfig(
        model=str(root / "models" / "mine"),
        data=[str(root / "chats.jsonl"), str(root / "texts")],
        num_train_steps=2,
        keys=["q_proj"],
        output_dir=str(output),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": []}, "^data: nothing is chosen"),
        ({"input": ["/etc"]}, "outside of the folders"),
        ({"train": {"model": "/etc"}}, "^model: .*outside"),
        ({"name": "a/b"}, "^name: found"),
    ],
)
def test_a_fine_tuning_reads_chosen_files_below_the_root(studio, change, message):
    with pytest.raises(ValueError, match=message):
        studio.commands(tuning(studio, **change))


def test_each_form_has_a_draft_of_its_own(studio, tmp_path):
    draft = tuning(studio)
    studio.keep(draft)
    assert Studio(Folders(tmp_path), tmp_path).draft(FINETUNE) == draft
    assert studio.draft() == Draft()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "../out"}, "^name: found"),
        ({"input": ["/etc"]}, "outside of the folders"),
        ({"tokenizer": "/etc"}, "outside of the folders"),
        ({"train": {"init_from": "/etc"}}, "^init_from: .*outside"),
        ({"train": {"teacher": "../x"}}, "^teacher: .*outside"),
        ({"vocab_size": "many"}, "^vocab_size: found 'many'"),
        ({"data_dir": ["/etc"]}, "outside of the folders"),
    ],
)
def test_a_draft_cannot_leave_the_root(studio, change, message):
    with pytest.raises(ValueError, match=message):
        studio.commands(Draft(**change))


def test_other_choices_have_other_data(studio):
    def data(**change):
        return studio.commands(Draft(**change))[1][-1].words

    words = data()
    place = words[words.index("--data_dir") + 1]
    again = data(train={"seed": "1"})
    other = data(vocab_size="2048")
    assert again[again.index("--data_dir") + 1] == place != other[other.index("--data_dir") + 1]


def test_curves_of_few_runs_are_kept(studio, tmp_path):
    for number in range(30):
        studio.tail(make_run(tmp_path, f"runs/r{number}"))
    assert len(studio._tails) == 24


def test_a_run_that_is_not_at_work_cannot_be_stopped(studio, tmp_path):
    with pytest.raises(ValueError, match="no process is at work"):
        studio.stop(make_run(tmp_path, "runs/first"))
