import asyncio
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import numpy as np
import pytest

from jaxlm.common.openai_api.reply_text import ReplyText
from jaxlm.common.openai_api.tasks import Finish, Task
from jaxlm.common.sampling import Sampling
from mlxlm.server.cache_room import CacheRoom, cache_room, model_bytes
from shared_tokenizer.tokenizers.tokenizer import TextStream
from tests.mlxlm.server.served_models import Slow, make_engine, open_model


@pytest.fixture(scope="module")
def models(tokenizer, tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    return {variant: open_model(place / variant, tokenizer, variant) for variant in ("dense", "hybrid", "mlgru")}


@pytest.mark.parametrize("variant", ["dense", "hybrid", "mlgru"])
def test_the_room_counts_what_a_cache_holds(models, variant):
    model = models[variant]
    room = cache_room(model, 1000, memory_bytes=model_bytes(model) + 5000)
    assert room.max_bytes == 2000
    cache = model.make_cache()
    mx.eval(model(mx.array([[1] * 256, [2] * 256]), cache))  # the keys of 256 tokens are allocated at once
    assert room.size(2, 256) == sum(layer.nbytes for layer in cache)


def test_the_room_of_this_machine_is_said(models):
    room = cache_room(models["dense"], 0)
    assert room.max_bytes > 1 << 28 and room.size(4, 256) < room.max_bytes
    assert room.summary(4, 256).startswith("caches of texts: at most ") and "wait" not in room.summary(4, 256)
    assert CacheRoom(1 << 30, 1 << 20, 0).summary(4, 512) == (
        "caches of texts: at most 1.00 GiB; 4 texts of 512 tokens need 2.00 GiB, so fewer long ones run together and "
        "the others wait"
    )


def test_texts_wait_for_room_and_one_that_is_too_large_runs_alone(models, tokenizer):
    room = CacheRoom(max_bytes=100, bytes_per_token=1, bytes_per_text=0)
    engine = make_engine(Slow(models["dense"], 0.001), room=room)
    most = 0

    def task(max_tokens):
        reply, sampling = ReplyText(TextStream(tokenizer), []), Sampling(max_tokens=max_tokens)
        return Task(prompt=[1] * 10, sampling=sampling, stop_ids=frozenset(), reply=reply)

    async def ask():
        nonlocal most
        engine.start()
        # 20 tokens each, padded to 20; then one of 130, which needs more than there is.
        generations = [engine.submit(task(tokens))[0] for tokens in (10, 10, 10, 10, 120, 10)]
        ends = []
        for generation in generations:
            async for event in generation.events():
                lengths = [10 + running.task.sampling.max_tokens for running in list(engine.running)]
                most = max(most, len(lengths))
                assert len(lengths) <= 1 or len(lengths) * max(lengths) <= 100
                if isinstance(event, Finish):
                    ends.append(event.completion_tokens)
        engine.stop()
        engine.join()
        return ends

    assert asyncio.run(ask()) == [10, 10, 10, 10, 120, 10]
    assert most > 1


@pytest.mark.parametrize("variant", ["ternary", "mlgru"])
def test_another_thread_computes_with_the_model_afterwards(tokenizer, tmp_path, variant):
    model = open_model(tmp_path / variant, tokenizer, variant)  # which nothing has computed with
    cache_room(model, 0)
    with ThreadPoolExecutor(1) as thread:
        found = thread.submit(lambda: np.array(model(mx.array([[1, 2]])))).result()
    assert found.shape[:2] == (1, 2) and np.isfinite(found).all()
