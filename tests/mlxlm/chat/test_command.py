import io
import json
import sys

import pytest

from jaxlm.common.architecture.initial_weights import initial_weights
from jaxlm.common.artifact.artifact import save_artifact
from mlxlm.chat.chat_config import ChatConfig
from mlxlm.chat.command import main
from mlxlm.chat.prompt_cache import PromptCache
from mlxlm.chat.terminal import Terminal
from shared_tokenizer.chat.formats import CHATML
from shared_tokenizer.chat.template import write_chat_template
from shared_tokenizer.sources.documents import read_documents


@pytest.fixture
def artifact(tiny_config, tokenizer, tmp_path):
    files = tmp_path / "tokenizer"
    files.mkdir()
    tokenizer.save(files)
    write_chat_template(files, CHATML, tokenizer)
    save_artifact(tmp_path / "model", tiny_config, "latent", initial_weights(tiny_config, 1), tokenizer_dir=files)
    return tmp_path / "model"


@pytest.fixture
def talk(artifact, monkeypatch, capsys):
    def run(text, **settings):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text), "utf-8"))
        main(ChatConfig(**{"model": str(artifact), "max_tokens": 6} | settings))
        return capsys.readouterr()

    return run


def replying(monkeypatch, tokenizer, *replies):
    waiting = iter(replies)

    def generate(self, prompt, sampling, max_tokens):
        yield from tokenizer.encode(next(waiting))
        yield tokenizer.eos_id

    monkeypatch.setattr(PromptCache, "generate", generate)


def test_answers_go_to_standard_output_and_notes_to_standard_error(talk, monkeypatch, tokenizer):
    replying(monkeypatch, tokenizer, "fine", "\x1b]0;title\x07two\nlines\n")
    output = talk(b"hello\n\n/help\nagain\n/unknown\n\xff\n/exit\nnever read\n")
    assert output.out == "fine\n]0;titletwo\nlines\n"
    assert "/save FILE" in output.err
    assert "error: /unknown: found no such command" in output.err and "expected Unicode text" in output.err


def test_a_saved_conversation_is_read_as_data(talk, monkeypatch, tokenizer, tmp_path):
    replying(monkeypatch, tokenizer, "fine", "new")
    path = tmp_path / "saved.jsonl"
    inside = tmp_path / "model" / "saved.jsonl"
    commands = f"/save {path}\nhi\n/save {path}\n/save {path}\n/save {inside}\n/save\n/reset\n/system\n /hi\n"
    error = talk(commands.encode(), system="be brief").err
    assert [line for line in error.splitlines() if line.startswith("error")] == [
        "error: /save: found no conversation yet, expected at least one answer",
        f"error: /save: found '{path}', expected the name of a new file",
        f"error: {inside}: lies inside {inside.parent}, which is sealed by MANIFEST.sha256; choose another path",
        "error: /save: found '', expected the name of a new file",
    ]
    assert json.loads(path.read_text())["messages"][0] == {"role": "system", "content": "be brief"}
    (document,) = read_documents([str(path)])
    assert document.texts == ("be brief", "hi", "fine")


def test_an_interruption_stops_the_answer_and_not_the_program(talk, monkeypatch, tokenizer):
    def generate(self, prompt, sampling, max_tokens):
        yield from tokenizer.encode("def")
        raise KeyboardInterrupt

    monkeypatch.setattr(PromptCache, "generate", generate)
    output = talk(b"one\ntwo\n")
    assert output.out == "def\ndef\n" and output.err == "stopped\nstopped\n"


def test_a_second_interrupt_does_not_end_the_program_either(talk, monkeypatch, tokenizer):
    def generate(self, prompt, sampling, max_tokens):
        yield from tokenizer.encode("def")
        raise KeyboardInterrupt

    note = Terminal.note

    def interrupted_note(self, text):
        note(self, text)
        raise KeyboardInterrupt

    monkeypatch.setattr(PromptCache, "generate", generate)
    monkeypatch.setattr(Terminal, "note", interrupted_note)
    output = talk(b"one\n/help\ntwo\n")
    assert output.out == "def\ndef\n" and output.err.count("stopped\n") == 2


def test_the_program_ends_when_nobody_reads_its_answers(talk, monkeypatch, tokenizer):
    replying(monkeypatch, tokenizer, "fine", "fine")

    def write(self, text):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(Terminal, "write", write)
    with pytest.raises(BrokenPipeError):
        talk(b"one\ntwo\n")


def test_blank_lines_and_lines_of_another_system_ask_nothing(talk, monkeypatch, tokenizer):
    asked = []

    def generate(self, prompt, sampling, max_tokens):
        asked.append(tokenizer.decode(prompt))
        yield from tokenizer.encode("fine")

    monkeypatch.setattr(PromptCache, "generate", generate)
    output = talk(b"\n   \n\t\n\r\nhi\r\n\n")
    assert output.out == "fine\n" and len(asked) == 1 and "\r" not in asked[0]


def test_a_real_model_says_the_same_for_the_same_seed(talk):
    answers = [talk(b"add\nadd\n", temperature=1.0, seed=seed).out for seed in (1, 1, 2)]
    assert answers[0] == answers[1] != answers[2]


def test_a_model_without_a_chat_format_is_refused_until_one_is_named(talk, tiny_config, tokenizer, tmp_path):
    files = tmp_path / "plain_tokenizer"
    files.mkdir()
    tokenizer.save(files)
    path = tmp_path / "plain"
    save_artifact(path, tiny_config, "latent", initial_weights(tiny_config, 1), tokenizer_dir=files)
    with pytest.raises(ValueError, match=r"found no chat template.*`generate`.*chatml, smollm2"):
        talk(b"hi\n", model=str(path))
    assert talk(b"hi\n", model=str(path), chat_format="chatml").out
    bare = tmp_path / "bare"
    save_artifact(bare, tiny_config, "latent", initial_weights(tiny_config, 1))
    with pytest.raises(ValueError, match="found no tokenizer"):
        talk(b"hi\n", model=str(bare))


def test_a_model_with_a_template_of_its_own_chats_by_it(talk, tiny_config, tokenizer, tmp_path, monkeypatch):
    files, asked = tmp_path / "own_tokenizer", []
    files.mkdir()
    tokenizer.save(files)
    (files / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ '@' + m.role + ': ' + m.content + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}@assistant: {% endif %}"
    )
    path = tmp_path / "own"
    save_artifact(path, tiny_config, "latent", initial_weights(tiny_config, 1), tokenizer_dir=files)

    def generate(self, prompt, sampling, max_tokens):
        asked.append(tokenizer.decode(prompt))
        yield from tokenizer.encode(" fine\n")
        yield tokenizer.eos_id

    monkeypatch.setattr(PromptCache, "generate", generate)
    output = talk(b"hi\nagain\n", model=str(path), system="be brief")
    assert output.out == " fine\n fine\n" and "warning" not in output.err
    assert asked[0] == "@system: be brief@user: hi@assistant: "
