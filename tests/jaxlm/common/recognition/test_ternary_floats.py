"""Float matrices that are ternary, and those that are not: every granularity, width of floats, and share of zeros."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.common.recognition.scales import (
    Recognition,
    common_scale_dtype,
    common_scale_per,
    recognize_scales,
)
from jaxlm.common.recognition.ternary_floats import recognize, ternary_form

SHAPE = (24, 256)
GRIDS = {
    "tensor": (1, 1),
    "row_blocks:2": (2, 1),
    "row_blocks:3": (3, 1),
    "row": (24, 1),
    "group:128": (24, 2),
    "group:64": (24, 4),
    "group:32": (24, 8),
}
WIDTHS = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}


def ternary(scale_per, width="float32", seed=0, share_of_zeros=0.4):
    """Return codes, scales and their product, with scales of a width."""
    rng = np.random.default_rng(seed)
    codes = rng.choice(np.array([-1, 0, 1], np.int8), SHAPE, p=[0.3, share_of_zeros, 0.7 - share_of_zeros])
    blocks, groups = GRIDS[scale_per]
    scales = rng.uniform(0.01, 0.9, (blocks, groups)).astype(WIDTHS[width]).astype(np.float32)
    spread = scales.repeat(SHAPE[0] // blocks, 0).repeat(SHAPE[1] // groups, 1)
    return codes, scales, codes * spread


def found(weight, rows=5) -> Recognition:
    return recognize((weight[start : start + rows] for start in range(0, len(weight), rows)), weight.shape)


@pytest.mark.parametrize("scale_per", GRIDS)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_fewest_scales_are_found_and_codes_and_scales_are_exact(scale_per, width):
    codes, scales, weight = ternary(scale_per, width)
    recognition = found(weight)
    assert recognition.is_exact and recognition.scale_per == scale_per
    assert common_scale_dtype([recognition], "row") == width
    assert recognition.zeros == np.mean(codes == 0)
    got_codes, got_scales = ternary_form([weight], SHAPE, GRIDS[scale_per])
    np.testing.assert_array_equal(got_codes, codes)
    np.testing.assert_array_equal(got_scales, scales)


def test_what_has_fewer_scales_fits_more_of_them_but_not_the_other_way_round():
    order = ("tensor", "row", "group:128", "group:64", "group:32")
    for index, scale_per in enumerate(order):
        recognition = found(ternary(scale_per)[2])
        assert [recognition.fits(other) for other in order] == [other in order[index:] for other in order]
    blocks = found(ternary("row_blocks:2")[2])
    fits = [name for name in ("tensor", "row_blocks:2", "row_blocks:3", "row_blocks:4", "row") if blocks.fits(name)]
    assert fits == ["row_blocks:2", "row_blocks:4", "row"]


@settings(max_examples=30, deadline=None)
@given(
    scale_per=st.sampled_from(list(GRIDS)),
    seed=st.integers(0, 2**16),
    rows=st.integers(1, 24),
    empty=st.lists(st.integers(0, 24 * 8 - 1), max_size=60),
)
def test_groups_of_zeros_are_seen_through(scale_per, seed, rows, empty):
    _, _, weight = ternary(scale_per, "float16", seed)
    cells = weight.reshape(-1, 32)
    cells[empty] = 0
    recognition = found(weight, rows)
    assert recognition.is_exact and recognition.fits(scale_per)
    codes, scales = ternary_form([weight], SHAPE, GRIDS[scale_per])
    blocks, groups = GRIDS[scale_per]
    spread = scales.repeat(SHAPE[0] // blocks, 0).repeat(SHAPE[1] // groups, 1)
    np.testing.assert_array_equal(codes * spread, weight)


@pytest.mark.parametrize("scale_per", ["tensor", "row", "group:64"])
def test_numbers_that_were_rounded_are_told_from_exact_ones(scale_per):
    codes, scales, weight = ternary(scale_per)
    noise = 1 + np.random.default_rng(1).uniform(-(2.0**-9), 2.0**-9, SHAPE).astype(np.float32)
    recognition = found((weight * noise).astype(ml_dtypes.bfloat16).astype(np.float32))
    assert recognition.is_ternary and not recognition.is_exact and recognition.fits(scale_per)
    assert 0 < recognition.deviation < 2.0**-7
    got_codes, got_scales = ternary_form([weight * noise], SHAPE, GRIDS[scale_per])
    np.testing.assert_array_equal(got_codes, codes)
    np.testing.assert_allclose(got_scales, scales, rtol=2.0**-8)


def hadamard(size):
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / np.sqrt(size)


def rotated(block, width):
    weight = ternary("group:128")[2].reshape(-1, 256 // block, block) @ hadamard(block)
    return weight.reshape(SHAPE).astype(WIDTHS[width]).astype(np.float32)


def levels(*values, scale=0.125):
    return np.random.default_rng(0).choice(np.array(values, np.float32), SHAPE) * np.float32(scale)


def sparse():
    rng = np.random.default_rng(0)
    return rng.standard_normal(SHAPE) * (rng.random(SHAPE) < 0.03)


@pytest.mark.parametrize(
    ("weight", "reason"),
    [
        (np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32), "dense"),
        (levels(-1, 1), "binary"),
        (levels(-3, -1, 1, 3), "quantized to 4 levels"),
        (levels(-1, 0, 1, 2), "quantized to 4 levels"),
        (levels(*range(-8, 8)), "quantized to 16 levels"),
        (levels(-1, 0, 1) + np.float32(0.01), "quantized to 3 levels"),
        (rotated(128, "float32"), "Hadamard variant"),
        (rotated(128, "bfloat16"), "Hadamard variant"),
        (rotated(256, "float16"), "Hadamard variant"),
        (sparse(), "dense"),
    ],
)
def test_other_matrices_are_not_ternary(weight, reason):
    recognition = found(weight.astype(np.float32))
    assert (recognition.reason, recognition.is_ternary, recognition.scale_per) == (reason, False, "")
    assert not any(recognition.fits(scale_per) for scale_per in GRIDS)


def test_a_number_that_is_not_finite_and_missing_rows_are_named():
    weight = ternary("tensor")[2].copy()
    weight[3, 4] = np.nan
    assert found(weight).reason == "not finite"
    with pytest.raises(ValueError, match=r"found 1,280 numbers, expected 24 x 256"):
        recognize([ternary("tensor")[2][:5]], SHAPE)


def test_a_matrix_that_is_not_ternary_with_the_scales_named_has_no_ternary_form():
    with pytest.raises(ValueError, match=r"not ternary with 24 x 1 scales"):
        ternary_form([ternary("group:64")[2]], SHAPE, (24, 1))


def test_a_matrix_of_zeros_fits_all_scales():
    recognition = found(np.zeros(SHAPE, np.float32))
    assert recognition.is_exact and recognition.scale_per == "tensor" and recognition.zeros == 1
    assert all(recognition.fits(scale_per) for scale_per in GRIDS)
    codes, scales = ternary_form([np.zeros(SHAPE, np.float32)], SHAPE, (24, 4))
    assert not codes.any() and not scales.any()


@pytest.mark.parametrize("scale_per", GRIDS)
@pytest.mark.parametrize("cell", [32, 64, 128, 256])
def test_scales_alone_tell_the_same(scale_per, cell):
    blocks, groups = GRIDS[scale_per]
    if SHAPE[1] // groups < cell:
        return  # such cells hold several scales
    scales = ternary(scale_per)[1].repeat(SHAPE[0] // blocks, 0).repeat(SHAPE[1] // cell // groups, 1)
    scales[::7, -1] = 0
    recognition = recognize_scales(scales, SHAPE)
    assert recognition.scale_per == scale_per
    floats = found(ternary(scale_per)[2])
    for other in GRIDS:
        assert recognition.fits(other) == floats.fits(other), other


def test_a_model_has_the_fewest_scales_that_fit_all_its_matrices():
    def common(*names):
        return common_scale_per([found(ternary(name)[2]) for name in names])

    assert common("tensor", "tensor") == "tensor"
    assert common("tensor", "row_blocks:2", "row_blocks:2") == "row_blocks:2"
    assert common("row_blocks:2", "row_blocks:3") == "row"
    assert common("tensor", "group:128", "row") == "group:128"
    assert common("group:128", "group:64") == "group:64"
    dense = recognize([levels(-1, 1)], SHAPE)
    assert common_scale_per([dense, found(ternary("tensor")[2])]) is None
