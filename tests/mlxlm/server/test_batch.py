"""Texts that are generated together are those that are generated alone."""

import asyncio

import mlx.core as mx
import numpy as np
import pytest

from jaxlm.common.openai_api.errors import ApiError
from jaxlm.common.openai_api.reply_text import ReplyText
from jaxlm.common.openai_api.tasks import Finish, Piece, Task
from jaxlm.common.sampling import Sampling
from mlxlm.adapters.adapter_config import AdapterConfig
from mlxlm.adapters.adapter_directory import save_adapters
from mlxlm.adapters.adapters import add_adapters
from mlxlm.generate import generate
from mlxlm.load import adapted
from mlxlm.score import score
from mlxlm.server.batch import Batch
from mlxlm.server.engine import MlxEngine
from mlxlm.server.prompt_scores import PromptScoring
from shared_tokenizer.tokenizers.tokenizer import TextStream
from tests.mlxlm.server.served_models import Slow, make_engine, open_model

PROMPTS = [
    np.random.default_rng(seed).integers(10, 300, length).tolist() for seed, length in enumerate((3, 40, 9, 70, 1, 25))
]
# Logits that are nearer than this are rounded differently alone and in a batch.
NEAR = 1e-3
ENGINE = {"max_queue": 8, "max_batch": 4, "timeout_s": 60, "prompt_cache_bytes": 1 << 24, "prefill_step_size": 64}


