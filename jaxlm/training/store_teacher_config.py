"""The settings of the command `jaxlm store-teacher`."""

from dataclasses import dataclass

from jaxlm.common.objectives.distillation import Distillation
from shared_tokenizer.data.batches import Packing
from shared_tokenizer.settings import check_bounds, setting


@dataclass(frozen=True, kw_only=True)
class StoreTeacherConfig:
    """A teacher, and the training examples that it is asked about: as the runs that read the directory have them."""

    teacher: str = setting(group="objective", basic=True, is_model=True)
    """Model to learn from, of the tokenizer of the shards; it may be float or ternary."""
    data_dir: list[str] = setting(group="data", basic=True)
    """Token shards to train on, in the order of the run."""
    output_dir: str = setting(group="run", basic=True)
    """Directory to create, which jaxlm train and mlxlm finetune take as --teacher. A killed command goes on."""
    seq_len: int = setting(256, group="data", basic=True, at_least=1)
    """Tokens per sequence of the run."""
    teacher_top_k: int = setting(16, group="objective", basic=True, at_least=1)
    """Likeliest tokens to store; a run may compare fewer."""
    teacher_temperature: float = setting(Distillation.temperature, group="objective", basic=True, more_than=0)
    """Divisor of the logits in the run."""
    batch_size: int = setting(8, group="devices", basic=True, at_least=1)
    """Sequences that the teacher computes at once."""
    packing: Packing = setting("auto", group="data")
    """Form of the run's examples."""
    document_mask: bool = setting(True, group="data")
    """document_mask of the run."""
    verify_data: bool = setting(True, group="data")
    """Check the sha256 of every shard at the start."""

    def __post_init__(self) -> None:
        check_bounds(self)
