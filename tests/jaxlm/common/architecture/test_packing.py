import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.common.architecture import packing


@given(st.integers(1, 13), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_pack_and_unpack_are_inverse(rows, columns, seed):
    codes = np.random.default_rng(seed).integers(-1, 2, (rows, columns)).astype(np.int8)
    packed = packing.pack(codes)
    assert packed.shape == (packing.packed_rows(rows), columns)
    blocks = [codes[start : start + 3] for start in range(0, rows, 3)]
    np.testing.assert_array_equal(packing.pack_blocks(blocks, codes.shape), packed)
    np.testing.assert_array_equal(packing.unpack(packed, rows), codes)


def test_packed_layout_is_four_planes_of_rows():
    codes = np.array([[-1], [0], [1], [0], [1], [1], [-1], [0]], np.int8)
    # Two packed rows; row 0 holds matrix rows 0, 2, 4, 6 in bits 0-1, 2-3, 4-5, 6-7.
    assert packing.pack(codes).tolist() == [[0 | 2 << 2 | 2 << 4 | 0 << 6], [1 | 1 << 2 | 2 << 4 | 1 << 6]]


def test_pack_refuses_other_codes_and_unpack_refuses_a_three():
    with pytest.raises(ValueError, match=r"found -1\.\.2"):
        packing.pack(np.array([[-1, 2]], np.int8))
    with pytest.raises(ValueError, match="value 3"):
        packing.unpack(np.array([[0b00001100]], np.uint8), 4)


@given(st.integers(1, 5), st.integers(1, 200), st.integers(0, 2**32 - 1))
def test_pack_affine_and_unpack_affine_are_inverse(rows, columns, seed):
    codes = np.random.default_rng(seed).integers(-1, 2, (rows, columns)).astype(np.int8)
    words = packing.pack_affine(codes)
    assert words.dtype == np.uint32 and words.shape == (rows, packing.affine_words(columns))
    np.testing.assert_array_equal(packing.unpack_affine(words, columns), codes)


def test_mlx_dequantizes_the_affine_layout():
    codes = np.random.default_rng(0).integers(-1, 2, (8, 256)).astype(np.int8)
    size = packing.affine_group_size(256)
    scales = mx.full((8, 256 // size), 0.375)
    dequantized = mx.dequantize(mx.array(packing.pack_affine(codes)), scales, -scales, group_size=size, bits=2)
    np.testing.assert_array_equal(np.array(dequantized), codes * np.float32(0.375))


def test_unpack_affine_refuses_a_three():
    with pytest.raises(ValueError, match="value 3"):
        packing.unpack_affine(np.array([[0b11 << 20, 0]], np.uint32), 20)
