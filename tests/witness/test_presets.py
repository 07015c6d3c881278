"""The sizes of our presets, counted by transformers."""

import pytest
import torch
import transformers

from jaxlm.common.architecture.hf_config import hf_model_type, to_hf_config
from jaxlm.common.architecture.parameters import parameter_count
from jaxlm.common.architecture.presets import PRESETS, preset

KNOWN = [name for name, config in PRESETS.items() if hf_model_type(config) not in ("jaxlm", "hgrn_bit")]


@pytest.mark.parametrize("name", KNOWN)
def test_transformers_counts_the_same_parameters(name: str):
    content = to_hf_config(preset(name), "latent", "float32")
    del content["jaxlm"]
    content.pop("quantization_config", None)
    config = transformers.AutoConfig.for_model(content.pop("model_type"), **content)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    assert model.num_parameters() == parameter_count(preset(name))
