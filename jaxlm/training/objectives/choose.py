"""The objective of a run, chosen by its settings, with all that it needs besides the batch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jaxlm.checkpoints.weights import frozen_params
from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.formats.files_fingerprint import files_fingerprint
from jaxlm.common.formats.open_model import model_path
from jaxlm.common.objectives.chat_data import check_chat_data
from jaxlm.common.objectives.stored_teacher import (
    DESCRIPTION,
    check_vocabulary,
    is_stored_teacher,
    read_description,
)
from jaxlm.common.objectives.teacher import check_student, open_teacher
from jaxlm.common.run.run_config import RunConfig
from jaxlm.training.objectives.distillation import TEACHER, distillation, stored_distillation
from jaxlm.training.objectives.next_token import next_token
from jaxlm.training.objectives.objective import Extras, Objective
from jaxlm.training.objectives.preference import preference
from shared_tokenizer.data.data_sets import DataSets


@dataclass(frozen=True)
class RunObjective:
    """An objective, and where the arrays come from that it has next to the batch."""

    function: Objective
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    """sha256 of what the extras are made of, by name; a resumed run has the same."""
    check_model: Callable[[ModelConfig], None] = lambda config: None
    """Raises ValueError where the objective does not fit the model to train."""
    read_extras: Callable[[], Extras] = lambda: None
    """Returns the extras, a tree of arrays whose leaves are placed as parameters of the same names are."""
    teacher: ModelConfig | None = None
    """The model whose parameters are among the extras."""
    reference: DataSets | None = None
    """The pairs whose log-probabilities under the model that the run starts from are in the extras too."""


def choose_objective(
    config: RunConfig, sets: DataSets, seq_len: int, loss_chunks: int, base: Path | None = None
) -> RunObjective:
    """Return the objective of a run on some shard sets; `loss_chunks` cuts the sequence, see `loss_sum`.

    `base` is the model that the run starts from. Raises ValueError where the data or a model
    that the settings name does not fit the objective.
    """
    if config.objective == "sft":
        check_chat_data(sets, base)
    if config.objective == "orpo" or config.objective == "dpo" or config.objective == "ipo":
        function = preference(config.objective, config.beta, loss_chunks)
        return RunObjective(function, reference=sets if config.has_reference else None)
    if config.teacher is None:
        return RunObjective(next_token(loss_chunks, config.z_loss))
    path, settings = Path(config.teacher), config.distillation
    if is_stored_teacher(path):
        stored = read_description(path / DESCRIPTION)
        return RunObjective(
            stored_distillation(settings, loss_chunks, config.z_loss),
            {TEACHER: files_fingerprint(path)},
            lambda student: check_vocabulary(path, stored, student.vocab_size),
        )
    teacher = open_teacher(path, sets.tokenizer, seq_len)
    return RunObjective(
        distillation(teacher.config, settings, loss_chunks, config.z_loss),
        {TEACHER: files_fingerprint(model_path(path))},
        lambda student: check_student(path, teacher.config, student, settings),
        lambda: {TEACHER: frozen_params(teacher)},
        teacher.config,
    )
