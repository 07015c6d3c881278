import math

import pytest

from jaxlm.common.run.optimizer_config import OptimizerConfig, fit_warmup, learning_rate_pieces


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 0.0}, "optimizer.learning_rate: found 0.0, expected more than 0 and finite"),
        ({"learning_rate": math.inf}, "optimizer.learning_rate: found inf, expected more than 0 and finite"),
        ({"weight_decay": math.nan}, "optimizer.weight_decay: found nan, expected 0 or more and finite"),
        ({"b2": 1.0}, "optimizer.b2: found 1.0, expected at least 0, less than 1"),
        (
            {"num_cycles": 3},
            "optimizer.num_cycles: has no effect with schedule 'cosine', only with 'cosine_restarts'",
        ),
        (
            {"decay_fraction": 0.1, "schedule": "linear"},
            "decay_fraction: has no effect with schedule 'linear'",
        ),
    ],
)
def test_settings_out_of_range_or_without_effect_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**settings)


def test_a_warmup_that_leaves_no_step_is_refused():
    with pytest.raises(ValueError, match="warmup_steps: found 10, expected fewer than num_train_steps 10"):
        learning_rate_pieces(OptimizerConfig(warmup_steps=10), 10)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (9, 0), (10, 1), (40, 4), (100, 10), (101, 100), (4000, 100)])
def test_a_warmup_as_long_as_the_run_is_cut_to_a_tenth(steps, warmup):
    fitted = fit_warmup(OptimizerConfig(warmup_steps=100), steps)
    assert fitted.warmup_steps == warmup
    learning_rate_pieces(fitted, steps)


@pytest.mark.parametrize("schedule", ["cosine", "cosine_restarts", "wsd", "linear", "two_stage"])
def test_the_pieces_follow_one_another_from_the_first_step(schedule):
    pieces = learning_rate_pieces(OptimizerConfig(schedule=schedule, warmup_steps=10), 100)
    begins = [piece.begin for piece in pieces]
    assert begins == sorted(set(begins)) and begins[:2] == [0, 10] and begins[-1] < 100
    assert max(piece.start for piece in pieces) == OptimizerConfig().learning_rate
