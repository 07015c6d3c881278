"""Settings of a training run. Every command-line flag is generated from these fields."""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal

import jax.numpy as jnp

from jaxlm.common.architecture.config import ModelConfig, config_from_dict
from jaxlm.common.architecture.presets import nearest_preset, preset
from jaxlm.common.run.optimizer_config import OptimizerConfig
from jaxlm.common.sampling import LARGEST_SEED
from jaxlm.model.language_model import LanguageModel, Remat
from jaxlm.ops.attention import AttentionKernel, choose_kernel
from jaxlm.ops.cpu import has_vnni
from jaxlm.ops.gpu import compute_capability, is_ampere
from jaxlm.parallel.distributed import DistributedConfig
from jaxlm.parallel.sharding import MeshConfig
from shared_tokenizer.data.batches import Packing
from shared_tokenizer.tokenizers.tokenizer import Tokenizer

# NVIDIA's compute capability from which on there is bfloat16.
# What may change when a run is resumed: nothing in it touches a weight.
RESUMABLE_CHANGES = {
    "output_dir",
    "data_dir",
    "resume",
    "verify_data",
    "log_every_steps",
    "eval_every_steps",
    "eval_batches",
    "checkpoint_every_steps",
    "keep_last_checkpoints",
    "keep_best_checkpoints",
    "sample_every_steps",
    "sample_prompt",
    "sample_tokens",
    "compilation_cache_dir",
    "mesh",
    "distributed",
}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run. Raises ValueError on a value out of range."""

    output_dir: str
    """Run directory to create, or to continue with resume."""
    data_dir: list[str]
    """Token shards, as scripts/prepare_data.py writes them; several sets are mixed."""
    data_weights: list[float] = field(default_factory=list)
    """Share of the examples that each data_dir gives, in any unit; by default its size."""
    packing: Packing = "auto"
    """How examples are made: windows over the concatenated text, or whole documents packed best_fit; auto packs sets
    that hold chats."""
    document_mask: bool = True
    """Keep attention and state inside each document of a window."""
    preset: str = "ternary-tiny"
    """Named model configuration; its vocabulary and special tokens are the tokenizer's. auto takes the largest ternary
    one that the device can train and that gets 20 tokens for each of its parameters."""
    model: dict[str, Any] = field(default_factory=dict)
    """Fields of the model that replace the preset's, for example --model.num_layers 6."""
    init_from: str | None = None
    """Start from the latent weights of this artifact or transformers directory instead of fresh ones."""
    resume: bool = False
    """Continue the run in output_dir from its last whole checkpoint."""
    num_train_steps: int = 1000
    """Optimizer steps in all."""
    batch_size: int | Literal["auto"] = 16
    """Sequences per optimizer step, over all devices. auto takes as many as suit the model and num_train_steps (arXiv
    2401.02954), in the largest micro-batches that fit the device."""
    grad_accumulation_steps: int = 1
    """Micro-batches that a batch is split into; the result is that of the whole batch."""
    seq_len: int = 256
    """Tokens per sequence."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of activations over float32 weights; auto is float32 on CPU, float16 with a dynamic loss scale on
    NVIDIA chips older than Ampere, bfloat16 elsewhere."""
    attention: AttentionKernel | Literal["auto"] = "auto"
    """What computes attention: xla, by blocks, anywhere; cudnn, on NVIDIA; splash, on TPUs; auto is cudnn where it
    runs, else xla."""
    unroll_layers: bool = False
    """Compile the layers one after another instead of as a loop: slower to compile, sometimes faster to run."""
    remat: Remat | Literal["auto"] = "auto"
    """What the backward pass finds kept of each block, the rest it computes again: none, everything is kept; products,
    what linear layers take and give; ternary, what ternary linears take, in int8; blocks, nothing but their input;
    auto is ternary where products of int8 take a fraction of the time of others, else products."""
    loss_chunks: int = 0
    """Chunks of the sequence that the loss is computed in, so that logits of all tokens never exist; 0 takes as few as
    keep them small, 1 computes all at once."""
    seed: int = 0
    """Seed of the initial weights, the order of the data and the samples."""
    verify_data: bool = True
    """Check the sha256 of every shard at the start."""
    log_every_steps: int = 10
    """Steps between lines of metrics.jsonl."""
    eval_every_steps: int = 100
    """Steps between evaluations on the held-out split; 0 evaluates only at the end."""
    eval_batches: int = 20
    """Batches of the held-out split to evaluate on, at most."""
    checkpoint_every_steps: int = 200
    """Steps between checkpoints; 0 saves only at the end or when stopped."""
    keep_last_checkpoints: int = 2
    """Latest checkpoints to keep."""
    keep_best_checkpoints: int = 1
    """Checkpoints with the lowest held-out loss to keep as well."""
    sample_every_steps: int = 0
    """Steps between text samples; 0 samples only at the end."""
    sample_prompt: str = ""
    """Start of every text sample."""
    sample_tokens: int = 128
    """Tokens per text sample; 0 writes none."""
    compilation_cache_dir: str | None = None
    """Keep compiled programs in this directory for the next start; but not the training step where oneDNN computes
    its products, which cannot be written."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """AdamW and its schedule."""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    """How all devices, of all processes, share the work."""
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    """How several processes find each other."""

    def __post_init__(self) -> None:
        for name in (
            "num_train_steps",
            "batch_size",
            "grad_accumulation_steps",
            "seq_len",
            "log_every_steps",
            "eval_batches",
            "keep_last_checkpoints",
        ):
            if (value := getattr(self, name)) != "auto" and value < 1:
                raise ValueError(f"{name}: found {value}, expected at least 1")
        for name in (
            "loss_chunks",
            "eval_every_steps",
            "checkpoint_every_steps",
            "keep_best_checkpoints",
            "sample_every_steps",
            "sample_tokens",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected 0 or more")
        if not 0 <= self.seed <= LARGEST_SEED - self.num_train_steps:
            raise ValueError(f"seed: found {self.seed}, expected 0 or more and, with the steps, at most {LARGEST_SEED}")
        if self.loss_chunks and self.seq_len % self.loss_chunks:
            raise ValueError(
                f"loss_chunks: found {self.loss_chunks}, expected a divisor of seq_len {self.seq_len}, or 0"
            )
        if self.preset == "auto" and self.init_from is not None:
            raise ValueError("preset: found auto with init_from, expected the preset that those weights are of")
        if self.batch_size == "auto":
            if self.grad_accumulation_steps != 1:
                raise ValueError("grad_accumulation_steps: has no effect with batch_size auto, which chooses it")
        elif self.batch_size % self.grad_accumulation_steps:
            raise ValueError(
                f"grad_accumulation_steps: found {self.grad_accumulation_steps}, expected a divisor of "
                f"batch_size {self.batch_size}"
            )

    @property
    def sequences_per_step(self) -> int:
        """The batch size, once it is chosen."""
        assert self.batch_size != "auto"
        return self.batch_size

    @property
    def tokens_per_step(self) -> int:
        """Tokens that an optimizer step sees, over all devices."""
        return self.sequences_per_step * self.seq_len


def resolve_model(config: TrainConfig, tokenizer: Tokenizer) -> ModelConfig:
    """The model to train: the preset, the replaced fields, and the tokenizer's vocabulary.

    Raises ValueError where the model cannot hold the vocabulary or the sequence.
    """
    fields = dataclasses.asdict(preset(config.preset))
    shape_given = {"hidden_size", "num_heads"} & set(config.model)
    if shape_given and "head_dim" not in config.model:
        fields["head_dim"] = 0  # derived anew
    fields["vocab_size"] = tokenizer.vocab_size
    fields |= {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id}
    model = config_from_dict(fields | config.model)
    if model.vocab_size < tokenizer.vocab_size:
        raise ValueError(
            f"model.vocab_size: found {model.vocab_size}, expected at least the tokenizer's {tokenizer.vocab_size}"
        )
    if config.seq_len > model.max_seq_len:
        raise ValueError(
            f"seq_len: found {config.seq_len}, expected at most the model's max_seq_len {model.max_seq_len}; "
            f"set --model.max_seq_len {config.seq_len}"
        )
    return model


def model_flags(config: ModelConfig) -> list[str]:
    """The flags that `resolve_model` makes this model of, given any tokenizer that its vocabulary has room for; the
    special tokens are the tokenizer's.
    """
    name = nearest_preset(config)
    fields, there = dataclasses.asdict(config), dataclasses.asdict(preset(name))
    # `resolve_model` takes these from the preset only where it has to.
    given = {"vocab_size"} | ({"head_dim"} if config.has_attention else set())
    changed = {key for key, value in fields.items() if value != there[key]} - {"bos_id", "eos_id", "pad_id"}
    flags = ["--preset", name]
    for key in (key for key in fields if key in given | changed):
        value = fields[key]
        flags += [f"--model.{key}", value if isinstance(value, str) else json.dumps(value)]
    return flags


def training_model(config: TrainConfig, model: ModelConfig, device: Any) -> LanguageModel:
    """The model as it is trained on such a device. Raises ValueError where the device cannot do what was asked for."""
    dtype = activation_dtype(config.dtype, device)
    kernel = choose_kernel(config.attention, dtype, model.head_dim, device) if model.has_attention else "xla"
    return LanguageModel(model, dtype, config.unroll_layers, choose_remat(config.remat, model, device), kernel)


def describe_model(model: LanguageModel) -> str:
    """A line on how a model is computed."""
    scaled = ", the loss scaled dynamically" if model.dtype == jnp.float16 else ""
    attention = f", attention by {model.attention}" if model.config.has_attention else ""
    return f"activations in {jnp.dtype(model.dtype).name}{scaled}{attention}, of each block kept: {model.remat}"


def choose_remat(remat: Remat | Literal["auto"], model: ModelConfig, device: Any) -> Remat:
    """What a `remat` setting means for a model on a device."""
    if remat != "auto":
        return remat
    return "ternary" if model.linear == "ternary" and device.platform == "cpu" and has_vnni() else "products"


def activation_dtype(name: str, device: Any) -> Any:
    """The jax dtype that a `dtype` setting means on a device."""
    if name != "auto":
        return jnp.dtype(name)
    if device.platform == "cpu":
        return jnp.dtype("float32")
    is_older_nvidia = compute_capability(device) is not None and not is_ampere(device)
    return jnp.dtype("float16" if is_older_nvidia else "bfloat16")
