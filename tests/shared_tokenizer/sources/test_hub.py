import pyarrow
import pyarrow.parquet
import pytest

from shared_tokenizer.data.shards import TokenShards
from shared_tokenizer.preparation.prepare import prepare
from shared_tokenizer.preparation.prepare_config import PrepareConfig
from shared_tokenizer.sources import hub
from tests.conftest import Silent

CARD = """---
configs:
- config_name: sample
  data_files:
  - split: train
    path: sample/*
---
"""


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """Return a folder in the layout of FineWeb-Edu."""
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    folder = tmp_path / "web"
    (folder / "sample").mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    for part in range(3):
        rows = [{"text": f"part {part} document {i}", "url": "x"} for i in range(20)]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "sample" / f"00{part}.parquet")
    return folder


@pytest.mark.parametrize("streaming", [True, False])
def test_a_hub_dataset_becomes_shards(dataset, tmp_path, tokenizer, monkeypatch, streaming):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "ROWS_PER_SLICE", 25)
    datasets.disable_progress_bars()
    tokenizer.save(tmp_path)
    reporter = Silent()
    config = PrepareConfig(
        hub=str(dataset),
        hub_config="sample",
        hub_streaming=streaming,
        tokenizer=str(tmp_path / "tokenizer.model"),
        output_dir=str(tmp_path / "out"),
        val_fraction=0.3,
        num_workers=1,
        max_samples=50,
    )
    manifest = prepare(config, reporter)
    assert reporter.lines[0] == f"{dataset}: reading text; columns not used: url"
    found = []
    for split in ("train", "val"):
        shards = TokenShards.open(tmp_path / "out", split)
        starts = [0, *shards.document_ends[:-1]]
        found += [
            tokenizer.decode(shards.read(a, b - a).ids) for a, b in zip(starts, shards.document_ends, strict=True)
        ]
    everything = [f"part {part} document {i}" for part in range(3) for i in range(20)]
    assert sorted(found) == sorted(everything[:50])
    again = Silent()
    assert prepare(config, again) == manifest and not again.has_progress


def test_a_dataset_that_is_not_there_is_refused(dataset):
    with pytest.raises(ValueError, match=r"hub: .*nowhere"):
        hub.HubSource(str(dataset / "nowhere"), None, "train", True).open()
    with pytest.raises(ValueError, match=r"hub: .*web other train"):
        hub.HubSource(str(dataset), "other", "train", True).open()
