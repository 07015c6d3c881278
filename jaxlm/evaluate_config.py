"""The settings of the command `jaxlm evaluate`."""

from dataclasses import dataclass

from jaxlm.common.evaluation.task_run import TaskSettings
from shared_tokenizer.data.evaluation_text import EvaluationSettings
from shared_tokenizer.settings import setting


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(EvaluationSettings, TaskSettings):
    """The models to evaluate, and the text or the tasks."""

    model: list[str] = setting(is_model=True)
    """Run directories, artifacts, transformers or MLX directories or GGUF files, compared in one table."""
