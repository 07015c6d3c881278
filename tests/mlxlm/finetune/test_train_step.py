import dataclasses

import mlx.core as mx
import numpy as np
import pytest

from jaxlm.common.artifact.blank_artifact import save_blank_artifact
from jaxlm.common.formats.open_model import open_model
from jaxlm.common.run.optimizer_config import OptimizerConfig
from mlxlm.finetune.optimizer import AdamW
from mlxlm.finetune.qat import latent_model
from mlxlm.finetune.train_step import TrainStep
from mlxlm.model.trees import flat_arrays


@pytest.fixture(autouse=True)
def enabled():
    yield
    mx.enable_compile()


def test_a_compiled_step_in_micro_batches_with_checkpointed_blocks_is_the_plain_step(tiny_config, tmp_path):
    config = dataclasses.replace(tiny_config, num_layers=1, linear="dense", sub_norm=False)
    save_blank_artifact(tmp_path / "model", config, seed=1)
    ids = mx.random.randint(0, 300, (4, 9), key=mx.random.key(0))
    rows = mx.zeros((4, 8), mx.int32)
    batch = {"inputs": ids[:, :-1], "targets": ids[:, 1:], "segment_ids": rows, "loss_mask": rows == 0}

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
