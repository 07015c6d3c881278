"""Directories whose files state things differently, read here as transformers reads them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import jaxlm.generate
import mlxlm.generate
import mlxlm.load
from jaxlm.common.artifact.artifact import save_artifact
from jaxlm.common.sampling import Sampling
from jaxlm.load import load_model
from shared_tokenizer.load import load_tokenizer
from tests.golden.golden_models import DENSE, TERNARY, golden_token_ids, golden_weights, parity_error
from tests.shared_tokenizer.tokenizers.tokenizers_of_every_kind import (
    byte_level_library_tokenizer,
    imported_model,
    marked_spaces,
)

TEXTS = (
    "ab ab",
    " ab",
    "  ab",
    "a<x>b <y>c",
    "add(first) \n\n return 12",
    "caf\u00e9 \u4f60\u597d \U0001f600",
    "<s> </s>",
)
LLAMA = {"tokenizer_class": "LlamaTokenizer"}
ADDED = {"<|im_start|>": 420, "<|im_end|>": 421}
DECODER = {str(i): {"content": token, "special": True} for token, i in ADDED.items()}


def write(directory: Path, **files: Any) -> Path:
    for name, content in files.items():
        (directory / f"{name}.json").write_text(json.dumps(content))
    (directory / "config.json").write_text('{"model_type": "llama"}')
    return directory


def assert_same(directory: Path, texts: tuple[str, ...] = TEXTS) -> None:
    ours, theirs = load_tokenizer(directory), transformers.AutoTokenizer.from_pretrained(directory)
    assert ours.eos_id == theirs.eos_token_id and ours.vocab_size == len(theirs)
    assert dict(ours.special_tokens).items() >= {theirs.eos_token: theirs.eos_token_id}.items()
    for text in texts:
        # Special tokens that are spelled out stay text here.
        expected = theirs.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert ours.encode(text) == expected, text
        assert ours.encode_batch([text]) == [expected], text
    if (directory / "tokenizer_config.json").is_file() and "add_bos_token" in (
        json.loads((directory / "tokenizer_config.json").read_text())
    ):
        assert ours.encode_prompt("ab") == theirs("ab").input_ids


def assert_same_when_saved(directory: Path, saved: Path, texts: tuple[str, ...] = TEXTS) -> None:
    assert_same(directory, texts)
    saved.mkdir()
    tokenizer = load_tokenizer(directory)
    tokenizer.save(saved)
    assert load_tokenizer(saved).fingerprint == tokenizer.fingerprint
    assert load_tokenizer(saved).encode_batch(texts) == tokenizer.encode_batch(texts)
    assert load_tokenizer(saved).stop_ids == tokenizer.stop_ids


@pytest.mark.parametrize("add_dummy_prefix", [True, False])
@pytest.mark.parametrize(
    "files",
    [
        {},
        {"tokenizer_config": LLAMA},
        {"tokenizer_config": LLAMA | {"add_prefix_space": False}},
        {"tokenizer_config": LLAMA | {"add_prefix_space": True, "legacy": False}},
        {"tokenizer_config": LLAMA | {"add_bos_token": True}},
        {"tokenizer_config": LLAMA | {"add_bos_token": False}},
        {"tokenizer_config": LLAMA | {"eos_token": "<|im_end|>"}, "added_tokens": ADDED},
        {"tokenizer_config": LLAMA, "added_tokens": ADDED, "special_tokens_map": {"eos_token": "<|im_end|>"}},
        {"tokenizer_config": LLAMA | {"eos_token": "<|im_end|>", "added_tokens_decoder": DECODER}},
        {
            "tokenizer_config": LLAMA | {"eos_token": "<|im_end|>", "added_tokens_decoder": DECODER},
            "special_tokens_map": {"eos_token": "</s>"},
        },
        {"tokenizer_config": LLAMA | {"sp_model_kwargs": {"enable_sampling": True, "nbest_size": -1, "alpha": 0.1}}},
        {"tokenizer_config": LLAMA | {"clean_up_tokenization_spaces": True}},
        {"tokenizer_config": {"add_prefix_space": False, "tokenizer_class": "PreTrainedTokenizerFast"}},
    ],
    ids=str,
)
def test_the_files_next_to_a_sentencepiece_model(tmp_path: Path, files: dict[str, Any], add_dummy_prefix: bool):
    (tmp_path / "tokenizer.model").write_bytes(imported_model(add_dummy_prefix=add_dummy_prefix))
    assert_same_when_saved(write(tmp_path, **files), tmp_path / "saved")


def test_added_tokens_that_are_ordinary_text(tmp_path: Path):
    (tmp_path / "tokenizer.model").write_bytes(imported_model())
    assert_same_when_saved(
        write(tmp_path, tokenizer_config=LLAMA, added_tokens={"<x>": 420, "<y>": 421}), tmp_path / "saved"
    )


@pytest.mark.parametrize(
    ("definition", "files"),
    [
        ("byte level", {"tokenizer_config": {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True}}),
        ("byte level", {"tokenizer_config": {"tokenizer_class": "GPT2Tokenizer"}}),
        ("byte level", {"tokenizer_config": {"eos_token": "<|im_end|>"}, "added_tokens": {"<x>": 400}}),
        ("byte level", {"tokenizer_config": {"add_prefix_space": True, "eos_token": "<|im_end|>"}}),
        (
            "byte level",
            {"tokenizer_config": {"eos_token": "<|im_end|>"}, "special_tokens_map": {"eos_token": "<|endoftext|>"}},
        ),
        ("marked", {"tokenizer_config": LLAMA}),
        ("marked", {"tokenizer_config": LLAMA | {"add_prefix_space": False}}),
        ("marked", {"tokenizer_config": {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}}),
        (
            "marked",
            {"tokenizer_config": LLAMA | {"added_tokens_decoder": {"268": {"content": "<|im_end|>", "special": True}}}},
        ),
    ],
    ids=str,
)
def test_the_files_next_to_a_tokenizer_json(tmp_path: Path, definition: str, files: dict[str, Any]):
    tokenizer = byte_level_library_tokenizer().to_str() if definition == "byte level" else marked_spaces()
    content = tokenizer if isinstance(tokenizer, str) else json.dumps(tokenizer.definition.parts)
    (tmp_path / "tokenizer.json").write_text(content)
    texts = TEXTS if definition == "byte level" else ("ab ab", " ab", "  ab", "abc<x>d")
    assert_same_when_saved(write(tmp_path, **files), tmp_path / "saved", texts)


def test_of_a_model_and_a_definition_that_differ_the_definition_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "tokenizer.model").write_bytes(imported_model())
    (tmp_path / "tokenizer.json").write_text(byte_level_library_tokenizer().to_str())
    assert_same(write(tmp_path, tokenizer_config={"eos_token": "<|im_end|>"}))
    assert "read tokenizer.json, as transformers does; tokenizer.model cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [imported_model, lambda: imported_model(add_dummy_prefix=False)])
def test_a_directory_that_transformers_saved(tmp_path: Path, kind: Any):
    (tmp_path / "tokenizer.model").write_bytes(kind())
    write(tmp_path, tokenizer_config=LLAMA | {"add_bos_token": True})
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.add_tokens(["<|im_end|>"], special_tokens=True)
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.save_pretrained(tmp_path / "again")
    assert_same_when_saved(write(tmp_path / "again"), tmp_path / "saved")


@pytest.mark.parametrize("config", [DENSE, TERNARY], ids=["dense", "ternary"])
def test_one_of_ours_that_transformers_saved_again(tmp_path: Path, config: Any, capsys: pytest.CaptureFixture[str]):
    config = replace(config, vocab_size=420, bos_id=1, eos_id=2)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.model").write_bytes(imported_model())
    write(tmp_path / "tokenizer", tokenizer_config=LLAMA | {"add_bos_token": True})
    save_artifact(
        tmp_path / "ours",
        config,
        "latent",
        golden_weights(config).__getitem__,
        tokenizer_dir=tmp_path / "tokenizer",
    )
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32).eval()
    prompt = [1, 300, 310]
    whole = _generated(theirs, prompt, [])
    stops = [2, whole[5], whole[3]]
    theirs.generation_config.eos_token_id = stops
    theirs.save_pretrained(tmp_path / "again")
    transformers.AutoTokenizer.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "again")
    capsys.readouterr()
    model, params, tokenizer = load_model(tmp_path / "again")
    assert "has saved this model again, without MANIFEST.sha256" in capsys.readouterr().err
    token_ids = golden_token_ids(model.config, 2, 12)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(token_ids)).logits.numpy()
    found = np.asarray(model.apply({"params": params}, token_ids))
    error = parity_error(found, expected, config.is_ternary)
    assert error is None, error
    # Both stop at the same id, of several.
    assert tokenizer is not None and set(tokenizer.stop_ids) == set(stops)
    sampling, expected_text = Sampling(max_tokens=12), _generated(theirs, prompt, stops)
    assert list(jaxlm.generate.generate(model, params, prompt, sampling, tokenizer.stop_ids)) == expected_text
    in_mlx, its_tokenizer = mlxlm.load.load_model(tmp_path / "again")
    assert its_tokenizer is not None and set(its_tokenizer.stop_ids) == set(stops)
    assert list(mlxlm.generate.generate(in_mlx, prompt, sampling, its_tokenizer.stop_ids)) == expected_text


def _generated(model: Any, prompt: list[int], stops: list[int]) -> list[int]:
    """Return at most 12 likeliest tokens by transformers, without the one that stops."""
    options = {"eos_token_id": stops or None, "pad_token_id": 0, "do_sample": False, "max_new_tokens": 12}
    ids = model.generate(torch.tensor([prompt]), **options)[0, len(prompt) :].tolist()
    return next((ids[:i] for i, token in enumerate(ids) if token in stops), ids)
