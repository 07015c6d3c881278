"""The files next to a tokenizer.model or a tokenizer.json, read as transformers does (tests/witness/test_directories.py
compares with it)."""

import json
from pathlib import Path
from typing import Any

import pytest

from shared_tokenizer.load import load_tokenizer
from tests.shared_tokenizer.tokenizers.tokenizers_of_every_kind import (
    LOSSLESS,
    byte_level_library_tokenizer,
    imported_model,
)

LLAMA = {"tokenizer_class": "LlamaTokenizer"}


def directory_of(path: Path, content: bytes, **files: Any) -> Path:
    path.mkdir(exist_ok=True)
    (path / ("tokenizer.json" if content.startswith(b"{") else "tokenizer.model")).write_bytes(content)
    for name, value in files.items():
        (path / f"{name}.json").write_text(json.dumps(value))
    return path


def test_added_tokens_have_ids_and_roles(tmp_path: Path):
    added = {"<x>": 420, "<|im_end|>": 421}
    for i, files in enumerate(
        [
            {"added_tokens": added, "special_tokens_map": {"eos_token": "<|im_end|>"}},
            {"added_tokens": added, "tokenizer_config": {"eos_token": "<|im_end|>"}},
            {
                "tokenizer_config": {
                    "eos_token": "<|im_end|>",
                    "added_tokens_decoder": {
                        "420": {"content": "<x>", "special": False},
                        "421": {"content": "<|im_end|>", "special": True},
                    },
                }
            },
        ]
    ):
        tokenizer = load_tokenizer(directory_of(tmp_path / str(i), imported_model(), **files))
        assert (tokenizer.vocab_size, tokenizer.eos_id, tokenizer.special_tokens["<|im_end|>"]) == (422, 421, 421)
        assert 420 in tokenizer.encode("a <x> b") and 421 not in tokenizer.encode("a <|im_end|> b")
        assert tokenizer.decode(tokenizer.encode("a <x> b")) == "a <x> b"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"added_tokens": {"<x>": 430}}, r"added_tokens\.json: '<x>': found id 430, expected 420, the next one"),
        ({"added_tokens": {"<x>": 7}}, r"'<x>': found id 7, expected 420, .* \(there it is '<0x04>'\)"),
        ({"added_tokens": {"<s>": 2}}, r"'<s>': found id 2, but 1 in tokenizer\.model"),
        ({"added_tokens": {"<x>": "420"}}, r"'<x>': found id '420', expected a whole number"),
        ({"added_tokens": []}, r"added_tokens\.json: found a JSON list, expected an object"),
        ({"tokenizer_config": {"eos_token": "<end>"}}, "found eos_token '<end>', which the vocabulary does not have"),
        ({"tokenizer_config": {"added_tokens_decoder": {"a": 5}}}, "added_tokens_decoder: found '5' for 'a'"),
        ({"tokenizer_config": {"added_tokens_decoder": 5}}, "added_tokens_decoder: found a JSON int"),
    ],
    ids=str,
)
def test_added_tokens_that_do_not_fit_are_refused(tmp_path: Path, files: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        load_tokenizer(directory_of(tmp_path, imported_model(), **files))


def test_the_space_before_a_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    plain = load_tokenizer(directory_of(tmp_path / "plain", imported_model()))
    assert plain.encode("ab") != plain.encode(" ab") and capsys.readouterr().err == ""
    llama = load_tokenizer(directory_of(tmp_path / "llama", imported_model(), tokenizer_config=LLAMA))
    assert llama.encode("ab") == llama.encode(" ab") == plain.encode("ab")
    without = LLAMA | {"add_prefix_space": False}
    none = load_tokenizer(directory_of(tmp_path / "none", imported_model(), tokenizer_config=without))
    assert none.encode(" ab") == plain.encode("ab") != none.encode("ab")
    assert "add_prefix_space: read False of tokenizer_config.json (LlamaTokenizer)" in capsys.readouterr().err
    other = {"tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": False}
    same = load_tokenizer(directory_of(tmp_path / "other", imported_model(), tokenizer_config=other))
    assert same.encode("ab") == plain.encode("ab") and same.fingerprint == plain.fingerprint
    assert "add_prefix_space: False in tokenizer_config.json has no effect" in capsys.readouterr().err


def test_the_space_before_a_text_of_a_tokenizer_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    content = byte_level_library_tokenizer().to_str().encode()
    config = {"tokenizer_class": "GPT2TokenizerFast", "add_prefix_space": True, "eos_token": "<|im_end|>"}
    with_space = load_tokenizer(directory_of(tmp_path / "a", content, tokenizer_config=config))
    assert with_space.encode("ab") == with_space.encode(" ab")
    assert "add_prefix_space: read True" in capsys.readouterr().err
    plain = load_tokenizer(directory_of(tmp_path / "b", content, tokenizer_config={"eos_token": "<|im_end|>"}))
    assert plain.encode("ab") != plain.encode(" ab") and capsys.readouterr().err == ""


def test_of_a_model_and_a_definition_the_one_that_transformers_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    ours = LOSSLESS["bpe"]()
    ours.save(tmp_path)
    assert load_tokenizer(tmp_path).fingerprint == ours.fingerprint and capsys.readouterr().err == ""
    other = json.loads((tmp_path / "tokenizer.json").read_text())
    vocabulary = other["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(other))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("b a") != ours.encode("b a") and tokenizer.decode(tokenizer.encode("b a")) == "b a"
    assert "read tokenizer.json, as transformers does; tokenizer.model differs: token" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["bpe", "byte_level"])
def test_every_id_that_a_file_of_the_model_names_ends_a_text(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
):
    tokenizer = LOSSLESS[kind]()
    tokenizer.save(tmp_path)
    eos = tokenizer.eos_id
    assert load_tokenizer(tmp_path).stop_ids == (eos,)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": [7, eos]}))
    assert load_tokenizer(tmp_path).stop_ids == (eos, 7) and capsys.readouterr().err == ""
    (tmp_path / "saved").mkdir()
    load_tokenizer(tmp_path).save(tmp_path / "saved")  # without config.json
    assert load_tokenizer(tmp_path / "saved").stop_ids == (eos, 7)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [8, 9]}))
    assert load_tokenizer(tmp_path).stop_ids == (eos, 8, 9)
    expected = f"a text ends at {eos}, the tokenizer's eos_token, and at 8, 9, eos_token_id of generation_config.json"
    assert expected in capsys.readouterr().err


def test_a_piece_that_is_not_utf_8_is_named(tmp_path: Path):
    content = imported_model()
    place = content.index(b"<0x41>")
    directory_of(tmp_path, content[:place] + b"\xff" + content[place + 1 :])
    with pytest.raises(ValueError, match=r"tokenizer\.model: tokenizer: piece \d+ is .*, which is not UTF-8"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("steps", "is_fine"),
    [([("a", "aa")] * 24, False), ([("a", "a" * 100)], False), ([(" ", "\u2581"), ("``", '"'), ("a", "aa")], True)],
)
def test_normalizers_may_not_make_a_text_much_longer(tmp_path: Path, steps: list[tuple[str, str]], is_fine: bool):
    definition = json.loads(byte_level_library_tokenizer().to_str())
    replace = [{"type": "Replace", "pattern": {"String": old}, "content": new} for old, new in steps]
    definition["normalizer"] = {"type": "Sequence", "normalizers": replace}
    directory_of(tmp_path, json.dumps(definition).encode(), tokenizer_config={"eos_token": "<|im_end|>"})
    if is_fine:
        load_tokenizer(tmp_path)
        return
    with pytest.raises(ValueError, match=r"normalizer: found steps that make a text .* times as long"):
        load_tokenizer(tmp_path)
