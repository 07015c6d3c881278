"""Stored teachers: continued after a kill, read as what was computed, refused with other examples or settings."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from jaxlm.common.objectives import stored_teacher
from jaxlm.common.objectives.distillation import Distillation
from jaxlm.common.objectives.stored_teacher import is_stored_teacher, stored_of, taught_sets
from jaxlm.common.objectives.teacher_storage import store_teacher
from shared_tokenizer.data.data_sets import DataSets
from shared_tokenizer.manifest import DamagedError
from tests.conftest import flipped_bit, prepare_texts

SEQ_LEN, K, VOCAB = 8, 4, 300


@pytest.fixture(scope="module")
def place(tmp_path_factory, tokenizer):
    path = tmp_path_factory.mktemp("stored")
    for name in ("data", "other"):
        texts = [f"def f{number}(x):\n    return x + {number}{name}\n" for number in range(12)]
        prepare_texts(path / name, texts, tokenizer)
    return path


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
    """Files of three examples."""
    monkeypatch.setattr(stored_teacher, "_LARGEST_FILE", 3 * SEQ_LEN * (6 * K + 4))


def open_sets(place, *names, seq_len=SEQ_LEN):
    return DataSets.open([place / name for name in names], seq_len)


def described(sets, **changes):
    settings = {"teacher": "a" * 64, "top_k": K, "temperature": 2.0, "vocab_size": VOCAB, "dtype": "float32"}
    return stored_of(sets, SEQ_LEN, document_mask=True, **settings | changes)


def distribution(inputs):
    """Log-probabilities `[..., VOCAB]` that depend on the token alone."""
    logits = np.sin((1 + inputs[..., None]) * np.arange(VOCAB) * 0.37).astype(np.float32) * 3
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def likeliest(batch, k=K):
    log_probs = distribution(batch["inputs"])
    order = np.argsort(-log_probs, axis=-1)
    best, others = (np.take_along_axis(log_probs, part, axis=-1) for part in (order[..., :k], order[..., k:]))
    return order[..., :k], best, np.log(np.exp(others / 2.0).sum(axis=-1))


def store(directory, sets, stored=None, likeliest=likeliest):
    lines = []
    store_teacher(directory, sets, stored or described(sets), likeliest, 2, lines.append)
    return lines


def read(directory, sets, settings=None, *, seq_len=SEQ_LEN, verify=True):
    settings = settings or Distillation()
    return taught_sets(directory, sets, seq_len, settings, document_mask=True, verify=verify)


@pytest.fixture(scope="module")
def finished(place):
    """The directory of a stored teacher of two sets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored_teacher, "_LARGEST_FILE", 3 * SEQ_LEN * (6 * K + 4))
        assert store(place / "finished", open_sets(place, "data", "other")) == []
    return place / "finished"


def test_a_killed_command_goes_on_and_the_result_is_the_same(place, finished, tmp_path):
    sets, asked = open_sets(place, "data", "other"), []

    def killed(batch):
        if len(asked) == 5:
            raise KeyboardInterrupt
        asked.append(batch)
        return likeliest(batch)

    with pytest.raises(KeyboardInterrupt):
        store(tmp_path / "parts", sets, likeliest=killed)
    assert not (tmp_path / "parts").exists()
    with pytest.raises(ValueError, match=r"parts: its storing is not finished; give the command"):
        is_stored_teacher(tmp_path / "parts")
    with pytest.raises(ValueError, match=r"parts.partial: was stored with other settings \(top_k\); remove it"):
        store(tmp_path / "parts", sets, described(sets, top_k=3))
    (tmp_path / "parts.partial" / ".set-000-000000003.npy.begun").write_bytes(b"torn")
    (line,) = store(tmp_path / "parts", sets)
    assert "2 of" in line and "files are done already" in line and not (tmp_path / "parts.partial").exists()
    seals = [(directory / "MANIFEST.sha256").read_bytes() for directory in (tmp_path / "parts", finished)]
    assert seals[0] == seals[1] and len(seals[0].splitlines()) > 5
    assert store(tmp_path / "parts", sets) == [f"{tmp_path / 'parts'}: is stored already"]


@pytest.mark.parametrize("k", [0, 2])
def test_examples_have_the_likeliest_tokens_and_the_rest(place, finished, k):
    sets = open_sets(place, "data", "other")
    taught = read(finished, sets, Distillation(top_k=k))
    assert list(map(len, taught.train)) == list(map(len, sets.train)) and taught.val == sets.val
    for plain, found in zip(sets.train, taught.train, strict=True):
        for index in (0, 3, len(plain) - 1):
            example: Any = found[index]
            ids, log_probs, rest = likeliest(plain[index], k or K)
            np.testing.assert_array_equal(example["inputs"], plain[index]["inputs"])
            np.testing.assert_array_equal(example["teacher_ids"], ids)
            np.testing.assert_array_equal(example["teacher_log_probs"], log_probs)
            np.testing.assert_allclose(example["teacher_rest"], rest, rtol=1e-6)


def test_other_shards_settings_and_damage_are_refused(place, finished):
    sets = open_sets(place, "data", "other")
    with pytest.raises(ValueError, match=r"was stored with data \w{12}\.\.\., found \w{12}\.\.\. in this run"):
        read(finished, open_sets(place, "other", "data"))
    with pytest.raises(ValueError, match="was stored with seq_len 8, found 12 in this run"):
        read(finished, open_sets(place, "data", "other", seq_len=12), seq_len=12)
    other = dataclasses.replace(sets, tokenizer=type("Other", (), {"fingerprint": "b" * 64})())
    with pytest.raises(ValueError, match=r"was stored with tokenizer \w{12}\.\.\., found bbbbbbbbbbbb\.\.\. in"):
        read(finished, other)
    for settings, message in [
        ({"top_k": 5}, "teacher_top_k: found 5, expected at most 4"),
        ({"temperature": 1.0}, "teacher_temperature: found 1, expected 2"),
        ({"relations_weight": 1.0}, "teacher_relations_weight: found 1 with .*name the teacher itself"),
    ]:
        with pytest.raises(ValueError, match=message):
            read(finished, sets, Distillation(**settings))
    files, rng = sorted(finished.iterdir()), np.random.default_rng(0)
    for _ in range(8):
        with flipped_bit(files, rng), pytest.raises(DamagedError, match=str(finished)):
            read(finished, sets)
    whole = (finished / "set-000-000000000.npy").read_bytes()
    (finished / "set-000-000000000.npy").write_bytes(whole[:-9])
    with pytest.raises(DamagedError, match=r"set-000-000000000\.npy: damaged"):
        read(finished, sets, verify=False)
    (finished / "set-000-000000000.npy").write_bytes(whole)
    (finished / "teacher.json").rename(finished / "kept.json")
    with pytest.raises(ValueError, match="already exists and is not empty"):
        store(finished, sets)
    (finished / "kept.json").rename(finished / "teacher.json")


def test_a_teacher_that_overflows_is_refused(place, tmp_path):
    sets = open_sets(place, "data")

    def overflowing(batch):
        ids, log_probs, rest = likeliest(batch)
        return ids, log_probs, rest * np.inf

    with pytest.raises(ValueError, match="log-probabilities that are not finite at training example 0"):
        store(tmp_path / "overflowing", sets, likeliest=overflowing)
