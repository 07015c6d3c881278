"""The classes `Model` and `ModelArgs` from which stock mlx-lm builds the model of a directory."""

from typing import Any

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.hf_config import HF_KEYS, own_fields
from mlxlm.model.language_model import LanguageModel


class ModelArgs(ModelConfig):
    """The model's config, read from config.json."""

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "ModelArgs":
        """Read the keys of config.json, but not the token ids: mlx-lm reads these itself, and may write a list."""
        fields = {field: content[key] for field, key in HF_KEYS.items() if not field.endswith("_id")}
        return cls(**fields, **own_fields(content))


class Model(LanguageModel):
    """The model, with its config in the attribute `args`, where mlx-lm looks for it."""

    def __init__(self, args: ModelArgs):
        super().__init__(args)
        self.args = args
