"""The settings of training by rewards; its flags are generated from these fields."""

from dataclasses import dataclass
from typing import Any, Literal

from jaxlm.common.rewards.open_task import TaskSettings
from jaxlm.common.run.optimizer_config import OptimizerConfig
from jaxlm.common.run.run_config import StepsConfig, check_accumulation
from jaxlm.common.sampling import LARGEST_SEED, LARGEST_TEMPERATURE, SMALLEST_TEMPERATURE
from shared_tokenizer.settings import check_unchanged, setting

Method = Literal["grpo", "expert_iteration"]


@dataclass(frozen=True, kw_only=True)
class RLConfig(StepsConfig, TaskSettings):
    """One run of training by rewards. Raises ValueError on a value out of range or without effect."""

    init_from: str = setting(group="model", basic=True, is_model=True)
    """Model to start from: a run (its last checkpoint), a latent artifact or a transformers directory."""
    model: dict[str, Any] = setting(factory=dict, group="model")
    """Fields of the model that replace those of init_from, for example --model.max_seq_len 256."""
    method: Method = setting("grpo", group="objective", basic=True)
    """grpo raises the log-probability of answers above the mean of their prompt and lowers the others; expert_iteration
    trains on the answers that pass, each once, and is faster where an answer is right or wrong."""
    prompts_per_step: int = setting(16, group="training", basic=True, at_least=1)
    """Prompts of a step."""
    samples_per_prompt: int = setting(16, group="training", basic=True, at_least=1)
    """Answers that are sampled to each prompt."""
    max_tokens: int = setting(32, group="training", basic=True, at_least=1)
    """Tokens of an answer; a longer one is cut."""
    temperature: float = setting(1.0, group="training", at_least=SMALLEST_TEMPERATURE, at_most=LARGEST_TEMPERATURE)
    """Divisor of the logits that answers are sampled from."""
    kl_weight: float = setting(0.0, group="objective", at_least=0)
    """Weight of the KL divergence from the start; with it the model of init_from stays in memory."""
    pass_reward: float = setting(1.0, group="objective")
    """Reward from which on an answer passes, for pass@k and expert_iteration."""
    num_train_steps: int | None = setting(200, group="training", basic=True, resumable=True, at_least=1)
    """Optimizer steps in all."""
    log_every_steps: int = setting(1, group="evaluation", resumable=True, at_least=1)
    """Steps between lines of metrics.jsonl."""
    eval_every_steps: int = setting(20, group="evaluation", basic=True, resumable=True, at_least=0)
    """Steps between evaluations on held-out prompts; 0 evaluates only at the end."""
    eval_samples: int = setting(4, group="evaluation", at_least=1)
    """Answers to each held-out prompt, for pass@1 and pass@k."""
    checkpoint_every_steps: int = setting(50, group="checkpoints", resumable=True, at_least=0)
    """Steps between checkpoints; 0 saves only at the end or when stopped."""
    keep_best_checkpoints: int = setting(1, group="checkpoints", resumable=True, at_least=0)
    """Checkpoints with the best held-out pass@1 to keep as well."""
    dtype: Literal["auto", "float32", "bfloat16"] = setting("auto", group="devices")
    """Precision of activations over float32 weights; auto is float32 on CPU, bfloat16 elsewhere."""
    optimizer: OptimizerConfig = setting(
        factory=lambda: OptimizerConfig(name="muon", learning_rate=4e-4, warmup_steps=10, weight_decay=0.0)
    )
    """The optimizer and its schedule. Muon, because AdamW's steps along noise flip codes at random."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.seed <= LARGEST_SEED:
            raise ValueError(f"seed: found {self.seed}, expected 0 to {LARGEST_SEED}")
        if self.method == "expert_iteration":
            check_unchanged(self, ("kl_weight", "grad_accumulation_steps"), "with expert_iteration")
        elif self.samples_per_prompt == 1:
            raise ValueError("samples_per_prompt: found 1, expected more with grpo, which compares them")
        check_accumulation(self.samples_per_step, self.grad_accumulation_steps)

    @property
    def samples_per_step(self) -> int:
        """Answers that are sampled per step."""
        return self.prompts_per_step * self.samples_per_prompt
