"""Array types of the MLX modules are checked under test (`--jaxtyping-packages` in pyproject.toml)."""

import jaxtyping
import mlx.core as mx
import pytest

from mlxlm.model.linear_recurrence import linear_recurrence
from mlxlm.model.shapes import Hidden, PackedWeight, Tokens


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_every_float_is_a_float(dtype):
    assert isinstance(mx.zeros((2, 3, 4), dtype), Hidden)


@pytest.mark.parametrize("dtype", [mx.int32, mx.uint32, mx.int64])
def test_token_ids_are_integers(dtype):
    assert isinstance(mx.zeros((2, 3), dtype), Tokens)
    assert not isinstance(mx.zeros((2, 3)), Tokens)


def test_packed_words_have_one_type():
    assert isinstance(mx.zeros((2, 3), mx.uint32), PackedWeight)
    assert not isinstance(mx.zeros((2, 3), mx.int32), PackedWeight)


@pytest.mark.parametrize("initial", [mx.zeros((2, 5)), mx.zeros((2, 4), mx.int32)], ids=["width", "dtype"])
def test_an_array_of_another_shape_or_type_is_refused(initial):
    arrays = mx.zeros((2, 3, 4)), mx.zeros((2, 3, 4))
    with pytest.raises(jaxtyping.TypeCheckError, match="initial"):
        linear_recurrence(*arrays, initial)