@pytest.fixture(scope="module")
def models(tokenizer, tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    return {variant: open_model(place / variant, tokenizer, variant) for variant in ("dense", "hybrid", "mlgru")}


def task(tokenizer, prompt, **fields):
    sampling = {name: fields.pop(name) for name in ("max_tokens", "temperature", "seed") if name in fields}
    sampling = {"max_tokens": 12} | sampling
    reply = ReplyText(TextStream(tokenizer), [])
    fields = {"stop_ids": frozenset(), "logprobs": 0} | fields
    return Task(prompt=prompt, sampling=Sampling(**sampling), reply=reply, **fields)


async def tokens_of(generation):
    events = [event async for event in generation.events()]
    assert isinstance(events[-1], Finish)
    return [score.token for event in events if isinstance(event, Piece) for score in event.tokens]


def answers(engine, tasks, pause=0.0):
    """Return the tokens of every task; the next one is sent after a pause."""

    async def ask():
        engine.start()
        found = []
        try:
            for each in tasks:
                found.append(asyncio.create_task(tokens_of(engine.submit(each)[0])))
                await asyncio.sleep(pause)
            return await asyncio.gather(*found)
        finally:
            engine.stop()
            engine.join()

    return asyncio.run(ask())


def gap(model, ids):
    """Return the distance of the two largest logits after some tokens."""
    logits = np.sort(np.array(model(mx.array([ids]), cache=model.make_cache())[0, -1].astype(mx.float32)))
    return logits[-1] - logits[-2]


@pytest.mark.parametrize("variant", ["dense", "hybrid", "mlgru"])
def test_they_join_and_leave_at_any_time_and_stay_as_they_are(models, tokenizer, variant):
    model = models[variant]
    tasks = [task(tokenizer, prompt, max_tokens=4 + 3 * number) for number, prompt in enumerate(PROMPTS)]
    found = answers(make_engine(model, prefill_step_size=16), tasks, pause=0.01)
    for prompt, each, tokens in zip(PROMPTS, tasks, found, strict=True):
        alone = list(generate(model, prompt, Sampling(max_tokens=each.sampling.max_tokens)))
        differs = next((at for at, pair in enumerate(zip(tokens, alone, strict=True)) if pair[0] != pair[1]), None)
        if differs is not None:
            assert gap(model, [*prompt, *alone[:differs]]) < NEAR


def test_a_seed_chooses_the_same_alone_and_in_a_batch(models, tokenizer):
    model = models["dense"]
    tasks = [task(tokenizer, PROMPTS[1], temperature=0.9, seed=seed) for seed in (1, 2, 1)]
    first, second, third = answers(make_engine(model), tasks)
    assert first == third != second
    assert first == list(generate(model, PROMPTS[1], Sampling(max_tokens=12, temperature=0.9, seed=1)))


def test_a_short_text_does_not_wait_for_a_long_one(models, tokenizer):
    engine, ended = make_engine(models["dense"]), []

    async def ask(each, name):
        await tokens_of(engine.submit(each)[0])
        ended.append(name)

    async def both():
        engine.start()
        long = asyncio.create_task(ask(task(tokenizer, PROMPTS[0], max_tokens=150), "long"))
        await asyncio.sleep(0.05)
        await asyncio.gather(long, ask(task(tokenizer, PROMPTS[1], max_tokens=2), "short"))
        engine.stop()
        engine.join()

    asyncio.run(both())
    assert ended == ["short", "long"] and not engine.running


class Alternating:
    """A constraint: tokens of two sets in turn."""

    failure = None

    def __init__(self):
        self.seen = []

    def allowed(self):
        mask = np.zeros(300, bool)
        mask[100 + len(self.seen) % 2 :: 2] = True
        return mask

    def accept(self, token):
        self.seen.append(token)


def test_a_constraint_and_a_bias_change_one_text_only(models, tokenizer):
    model = models["dense"]
    tasks = [
        task(tokenizer, PROMPTS[1], constraint=Alternating()),
        task(tokenizer, PROMPTS[1], logit_bias={77: 100.0}),
        task(tokenizer, PROMPTS[1]),
    ]
    constrained, biased, free = answers(make_engine(model), tasks)
    assert all(token >= 100 and token % 2 == at % 2 for at, token in enumerate(constrained)) and len(constrained) == 12
    assert tasks[0].constraint.seen == constrained[: len(tasks[0].constraint.seen)]
    assert biased == [77] * 12
    assert free == list(generate(model, PROMPTS[1], Sampling(max_tokens=12)))


def adapted_copy(base):
    """Return a model that shares the arrays of another."""
    copy = type(base)(base.config)
    copy.update(base.parameters())
    return copy


def test_adapters_share_the_model_and_nothing_else(models, tokenizer, tmp_path):
    base = models["dense"]
    trained = adapted_copy(base)
    config = add_adapters(trained, AdapterConfig(rank=2))
    for layer in trained.layers:
        adapter = layer.mlp.down_proj
        adapter.lora_b = mx.random.normal(adapter.lora_b.shape, key=mx.random.key(0))
    save_adapters(tmp_path / "tuned", trained, config)
    other = adapted(base, tmp_path / "tuned")
    assert other.layers[0].mlp.up_proj.linear.weight is base.layers[0].mlp.up_proj.weight
    engine = MlxEngine({None: base, "tuned": other}, **ENGINE)
    tasks = [task(tokenizer, PROMPTS[1], adapter=name) for name in (None, "tuned", None, "tuned")]
    found = answers(engine, tasks, pause=0.02)
    plain, tuned = (list(generate(model, PROMPTS[1], Sampling(max_tokens=12))) for model in (base, other))
    assert found == [plain, tuned, plain, tuned] and plain != tuned


def test_a_draft_model_changes_no_text_also_when_others_join(models, tokenizer, tmp_path):
    model, draft = models["dense"], open_model(tmp_path / "draft", tokenizer, "ternary")
    plain = {"logprobs": None}
    tasks = [task(tokenizer, PROMPTS[0], max_tokens=60, **plain), task(tokenizer, PROMPTS[1], max_tokens=9, **plain)]
    tasks += [task(tokenizer, [*PROMPTS[0], 7], max_tokens=9, **plain)]

    async def ask(engine):
        engine.start()
        try:
            first = engine.submit(tasks[0])[0]
            events = first.events()
            found = [[await anext(events)], [], []]
            joined = [engine.submit(each)[0] for each in tasks[1:]]
            found[0] += [event async for event in events]
            for number, generation in enumerate(joined, 1):
                found[number] = [event async for event in generation.events()]
            return found
        finally:
            engine.stop()
            engine.join()

    engine = make_engine(model, draft=draft)
    for events, each in zip(asyncio.run(ask(engine)), tasks, strict=True):
        text = "".join(event.text for event in events if isinstance(event, Piece))
        assert text == tokenizer.decode(list(generate(model, each.prompt, each.sampling)))
        assert events[-1].completion_tokens == each.sampling.max_tokens


def test_a_drafted_text_is_kept_for_the_next_prompt(models, tokenizer, tmp_path):
    draft = open_model(tmp_path / "draft", tokenizer, "ternary")
    engine, found = make_engine(models["dense"], draft=draft), []

    async def ask():
        engine.start()
        for prompt in (PROMPTS[1], [*PROMPTS[1], 30]):
            found.append(
                [event async for event in engine.submit(task(tokenizer, prompt, logprobs=None))[0].events()][-1]
            )
        engine.stop()
        engine.join()

    asyncio.run(ask())
    assert [finish.cached_tokens for finish in found] == [0, len(PROMPTS[1])]


def test_a_recurrent_model_has_no_draft(models):
    with pytest.raises(ValueError, match="draft_model: found a model with a recurrent state"):
        make_engine(models["hybrid"], draft=models["dense"])


def scoring(tokenizer, prompt, **fields):
    return task(tokenizer, prompt, scores_prompt=True, generates=False, **fields)


def log_of_steps(monkeypatch, engine):
    """Return a list that grows with the engine: the number of prompts of a piece, "step" for a step of texts."""
    log, score_piece, step = [], PromptScoring.step, engine._batches[None].step
    monkeypatch.setattr(PromptScoring, "step", lambda self: log.append(len(self.left)) or score_piece(self))
    monkeypatch.setattr(engine._batches[None], "step", lambda: log.append("step") or step())
    return log


@pytest.mark.parametrize("variant", ["dense", "hybrid", "mlgru"])
def test_pieces_of_prompts_have_the_scores_of_the_whole(models, tokenizer, variant):
    model = models[variant]
    tasks = [scoring(tokenizer, prompt, logprobs=2) for prompt in PROMPTS]

    async def scores_of(engine, each):
        events = [event async for event in engine.submit(each)[0].events()]
        return events[0].tokens

    async def ask(engine):
        engine.start()
        try:
            return await asyncio.gather(*(scores_of(engine, each) for each in tasks))
        finally:
            engine.stop()
            engine.join()

    found = asyncio.run(ask(make_engine(model, max_batch=8, prefill_step_size=16)))
    expected = score(model, PROMPTS, [1] * len(PROMPTS), top=2)
    for tokens, prompt, scores in zip(found, PROMPTS, expected, strict=True):
        assert [each.token for each in tokens] == prompt[1:]
        np.testing.assert_allclose([each.logprob for each in tokens], scores.logprobs, atol=1e-3)
        likeliest = [[logprob for _, logprob in each.likeliest] for each in tokens]
        np.testing.assert_allclose(np.reshape(likeliest, (-1, 2)), scores.top_logprobs[:-1], atol=1e-3)


def test_texts_go_on_between_pieces_of_a_prompt_that_is_scored(models, tokenizer, monkeypatch):
    engine = make_engine(models["dense"], prefill_step_size=16)
    log = log_of_steps(monkeypatch, engine)
    tasks = [task(tokenizer, PROMPTS[4]), *(scoring(tokenizer, PROMPTS[at]) for at in (3, 4, 0))]
    assert [len(tokens) for tokens in answers(engine, tasks)] == [12, 0, 0, 0]
    begun = next(place for place, entry in enumerate(log) if entry != "step")
    # A prompt of 70 tokens in pieces of 16, and two of 1 and 3 tokens together.
    assert log[begun : begun + 12] == [1, "step", 1, "step", 1, "step", 1, "step", 1, "step", 2, "step"]
    assert set(log[begun + 12 :]) == {"step"}


def test_a_prompt_that_is_scored_is_left_between_its_pieces(models, tokenizer, monkeypatch):
    engine = make_engine(models["dense"], prefill_step_size=2)
    log = log_of_steps(monkeypatch, engine)

    async def ask():
        engine.start()
        long, short = (engine.submit(scoring(tokenizer, prompt))[0] for prompt in ([1] * 200, [1] * 60))
        while len(log) < 5:
            await asyncio.sleep(0)
        long.cancel()
        found = await tokens_of(short)
        engine.stop()
        engine.join()
        return found

    asyncio.run(ask())
    assert 30 < log.count(1) < 60  # the 30 pieces of the short prompt, and some of the 100 of the long one


class Faulty:
    """A constraint that fails at its third token."""

    failure = None

    def __init__(self):
        self.seen = 0

    def allowed(self):
        return np.ones(300, bool)

    def accept(self, token):
        self.seen += 1
        if self.seen == 3:
            raise RuntimeError("secret of the inside")


async def outcomes(engine, tasks):
    """Return the tokens of every task, or the error that ended it."""
    engine.start()
    try:
        found = [tokens_of(engine.submit(each)[0]) for each in tasks]
        return await asyncio.gather(*found, return_exceptions=True)
    finally:
        engine.stop()
        engine.join()


@pytest.mark.parametrize("max_tokens", [3, 12])
def test_a_fault_in_a_change_of_logits_fails_its_text_alone(models, tokenizer, caplog, max_tokens):
    tasks = [task(tokenizer, PROMPTS[1]), task(tokenizer, PROMPTS[2], constraint=Faulty(), max_tokens=max_tokens)]
    text, failed = asyncio.run(outcomes(make_engine(models["dense"]), tasks))
    assert text == list(generate(models["dense"], PROMPTS[1], Sampling(max_tokens=12)))
    assert isinstance(failed, ApiError) and "the server failed" in str(failed)
    assert "secret of the inside" in caplog.text


def test_a_fault_in_the_scores_of_a_prompt_fails_that_prompt_alone(models, tokenizer, monkeypatch, caplog):
    step = PromptScoring.step

    def fail(self):
        if any(generation.task.prompt == PROMPTS[2] for generation in self.left):
            raise RuntimeError("secret of the inside")
        return step(self)

    monkeypatch.setattr(PromptScoring, "step", fail)
    tasks = [task(tokenizer, PROMPTS[0]), *(scoring(tokenizer, prompt) for prompt in PROMPTS[1:4])]
    text, first, failed, last = asyncio.run(outcomes(make_engine(models["dense"]), tasks))
    assert len(text) == 12 and first == last == []
    assert isinstance(failed, ApiError) and "the server failed" in str(failed)
    assert "secret of the inside" in caplog.text


@pytest.mark.parametrize("fields", [{}, {"scores_prompt": True}], ids=["at once", "after its scores"])
def test_a_fault_in_joining_fails_that_text_alone(models, tokenizer, monkeypatch, fields):
    add = Batch.add

    def fail(self, generation):
        if generation.task.prompt == PROMPTS[2]:
            raise RuntimeError("secret of the inside")
        add(self, generation)

    monkeypatch.setattr(Batch, "add", fail)
    tasks = [task(tokenizer, PROMPTS[1]), task(tokenizer, PROMPTS[2], **fields), task(tokenizer, PROMPTS[0], **fields)]
    text, failed, other = asyncio.run(outcomes(make_engine(models["dense"]), tasks))
    assert len(text) == len(other) == 12 and isinstance(failed, ApiError)


def test_a_fault_with_a_draft_model_fails_that_text_alone(models, tokenizer, monkeypatch, tmp_path):
    engine = make_engine(models["dense"], draft=open_model(tmp_path / "draft", tokenizer, "ternary"))
    monkeypatch.setattr(Batch, "take_over", lambda *given: 1 / 0)
    plain = {"logprobs": None}

    async def ask():
        engine.start()
        drafted = engine.submit(task(tokenizer, PROMPTS[0], max_tokens=200, **plain))[0].events()
        await anext(drafted)
        found = await tokens_of(engine.submit(task(tokenizer, PROMPTS[1]))[0])
        with pytest.raises(ApiError, match="the server failed"):
            async for _ in drafted:
                pass
        engine.stop()
        engine.join()
        return found

    assert len(asyncio.run(ask())) == 12


def test_a_fault_of_one_model_fails_no_text_of_another(models, tokenizer, monkeypatch):
    def fail(ids, cache):
        raise RuntimeError("secret of the inside")

    other = Slow(models["dense"], 0)
    engine = MlxEngine({None: models["dense"], "other": other}, **ENGINE)
    monkeypatch.setattr(other, "_model", fail)
    tasks = [task(tokenizer, PROMPTS[1]), task(tokenizer, PROMPTS[2], adapter="other")]
    text, failed = asyncio.run(outcomes(engine, tasks))
    assert len(text) == 12 and isinstance(failed, ApiError)


def test_a_cache_that_cannot_be_kept_ends_no_text(models, tokenizer, monkeypatch, caplog):
    monkeypatch.setattr("mlxlm.server.prompt_store.PromptStore.add", lambda *given: 1 / 0)
    for variant in ("dense", "hybrid"):
        found = asyncio.run(outcomes(make_engine(models[variant]), [task(tokenizer, PROMPTS[1])]))
        assert len(found[0]) == 12
    assert "a cache was not kept" in caplog.text


def test_an_engine_that_cannot_go_on_says_so(models, tokenizer, monkeypatch):
    engine = make_engine(models["dense"])

    def fail():
        raise MemoryError

    monkeypatch.setattr(engine, "step", fail)
    monkeypatch.setattr(engine, "reset", fail)

    async def ask():
        engine.start()
        with pytest.raises(ApiError, match="the server is stopping"):
            await tokens_of(engine.submit(task(tokenizer, PROMPTS[0]))[0])
        engine.join()

    asyncio.run(ask())
    assert not engine.is_alive
