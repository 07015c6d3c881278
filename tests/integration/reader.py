"""The files that a reader of docs/recipes.md brings: texts, chats, prompts and models, all small."""

import dataclasses
import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxlm.common.architecture.initial_weights import initial_weights
from jaxlm.common.architecture.presets import preset
from jaxlm.common.artifact.artifact import save_artifact
from shared_tokenizer.manifest import MANIFEST
from shared_tokenizer.tokenizers.tokenizer import Tokenizer
from shared_tokenizer.tokenizers.train import train_tokenizer

TEXTS, OTHER_TEXT = "my_texts", "other_text.txt"
CHATS, PROMPTS = "chats.jsonl", "prompts.jsonl"
MODELS = ("models/dense", "models/SmolLM2-135M")
BROUGHT = (TEXTS, OTHER_TEXT, CHATS, PROMPTS, *MODELS)
# As many attention heads as other models have, in 32 dimensions.
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2}


def bring_things(place: Path) -> None:
    """Write all of BROUGHT into a folder."""
    texts = _made_up_texts()
    (place / TEXTS).mkdir()
    for number, text in enumerate(texts):
        (place / TEXTS / f"{number}.txt").write_text(text, "utf-8")
    (place / OTHER_TEXT).write_text("The sea is wide, and nobody has counted its waves.\n" * 8, "utf-8")
    _write_rows(place / CHATS, [_chat(number) for number in range(300)])
    _write_rows(place / PROMPTS, [{"prompt": f"Count to {number}:", "most": number} for number in range(10)])
    tokenizer = train_tokenizer(texts, 600)
    for name in MODELS:
        _write_transformers(place / name, tokenizer)


def _made_up_texts() -> list[str]:
    """Texts of made-up words, enough of them for a vocabulary of 4,096 and for some texts to be held out."""
    chance = random.Random(0)
    syllables = [first + vowel for first in "bcdfghklmnprstvw" for vowel in "aeiou"]
    words = ["".join(chance.choices(syllables, k=chance.randint(1, 4))) for _ in range(6000)]
    return [" ".join(chance.choices(words, k=150)) + "." for _ in range(150)]


def _chat(number: int) -> dict[str, Any]:
    turns = [("user", f"add {number}"), ("assistant", f"a + {number}")]
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def _write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def _write_transformers(directory: Path, tokenizer: Tokenizer) -> None:
    """Write a dense model as transformers does, without a word of this project, that was never trained."""
    tokenizer_dir = directory.with_name(f"{directory.name}-tokenizer")
    tokenizer_dir.mkdir(parents=True)
    tokenizer.save(tokenizer_dir)
    ids = {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id}
    config = dataclasses.replace(preset("dense-tiny"), vocab_size=tokenizer.vocab_size, **SHAPE, **ids)
    save_artifact(directory, config, "latent", initial_weights(config, 1), tokenizer_dir=tokenizer_dir)
    shutil.rmtree(tokenizer_dir)
    (directory / MANIFEST).unlink()
    content = json.loads((directory / "config.json").read_text("utf-8"))
    del content["jaxlm"]
    (directory / "config.json").write_text(json.dumps(content), "utf-8")
