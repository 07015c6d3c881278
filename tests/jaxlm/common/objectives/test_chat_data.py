"""The data of supervised fine-tuning: chats in the format of the model are taken, all else is refused."""

import dataclasses
from pathlib import Path

import pytest

from jaxlm.common.objectives.chat_data import check_chat_data
from shared_tokenizer.chat.formats import named_chat_format
from shared_tokenizer.chat.template import write_chat_template
from shared_tokenizer.data.data_sets import DataSets
from shared_tokenizer.preparation.prepare import prepare
from shared_tokenizer.preparation.prepare_config import PrepareConfig
from shared_tokenizer.tokenizers.train import train_tokenizer
from tests.conftest import Silent, prepare_texts
from tests.mlxlm.small_models import save_chats


def prepare_chats(directory: Path, tokenizer, chat_format: str) -> Path:
    tokenizer_dir = directory.with_name(f"{directory.name}-tokenizer")
    tokenizer_dir.mkdir()
    tokenizer.save(tokenizer_dir)
    chats = save_chats(directory.with_suffix(".jsonl"))
    settings = {"tokenizer": str(tokenizer_dir), "chat_format": chat_format, "val_fraction": 0.2, "num_workers": 1}
    prepare(PrepareConfig(input=[str(chats)], output_dir=str(directory), **settings), Silent())
    return directory


def test_chats_in_the_format_of_the_model_are_taken_and_all_else_is_refused(tmp_path, tokenizer):
    text = prepare_texts(tmp_path / "text", [f"one two {number}" for number in range(30)], tokenizer)
    chatml = prepare_chats(tmp_path / "chatml", tokenizer, "chatml")
    sets = DataSets.open([chatml], 64)
    check_chat_data(sets, None)
    base = tmp_path / "base"
    base.mkdir()
    tokenizer.save(base)
    check_chat_data(sets, base)  # which was never told of chats
    write_chat_template(base, named_chat_format("chatml"), tokenizer)
    check_chat_data(sets, base)
    with pytest.raises(ValueError, match=r"found sft with .*text, which holds text, expected chats: prepare rows"):
        check_chat_data(dataclasses.replace(sets, directories=(chatml, text)), base)
    alpaca = prepare_chats(tmp_path / "alpaca", tokenizer, "alpaca")
    with pytest.raises(ValueError, match=r"found sft with .*alpaca in chat format alpaca, expected chatml, that of"):
        check_chat_data(dataclasses.replace(sets, directories=(alpaca,)), base)
    with pytest.raises(ValueError, match=r"prepare the chats anew with --chat_format alpaca"):
        check_chat_data(dataclasses.replace(sets, directories=(alpaca, chatml)), None)
    other = tmp_path / "other"
    other.mkdir()
    train_tokenizer(["one two"] * 9, 290).save(other)
    with pytest.raises(ValueError, match=r"found sft of .*other with tokenizer .* prepare the chats with --tokenizer"):
        check_chat_data(sets, other)
