import dataclasses

import jax
import numpy as np
import pytest

from jaxlm.checkpoints.init_from import open_initial
from jaxlm.checkpoints.weights import artifact_params
from jaxlm.common.artifact.artifact import load_artifact
from tests.conftest import LINEAR
from tests.golden.golden_models import write_golden_artifact


@pytest.fixture
def dense(tiny_config, tmp_path):
    write_golden_artifact(tmp_path / "dense", dataclasses.replace(tiny_config, linear="dense"), "latent")
    return tmp_path / "dense"


def test_a_ternary_model_starts_from_a_dense_one_with_a_line_in_the_log(dense, tiny_config):
    logged = []
    opened = open_initial(dense, dataclasses.replace(tiny_config, max_seq_len=128, eos_id=1), logged.append)
    found = artifact_params(opened)
    jax.tree.map(np.testing.assert_array_equal, found, artifact_params(load_artifact(dense)))
    assert logged == ["init_from: the weights are of a model with linear dense; this run trains with ternary"]


def test_its_scales_and_activations_may_be_of_another_form(dense, tiny_config):
    logged = []
    grouped = dataclasses.replace(tiny_config, scale_per="group:32", activation_bits=None)
    open_initial(dense, grouped, logged.append)
    assert [line.rpartition(" ")[2] for line in logged] == ["ternary", "group:32", "None"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rope_theta": 500.0}, r"rope_theta 10000\.0 \(here 500\.0\); .* --model.rope_theta 10000\.0$"),
        (
            {"norm_eps": 1e-6, "activation": "gelu"},
            r"norm_eps 1e-05 .*, activation 'silu' .* --model\.activation silu",
        ),
        ({"num_heads": 2, "num_kv_heads": 1, "head_dim": 16}, "num_heads 4 .*num_kv_heads 2 .*head_dim 8"),
        ({"num_layers": 4}, "num_layers 2"),
        ({"qk_norm": True, "rope_scaling": LINEAR}, "rope_scaling None .*, qk_norm False .*--model.rope_scaling null"),
    ],
)
def test_weights_that_would_mean_something_else_are_refused(dense, tiny_config, changed, message):
    with pytest.raises(ValueError, match=rf"is another model: found {message}"):
        open_initial(dense, dataclasses.replace(tiny_config, **changed), print)


def test_packed_weights_are_refused(tiny_config, tmp_path):
    write_golden_artifact(tmp_path / "packed", tiny_config, "packed")
    with pytest.raises(ValueError, match="is packed and holds no latent weights"):
        open_initial(tmp_path / "packed", tiny_config, print)
