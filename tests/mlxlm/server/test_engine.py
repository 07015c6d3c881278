import asyncio
import logging
import time

import mlx.core as mx
import numpy as np
import pytest

from jaxlm.common.openai_api.errors import ApiError
from jaxlm.common.openai_api.reply_text import ReplyText
from jaxlm.common.openai_api.tasks import Finish, Task, TokenPenalties
from jaxlm.common.sampling import Sampling
from mlxlm.generate import generate
from shared_tokenizer.tokenizers.tokenizer import TextStream
from tests.mlxlm.server.served_models import Slow, make_engine, open_model


@pytest.fixture(scope="module")
def models(tokenizer, tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    return {variant: open_model(place / variant, tokenizer, variant) for variant in ("dense", "hybrid")}


def task(tokenizer, prompt, max_tokens=8, stop_ids=(), penalties=TokenPenalties(), **sampling):  # noqa: B008
    reply = ReplyText(TextStream(tokenizer), [])
    sampling = Sampling(max_tokens=max_tokens, **sampling)
    return Task(prompt=prompt, sampling=sampling, penalties=penalties, stop_ids=frozenset(stop_ids), reply=reply)


def submit(engine, task):
    (generation,) = engine.submit(task)
    return generation


async def answer(generation):
    *pieces, finish = [event async for event in generation.events()]
    assert isinstance(finish, Finish)
    return "".join(piece.text for piece in pieces), finish


def run(engine, use):
    """Return the result of `use` in an event loop while the engine runs."""

    async def whole():
        engine.start()
        try:
            return await use()
        finally:
            engine.stop()
            engine.join()

    found = asyncio.run(whole())
    assert not engine.is_alive
    return found


@pytest.mark.parametrize("variant", ["dense", "hybrid"])
def test_what_was_seen_is_not_seen_again_and_changes_no_text(models, tokenizer, variant):
    model, first = models[variant], [1, *tokenizer.encode("def add(a, b):\n    return")]
    whole = list(generate(model, first, Sampling(max_tokens=8)))
    prompts = [first, first, [*first, *whole, 41, 42], [*first[:6], 43, 44]]
    engine = make_engine(model)

    async def ask():
        return [await answer(submit(engine, task(tokenizer, prompt))) for prompt in prompts]

    found = run(engine, ask)
    # The second sees its last token again, the third goes on after the answer; the fourth leaves the others early,
    # where a recurrent state cannot go back to.
    early = 6 if variant == "dense" else 0
    assert [finish.cached_tokens for _, finish in found] == [0, len(first) - 1, len(first) + 8, early]
    for prompt, (text, finish) in zip(prompts, found, strict=True):
        assert text == tokenizer.decode(list(generate(model, prompt, Sampling(max_tokens=8))))
        assert (finish.reason, finish.prompt_tokens, finish.completion_tokens) == ("length", len(prompt), 8)


def penalized_tokens(model, prompt, count, presence, frequency):
    """Return the likeliest tokens after each penalty is taken off, by the definition of the official API."""
    answer = []
    for _ in range(count):
        logits = np.array(model(mx.array([[*prompt, *answer]]), cache=model.make_cache())[0, -1].astype(mx.float32))
        for token in set(answer):
            logits[token] -= presence + frequency * answer.count(token)
        answer.append(int(logits.argmax()))
    return answer


@pytest.mark.parametrize("variant", ["dense", "hybrid"])
@pytest.mark.parametrize(("presence", "frequency"), [(1.5, 0.0), (0.0, 0.3), (-2.0, 0.5)])
def test_penalties_are_those_of_the_answer_whatever_is_in_the_store(models, tokenizer, variant, presence, frequency):
    model, prompt = models[variant], [1, *tokenizer.encode("def add(a, b):\n    return a")]
    expected = tokenizer.decode(penalized_tokens(model, prompt, 12, presence, frequency))
    engine = make_engine(model)

    async def ask():
        asked = {"max_tokens": 12, "penalties": TokenPenalties(presence=presence, frequency=frequency)}
        return [await answer(submit(engine, task(tokenizer, prompt, **asked))) for _ in range(2)]

    found = run(engine, ask)
    assert [text for text, _ in found] == [expected, expected]
    assert [finish.cached_tokens for _, finish in found] == [0, len(prompt) - 1]


@pytest.mark.parametrize("variant", ["dense", "hybrid"])
def test_a_repetition_penalty_is_that_of_generate_whatever_is_in_the_store(models, tokenizer, variant):
    model, prompt = models[variant], [1, *tokenizer.encode("def add(a, b):\n    return a")]
    expected = tokenizer.decode(list(generate(model, prompt, Sampling(max_tokens=12, repetition_penalty=3.0))))
    engine = make_engine(model)

    async def ask():
        asked = {"max_tokens": 12, "repetition_penalty": 3.0}
        return [await answer(submit(engine, task(tokenizer, prompt, **asked))) for _ in range(2)]

    assert [text for text, _ in run(engine, ask)] == [expected, expected]
    assert expected != tokenizer.decode(list(generate(model, prompt, Sampling(max_tokens=12))))


def test_a_stop_token_ends_the_text_and_is_no_part_of_it(models, tokenizer):
    model, prompt = models["dense"], [1, 40]
    whole = list(generate(model, prompt, Sampling(max_tokens=8)))
    stop = whole[-1]
    engine = make_engine(model)
    text, finish = run(engine, lambda: answer(submit(engine, task(tokenizer, prompt, 8, [stop]))))
    assert (text, finish.reason) == (tokenizer.decode(whole[: whole.index(stop)]), "stop")
    assert finish.completion_tokens == whole.index(stop) + 1


def test_a_full_queue_refuses_until_somebody_leaves(models, tokenizer):
    engine = make_engine(Slow(models["dense"], 0.01), max_queue=2, max_batch=1)

    async def fill():
        first = submit(engine, task(tokenizer, [1, 40], 200))
        while engine._waiting:
            await asyncio.sleep(0.01)
        waiting = [submit(engine, task(tokenizer, [1, 41])) for _ in range(2)]
        with pytest.raises(ApiError, match="found 2 requests waiting") as caught:
            submit(engine, task(tokenizer, [1, 42]))
        assert (caught.value.status, caught.value.response().headers["retry-after"]) == (503, "2")
        waiting[0].cancel()
        late = submit(engine, task(tokenizer, [1, 42]))
        first.cancel()
        assert [finish.reason for _, finish in [await answer(waiting[1]), await answer(late)]] == ["length"] * 2

    run(engine, fill)


def test_what_takes_too_long_is_ended(models, tokenizer):
    slow = Slow(models["dense"], 0.02)
    engine = make_engine(slow, timeout_s=0.3)

    async def ask():
        with pytest.raises(ApiError, match=r"found no end after 0\.3 s") as caught:
            await answer(submit(engine, task(tokenizer, [1, 40], 200)))
        assert caught.value.status == 504
        calls = slow.calls
        await asyncio.sleep(0.3)
        assert slow.calls <= calls + 2

    run(engine, ask)


def test_a_long_prompt_is_left_between_its_steps(models, tokenizer):
    slow = Slow(models["dense"], 0.05)
    engine = make_engine(slow, prefill_step_size=2)

    async def ask():
        generation = submit(engine, task(tokenizer, [1] * 200))
        await asyncio.sleep(0.2)
        generation.cancel()
        with pytest.raises(ApiError, match="the client closed"):
            await answer(generation)
        return slow.calls

    calls = run(engine, ask)
    assert slow.most_tokens == 2 and 0 < calls <= slow.calls <= calls + 1


def test_a_fault_ends_one_answer_and_not_the_server(models, tokenizer, caplog):
    class Faulty(Slow):
        def __call__(self, ids, cache):
            if self.calls == 0:
                self.calls = 1
                raise RuntimeError("secret of the inside")
            return super().__call__(ids, cache)

    engine = make_engine(Faulty(models["dense"], 0))

    async def ask():
        with pytest.raises(ApiError, match="the server failed") as caught:
            await answer(submit(engine, task(tokenizer, [1, 40])))
        assert caught.value.status == 500
        return await answer(submit(engine, task(tokenizer, [1, 40])))

    with caplog.at_level(logging.ERROR):
        assert run(engine, ask)[1].completion_tokens == 8
    assert "secret of the inside" in caplog.text


def test_stopping_ends_all_that_runs_and_waits(models, tokenizer):
    engine = make_engine(Slow(models["dense"], 0.01))

    async def ask():
        generations = [submit(engine, task(tokenizer, [1, 40], 200)) for _ in range(3)]
        await asyncio.sleep(0.1)
        engine.stop()
        begun = time.monotonic()
        for generation in generations:
            with pytest.raises(ApiError, match="the server is stopping"):
                await answer(generation)
        with pytest.raises(ApiError, match="the server is stopping"):
            submit(engine, task(tokenizer, [1, 40]))
        assert time.monotonic() - begun < 1

    run(engine, ask)
