import mlx.core as mx
import numpy as np

from jaxlm.common.run.optimizer_config import OptimizerConfig
from mlxlm.finetune.optimizer import AdamW, rounded_by_chance, sum_of_squares


def test_rounding_by_chance_is_right_in_the_mean_and_never_further_than_the_next_number():
    for value in (1.001, -0.3337, 2.0**-20 * 1.01, 0.0, 1.0):
        found = np.array(rounded_by_chance(mx.full((40_000,), value), mx.random.key(1)).astype(mx.float32))
        step = 2.0 ** (np.floor(np.log2(abs(value))) - 7) if value else 0
        assert np.abs(found - np.float32(value)).max() < max(step, 1e-45)
        assert abs(found.mean(dtype=np.float64) - np.float32(value)) <= 0.02 * step


def test_small_updates_of_bfloat16_weights_are_not_lost():
    settings = OptimizerConfig(learning_rate=1e-4, warmup_steps=0, schedule="constant", weight_decay=0.0)
    ends = {}
    for dtype in (mx.float32, mx.bfloat16):
        parameters = {"layers.0.weight": mx.ones((64, 64), dtype)}
        optimizer = AdamW(settings, 100)
        state = optimizer.init(parameters)
        for step in range(50):
            gradients = {"layers.0.weight": mx.full((64, 64), 0.01)}
            factors, norm = optimizer.factors(step), mx.sqrt(sum_of_squares(gradients))
            parameters, state = optimizer.update(parameters, gradients, state, factors, norm)
        assert parameters["layers.0.weight"].dtype == dtype
        ends[dtype] = float(parameters["layers.0.weight"].astype(mx.float32).mean())
    # 50 updates of at most 1e-4; the numbers of bfloat16 below 1 are 4e-3 apart.
    assert 0.995 < ends[mx.float32] < 0.997
    assert abs(ends[mx.bfloat16] - ends[mx.float32]) < 2e-4
