"""MLX's integers of 2 to 8 bits against MLX itself, and the settings that name them."""

import mlx.core as mx
import numpy as np
import pytest

from jaxlm.common.formats.mlx_affine import BITS, GROUP_SIZES, AffineForm, affine_form, dequantize_affine


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group_size", GROUP_SIZES)
def test_weights_are_dequantized_as_in_mlx(bits, group_size):
    weight = mx.array(np.random.default_rng(0).standard_normal((6, 384)).astype(np.float32))
    parts = mx.quantize(weight, group_size=group_size, bits=bits)
    form = AffineForm(bits, group_size)
    assert form.columns(parts[0].shape[1]) == 384 and form.words(384) == parts[0].shape[1]
    expected = np.array(mx.dequantize(*parts, group_size=group_size, bits=bits))
    np.testing.assert_array_equal(dequantize_affine(*map(np.array, parts), form), expected)


def test_a_module_may_have_settings_of_its_own():
    settings = {
        "bits": 2,
        "group_size": 128,
        "mode": "affine",
        "model.a": {"bits": 4, "group_size": 64},
        "model.b": True,
    }
    assert affine_form(settings, "model.a") == AffineForm(4, 64)
    assert affine_form(settings, "model.b") == affine_form(settings, "model.c") == AffineForm(2, 128)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 2, "mode": "nvfp4"}, r"mode: found 'nvfp4', expected 'affine'; .*mlx_lm.convert --dequantize"),
        ({"bits": 1, "group_size": 128}, r"bits: found 1, a binary model, .* not ternary"),
        ({"bits": 7}, r"found bits 7 and group_size 64, expected bits of 2, 3, 4, 5, 6, 8"),
        ({"bits": 2, "group_size": 48}, r"group_size 48, .* a group_size of 32, 64, 128"),
        ({"bits": 2, "rotation": 128}, r"unknown key 'rotation' with value 128"),
    ],
)
def test_other_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        affine_form(settings, "model.norm")
