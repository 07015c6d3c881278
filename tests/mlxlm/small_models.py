"""A tiny model with a tokenizer, and something to fine-tune it on."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from jaxlm.checkpoints.export import export_artifact
from jaxlm.checkpoints.weights import artifact_params
from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.initial_weights import initial_weights
from jaxlm.common.artifact.artifact import save_artifact
from jaxlm.common.formats.open_model import open_model
from shared_tokenizer.tokenizers.tokenizer import Tokenizer

SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "num_kv_heads": 1, "max_seq_len": 128}


def save_model(directory: Path, config: ModelConfig, tokenizer: Tokenizer, **changes: Any) -> Path:
    """A latent artifact of a model that was never trained, with the tokenizer."""
    ids = {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id}
    config = dataclasses.replace(config, **SHAPE | {"head_dim": 8} | ids | changes)
    tokenizer_dir = directory.with_name(f"{directory.name}-tokenizer")
    tokenizer_dir.mkdir()
    tokenizer.save(tokenizer_dir)
    save_artifact(directory, config, "latent", initial_weights(config, 1), tokenizer_dir=tokenizer_dir)
    return directory


def save_packed(directory: Path, latent: Path) -> Path:
    """The packed form of a latent artifact."""
    artifact = open_model(latent)
    export_artifact(directory, artifact.config, artifact_params(artifact), "packed", tokenizer_dir=latent)
    return directory


def save_chats(path: Path, count: int = 40) -> Path:
    """Chats whose answers follow from the questions."""
    lines = []
    for number in range(count):
        messages = [
            {"role": "user", "content": f"add {number}"},
            {"role": "assistant", "content": f"return a + {number}"},
        ]
        lines.append(json.dumps({"messages": messages}) + "\n")
    path.write_text("".join(lines), "utf-8")
    return path
