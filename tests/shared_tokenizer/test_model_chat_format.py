import json

import pytest

from shared_tokenizer.chat.formats import CHATML, named_chat_format
from shared_tokenizer.chat.messages import Message, encode_generation_prompt, stop_ids
from shared_tokenizer.chat.template import write_chat_template
from shared_tokenizer.model_chat_format import choose_chat_format, reply_stop_ids
from shared_tokenizer.tokenizers.train import train_tokenizer
from tests.mlxlm.server.served_models import save_model


@pytest.fixture
def places(tmp_path, tokenizer):
    """A model without a chat template, and adapters."""
    for name in ("model", "adapters"):
        (tmp_path / name).mkdir()
    tokenizer.save(tmp_path / "model")
    return tmp_path / "model", tmp_path / "adapters"


def test_a_name_counts_before_the_adapters_and_they_before_the_model(places, tokenizer):
    model, adapters = places
    with pytest.raises(ValueError, match=r"model: found no chat template.*name the chat_format .*: chatml, smollm2"):
        choose_chat_format(model, tokenizer, adapter_path=adapters)
    write_chat_template(model, named_chat_format("alpaca"), tokenizer)
    assert choose_chat_format(model, tokenizer, adapter_path=adapters).name == "alpaca"
    write_chat_template(adapters, CHATML, tokenizer)
    assert choose_chat_format(model, tokenizer, adapter_path=adapters) is CHATML
    assert choose_chat_format(model, tokenizer, choice="mistral", adapter_path=adapters).name == "mistral"


def test_the_format_of_bitnet_is_read_from_the_template_in_the_configuration(tmp_path, capsys):
    special = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer = train_tokenizer(["User: hello Assistant: hi"] * 50, 300, special_tokens=special)
    tokenizer.save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["chat_template"] = (
        "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = message['role'] | "
        "capitalize + ': '+ message['content'] | trim + '<|eot_id|>' %}{{ content }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
    )
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    found = choose_chat_format(tmp_path, tokenizer)
    end = tokenizer.special_tokens["<|eot_id|>"]
    assert found.name == "bitnet" and stop_ids(tokenizer, found) == [end, tokenizer.eos_id]
    prompt = encode_generation_prompt([Message("user", " hello\n")], tokenizer, found)
    expected = [tokenizer.bos_id, *tokenizer.encode("User: hello"), end, *tokenizer.encode("Assistant: ")]
    assert prompt == expected
    assert choose_chat_format(tmp_path, tokenizer, choice="llama-3").name == "llama-3"
    assert "warning: chat_format llama-3: the model's own chat template is that of bitnet" in capsys.readouterr().err


def test_a_name_that_the_models_own_template_contradicts_is_warned_of(places, tokenizer, capsys):
    model, adapters = places
    write_chat_template(model, named_chat_format("alpaca"), tokenizer)
    choose_chat_format(model, tokenizer, choice="alpaca")
    assert not capsys.readouterr().err
    choose_chat_format(model, tokenizer, choice="mistral")
    assert "chat_format mistral: the model's own chat template is that of alpaca" in capsys.readouterr().err
    lines = []
    (model / "chat_template.jinja").write_text("{{ '<|start|>' + messages[0]['content'] }}")
    choose_chat_format(model, tokenizer, choice="chatml", note=lines.append)
    assert "chat_format chatml: the model's own chat template never writes '<|im_start|>'; give that" in lines[0]
    write_chat_template(adapters, CHATML, tokenizer)
    choose_chat_format(model, tokenizer, choice="chatml", adapter_path=adapters, note=lines.append)
    assert len(lines) == 1


def test_a_format_that_does_not_fit_is_refused(places, tokenizer):
    model, adapters = places
    with pytest.raises(ValueError, match=r"llama-3: found no special token '<\|start_header_id\|>'"):
        choose_chat_format(model, tokenizer, choice="llama-3")
    with pytest.raises(ValueError, match="found 'vicuna', expected one of chatml"):
        choose_chat_format(model, tokenizer, choice="vicuna")
    (adapters / "chat_template.jinja").write_text("{{ messages[0].secret }}")
    with pytest.raises(
        ValueError, match=r"adapters/chat_template\.jinja: chat template: it leaves out messages\[0\], of the"
    ):
        choose_chat_format(model, tokenizer, adapter_path=adapters)


def test_a_template_of_no_known_format_writes_the_prompts(places, tokenizer, capsys):
    model, adapters = places
    (model / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ '@' + m.role + ' ' + m.content | trim + eos_token }}{% endfor %}@assistant "
    )
    found = choose_chat_format(model, tokenizer, adapter_path=adapters)
    assert found.name == "template" and stop_ids(tokenizer, found) == [tokenizer.eos_id]
    prompt = encode_generation_prompt([Message("user", "hello</s>")], tokenizer, found)
    expected = [*tokenizer.start_ids, *tokenizer.encode("@user hello</s>"), tokenizer.eos_id]
    assert prompt == [*expected, *tokenizer.encode("@assistant ")]
    assert not capsys.readouterr().err
    for _ in range(2):
        assert encode_generation_prompt([Message("user", "hello</s> ")], tokenizer, found) == prompt
    line = "warning: the model's chat template removes the whitespace around messages[0], of the user\n"
    assert capsys.readouterr().err == line
    (model / "chat_template.jinja").write_text("{{ 10 ** 100000000 }}")
    with pytest.raises(ValueError, match=r"model: chat template: it ran for 0\.5 s and had not ended"):
        choose_chat_format(model, tokenizer)


def test_the_end_of_a_turn_ends_a_text_of_a_chat_model_only(tokenizer, tmp_path):
    chats = save_model(tmp_path / "chats", tokenizer)
    plain = save_model(tmp_path / "plain", tokenizer, template=None)
    broken = save_model(tmp_path / "broken", tokenizer, template="{{ messages[0].secret }}")
    turn = tokenizer.special_tokens["<|im_end|>"]
    assert reply_stop_ids(chats, tokenizer) == [turn, tokenizer.eos_id]
    assert list(reply_stop_ids(plain, tokenizer)) == list(reply_stop_ids(broken, tokenizer)) == [tokenizer.eos_id]
