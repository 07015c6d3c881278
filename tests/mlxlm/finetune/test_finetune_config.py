import pytest

from jaxlm.common.command_line import parse
from jaxlm.common.run.optimizer_config import OptimizerConfig
from mlxlm.finetune.finetune_config import FinetuneConfig

NEEDED = {"model": "model", "data": ["data"], "output_dir": "run"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_train_steps": 0}, "num_train_steps: found 0, expected at least 1"),
        ({"loss_chunks": -1}, "loss_chunks: found -1, expected 0 or more"),
        ({"num_epochs": 0}, "num_epochs: found 0, expected more than 0"),
        ({"num_epochs": float("inf")}, "num_epochs: found inf, expected more than 0 and finite"),
        ({"num_train_steps": 3, "num_epochs": 1}, "found both, expected one of the two"),
        ({"batch_size": 4, "grad_accumulation_steps": 3}, "expected a divisor of batch_size 4"),
        ({"rank": 0}, "rank: found 0, expected at least 1"),
        ({"method": "qat", "rank": 4}, "rank: has no effect with method 'qat', only with 'lora'"),
        ({"method": "full", "keys": ["q_proj"]}, "keys: has no effect with method 'full'"),
        ({"quantize": "ternary"}, "quantize: has no effect with method 'lora', only with 'qat'"),
        ({"method": "qat", "quantize_steps": 3}, "quantize_steps: has no effect without quantize"),
        (
            {"method": "qat", "quantize": "ternary", "quantize_steps": -1},
            "quantize_steps: found -1, expected 0 or more",
        ),
        ({"method": "qat", "quantize": "ternary", "num_layers": 1}, "num_layers: found 1 with quantize 'ternary'"),
        ({"teacher_weight": 0.4}, "teacher_weight: has no effect without teacher"),
        ({"teacher": "t", "teacher_weight": 0}, "teacher_weight, teacher_relations_weight: found 0 for both"),
        ({"teacher_relations_weight": 1.0}, "teacher_relations_weight: has no effect without teacher"),
        ({"teacher": "t", "teacher_weight": 1.1}, "teacher_weight: found 1.1, expected 0 to 1"),
        ({"teacher": "t", "teacher_layer": 1}, "teacher_layer: has no effect without teacher_relations_weight"),
        ({"teacher": "t", "teacher_temperature": 0}, "teacher_temperature: found 0, expected more than 0"),
        ({"optimizer": OptimizerConfig(name="muon")}, "optimizer.name: found 'muon' with method 'lora'"),
        ({"keep_last_checkpoints": 0}, "keep_last_checkpoints: found 0, expected at least 1"),
        ({"seed": -1}, "seed: found -1"),
    ],
)
def test_settings_out_of_range_or_without_effect_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        FinetuneConfig(**NEEDED | settings)


def test_flags_are_the_fields():
    flags = ["--model", "m", "--data", "a", "b", "--output_dir", "o", "--keys", "q_proj", "v_proj", "--rank", "4"]
    found = parse(FinetuneConfig, [*flags, "--optimizer.learning_rate", "0.1"])
    assert (found.data, found.keys, found.rank) == (["a", "b"], ["q_proj", "v_proj"], 4)
    assert found.optimizer.learning_rate == 0.1
    assert parse(FinetuneConfig, [*flags[:7], "--method", "qat", "--quantize", "ternary"]).quantize == "ternary"
    with pytest.raises(ValueError, match="learning_rats"):
        parse(FinetuneConfig, [*flags, "--learning_rats", "0.1"])
