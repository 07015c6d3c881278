import math

import numpy as np
import pytest

from jaxlm.common.ternary_health import FLIPS, ZEROS, by_layer, health_metrics, layer_health


def test_shares_of_layers_add_up_to_the_whole():
    sizes = np.array([8, 2, 10], np.float32)  # of two blocks, and of what is outside of them
    found = health_metrics(np.array([4, 1, 0]), np.array([0, 2, 5]), sizes)
    assert found[ZEROS] == pytest.approx(5 / 20) and found[FLIPS] == pytest.approx(7 / 20)
    assert found[by_layer(ZEROS)].tolist() == [0.5, 0.5] and found[by_layer(FLIPS)].tolist() == [0, 1]


def test_blocks_without_trained_codes_have_no_share():
    with np.errstate(invalid="ignore"):
        found = health_metrics(np.array([0, 1, 0]), np.array([0, 2, 0]), np.array([0, 4, 0], np.float32))
    first, second = found[by_layer(FLIPS)]
    assert math.isnan(first) and second == 0.5 == found[FLIPS]
    head_alone = health_metrics(np.array([0, 0, 3]), np.array([0, 0, 1]), np.array([0, 0, 4], np.float32))
    assert head_alone.keys() == {ZEROS, FLIPS}


def test_health_by_layer_is_a_matrix():
    lines = [{"step": step, "tokens": 8 * step, by_layer(FLIPS): [0.1, None]} for step in range(1, 201)]
    found = layer_health(lines, FLIPS)
    assert found is not None and found.places[:2] == [1, 4] and len(found.places) <= 80
    assert [set(row) for row in found.shares] == [{0.1}, {None}]
    assert {len(row) for row in found.shares} == {len(found.places)}
    assert layer_health(lines[:3], FLIPS, "tokens").places == [8, 16, 24]
    assert layer_health([{"step": 1, FLIPS: 0.1}], FLIPS) is None
    assert layer_health([{"step": 1, by_layer(FLIPS): ["<b>", True, -1]}], FLIPS).shares == [[None], [None], [None]]
