import pytest

from jaxlm.common.command_line import parse
from jaxlm.common.run.run_config import RunConfig
from jaxlm.common.tracker_names import check_trackers


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    monkeypatch.setattr("jaxlm.common.tracker_names.is_installed", lambda name: name != "trackio")


@pytest.mark.parametrize("words", [["tensorboard,wandb"], ["tensorboard", "wandb"], ["tensorboard", "wandb,wandb", ""]])
def test_a_list_is_given_in_words_or_with_commas(words):
    assert check_trackers(words) == ["tensorboard", "wandb"]
    assert parse(RunConfig, ["--output_dir", "run", "--report_to", *words]).report_to == ["tensorboard", "wandb"]


def test_what_is_unknown_or_not_installed_is_named():
    with pytest.raises(ValueError, match=r"report_to: found 'tensorbord', .*; did you mean tensorboard\?"):
        check_trackers(["tensorbord"])
    with pytest.raises(ValueError, match=r"to: trackio is not installed; pip install 'jaxlm\[trackio\]'"):
        check_trackers(["trackio"], "to")
    assert RunConfig(output_dir="run").report_to == []
