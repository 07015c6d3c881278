"""A model of a given size, or a preset, on paper: its config, its bytes on disk, and its memory in training."""

import dataclasses
from dataclasses import dataclass

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.model_size import TOKENS_PER_PARAMETER, config_of_size, parse_size
from jaxlm.common.architecture.parameters import parameter_count, ternary_parameter_count
from jaxlm.common.architecture.presets import preset
from jaxlm.common.architecture.training_memory import TrainingMemory, training_memory
from jaxlm.common.artifact.artifact import weight_file_bytes
from jaxlm.planning.new_model_config import NewModelConfig
from jaxlm.planning.recommended import Recommendation, recommended
from jaxlm.training.resolve import model_flags

# The longest sequences of released models are far above those that one trains them on.
_PRESET_SEQ_LEN = 2048
_ACTIVATION_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class NewModel:
    """A model on paper."""

    config: ModelConfig
    parameters: int
    ternary_parameters: int
    latent_bytes: int
    """Bytes of the weight files of a latent artifact."""
    packed_bytes: int | None
    """Bytes of the weight files of a packed artifact; None where the model has no packed form."""
    seq_len: int
    memory: TrainingMemory
    """Memory of training on one device."""
    flags: list[str]
    """Flags of the training command that make this model and place its state."""
    tokens: int
    """Number of tokens to train on."""
    training: list[Recommendation]
    """Settings of that training."""


def new_model(settings: NewModelConfig) -> NewModel:
    """Return the model on paper: nothing is allocated.

    Raises ValueError where the size is too small, the tokens are fewer than one step takes, and where a preset does not
    exist or cannot be changed so.
    """
    config = _config(settings)
    usual = config.max_seq_len if settings.preset is None else min(config.max_seq_len, _PRESET_SEQ_LEN)
    seq_len = usual if settings.seq_len is None else settings.seq_len
    config = dataclasses.replace(config, max_seq_len=max(config.max_seq_len, seq_len))
    packed = weight_file_bytes(config, "packed", settings.float_dtype) if config.has_packed_form else None
    tokens = settings.tokens or TOKENS_PER_PARAMETER * parameter_count(config)
    training = recommended(config, tokens, settings.batch_size, seq_len, settings.optimizer)
    return NewModel(
        config=config,
        parameters=parameter_count(config),
        ternary_parameters=ternary_parameter_count(config),
        latent_bytes=weight_file_bytes(config, "latent", settings.float_dtype),
        packed_bytes=packed,
        seq_len=seq_len,
        memory=training_memory(
            config,
            settings.batch_size,
            seq_len,
            _ACTIVATION_BYTES[settings.dtype],
            has_muon=any((each.name, each.value) == ("optimizer.name", "muon") for each in training),
            offloads_optimizer=settings.offload is not None,
        ),
        flags=model_flags(config) + ([] if settings.offload is None else ["--offload", settings.offload]),
        tokens=tokens,
        training=training,
    )


def _config(settings: NewModelConfig) -> ModelConfig:
    if settings.preset is None:
        assert settings.params is not None
        return config_of_size(parse_size(settings.params), settings.arch, settings.vocab_size)
    config = preset(settings.preset)
    if settings.vocab_size is None:
        return config
    ids = {name: None for name in ("bos_id", "eos_id", "pad_id") if (getattr(config, name) or 0) >= settings.vocab_size}
    return dataclasses.replace(config, vocab_size=settings.vocab_size, **ids)
