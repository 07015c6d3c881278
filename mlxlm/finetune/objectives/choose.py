"""The objective of a run, chosen by its settings, as in jaxlm/training/objectives/choose.py."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.formats.files_fingerprint import files_fingerprint
from jaxlm.common.objectives.chat_data import check_chat_data
from jaxlm.common.objectives.stored_teacher import (
    DESCRIPTION,
    check_vocabulary,
    is_stored_teacher,
    read_description,
)
from jaxlm.common.objectives.teacher import check_student, open_teacher
from jaxlm.common.run.run_config import RunConfig
from mlxlm.adapters.adapters import base_fingerprint
from mlxlm.finetune.objectives.distillation import distillation, stored_distillation
from mlxlm.finetune.objectives.next_token import next_token
from mlxlm.finetune.objectives.objective import Objective
from mlxlm.finetune.objectives.preference import preference
from mlxlm.load import built_model
from mlxlm.model.trees import flat_arrays
from shared_tokenizer.data.data_sets import DataSets


@dataclass(frozen=True)
class RunObjective:
    """An objective, and the fingerprints of what it holds besides the model."""

    function: Objective
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    """sha256 of a teacher, for example, by name; a resumed run has the same."""
    reference: DataSets | None = None
    """The pairs whose log-probabilities under the model that the run starts from every batch has too."""
    teacher_bytes: int = 0
    """Bytes of the weights of a teacher."""


def choose_objective(
    config: RunConfig, base: Path, model: ModelConfig, sets: DataSets, seq_len: int, loss_chunks: int
) -> RunObjective:
    """Return the objective of a run of a model on some shard sets; `loss_chunks` cuts the tokens, see `loss_sum`.

    `base` is where the model lies. Raises ValueError where the data or a model that the settings name does not
    fit the objective.
    """
    if config.objective == "sft":
        check_chat_data(sets, base)
    if config.objective == "orpo" or config.objective == "dpo" or config.objective == "ipo":
        function = preference(config.objective, config.beta, loss_chunks)
        return RunObjective(function, reference=sets if config.has_reference else None)
    if config.teacher is None:
        return RunObjective(next_token(loss_chunks, config.z_loss))
    path = Path(config.teacher)
    if is_stored_teacher(path):
        check_vocabulary(path, read_description(path / DESCRIPTION), model.vocab_size)
        function = stored_distillation(config.distillation, loss_chunks, config.z_loss)
        return RunObjective(function, {"teacher": files_fingerprint(path)})
    artifact, settings = open_teacher(path, sets.tokenizer, seq_len), config.distillation
    check_student(path, artifact.config, model, settings)
    teacher = built_model(artifact)
    teacher.freeze()
    teacher.eval()
    function = distillation(teacher, settings, loss_chunks, config.z_loss)
    nbytes = sum(array.nbytes for array in flat_arrays(teacher.parameters()).values())
    return RunObjective(function, {"teacher": base_fingerprint(teacher)}, teacher_bytes=nbytes)
