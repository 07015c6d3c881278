"""The decisions of W&B's adapter, on a double of its package; tests/witness reads the files of the real one."""

import importlib
import sys
import types

import pytest

from jaxlm.common.trackers.tracker import TrackedRun


class Run:
    def __init__(self, settings, starting_step):
        self.settings, self.starting_step, self.logged, self.exit_code = settings, starting_step, [], None

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self, exit_code=0):
        self.exit_code = exit_code


@pytest.fixture
def wandb(monkeypatch, tmp_path):
    """The double: `steps` are those that the server has of a run, by id."""
    double = types.ModuleType("wandb")
    double.steps, double.runs = {}, []

    def init(**settings):
        double.runs.append(Run(settings, double.steps.get(settings["id"], -1) + 1))
        return double.runs[-1]

    double.init, double.Settings, double.Image = init, lambda **settings: settings, str
    monkeypatch.setitem(sys.modules, "wandb", double)
    monkeypatch.delitem(sys.modules, "jaxlm.common.trackers.wandb_tracker", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_API_KEY", "a key")
    yield double
    sys.modules.pop("jaxlm.common.trackers.wandb_tracker", None)


def opened(tmp_path, first_step):
    module = importlib.import_module("jaxlm.common.trackers.wandb_tracker")
    return module.open_tracker(TrackedRun("mine", "runs", {"seed": 1}, tmp_path / "wandb", first_step))


def test_a_resumed_run_goes_on_after_the_steps_of_the_server(wandb, tmp_path):
    opened(tmp_path, 0)
    wandb.steps[wandb.runs[0].settings["id"]] = 6
    tracker = opened(tmp_path, 10)  # the last lines were lost on the way: they are sent now
    assert tracker.sent == 6 and [run.settings["id"] for run in wandb.runs] == [wandb.runs[0].settings["id"]] * 2
    assert [run.settings["resume"] for run in wandb.runs] == ["allow", "allow"]
    tracker.text(6, "result/manifest", "late")
    tracker.close(failed=True)
    assert wandb.runs[1].logged == [(7, {"result/manifest": "late"})] and wandb.runs[1].exit_code == 1


def test_where_a_kill_took_steps_back_a_new_run_holds_everything(wandb, tmp_path):
    opened(tmp_path, 0)
    first = wandb.runs[0].settings["id"]
    wandb.steps[first] = 250
    tracker = opened(tmp_path, 200)
    assert tracker.sent == 0 and wandb.runs[-1].settings["id"] != first and wandb.runs[-2].exit_code == 0
    assert opened(tmp_path, 200)._run.settings["id"] == wandb.runs[-2].settings["id"]


def test_without_a_key_it_is_offline_and_written_anew(wandb, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY")
    opened(tmp_path, 0)
    assert [(run.settings["mode"], run.settings["resume"]) for run in wandb.runs] == [("offline", None)]
    folder = tmp_path / "wandb" / "offline-run-1"
    folder.mkdir()
    opened(tmp_path, 5)
    assert not folder.exists() and wandb.runs[1].settings["id"] == wandb.runs[0].settings["id"]
    folder.mkdir()
    (folder / "run.wandb.synced").touch()  # its steps are on the server
    opened(tmp_path, 5)
    assert folder.exists() and wandb.runs[2].settings["id"] != wandb.runs[0].settings["id"]


@pytest.mark.parametrize(("mode", "found"), [("online", "online"), ("offline", "offline"), ("dryrun", "offline")])
def test_its_own_variable_names_the_mode(wandb, tmp_path, monkeypatch, mode, found):
    monkeypatch.setenv("WANDB_MODE", mode)
    opened(tmp_path, 0)
    assert wandb.runs[0].settings["mode"] == found


def test_a_key_in_netrc_is_a_key(wandb, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY")
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password key\n")
    opened(tmp_path, 0)
    assert wandb.runs[0].settings["mode"] == "online"
