import dataclasses

import mlx.core as mx
import numpy as np
import pytest

from jaxlm.common.architecture.ternary import quantize_weight
from jaxlm.common.artifact.blank_artifact import save_blank_artifact
from jaxlm.common.formats.open_model import open_model
from jaxlm.common.run.optimizer_config import OptimizerConfig
from jaxlm.common.ternary_health import FLIPS, ZEROS, by_layer
from mlxlm.finetune.optimizer import AdamW
from mlxlm.finetune.qat import latent_model, ternary_paths
from mlxlm.finetune.train_step import TrainStep
from mlxlm.model.trees import flat_arrays


@pytest.fixture(autouse=True)
def enabled():
    yield
    mx.enable_compile()


def make_batch():
    ids = mx.random.randint(0, 300, (4, 9), key=mx.random.key(0))
    rows = mx.zeros((4, 8), mx.int32)
    return {"inputs": ids[:, :-1], "targets": ids[:, 1:], "segment_ids": rows, "loss_mask": rows == 0}


def test_a_compiled_step_in_micro_batches_with_checkpointed_blocks_is_the_plain_step(tiny_config, tmp_path):
    config = dataclasses.replace(tiny_config, num_layers=1, linear="dense", sub_norm=False)
    save_blank_artifact(tmp_path / "model", config, seed=1)
    batch = make_batch()

    def trained(micro_batches, grad_checkpoint):
        model = latent_model(open_model(tmp_path / "model"))
        model.grad_checkpoint = grad_checkpoint
        step = TrainStep(model, AdamW(OptimizerConfig(warmup_steps=0, eps=1.0), 3), micro_batches)
        losses = [float(step(batch)["train/loss"]) for _ in range(2)]
        return losses, flat_arrays(model.parameters())

    losses, parameters = trained(2, True)
    mx.disable_compile()
    expected_losses, expected = trained(1, False)
    assert losses == pytest.approx(expected_losses, rel=1e-6) and losses[1] < losses[0]
    for path, array in expected.items():
        np.testing.assert_allclose(np.array(parameters[path]), np.array(array), atol=1e-6)


def test_codes_are_counted_in_the_blocks_that_are_trained(tiny_config, tmp_path):
    mx.disable_compile()
    save_blank_artifact(tmp_path / "model", tiny_config, seed=1)
    model, form = latent_model(open_model(tmp_path / "model"), num_layers=1), tiny_config.ternary_form
    step = TrainStep(model, AdamW(OptimizerConfig(warmup_steps=0), 3), 1, ternary_paths(tiny_config))

    def codes():
        found = [array for path, array in step.parameters.items() if path in ternary_paths(tiny_config)]
        return np.concatenate([quantize_weight(np.array(array), form, np)[0].ravel() for array in found])

    before, metrics, after = codes(), step(make_batch()), codes()
    assert tiny_config.num_layers == 2 and 0 < np.mean(before != after) < 1
    for name, share in ((ZEROS, np.mean(after == 0)), (FLIPS, np.mean(before != after))):
        frozen, trained = metrics[by_layer(name)].tolist()
        assert np.isnan(frozen) and trained == pytest.approx(share) == metrics[name].item()
