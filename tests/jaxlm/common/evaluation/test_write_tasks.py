import json

import pytest

from jaxlm.common.evaluation.probes import make_probes, write_tasks


def test_each_probe_becomes_a_task_with_its_rows(tmp_path):
    probes = make_probes(6, library=lambda: ["".join(f"value_{n} = compute(value_{n})\n" for n in range(100, 160))])
    names = write_tasks(tmp_path / "tasks", probes)
    assert names == [probe.name for probe in probes]
    for probe in probes:
        task = json.loads((tmp_path / f"tasks/{probe.name}.yaml").read_text("utf-8"))
        assert task["dataset_kwargs"] == {"data_files": {"test": str(tmp_path / f"tasks/{probe.name}.jsonl")}}
        rows = (tmp_path / f"tasks/{probe.name}.jsonl").read_text("utf-8").splitlines()
        assert [json.loads(row)["context"] for row in rows] == [row.context for row in probe.rows]
    with pytest.raises(FileExistsError):
        write_tasks(tmp_path / "tasks", probes)
