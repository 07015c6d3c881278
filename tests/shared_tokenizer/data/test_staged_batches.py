import json

import grain
import numpy as np
import pytest

from shared_tokenizer.data.staged_batches import StagedBatches

STAGES = ((0, 100), (2, 200), (5, 300))


def opened():
    def stream(first):
        return iter(grain.MapDataset.source(np.arange(first, first + 50)).batch(2).to_iter_dataset())

    return StagedBatches([(begin, lambda first=first: stream(first)) for begin, first in STAGES])


def firsts(batches, count):
    return [int(next(batches)[0]) for _ in range(count)]


def test_every_stage_begins_with_the_first_batch_of_its_stream():
    assert firsts(opened(), 7) == [100, 102, 200, 202, 204, 300, 302]


@pytest.mark.parametrize("taken", range(7))
def test_a_place_is_the_same_in_a_new_process(taken):
    first, second = opened(), opened()
    firsts(first, taken)
    second.set_state(json.loads(json.dumps(first.get_state())))
    assert firsts(second, 3) == firsts(first, 3)
