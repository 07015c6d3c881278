"""Chats are scored on their answers, with the same numbers in JAX and in MLX."""

import json

import numpy as np
import pytest

import jaxlm.commands.evaluate
import mlxlm.evaluate
from jaxlm.common.evaluation.scoring import ScoredPlaces
from jaxlm.common.evaluation.text_scores import evaluate_windows
from jaxlm.load import load_model
from jaxlm.score import score
from shared_tokenizer.chat.chat_format import Message
from shared_tokenizer.chat.formats import CHATML
from shared_tokenizer.chat.messages import encode_chat
from shared_tokenizer.data.evaluation import text_batches
from tests.mlxlm.server.served_models import save_model

CHATS = [("add 1 and 2", "3"), ("say hello", "hello, you"), ("count", "one two three " * 200)]


@pytest.fixture(scope="module")
def place(tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("chats")
    save_model(path / "model", tokenizer)
    save_model(path / "plain", tokenizer, template=None)
    rows = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for question, answer in CHATS
    ]
    (path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def evaluated(place, name, **settings):
    """Return the numbers of both commands for a model."""
    found = []
    for number, command in enumerate((jaxlm.commands.evaluate, mlxlm.evaluate)):
        file = place / f"{name}-{number}.json"
        given = {"model": [str(place / name)], "input": [str(place / "chats.jsonl")], "json": str(file)}
        command.main(command.EvaluateConfig(**given | settings))
        found.append(json.loads(file.read_text()))
    assert found[0]["settings"] == {**found[0]["settings"], **given, **settings, "json": str(place / f"{name}-0.json")}
    return [each["models"][str(place / name)] for each in found]


def test_only_answers_count_and_long_chats_are_cut_aloud(place, capsys):
    ours, theirs = evaluated(place, "model")
    assert "1 of 3 chats are longer than the model's context: their ends are not scored" in capsys.readouterr().out
    model, params, tokenizer = load_model(place / "model")
    nats, tokens, likeliest = 0.0, 0, 0
    for question, answer in CHATS:
        chat = encode_chat([Message("user", question), Message("assistant", answer)], tokenizer, CHATML)
        ids, mask = chat.ids[:257], np.array(chat.loss_mask[1:257])
        (scores,) = score(model, params, [ids], [1])
        nats -= scores.logprobs[mask].sum()
        likeliest += scores.is_greedy[mask].sum()
        tokens += mask.sum()
    assert ours["tokens"] == theirs["tokens"] == tokens
    assert ours["nats_per_token"] == pytest.approx(nats / tokens, abs=1e-5)
    assert theirs["nats_per_token"] == pytest.approx(ours["nats_per_token"], abs=1e-4)
    assert ours["likeliest_share"] == pytest.approx(likeliest / tokens, abs=1e-6)
    assert ours["unknown_share"] == 0
    assert ours["fingerprint"] == theirs["fingerprint"] == mlxlm.load.model_fingerprint(place / "model")
    assert ours["tokenizer"] == theirs["tokenizer"] == tokenizer.fingerprint


def test_a_model_without_a_chat_format_is_scored_on_plain_text_aloud_or_by_the_one_that_is_named(place, capsys):
    plain, _ = evaluated(place, "plain")
    assert "chats are scored as plain text, with the questions" in capsys.readouterr().out
    named, _ = evaluated(place, "plain", chat_format="chatml")
    assert named["tokens"] < plain["tokens"] and "plain text" not in capsys.readouterr().out


def test_settings_without_effect_and_files_that_cannot_be_written_are_refused_before_anything_is_read(place, tmp_path):
    (tmp_path / "text.txt").write_text("def")
    given = {"model": [str(place / "model")], "input": [str(tmp_path / "text.txt")]}
    command = jaxlm.commands.evaluate
    with pytest.raises(ValueError, match="chat_format: found 'chatml', but no chats"):
        command.main(command.EvaluateConfig(**given, chat_format="chatml"))
    with pytest.raises(ValueError, match=r"json: found .*, expected a file in a directory that exists"):
        command.EvaluateConfig(**given, json=str(tmp_path / "missing" / "numbers.json"))


def test_a_loss_that_is_no_number_is_an_error(tokenizer):
    def score(batch, places, targets):
        return ScoredPlaces(np.full(len(places), np.nan, np.float32), targets < 0, *[np.zeros((len(places), 0))] * 2)

    batches = text_batches(tokenizer, ["def"], 8, 1, 300)
    with pytest.raises(ValueError, match="found a log-probability that is not finite"):
        evaluate_windows(score, batches, tokenizer)
