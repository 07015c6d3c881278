"""A model that went the whole way round is the same model in JAX, in MLX, in stock mlx-lm, and in every form."""

import itertools
import json
import re
import shutil

import mlx.core as mx
import mlx_lm.utils
import numpy as np
import pytest

import jaxlm.evaluate
import jaxlm.load
import mlxlm.evaluate
import mlxlm.load
from jaxlm.common.run.metrics_log import read_metrics
from jaxlm.conversion.convert import Conversion, convert
from mlxlm.model.model_file import model_file_source
from shared_tokenizer.manifest import MANIFEST
from tests.integration.way_round import SEQ_LEN, TEXT, call, evaluate_elsewhere, go_round


@pytest.fixture(scope="module")
def last(tmp_path_factory, tokenizer):
    """The run directory at the end, and the MLX directory of its model beside it."""
    path = go_round(tmp_path_factory.mktemp("round"), tokenizer)
    convert(path, path.with_name("mlx"), Conversion(form="mlx", model_file=model_file_source()))
    return path


def test_each_training_goes_on_where_the_one_before_ended(last):
    runs = [read_metrics(last.with_name(name) / "metrics.jsonl") for name in ("first", "tuned", "last")]
    for before, after in itertools.pairwise(runs):
        assert after[0]["train/loss"] < (before[0]["train/loss"] + before[-1]["train/loss"]) / 2
        assert after[-1]["val/bits_per_byte"] < before[-1]["val/bits_per_byte"]


def test_bits_per_byte_are_the_same_in_every_program(last, tokenizer):
    expected = jaxlm.evaluate.evaluate_text(*jaxlm.load.load_model(last), [TEXT], SEQ_LEN, 8)
    ours = mlxlm.evaluate.evaluate_text(*mlxlm.load.load_model(last / "artifact"), [TEXT], SEQ_LEN, 8)
    stock, _ = mlx_lm.utils.load_model(last.with_name("mlx"), trust_remote_code=True)
    theirs = evaluate_elsewhere(lambda ids: np.array(stock(mx.array(ids)).astype(mx.float32)), tokenizer)
    for found in (ours, theirs):
        assert (found.tokens, found.text_bytes) == (expected.tokens, expected.text_bytes)
        assert found.bits_per_byte == pytest.approx(expected.bits_per_byte, abs=1e-4)


def test_one_table_shows_every_form_of_the_model(last, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    convert(last, tmp_path / "model.gguf", Conversion(form="gguf"))
    # What transformers itself would have written: no word of this project in it.
    hub = shutil.copytree(last / "artifact", tmp_path / "hub")
    (hub / MANIFEST).unlink()
    content = json.loads((hub / "config.json").read_text())
    del content["jaxlm"]
    (hub / "config.json").write_text(json.dumps(content))
    forms = [last, last / "artifact", hub, last.with_name("mlx"), tmp_path / "model.gguf"]
    table = call("scripts/evaluate.py", {"input": tmp_path / "text.txt", "seq_len": SEQ_LEN}, "--model", *forms)
    found = [float(number) for number in re.findall(r"(\d+\.\d{4}) │ +[\d.]+% │ +[\d.]+% │$", table, re.MULTILINE)]
    assert len(found) == len(forms) and max(found) - min(found) < 2e-4, table
