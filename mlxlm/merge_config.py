"""The settings of the command `mlxlm merge`."""

import dataclasses
from dataclasses import dataclass, field

from shared_tokenizer.data.evaluation_text import EvaluationText
from shared_tokenizer.settings import default_of, setting


@dataclass(frozen=True, kw_only=True)
class MergeConfig(EvaluationText):
    """The model and the adapters to merge, and text to measure the loss on."""

    model: str = setting(is_model=True)
    """Model that the adapters were trained on; for a ternary model its latent artifact."""
    adapter_path: str
    """Directory of the adapters."""
    output_dir: str
    """Artifact to create: latent, in float32, to train further or to pack with `jaxlm convert`."""
    data: list[str] = field(default_factory=list)
    """Files, folders or stdlib: report the loss on this text of the base, with the adapters, and after merging."""
    from_packed: bool = False
    """Allow a packed model, which has no latent weights: updates smaller than half the step between two codes are
    lost. The result is packed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for each in dataclasses.fields(EvaluationText):
            if not self.data and getattr(self, each.name) != default_of(each):
                raise ValueError(
                    f"{each.name}: found {getattr(self, each.name)} without data to evaluate on; give --data too"
                )
