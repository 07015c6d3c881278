"""The teacher of a distillation: a frozen model with the tokenizer of its student."""

from pathlib import Path

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.artifact.artifact import Artifact
from jaxlm.common.formats.open_model import open_model
from jaxlm.common.objectives.distillation import Distillation
from shared_tokenizer.load import find_tokenizer
from shared_tokenizer.tokenizers.tokenizer import Tokenizer


def open_teacher(path: Path, tokenizer: Tokenizer, seq_len: int) -> Artifact:
    """Open the teacher of a student that is trained on sequences of `seq_len` tokens; it may be float or ternary.

    Raises ValueError where it is no model, has another tokenizer than the data or cannot see a whole sequence.
    """
    artifact = open_model(path)
    found = find_tokenizer(path, artifact.tokenizer_metadata)
    if found is not None and found.fingerprint != tokenizer.fingerprint:
        raise ValueError(
            f"teacher: {path}: found tokenizer {found.fingerprint[:12]}..., expected the data's "
            f"{tokenizer.fingerprint[:12]}...; name a teacher with the same tokenizer, or prepare the data with the "
            "teacher's (--tokenizer)"
        )
    if artifact.config.max_seq_len < seq_len:
        raise ValueError(
            f"teacher: {path}: found a context of {artifact.config.max_seq_len}, expected at least seq_len {seq_len}"
        )
    return artifact


def check_student(path: Path, teacher: ModelConfig, student: ModelConfig, settings: Distillation) -> None:
    """Raise ValueError where logits do not stand for the same tokens, or layers cannot be compared."""
    if teacher.vocab_size != student.vocab_size:
        raise ValueError(
            f"teacher: {path}: found a vocabulary of {teacher.vocab_size} tokens, expected the model's "
            f"{student.vocab_size}; a fresh model takes --model.vocab_size {teacher.vocab_size}"
        )
    if settings.relations_weight:
        settings.layers(student, teacher)
