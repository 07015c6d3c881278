"""The data of supervised fine-tuning: chats are taken, text is refused."""

import json

import pytest

from jaxlm.common.objectives.chat_data import check_answers
from shared_tokenizer.data.shards import MANIFEST
from tests.conftest import prepare_texts


def test_text_is_refused_and_the_way_to_chats_is_told(tmp_path, tokenizer):
    text = prepare_texts(tmp_path / "text", [f"one two {number}" for number in range(30)], tokenizer)
    masked = tmp_path / "chats"
    masked.mkdir()
    (masked / MANIFEST).write_text(json.dumps(json.loads((text / MANIFEST).read_text()) | {"masked": True}))
    check_answers([masked])
    with pytest.raises(ValueError, match=r"found sft with .*text, which holds text, expected chats: prepare rows"):
        check_answers([masked, text])
