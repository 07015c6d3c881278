import json
import sys

import pytest

from jaxlm.common.evaluation.task_run import TaskSettings
from tests.jaxlm.common.evaluation.fake_models import fake_model


def test_probes_are_run_reported_and_written(tokenizer, tmp_path):
    settings = TaskSettings(tasks=["probes"], limit=6, task_results=str(tmp_path / "results"))
    run = settings.load_tasks()
    model, _ = fake_model(tokenizer, lambda before, token: 0.0, max_seq_len=5000)
    run.run(model, log=str)
    written = json.loads((tmp_path / "results/results_fake.json").read_text("utf-8"))
    assert written["probes"]["probe_agreement"]["accuracy"] == 0.5 and written["probes"]["probe_agreement"]["rows"] == 6
    run.run(model, log=str)
    assert (tmp_path / "results/results_fake_2.json").read_text("utf-8") == json.dumps(written, indent=1) + "\n"
    assert run.add_probes({"fake": {"a": 1}}) == {"fake": {"a": 1, "probes": written["probes"]}}
    (table,) = run.tables()
    assert table.row_count == 13


def test_without_the_harness_its_tasks_are_refused_with_the_way_out(monkeypatch):
    monkeypatch.delitem(sys.modules, "jaxlm.common.evaluation.harness", raising=False)
    monkeypatch.setitem(sys.modules, "lm_eval.api.instance", None)
    with pytest.raises(ValueError, match=r"tasks: found arc_easy, which need lm-evaluation-harness .*'.\[eval\]'"):
        TaskSettings(tasks=["probes,arc_easy"]).load_tasks()


def test_a_single_probe_names_the_suite():
    with pytest.raises(ValueError, match="tasks: found probe_recall, expected probes, which runs all of them"):
        TaskSettings(tasks=["probe_recall"]).load_tasks()
