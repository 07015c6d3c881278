import dataclasses

import jax
import numpy as np
import pytest

from jaxlm.checkpoints.export import stored_tensor_reader
from jaxlm.checkpoints.weights import artifact_weights, stack_weights, ternary_weights, tree_weights
from jaxlm.common.architecture.parameters import parameters
from jaxlm.common.artifact.artifact import save_artifact
from jaxlm.common.formats.open_model import open_model
from jaxlm.model.layers import QuantizedRows
from jaxlm.ops.ternary_linear import TernaryWeight
from tests.golden.golden_models import golden_weights


@pytest.fixture
def config(tiny_config):
    return dataclasses.replace(tiny_config, token_mixer=("mlgru", "attention"), num_layers=4, embedding="int8")


def test_weights_of_a_packed_artifact_and_of_its_tree_are_the_same(config, tmp_path):
    latent = golden_weights(config)
    read = stored_tensor_reader(lambda parameter: latent[parameter.name], config, "packed")
    save_artifact(tmp_path / "packed", config, "packed", read)
    stored = artifact_weights(open_model(tmp_path / "packed"))
    tree = tree_weights(stack_weights(stored, parameters(config)))
    quantized = ternary_weights(lambda parameter: latent[parameter.name], config)
    kinds = {"float": np.ndarray, "ternary": TernaryWeight, "int8": QuantizedRows}
    for parameter in parameters(config):
        found = stored(parameter)
        assert isinstance(found, kinds[parameter.storage])
        jax.tree.map(np.testing.assert_array_equal, found, tree(parameter))
        if parameter.storage != "int8":
            jax.tree.map(np.testing.assert_array_equal, found, quantized(parameter))
