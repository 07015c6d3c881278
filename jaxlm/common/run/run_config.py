"""The settings that training runs share, in JAX and in MLX."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml

from jaxlm.common.objectives.distillation import Distillation
from jaxlm.common.objectives.preference import PREFERENCES, WITH_REFERENCE
from jaxlm.common.objectives.quantization_course import QuantizationCourse, quantization_course
from jaxlm.common.objectives.stored_teacher import is_stored_teacher, taught_sets
from jaxlm.common.run.optimizer_config import OptimizerConfig, fit_warmup
from jaxlm.common.run.run_directory import CONFIG, is_run_directory, recorded_settings
from jaxlm.common.run.schedule_changes import ScheduleOnResume, check_schedule_changes, schedule_steps
from jaxlm.common.tracker_names import check_trackers
from shared_tokenizer.data.batches import Packing
from shared_tokenizer.data.data_sets import DataSets
from shared_tokenizer.settings import check_bounds, check_unchanged, setting

ObjectiveName = Literal["next_token", "sft", "orpo", "dpo", "ipo"]
TEACHER_SETTINGS = ("teacher_weight", "teacher_temperature", "teacher_top_k", "teacher_relations_weight")
RELATIONS_SETTINGS = ("teacher_relations_layer", "teacher_layer")


@dataclass(frozen=True, kw_only=True)
class StepsConfig:
    """The settings of every run that takes optimizer steps, whatever it learns from."""

    settings_file: ClassVar[str] = CONFIG
    """Name of the file in output_dir that holds the settings of the run."""

    output_dir: str = setting(group="run", basic=True, resumable=True)
    """Run directory to create, or to continue with resume."""
    resume: bool = setting(False, group="run", basic=True, resumable=True)
    """Continue the run in output_dir from its last complete checkpoint, with its settings; more num_train_steps train
    a finished run further."""
    num_train_steps: int | None = setting(None, group="training", basic=True, resumable=True, at_least=1)
    """Optimizer steps in all."""
    schedule_on_resume: ScheduleOnResume = setting("stretch", group="training", resumable=True)
    """Learning rate of a run that is resumed with another number of steps: stretch gives every step that is left the
    rate it would have had if that number had been given at the start; continue keeps the schedule as it was, and its
    final rate after it."""
    schedule_changes: list[dict[str, Any]] = setting(factory=list, group="training", resumable=True)
    """History of such changes, written by the trainer."""
    grad_accumulation_steps: int = setting(1, group="training", at_least=1)
    """Micro-batches that a batch is split into; the result is that of the whole batch."""
    seed: int = setting(0, group="training")
    """Seed of fresh weights, of the order of the data, of dropout and of the samples."""
    log_every_steps: int = setting(10, group="evaluation", resumable=True, at_least=1)
    """Steps between lines of metrics.jsonl."""
    eval_every_steps: int = setting(100, group="evaluation", basic=True, resumable=True, at_least=0)
    """Steps between evaluations on the held-out split; 0 evaluates only at the end."""
    report_to: list[str] = setting(factory=list, group="evaluation", resumable=True)
    """Trackers that get the metrics, samples and pictures too: tensorboard, wandb, trackio, or several of them."""
    sample_every_steps: int = setting(0, group="evaluation", resumable=True, at_least=0)
    """Steps between text samples; 0 samples only at the end."""
    checkpoint_every_steps: int = setting(200, group="checkpoints", resumable=True, at_least=0)
    """Steps between checkpoints; 0 saves only at the end or when stopped."""
    keep_last_checkpoints: int = setting(2, group="checkpoints", resumable=True, at_least=1)
    """Latest checkpoints to keep."""
    optimizer: OptimizerConfig = setting(factory=OptimizerConfig)
    """The optimizer and its schedule."""

    def __post_init__(self) -> None:
        check_bounds(self)
        object.__setattr__(self, "report_to", check_trackers(self.report_to))
        check_schedule_changes(self.schedule_changes)

    @property
    def total_steps(self) -> int:
        """Optimizer steps in all, once they are known."""
        assert self.num_train_steps is not None
        return self.num_train_steps

    @property
    def schedule_steps(self) -> int:
        """Optimizer steps that the schedule is made for: all, except in a run that was continued beyond it."""
        return schedule_steps(self.schedule_changes, self.total_steps)

    @property
    def recipe(self) -> OptimizerConfig:
        """The optimizer's settings, with a warm-up that fits the schedule."""
        return fit_warmup(self.optimizer, self.schedule_steps)

    @classmethod
    def settings_of_run(cls, output_dir: str) -> str | None:
        """Return what `--config` takes to resume a run: the path of its settings file, or its settings as YAML text.

        None where there is no run. Raises ValueError where the settings cannot be read.
        """
        path = Path(output_dir)
        if is_run_directory(path, cls.settings_file):
            return str(path / cls.settings_file)
        recorded = recorded_settings(path, cls, cls.settings_file)
        return None if recorded is None else yaml.safe_dump(recorded)


