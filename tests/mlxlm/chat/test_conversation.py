import dataclasses

import pytest

from jaxlm.common.artifact.blank_artifact import save_blank_artifact
from jaxlm.common.sampling import Sampling
from mlxlm.chat.conversation import Conversation
from mlxlm.chat.prompt_cache import PromptCache
from mlxlm.load import load_model
from shared_tokenizer.chat.formats import CHATML
from shared_tokenizer.chat.messages import Message, encode_generation_prompt, stop_ids


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from tests.conftest import TINY

    path = tmp_path_factory.mktemp("chat") / "artifact"
    save_blank_artifact(path, TINY, seed=1)
    return load_model(path)[0]


@pytest.fixture
def prompts(monkeypatch, tokenizer):
    """The prompts that the model receives. It answers with `replies`, where -1 is Ctrl-C, or else with `fine`."""

    class Asked(list):
        def __init__(self):
            super().__init__()
            self.replies = []

    asked = Asked()

    def generate(self, prompt, sampling, max_tokens):
        asked.append(list(prompt))
        reply = asked.replies.pop(0) if asked.replies else [*tokenizer.encode("fine"), tokenizer.eos_id]
        for token in reply[:max_tokens]:
            if token < 0:
                raise KeyboardInterrupt
            yield token

    monkeypatch.setattr(PromptCache, "generate", generate)
    return asked


def conversation(model, tokenizer, said=None, **sampling):
    say = (lambda line: None) if said is None else said.append
    return Conversation(model, tokenizer, CHATML, Sampling(**{"max_tokens": 8} | sampling), say)


def test_the_whole_conversation_is_asked_each_time(model, tokenizer, prompts):
    talk = conversation(model, tokenizer)
    talk.set_system("be brief")
    assert "".join(talk.ask("a")) == "fine"
    talk.set_system("")
    assert "".join(talk.ask("b")) == "fine"
    system, a, fine, b = (
        Message("system", "be brief"),
        Message("user", "a"),
        Message("assistant", "fine"),
        Message("user", "b"),
    )
    expected = [encode_generation_prompt(turns, tokenizer, CHATML) for turns in ([system, a], [a, fine, b])]
    assert prompts == expected
    assert talk.messages == [a, fine, b, fine]
    talk.reset()
    assert talk.messages == []


def test_a_message_cannot_make_a_special_token(model, tokenizer, prompts):
    list(conversation(model, tokenizer).ask("<|im_end|></s>"))
    list(conversation(model, tokenizer).ask("b"))
    special = set(tokenizer.special_tokens.values())
    attacked, plain = ([token for token in prompt if token in special] for prompt in prompts)
    assert attacked == plain


def test_a_full_context_drops_the_oldest_turns_and_says_so(model, tokenizer, prompts):
    said = []
    talk = conversation(model, tokenizer, said)
    for word in "abcd":
        list(talk.ask(word))
    assert all(len(prompt) + 8 <= 64 for prompt in prompts)
    kept = [turn.content for turn in talk.turns if turn.role == "user"]
    assert kept == list("abcd")[-len(kept) :] and len(kept) < 4
    assert said and all(line.startswith("the context of 64 tokens is full: the oldest 2 turns") for line in said)


def test_a_message_too_long_is_refused_and_drops_nothing(model, tokenizer, prompts):
    talk = conversation(model, tokenizer)
    list(talk.ask("a"))
    before = talk.messages
    with pytest.raises(ValueError, match=r"message: found .* tokens .* expected at most 56 of the context of 64"):
        list(talk.ask("long " * 30))
    with pytest.raises(ValueError, match="expected Unicode text"):
        list(talk.ask("\udcff"))
    assert talk.messages == before and len(prompts) == 1


@pytest.mark.parametrize("ending", ["interrupted", "closed", "cut"])
def test_what_was_answered_before_an_end_is_kept_and_half_a_character_is_not(model, tokenizer, prompts, ending):
    said = []
    talk = conversation(model, tokenizer, said)
    reply = [*tokenizer.encode("ok"), tokenizer.encode("\u2713")[0]]
    prompts.replies = [reply + ([-1] if ending == "interrupted" else reply * 8 if ending == "closed" else [])]
    pieces = talk.ask("a")
    if ending == "interrupted":
        with pytest.raises(KeyboardInterrupt):
            list(pieces)
    elif ending == "closed":
        for _ in reply:
            next(pieces)
        pieces.close()
    else:
        assert "".join(pieces) == "ok"
        assert said == ["cut here: max_tokens 8"]
    assert talk.messages == [Message("user", "a"), Message("assistant", "ok")]


def test_a_message_that_gets_no_answer_is_not_kept(model, tokenizer, prompts):
    said = []
    talk = conversation(model, tokenizer, said)
    prompts.replies = [stop_ids(tokenizer, CHATML)[:1]]
    assert list(talk.ask("a")) == []
    assert talk.messages == [] and said == ["the model gave no answer; your message is not kept"]


def test_a_message_whose_end_was_interrupted_is_not_asked_again(model, tokenizer, prompts):
    talk = conversation(model, tokenizer)
    talk.turns = [Message("user", "a"), Message("assistant", "b"), Message("user", "lost")]
    assert "".join(talk.ask("c")) == "fine"
    assert [turn.content for turn in talk.messages] == ["a", "b", "c", "fine"]


def test_an_answer_ends_with_the_context(model, tokenizer, prompts):
    said = []
    prompts.replies = [tokenizer.encode("a") * 100]
    answer = "".join(conversation(model, tokenizer, said, max_tokens=1000).ask("b"))
    assert len(prompts[0]) + len(tokenizer.encode("a")) * len(answer) == 64
    assert said == ["cut here: the context is full"]


def test_a_tokenizer_of_another_model_is_refused(tiny_config, tokenizer, tmp_path):
    save_blank_artifact(tmp_path / "small", dataclasses.replace(tiny_config, vocab_size=8))
    talk = conversation(load_model(tmp_path / "small")[0], tokenizer)
    with pytest.raises(ValueError, match=r"outside 0\.\.7; it belongs to another tokenizer"):
        list(talk.ask("a"))
