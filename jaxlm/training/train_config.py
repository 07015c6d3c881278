"""The settings of a training run in JAX; its flags are generated from these fields."""

from dataclasses import dataclass
from typing import Any, Literal

from jaxlm.common.objectives.length_course import LengthCourse, length_course, parse_lengths
from jaxlm.common.run.run_config import RunConfig, check_accumulation
from jaxlm.common.sampling import LARGEST_SEED
from jaxlm.common.step_choices import AttentionKernel, Remat
from jaxlm.parallel.distributed_config import DistributedConfig
from jaxlm.parallel.mesh_config import MeshConfig
from shared_tokenizer.settings import check_unchanged, setting

DEFAULT_STEPS = 1000


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig):
    """One training run. Raises ValueError on a value out of range."""

    data_dir: list[str] = setting(group="data", basic=True, resumable=True)
    """Token shards, as scripts/prepare_data.py writes them; several sets are mixed."""
    data_weights: list[float] = setting(factory=list, group="data")
    """Share of the examples that each data_dir contributes, in any unit; by default its size."""
    preset: str = setting("ternary-tiny", group="model", basic=True)
    """Named model configuration (jaxlm presets lists them); its vocabulary and special tokens are the tokenizer's. auto
    takes the largest ternary one that fits the device and gets 20 tokens for each of its parameters."""
    model: dict[str, Any] = setting(factory=dict, group="model", basic=True)
    """Fields of the model that replace the preset's, for example --model.num_layers 6."""
    init_from: str | None = setting(None, group="model", basic=True, is_model=True)
    """Start from the latent weights of this artifact, transformers directory or run (its last checkpoint) instead of
    fresh ones."""
    batch_size: int | Literal["auto"] = setting(16, group="training", basic=True, at_least=1)
    """Sequences, or pairs of answers, per optimizer step, over all devices. auto picks a batch size from the compute
    budget (arXiv 2401.02954), then the largest micro-batch that fits the device."""
    seq_len: int = setting(256, group="training", basic=True, at_least=1)
    """Tokens per sequence."""
    seq_len_schedule: str | None = setting(None, group="training")
    """Shorter sequences first: 256:0.3,1024:1 takes 256 tokens for 30 % of the steps, then 1024 to the end. seq_len is
    then the longest, batch_size counts those, and shorter ones are more, so that every step has as many tokens."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting("auto", group="devices", basic=True)
    """Precision of activations over float32 weights; auto is float32 on CPU, float16 with a dynamic loss scale on
    NVIDIA chips older than Ampere, bfloat16 elsewhere."""
    backward_dtype: Literal["auto", "float32", "bfloat16"] = setting("auto", group="devices")
    """Precision that the operands of the gradients' products of ternary layers and of the head are rounded to, where
    activations are float32; sums are float32. auto is bfloat16 on one CPU where jaxlm doctor says that its kernel is
    on, which makes a step a quarter faster, and else the precision of activations."""
    attention: AttentionKernel | Literal["auto"] = setting("auto", group="devices")
    """Attention kernel: xla runs anywhere, in tiles; cudnn on NVIDIA; splash on TPUs; auto is cudnn where it runs, else
    xla."""
    unroll_layers: bool = setting(False, group="devices", resumable=True)
    """Compile the layers one after another instead of as a loop: slower to compile, sometimes faster to run. remat auto
    sets it where it takes none."""
    remat: Remat | Literal["auto"] = setting("auto", group="devices", resumable=True)
    """Gradient checkpointing: none saves all activations; products saves the outputs of the linear layers and the
    int8 inputs of o_proj and down_proj; ternary saves the int8 inputs of ternary layers, and the normalizers of
    attention in tiles; blocks saves the inputs of blocks only. The rest is recomputed. auto is the first that fits, the
    fastest first: on a CPU none with unroll_layers, in models of at most 12 layers; then products, but in bfloat16 on a
    CPU ternary; then the smaller ones."""
    loss_chunks: int = setting(0, group="devices", at_least=0)
    """Chunks of the sequence that the loss is computed in, so that the logits of all tokens never exist; 0 picks as few
    as keep them small, 1 computes all at once."""
    offload: Literal["optimizer"] | None = setting(None, group="devices", resumable=True)
    """Keep this part of the state in the memory of the host: optimizer, the moments. For accelerators whose memory is
    too small; every update copies them there and back."""
    keep_best_checkpoints: int = setting(1, group="checkpoints", resumable=True, at_least=0)
    """Checkpoints with the lowest held-out loss to keep as well."""
    compilation_cache_dir: str | None = setting(None, group="devices", resumable=True)
    """Keep compiled programs in this directory for the next start; by default in the user's cache. Training steps with
    oneDNN products are not kept: they cannot be written."""
    mesh: MeshConfig = setting(factory=MeshConfig, resumable=True)
    """Division of the work over all devices, of all processes."""
    distributed: DistributedConfig = setting(factory=DistributedConfig, resumable=True)
    """Addresses of the processes of one run."""

    def __post_init__(self) -> None:
        if self.num_train_steps is None and self.num_epochs is None:
            object.__setattr__(self, "num_train_steps", DEFAULT_STEPS)
        super().__post_init__()
        if self.has_reference and self.init_from is None:
            raise ValueError(
                f"objective: found {self.objective} without init_from, expected the model to start from, with which it "
                "compares; give init_from, or take orpo, which needs none"
            )
        if self.compares_pairs and "auto" in (self.preset, self.batch_size):
            raise ValueError(
                f"objective: found {self.objective} with an auto size, expected numbers, as sizes are chosen by text; "
                "give preset and batch_size"
            )
        if self.seq_len_schedule is not None:
            self._check_lengths(self.seq_len_schedule)
        if not 0 <= self.seed <= LARGEST_SEED - (self.num_train_steps or 0):
            raise ValueError(f"seed: found {self.seed}, expected 0 or more and, with the steps, at most {LARGEST_SEED}")
        if self.loss_chunks and self.seq_len % self.loss_chunks:
            raise ValueError(
                f"loss_chunks: found {self.loss_chunks}, expected a divisor of seq_len {self.seq_len}, or 0"
            )
        if self.quantize is not None:
            if self.init_from is None:
                raise ValueError(
                    "quantize: found no init_from, expected the float model to make ternary; a fresh ternary model is "
                    "a ternary preset, which --quantize_from_step trains as a float model first"
                )
            check_unchanged(self, ("preset",), "with quantize, which takes the model of init_from")
        if self.preset == "auto" and self.init_from is not None:
            raise ValueError("preset: found auto with init_from, expected the preset that those weights are of")
        if self.num_epochs is not None and "auto" in (self.preset, self.batch_size):
            raise ValueError(
                "num_epochs: found together with an auto size, which is chosen by the number of steps; give "
                "num_train_steps"
            )
        if self.batch_size == "auto":
            if self.grad_accumulation_steps != 1:
                raise ValueError("grad_accumulation_steps: has no effect with batch_size auto, which chooses it")
        else:
            check_accumulation(self.batch_size, self.grad_accumulation_steps)

    def _check_lengths(self, schedule: str) -> None:
        """Take the longest length for seq_len. Raises ValueError where the schedule does not fit other settings."""
        if self.objective not in ("next_token", "sft"):
            raise ValueError(
                f"seq_len_schedule: found with objective {self.objective}, whose rows have one length; leave it out"
            )
        lengths = self.sequence_lengths
        if self.seq_len not in (lengths[-1], type(self).seq_len):
            raise ValueError(
                f"seq_len: found {self.seq_len} with seq_len_schedule {schedule}, expected its longest, {lengths[-1]}; "
                "leave it out"
            )
        object.__setattr__(self, "seq_len", lengths[-1])
        for length in lengths:
            if self.loss_chunks and length % self.loss_chunks:
                raise ValueError(
                    f"loss_chunks: found {self.loss_chunks}, expected a divisor of {length} of seq_len_schedule, or 0"
                )

    @property
    def sequence_lengths(self) -> list[int]:
        """All lengths that the run's sequences have, the longest last."""
        schedule = self.seq_len_schedule
        return [self.seq_len] if schedule is None else [length for length, _ in parse_lengths(schedule)]

    @property
    def lengths(self) -> LengthCourse:
        """Course of the sequence length, once the steps are known; other steps on resume do not change it."""
        steps = self.schedule_changes[0]["from"] if self.schedule_changes else self.total_steps
        return length_course(self.seq_len_schedule, self.seq_len, steps)

    @property
    def sequences_per_step(self) -> int:
        """Sequences per optimizer step, once they are chosen."""
        assert self.batch_size != "auto"
        return self.batch_size

    @property
    def tokens_per_step(self) -> int:
        """Tokens per optimizer step, over all devices."""
        return self.sequences_per_step * self.rows_per_example * self.seq_len
