import dataclasses

from jaxlm.common.architecture.model_flops import model_flops
from jaxlm.common.architecture.presets import preset


def test_operations_on_paper():
    config = dataclasses.replace(preset("ternary-tiny"), num_layers=1)
    block = 256 * (256 + 128 + 128 + 256) + 3 * 256 * 768
    head = 4096 * 256
    assert model_flops(config, 2, 64) == 6 * (block + head) * 128 + 12 * 64 * 128 * 256
    recurrent = dataclasses.replace(preset("mmfree-tiny"), num_layers=1)
    assert model_flops(recurrent, 2, 64) == 6 * (4 * 256 * 256 + 3 * 256 * 768 + head) * 128
