import json

import pyarrow
import pyarrow.parquet
import pytest

from shared_tokenizer.readers import rows as rows_module
from shared_tokenizer.sources import slices
from shared_tokenizer.sources.files import find_files
from shared_tokenizer.sources.slices import plan_files


@pytest.fixture
def small_slices(monkeypatch):
    monkeypatch.setattr(slices, "SMALLEST_SLICE_BYTES", 300)
    monkeypatch.setattr(slices, "MAX_TEXT_BYTES", 200)
    monkeypatch.setattr(rows_module, "MAX_TEXT_BYTES", 200)


def write_inputs(folder):
    rows = [{"text": f"row {i} " * (i % 5 + 1)} for i in range(100)]
    (folder / "a.jsonl").write_text("\ufeff" + "".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (folder / "b.txt").write_text("\ufeff" + "".join(f"line {i}\n" for i in range(200)), "utf-8")
    for i in range(20):
        (folder / f"c{i:02d}.py").write_text(f"x = {i}\n")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "d.parquet", row_group_size=7)
    (folder / "e.csv").write_text("text\n" + "".join(f"cell {i}\n" for i in range(40)))


def read(plan):
    return [document for part in plan.slices for _, document in part.read()]


def test_the_slices_hold_every_document_once_in_order(tmp_path, small_slices, monkeypatch):
    write_inputs(tmp_path)
    files = find_files([str(tmp_path)]).files
    plan = plan_files(files)
    assert len(plan.slices) > 20
    monkeypatch.setattr(slices, "SMALLEST_SLICE_BYTES", 10**6)
    whole = plan_files(files)
    assert len(whole.slices) == 1
    assert read(plan) == read(whole)
    texts = "".join(document.text for document in read(plan) if "/b.txt" in document.name)
    assert texts == "".join(f"line {i}\n" for i in range(200))


def test_the_fingerprint_follows_the_content(tmp_path):
    write_inputs(tmp_path)
    before = plan_files(find_files([str(tmp_path)]).files).fingerprint
    assert plan_files(find_files([str(tmp_path)]).files).fingerprint == before
    (tmp_path / "c03.py").write_text("x = 4\n")
    after = plan_files(find_files([str(tmp_path)]).files).fingerprint
    (tmp_path / "c03.py").rename(tmp_path / "z.py")
    assert len({before, after, plan_files(find_files([str(tmp_path)]).files).fingerprint}) == 3
