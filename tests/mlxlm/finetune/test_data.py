import itertools

import numpy as np

from mlxlm.finetune.data import ProcessBatches
from shared_tokenizer.data.batches import BatchOrder, training_batches
from shared_tokenizer.data.data_sets import DataSets
from tests.conftest import prepare_texts


def test_batches_are_those_of_jax_and_go_on_where_they_were(tmp_path, tokenizer):
    sets = DataSets.open([prepare_texts(tmp_path / "data", [f"number {i} " * 20 for i in range(20)], tokenizer)], 8)
    ours = ProcessBatches(sets, 4, seed=1)
    in_jax = iter(training_batches(sets.train, BatchOrder(4, seed=1)))
    for found, expected in itertools.islice(zip(ours, in_jax, strict=True), 5):
        assert found.keys() == expected.keys()
        for name in found:
            np.testing.assert_array_equal(np.array(found[name]), expected[name])
    again = ProcessBatches(sets, 4, seed=1)
    again.set_state(in_jax.get_state())
    np.testing.assert_array_equal(np.array(next(again)["inputs"]), next(in_jax)["inputs"])
