import json

import pytest

from jaxlm.common.run.identity import IDENTITY, RunIdentity, differences, read_identity, write_identity
from shared_tokenizer.manifest import DamagedError

SETTINGS = {"seed": 0, "optimizer": {"learning_rate": 0.003}, "data_dir": ["a"], "resume": False}


def test_an_identity_comes_back_and_knows_the_last_two_settings_files(tmp_path):
    identity = RunIdentity(SETTINGS, {"data": "d"})
    for text in (b"first", b"second", b"third"):
        identity = identity.wrote(text)
    write_identity(tmp_path, identity)
    found = read_identity(tmp_path)
    assert found == identity
    assert [found.knows(text) for text in (b"first", b"second", b"third")] == [False, True, True]
    assert read_identity(tmp_path / "nowhere") is None


def test_every_flipped_bit_is_found(tmp_path):
    write_identity(tmp_path, RunIdentity(SETTINGS, {"data": "d" * 64}).wrote(b"text"))
    whole = (tmp_path / IDENTITY).read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        (tmp_path / IDENTITY).write_bytes(damaged)
        with pytest.raises(DamagedError, match=r"identity\.json: damaged, it is not as the trainer wrote it"):
            read_identity(tmp_path)
    for content in (b"", b"{}", b"5", whole[:-1], json.dumps(json.loads(whole) | {"sha256": "0" * 64}).encode()):
        (tmp_path / IDENTITY).write_bytes(content)
        with pytest.raises(DamagedError):
            read_identity(tmp_path)


def test_other_data_are_named(tmp_path):
    identity = RunIdentity(SETTINGS, {"data": "d" * 64, "tokenizer": "t" * 64})
    identity.check_fingerprints(tmp_path, {"data": "d" * 64, "init_from": "new"})
    with pytest.raises(ValueError, match=r"was trained with tokenizer tttt.*, found xxxx.*same tokenizer"):
        identity.check_fingerprints(tmp_path, {"data": "d" * 64, "tokenizer": "x" * 64})


def test_differences_have_dotted_names():
    now = {"seed": False, "optimizer": {"learning_rate": 0.007}, "data_dir": ["a"]}
    assert list(differences(SETTINGS, now)) == [
        ("optimizer.learning_rate", 0.003, 0.007),
        ("resume", False, None),
        ("seed", 0, False),
    ]
