"""The front door of tokenizers: what a seal protects is compared wherever it is opened or copied."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxlm.common.artifact.artifact import save_artifact
from shared_tokenizer.load import find_tokenizer, load_tokenizer
from shared_tokenizer.manifest import MANIFEST, DamagedError, seal_directory, sealed_directory, verify_where_sealed
from tests.conftest import flipped_bit
from tests.golden.golden_models import TERNARY, golden_weights
from tests.shared_tokenizer.tokenizers.tokenizers_of_every_kind import LOSSLESS


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    with sealed_directory(tmp_path / "tokenizer") as directory:
        LOSSLESS["bpe"]().save(directory)
    return tmp_path / "tokenizer"


def test_any_flipped_bit_of_a_sealed_tokenizer_is_found(sealed: Path):
    rng = np.random.default_rng(0)
    files = [path for path in sealed.iterdir() if path.is_file()]
    assert len(files) > 3
    for _ in range(100):
        with flipped_bit(files, rng), pytest.raises(DamagedError):
            load_tokenizer(sealed)
    assert load_tokenizer(sealed).fingerprint == LOSSLESS["bpe"]().fingerprint


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json", "tokenizer_config.json"])
def test_a_file_that_was_removed_or_added_is_named(sealed: Path, name: str):
    (sealed / name).rename(sealed / "moved")
    for load in (load_tokenizer, find_tokenizer):
        with pytest.raises(DamagedError, match=rf"{name}: missing"):
            load(sealed)
    (sealed / "moved").rename(sealed / name)
    (sealed / "added_tokens.json").write_text("{}")
    with pytest.raises(DamagedError, match=r"added_tokens\.json: not listed"):
        load_tokenizer(sealed)


def test_a_sealed_directory_without_any_tokenizer_file_left_is_damaged(sealed: Path):
    for name in ("tokenizer.model", "tokenizer.json"):
        (sealed / name).unlink()
    with pytest.raises(DamagedError, match="missing, but listed"):
        find_tokenizer(sealed)


def test_a_file_of_a_sealed_directory_is_compared_too(sealed: Path):
    (sealed / "tokenizer_config.json").write_text("{}")
    with pytest.raises(DamagedError, match=r"tokenizer_config\.json: damaged"):
        load_tokenizer(sealed / "tokenizer.json")
    assert load_tokenizer(sealed / "tokenizer.json", verify=False).vocab_size


def test_the_seal_of_the_directory_around_protects_too(tmp_path: Path, sealed: Path):
    around = tmp_path / "shards"
    shutil.copytree(sealed, around / "tokenizer")
    (around / "tokenizer" / MANIFEST).unlink()
    (around / "train.npy").write_bytes(b"ids")
    seal_directory(around)
    (around / "train.npy").write_bytes(b"others")  # compared by who reads it
    load_tokenizer(around / "tokenizer")
    content = (around / "tokenizer" / "tokenizer.json").read_bytes()
    (around / "tokenizer" / "tokenizer.json").write_bytes(content.replace(b"a", b"b", 1))
    with pytest.raises(DamagedError, match=r"tokenizer\.json: damaged"):
        load_tokenizer(around / "tokenizer")
    shutil.copytree(sealed, around / "another", ignore=shutil.ignore_patterns(MANIFEST))
    load_tokenizer(around / "another")  # not a part of the seal


def test_without_a_seal_there_is_nothing_to_compare(tmp_path: Path):
    saved = LOSSLESS["bpe"]()
    saved.save(tmp_path)
    verify_where_sealed(tmp_path)
    assert load_tokenizer(tmp_path).fingerprint == saved.fingerprint


def test_a_damaged_tokenizer_is_not_copied_into_an_artifact(tmp_path: Path, sealed: Path):
    content = (sealed / "tokenizer.model").read_bytes()
    (sealed / "tokenizer.model").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    weights = golden_weights(TERNARY).__getitem__
    with pytest.raises(DamagedError, match=r"tokenizer\.model: damaged"):
        save_artifact(tmp_path / "artifact", TERNARY, "latent", weights, tokenizer_dir=sealed)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer"]


def test_the_tokenizer_of_a_run_or_of_token_shards_is_found_and_compared(tmp_path: Path, sealed: Path):
    shutil.copytree(sealed, tmp_path / "run" / "tokenizer")
    found = find_tokenizer(tmp_path / "run")
    assert found is not None and found.fingerprint == load_tokenizer(sealed).fingerprint
    (tmp_path / "run" / "tokenizer" / "tokenizer_config.json").write_text("{}")
    with pytest.raises(DamagedError, match=r"tokenizer_config\.json: damaged"):
        load_tokenizer(tmp_path / "run")
