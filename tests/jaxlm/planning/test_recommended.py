import pytest

from jaxlm.common.architecture.presets import preset
from jaxlm.common.command_line import parse
from jaxlm.planning.recommended import flags_of, recommended
from jaxlm.training.train_config import TrainConfig


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize(
    "name", ["ternary-tiny", "dense-5m", "bitnet-700m", "bitnet-2b-4t", "smollm2-360m", "smollm2-1.7b"]
)
def test_the_flags_are_settings_of_a_run(name, optimizer):
    found = recommended(preset(name), 1_000_000, 8, 256, optimizer)
    config = parse(TrainConfig, ["--data_dir", "data", "--output_dir", "run", *flags_of(found)], None)
    assert config.optimizer.name == optimizer
    assert config.num_train_steps == 488 and config.seq_len == 256
    values = {each.name: each.value for each in found}
    assert config.optimizer.learning_rate == values["optimizer.learning_rate"]
    assert all(each.reason for each in found)


def test_the_rate_depends_on_size_kind_and_optimizer():
    def rate(name, optimizer="adamw"):
        found = {each.name: each.value for each in recommended(preset(name), 10**9, 8, 256, optimizer)}
        return found["optimizer.learning_rate"], found.get("optimizer.schedule")

    assert rate("ternary-tiny") == rate("dense-tiny") == (0.002, "linear")
    assert rate("ternary-tiny", "muon") == (0.008, "linear") and rate("dense-tiny", "muon") == (0.004, "linear")
    assert rate("ternary-5m", "muon") == (0.012, "linear") and rate("dense-5m", "muon") == (0.006, "linear")
    assert rate("bitnet-700m") == (1.5e-3, "two_stage") and rate("bitnet-3b") == (1.2e-3, "two_stage")
    assert rate("smollm2-360m") == (3e-3, "wsd") and rate("smollm2-1.7b") == (5e-4, "wsd")


def test_the_optimizer_depends_on_size_and_tokens_per_step():
    def optimizer(name, seq_len):
        found = {each.name: each for each in recommended(preset(name), 10**9, 8, seq_len)}
        return found["optimizer.name"].value, found["optimizer.name"].reason

    assert optimizer("ternary-5m", 64) == ("adamw", "studies/equal_time.yaml")
    assert optimizer("ternary-5m", 256) == ("muon", "studies/equal_time.yaml")
    assert optimizer("bitnet-700m", 2048) == ("adamw", "the authors' optimizer")


def test_fewer_tokens_than_a_step():
    with pytest.raises(ValueError, match=r"tokens: found 2,047, expected at least the 2,048 of one step \(8 x 256\)"):
        recommended(preset("ternary-tiny"), 2047, 8, 256)