@dataclass(frozen=True, kw_only=True)
class RunConfig(StepsConfig):
    """The settings of training on text; each trainer adds its own and may have other defaults."""

    num_train_steps: int | None = setting(
        None, group="training", basic=True, resumable=True, at_least=1, instead_of="num_epochs"
    )
    """Optimizer steps in all; without it and num_epochs 1000, and in fine-tuning one epoch."""
    num_epochs: float | None = setting(
        None,
        group="training",
        basic=True,
        resumable=True,
        more_than=0,
        formerly="epochs",
        instead_of="num_train_steps",
    )
    """Passes over the training data, in place of num_train_steps."""
    objective: ObjectiveName = setting("next_token", group="objective", basic=True)
    """Loss to train on: next_token is that of every next token, sft that of the answers of chats alone; orpo, dpo and
    ipo that of pairs of a chosen and a rejected answer, dpo and ipo against the model that the run starts from."""
    beta: float = setting(0.1, group="objective", more_than=0)
    """orpo: weight of the odds ratio; dpo, ipo: strength of the pull to the model that the run starts from."""
    teacher: str | None = setting(None, group="objective", is_model=True)
    """Model of the same tokenizer to distil from, frozen; or the directory of jaxlm store-teacher, which holds its
    likeliest tokens."""
    teacher_weight: float = setting(0.5, group="objective", at_least=0, at_most=1)
    """Share of the teacher's distribution in the training loss; the rest is the text's."""
    teacher_temperature: float = setting(2.0, group="objective", more_than=0)
    """Divisor of the logits where teacher and model are compared."""
    teacher_top_k: int = setting(0, group="objective", at_least=0)
    """Compare the probabilities of so many likeliest tokens of the teacher, and of all others together; 0 compares
    those of all tokens, or all that are stored."""
    teacher_relations_weight: float = setting(0.0, group="objective", at_least=0)
    """Weight of the relations between tokens (BitDistill) in the training loss: similarities of queries, of keys and
    of values in one layer, brought close to the teacher's."""
    teacher_relations_layer: int | None = setting(None, group="objective", at_least=0)
    """Layer of the model whose relations are compared, counted from 0; by default the last."""
    teacher_layer: int | None = setting(None, group="objective", at_least=0)
    """Layer of the teacher that they are compared with; by default that of the same relative depth."""
    z_loss: float = setting(0.0, group="objective", at_least=0)
    """Weight of the z-loss: log(sum(exp(logits)))^2 of every token is added to the training loss, which keeps logits
    small (PaLM, 1e-4)."""
    packing: Packing = setting("auto", group="data")
    """Form of the examples: windows cuts the concatenated text, best_fit packs whole documents; auto packs sets that
    hold chats."""
    document_mask: bool = setting(True, group="data")
    """Keep attention and recurrent state inside each document of a window."""
    verify_data: bool = setting(True, group="data", resumable=True)
    """Check the sha256 of every shard, and of a stored teacher, at the start."""
    eval_batches: int = setting(20, group="evaluation", resumable=True, at_least=1)
    """Batches of the held-out split to evaluate on, at most."""
    sample_prompt: str = setting("", group="evaluation", resumable=True)
    """Start of every text sample."""
    sample_tokens: int = setting(128, group="evaluation", resumable=True, at_least=0)
    """Tokens per text sample; 0 writes none."""
    quantize: Literal["ternary"] | None = setting(None, group="quantization")
    """Make the linear layers of a float model ternary, little by little."""
    quantize_from_step: float | None = setting(None, group="quantization", at_least=0)
    """Train as a float model up to this step, or below 1 this share of the steps, before quantization begins."""
    quantize_steps: int | None = setting(None, group="quantization", at_least=0)
    """Steps in which the share of quantization rises from 0 to 1; by default half of those that are left where a
    float model is made ternary, else 0."""
    insert_sub_norm: bool = setting(False, group="quantization")
    """quantize: insert norms before o_proj and down_proj (SubLN), mixed in with the quantization, so that the first
    step computes what the float model does."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_train_steps is not None and self.num_epochs is not None:
            raise ValueError("num_train_steps, num_epochs: found both, expected one of the two")
        if self.quantize is None:
            check_unchanged(self, ("insert_sub_norm",), "without quantize")
        if self.teacher is None:
            check_unchanged(self, TEACHER_SETTINGS, "without teacher")
        elif self.teacher_weight == self.teacher_relations_weight == 0:
            raise ValueError(
                "teacher_weight, teacher_relations_weight: found 0 for both, expected one above 0; or leave teacher out"
            )
        if self.teacher_relations_weight == 0:
            check_unchanged(self, RELATIONS_SETTINGS, "without teacher_relations_weight")
        if not self.compares_pairs:
            check_unchanged(self, ("beta",), f"with objective {self.objective}, only with {', '.join(PREFERENCES)}")
        else:
            without_effect = ("teacher", "z_loss", "packing", "document_mask")
            check_unchanged(self, without_effect, f"with objective {self.objective}")

    @property
    def compares_pairs(self) -> bool:
        """True where an example is a pair of answers, in two rows of a batch."""
        return self.objective in PREFERENCES

    @property
    def has_reference(self) -> bool:
        """True where the objective compares with the model that the run starts from."""
        return self.objective in WITH_REFERENCE

    @property
    def rows_per_example(self) -> int:
        """Rows of `seq_len` tokens of one example."""
        return 2 if self.compares_pairs else 1

    @property
    def course(self) -> QuantizationCourse:
        """Course of quantization, once the steps are known; other steps on resume do not change it."""
        return quantization_course(
            quantizes=self.quantize is not None,
            float_until=self.quantize_from_step,
            mixed_steps=self.quantize_steps,
            has_new_norms=self.insert_sub_norm,
            num_train_steps=self.schedule_changes[0]["from"] if self.schedule_changes else self.total_steps,
        )

    def with_stored_teacher(self, sets: DataSets, seq_len: int) -> DataSets:
        """Return the sets, with the records of a stored teacher where `teacher` is one.

        Raises ValueError as `taught_sets` does.
        """
        if self.teacher is None or not is_stored_teacher(Path(self.teacher)):
            return sets
        return taught_sets(
            Path(self.teacher),
            sets,
            seq_len,
            self.distillation,
            document_mask=self.document_mask,
            verify=self.verify_data,
        )

    @property
    def distillation(self) -> Distillation:
        """Settings of the distillation from the teacher."""
        return Distillation(
            self.teacher_weight,
            self.teacher_temperature,
            self.teacher_top_k,
            self.teacher_relations_weight,
            self.teacher_relations_layer,
            self.teacher_layer,
        )


def check_accumulation(batch_size: int, grad_accumulation_steps: int) -> None:
    """Raise ValueError if a batch does not split into that many micro-batches."""
    if batch_size % grad_accumulation_steps:
        raise ValueError(
            f"grad_accumulation_steps: found {grad_accumulation_steps}, expected a divisor of batch_size {batch_size}"
        )


def steps_of_epochs(num_epochs: float, examples: int, batch_size: int) -> int:
    """Return the optimizer steps of so many passes over the examples, at least 1."""
    return max(1, math.ceil(num_epochs * examples / batch_size))
