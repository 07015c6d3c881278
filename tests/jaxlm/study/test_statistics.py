import pytest

from jaxlm.study.statistics import paired_difference, sample


def test_the_interval_is_students():
    # By tables, t of 95 % (two-sided) and 2 degrees of freedom is 4.302653: 4.302653 * 0.1 / sqrt(3).
    found = sample([1.0, 1.1, 1.2])
    assert found is not None and found.high is not None
    assert found.mean == pytest.approx(1.1) and found.deviation == pytest.approx(0.1)
    assert found.half_width == pytest.approx(0.248414, abs=1e-6)
    assert found.high == pytest.approx(1.348414, abs=1e-6)
    assert str(found) == "+1.1000 ± 0.2484"


def test_one_number_has_no_interval_and_none_no_sample():
    found = sample([2.0])
    assert found is not None and (found.deviation, found.half_width, found.high) == (None, None, None)
    assert str(found) == "+2.0000"
    assert sample([]) is None


def test_pairs_take_off_what_the_seed_does_to_both():
    base = {0: 1.0, 1: 2.0, 2: 9.0}
    found = paired_difference({0: 1.5, 1: 2.5, 7: 0.0}, base)  # seed 7 has no pair
    assert found is not None and found.count == 2
    assert found.mean == pytest.approx(0.5) and found.half_width == pytest.approx(0.0, abs=1e-12)
