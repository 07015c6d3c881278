"""Texts that are generated together are those that are generated alone."""

import asyncio

import mlx.core as mx
import numpy as np
import pytest

from jaxlm.common.openai_api.errors import ApiError
from jaxlm.common.openai_api.reply_text import ReplyText
from jaxlm.common.openai_api.tasks import Finish, Piece, Task
from jaxlm.common.sampling import Sampling
from mlxlm.adapters.adapter_directory import save_adapters
from mlxlm.adapters.adapters import AdapterConfig, add_adapters
from mlxlm.generate import generate
from mlxlm.load import adapted
from mlxlm.server.engine import MlxEngine
from mlxlm.server.prompt_scores import score_prompts
from shared_tokenizer.tokenizers.tokenizer import TextStream
from tests.mlxlm.server.served_models import make_engine, open_model

PROMPTS = [
    np.random.default_rng(seed).integers(10, 300, length).tolist() for seed, length in enumerate((3, 40, 9, 70, 1, 25))
]
# Logits that are nearer than this are rounded differently alone and in a batch.
NEAR = 1e-3


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
    options = {"max_queue": 8, "max_batch": 4, "timeout_s": 60, "prompt_cache_bytes": 1 << 24, "prefill_step_size": 64}
    engine = MlxEngine({None: base, "tuned": other}, **options)
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


def test_texts_go_on_between_prompts_that_are_scored(models, tokenizer, monkeypatch):
    monkeypatch.setattr("mlxlm.server.engine.SCORED_TOKENS", 1)
    calls = []
    monkeypatch.setattr(
        "mlxlm.server.engine.score_prompts",
        lambda model, engine, prompts: calls.append(len(prompts)) or score_prompts(model, engine, prompts),
    )
    engine = make_engine(models["dense"], max_batch=8)
    tasks = [task(tokenizer, PROMPTS[0]), *(scoring(tokenizer, prompt) for prompt in PROMPTS[1:4])]
    assert [len(tokens) for tokens in answers(engine, tasks)] == [12, 0, 0, 0]
    assert calls == [1, 1, 1]


def test_a_fault_in_the_scores_of_a_prompt_fails_that_prompt_alone(models, tokenizer, monkeypatch, caplog):
    def fail(*arguments):
        raise RuntimeError("secret of the inside")

    monkeypatch.setattr("mlxlm.server.engine.score_prompts", fail)

    async def ask(engine):
        engine.start()
        text, scored = (engine.submit(each)[0] for each in (task(tokenizer, PROMPTS[0]), scoring(tokenizer, [1, 40])))
        with pytest.raises(ApiError, match="the server failed"):
            await tokens_of(scored)
        found = await tokens_of(text)
        engine.stop()
        engine.join()
        return found

    assert len(asyncio.run(ask(make_engine(models["dense"])))) == 12
    assert "secret of the inside" in caplog.text


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
