import pytest

from mlxlm.chat.chat_format import choose_chat_format
from shared_tokenizer.chat.formats import CHATML, named_chat_format
from shared_tokenizer.chat.template import write_chat_template


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
    assert "chat_format chatml: the model's own chat template never writes '<|im_start|>' (chat template: " in lines[0]
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
    with pytest.raises(ValueError, match=r"adapters/chat_template\.jinja: chat template: found"):
        choose_chat_format(model, tokenizer, adapter_path=adapters)
