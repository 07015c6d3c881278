import pytest

from jaxlm.common.architecture.parameters import block_matrix_parameter_count, is_decayed
from tests.conftest import TINY


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("layers.0.self_attn.q_proj.weight", True),
        ("layers.mlp.down_proj.lora_a", True),
        ("lm_head.weight", True),
        ("embed_tokens.weight", False),
        ("lower_bounds.weight", False),
        ("layers.0.mlp.ffn_sub_norm.weight", False),
        ("norm.weight", False),
        ("layers.0.mlp.rational.numerator", False),
    ],
)
def test_matrices_alone_are_decayed(path, expected):
    assert is_decayed(path.split(".")) is expected


def test_the_matrices_of_blocks_are_counted_without_norms_biases_and_tables():
    queries_and_output, keys_and_values, feed_forward = 2 * 32 * 32, 2 * 16 * 32, 3 * 64 * 32
    assert block_matrix_parameter_count(TINY) == 2 * (queries_and_output + keys_and_values + feed_forward)
