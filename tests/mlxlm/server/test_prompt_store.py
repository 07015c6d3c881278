import mlx.core as mx
import numpy as np
import pytest

from mlxlm.server.prompt_store import PromptStore
from tests.mlxlm.server.served_models import open_model

IDS = [1, 40, 41, 42, 43, 44]


def seen(model, ids):
    cache = model.make_cache()
    model(mx.array([ids]), cache)
    return cache


@pytest.fixture(scope="module", params=["dense", "mlgru", "hybrid"])
def model_and_kind(request, tokenizer, tmp_path_factory):
    model = open_model(tmp_path_factory.mktemp("models") / request.param, tokenizer, request.param)
    return model, request.param


def test_what_was_seen_serves_prompts_that_begin_alike(model_and_kind):
    model, kind = model_and_kind
    store = PromptStore(1 << 20)
    store.add(IDS, seen(model, IDS))
    can_trim = kind == "dense"
    assert store.nearest([*IDS, 7])[1] == 6
    assert store.nearest([*IDS[:4], 7, 8])[1] == (4 if can_trim else 0)
    assert store.nearest(IDS)[1] == (5 if can_trim else 0)  # one is left, to go on from
    assert store.nearest([2, 3]) == (None, 0)


def test_a_copy_goes_on_as_the_model_would_and_leaves_the_original(model_and_kind):
    model, kind = model_and_kind
    store = PromptStore(1 << 20)
    store.add(IDS, seen(model, IDS))
    for prompt in ([*IDS, 7, 9], [*IDS, 50, 51, 52], [*IDS, 7, 9]):
        cache, length = store.nearest(prompt)
        found = np.array(model(mx.array([prompt[length:]]), cache))[0, -1]
        expected = np.array(model(mx.array([prompt])))[0, -1]
        np.testing.assert_allclose(found, expected, atol=1e-4 if kind == "dense" else 3e-2)


def test_memory_is_bounded_and_the_least_used_goes_first(model_and_kind):
    model, _ = model_and_kind
    store = PromptStore(1 << 30)
    store.add([1, *IDS], seen(model, [1, *IDS]))
    one = store.num_bytes
    store = PromptStore(2 * one)
    for first in (1, 2):
        store.add([first, *IDS], seen(model, [first, *IDS]))
    store.nearest([1, *IDS, 9])
    store.add([3, *IDS], seen(model, [3, *IDS]))
    assert [store.nearest([first, *IDS, 9])[1] for first in (1, 2, 3)] == [7, 0, 7]
    assert store.num_bytes == 2 * one
    nothing = PromptStore(0)
    nothing.add(IDS, seen(model, IDS))
    assert nothing.nearest([*IDS, 7]) == (None, 0) and nothing.num_bytes == 0


def test_attention_keeps_no_beginning_of_what_it_keeps(tokenizer, tmp_path):
    model = open_model(tmp_path / "dense", tokenizer)
    store = PromptStore(1 << 20)
    store.add(IDS[:3], seen(model, IDS[:3]))
    store.add(IDS, seen(model, IDS))
    one = PromptStore(1 << 20)
    one.add(IDS, seen(model, IDS))
    assert store.num_bytes == one.num_bytes


def test_models_share_the_bytes_and_find_only_what_is_theirs(model_and_kind):
    model, _ = model_and_kind
    store = PromptStore(1 << 30)
    store.add(IDS, seen(model, IDS), "one")
    one = store.num_bytes
    assert store.nearest([*IDS, 7], "other") == (None, 0) and store.nearest([*IDS, 7], "one")[1] == 6
    store = PromptStore(2 * one)
    for owner, first in (("one", 1), ("one", 2), ("other", 1)):  # one model alone may fill what others do not need
        store.add([first, *IDS[1:]], seen(model, [first, *IDS[1:]]), owner)
    found = [store.nearest([first, *IDS[1:], 7], owner)[1] for owner, first in (("one", 1), ("one", 2), ("other", 1))]
    assert found == [0, 6, 6] and store.num_bytes == 2 * one
    store.add(IDS, seen(model, IDS), "other")  # in the place of the same ids, not beside them
    assert store.num_bytes == 2 * one
