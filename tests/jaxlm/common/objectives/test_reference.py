"""The stored log-probabilities under a reference: computed once, used again, computed anew with a reason."""

import numpy as np
import pytest

from jaxlm.common.objectives.reference import pair_count, reference_column
from shared_tokenizer.data.data_sets import DataSets
from tests.conftest import flipped_bit, prepare_pairs


@pytest.fixture
def sets(tmp_path, tokenizer):
    return DataSets.open([prepare_pairs(tmp_path / "pairs", 30, tokenizer)], 32, pairs=True)


def column(directory, sets, origin, log_probs=None):
    """Return the column, the lines that were logged, and True if it was computed."""
    lines, computed = [], []

    def factory():
        computed.append(True)
        return log_probs or (lambda batch: np.stack([batch["pair"], -batch["pair"]], axis=1) + 0.5)

    found = reference_column(directory, origin, sets, 4, factory, is_writer=True, log=lines.append)
    return found, lines, bool(computed)


def test_a_column_holds_every_pair_in_order_and_is_used_again(sets, tmp_path):
    count = pair_count(sets)
    assert count == 30 and len(sets.val[0]) > 0
    found, lines, computed = column(tmp_path / "reference", sets, {"reference": "a"})
    assert computed and lines == ["reference log-probabilities of 30 pairs ..."]
    np.testing.assert_array_equal(found, np.stack([np.arange(30), -np.arange(30)], axis=1) + np.float32(0.5))
    again, lines, computed = column(tmp_path / "reference", sets, {"reference": "a"})
    assert not computed and lines == []
    np.testing.assert_array_equal(again, found)


def test_a_column_of_another_model_or_a_damaged_one_is_computed_anew_with_the_reason(sets, tmp_path):
    column(tmp_path / "reference", sets, {"reference": "a"})
    _, lines, computed = column(tmp_path / "reference", sets, {"reference": "b"})
    assert computed and lines[0].endswith("is of reference a, expected b; it is computed anew")
    with flipped_bit([tmp_path / "reference" / "log_probs.npy"], np.random.default_rng(0)):
        _, lines, computed = column(tmp_path / "reference", sets, {"reference": "b"})
    assert computed and "is damaged" in lines[0]


def test_numbers_that_are_not_finite_are_refused_and_not_kept(sets, tmp_path):
    def broken(batch):
        return np.where(batch["pair"][:, None] == 5, np.nan, np.zeros((4, 2)))

    with pytest.raises(ValueError, match="log-probability of pair 5 that is not finite"):
        column(tmp_path / "reference", sets, {"reference": "a"}, broken)
    assert not (tmp_path / "reference").exists()
