import dataclasses

import mlx.core as mx

from mlxlm.finetune.memory import finetune_memory
from mlxlm.model.language_model import LanguageModel
from mlxlm.model.trees import flat_arrays
from tests.conftest import TINY


def test_the_parts_are_those_of_the_arrays():
    model = LanguageModel(dataclasses.replace(TINY, linear="dense", sub_norm=False))
    trained = {"layers.1.mlp.up_proj.weight": mx.zeros((64, 32)), "layers.1.x": mx.zeros((32,), mx.bfloat16)}
    moments = {"first_moment": trained, "second_moment": trained}
    settings = {"grad_checkpoint": False, "loss_chunks": 1, "num_layers": 2, "is_latent": False}
    found = finetune_memory(model, trained, moments, 128, **settings)
    assert found.weights == sum(array.nbytes for array in flat_arrays(model.parameters()).values())
    assert found.optimizer == 3 * (4 * 64 * 32 + 2 * 32) and found.quantizer == 0
    assert finetune_memory(model, trained, moments, 256, **settings).activations == 2 * found.activations
    for name, value in {"loss_chunks": 4, "num_layers": 1}.items():
        assert finetune_memory(model, trained, moments, 128, **settings | {name: value}).total < found.total
    latent = finetune_memory(model, trained, moments, 128, **settings | {"is_latent": True})
    assert latent.total - found.total == latent.quantizer >= 4 * 64 * 32
    taught = finetune_memory(model, trained, moments, 128, **settings, teacher_bytes=2**30)
    assert taught.total - found.total == 2**30 and "teacher 1.00)" in str(taught)
    assert f"about {found.total / 2**30:.2f} GiB" in str(found)


def test_deep_models_save_memory_by_checkpoints():
    model = LanguageModel(dataclasses.replace(TINY, num_layers=12))
    settings = {"loss_chunks": 1, "num_layers": 12, "is_latent": False}
    whole, saved = (
        finetune_memory(model, {"a": mx.zeros(1)}, {}, 128, grad_checkpoint=is_saved, **settings).activations
        for is_saved in (False, True)
    )
    assert saved < whole / 2
