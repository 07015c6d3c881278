"""Damaged files of models and tokenizers: an answer, or one error that names the file (`make faults` tries more)."""

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest

from jaxlm.common.artifact.artifact import save_artifact
from jaxlm.common.formats.open_model import find_model_tokenizer, open_model
from shared_tokenizer.load import load_tokenizer
from shared_tokenizer.manifest import MANIFEST, write_manifest
from tests.faults.mutators import mutate
from tests.golden.golden_models import DENSE, golden_weights
from tests.shared_tokenizer.tokenizers.tokenizers_of_every_kind import imported_model

FILES = 12
NAMES = (
    "config.json",
    "generation_config.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "model.safetensors",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("mutated") / "model"
    save_artifact(directory, DENSE, "latent", golden_weights(DENSE).__getitem__)
    (directory / "tokenizer.model").write_bytes(imported_model())
    for name, content in {
        "tokenizer_config.json": {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": True, "add_bos_token": True},
        "special_tokens_map.json": {"eos_token": {"content": "<|im_end|>"}, "pad_token": "<unk>"},
        "added_tokens.json": {"<x>": 420, "<|im_end|>": 421},
        "generation_config.json": {"eos_token_id": [2, 421]},
    }.items():
        (directory / name).write_text(json.dumps(content))
    return directory


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_read_or_refused_by_its_name(model: Path, name: str, sealed: bool):
    rng, content = np.random.default_rng([NAMES.index(name), sealed]), (model / name).read_bytes()
    for _ in range(FILES):
        (model / name).write_bytes(mutate(content, content, rng))
        if sealed:
            write_manifest(model)
        else:
            (model / MANIFEST).unlink(missing_ok=True)
        with contextlib.suppress(ValueError):
            find_model_tokenizer(model, open_model(model))
        try:
            artifact = open_model(model, verify=sealed)
            for tensor in artifact.tensors:
                artifact.tensors[tensor]
            load_tokenizer(model).encode("def f1(x):\n    return 1")
        except ValueError as error:
            assert str(model) in str(error)
    (model / name).write_bytes(content)
