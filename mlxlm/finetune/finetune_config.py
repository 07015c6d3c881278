"""Settings of a fine-tuning run. Every command-line flag is generated from these fields."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from jaxlm.common.bounds import check_bounds
from jaxlm.common.run.optimizer_config import OptimizerConfig
from jaxlm.common.sampling import LARGEST_SEED
from mlxlm.adapters.adapters import AdapterConfig
from shared_tokenizer.chat.formats import ChatFormatChoice
from shared_tokenizer.data.batches import Packing

Method = Literal["lora", "qat", "full"]
# What may change when a run is resumed: nothing in it touches a weight.
RESUMABLE_CHANGES = {
    "output_dir",
    "model",
    "data",
    "resume",
    "verify_data",
    "grad_checkpoint",
    "log_every_steps",
    "eval_every_steps",
    "eval_batches",
    "checkpoint_every_steps",
    "keep_last_checkpoints",
    "sample_every_steps",
    "sample_prompt",
    "sample_tokens",
}
LORA_SETTINGS = ("rank", "scale", "dropout", "keys")
QUANTIZE_SETTINGS = ("quantize_steps",)
TEACHER_SETTINGS = ("teacher_weight", "teacher_temperature")
LONGEST_DEFAULT = 512


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """One fine-tuning run. Raises ValueError on a value out of range or without effect."""

    model: str
    """Artifact, transformers or MLX directory or GGUF file of the model."""
    data: list[str]
    """Text or chats (txt, json, jsonl, csv, parquet, folders of them), or token shards of scripts/prepare_data.py."""
    output_dir: str
    """Run directory to create, or to continue with resume."""
    method: Method = "lora"
    """What is trained: lora, adapters beside frozen weights; qat, the latent weights of a ternary or quantized model;
    full, the weights of a dense one."""
    num_train_steps: int | None = None
    """Optimizer steps in all; by default one epoch."""
    epochs: float | None = None
    """Rounds through the training data, in place of num_train_steps."""
    batch_size: int = 4
    """Sequences per optimizer step, over all processes."""
    grad_accumulation_steps: int = 1
    """Micro-batches that a batch is split into; the result is that of the whole batch."""
    grad_checkpoint: bool = False
    """Keep nothing of each block for the backward pass but its input: less memory, more time."""
    loss_chunks: int = 1
    """Chunks of the tokens that the loss is computed in, so that logits of all tokens never exist: less memory where
    the vocabulary is large; 0 takes as few as keep them small, 1 computes all at once."""
    seq_len: int | None = None
    """Tokens per sequence, at most the model's context; by default 512, or the context where that is shorter."""
    rank: int = 8
    """lora: rank of every adapter."""
    scale: float = 20.0
    """lora: what an adapter's product is multiplied by; not divided by the rank."""
    dropout: float = 0.0
    """lora: share of an adapter's inputs that training leaves out."""
    keys: list[str] = field(default_factory=list)
    """lora: linear layers by name, for example q_proj v_proj; none named means all of the blocks."""
    num_layers: int = 0
    """Train only so many of the last blocks; 0 trains all of the model."""
    quantize: Literal["ternary"] | None = None
    """qat: what the linear layers of a dense model become: at first as they are, then quantized more and more."""
    quantize_steps: int | None = None
    """Steps until they are quantized in full, fewer than num_train_steps; by default half of them."""
    teacher: str | None = None
    """Dense model of the same vocabulary to distil from; it stays as it is."""
    teacher_weight: float = 0.5
    """Share of the teacher in the training loss; the rest is the text's."""
    teacher_temperature: float = 2.0
    """What logits are divided by where teacher and model are compared."""
    packing: Packing = "auto"
    """How examples are made: windows over all text, or whole documents packed best_fit; auto packs chats."""
    document_mask: bool = True
    """Keep attention and state inside each document of a window."""
    val_fraction: float = 0.05
    """Share of the documents of text or chats held out for validation, chosen by their hash."""
    document_characters: int = 0
    """Cut texts at line ends into documents of about this many characters; 0 leaves each text whole."""
    max_bad_rows: int = 0
    """Rows of the data that cannot be read and may be skipped, at most."""
    text_column: str | None = None
    """Column that holds the text or the messages, where it is not found by itself."""
    chat_format: ChatFormatChoice = "auto"
    """How chats are written; auto is the model's own, or else chatml."""
    resume: bool = False
    """Continue the run in output_dir from its last whole checkpoint."""
    seed: int = 0
    """Seed of the adapters' first weights, of dropout, of the order of the data and of the samples."""
    verify_data: bool = True
    """Check the sha256 of every shard at the start."""
    log_every_steps: int = 10
    """Steps between lines of metrics.jsonl."""
    eval_every_steps: int = 100
    """Steps between evaluations on the held-out split; 0 evaluates only at the end."""
    eval_batches: int = 20
    """Batches of the held-out split to evaluate on, at most."""
    checkpoint_every_steps: int = 100
    """Steps between checkpoints; 0 saves only at the end or when stopped."""
    keep_last_checkpoints: int = 2
    """Latest checkpoints to keep."""
    sample_every_steps: int = 0
    """Steps between text samples; 0 samples only at the end."""
    sample_prompt: str = ""
    """Start of every text sample."""
    sample_tokens: int = 128
    """Tokens per text sample; 0 writes none."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=1e-4, warmup_steps=0))
    """AdamW and its schedule."""

    def __post_init__(self) -> None:
        self._check_bounds()
        if self.num_train_steps is not None and self.epochs is not None:
            raise ValueError("num_train_steps, epochs: found both, expected one of the two")
        if self.batch_size % self.grad_accumulation_steps:
            raise ValueError(
                f"grad_accumulation_steps: found {self.grad_accumulation_steps}, expected a divisor of "
                f"batch_size {self.batch_size}"
            )
        if self.method == "lora":
            self.adapters()  # its values are in range
        else:
            self._refuse_changes_of(LORA_SETTINGS, f"with method {self.method!r}, only with 'lora'")
        if self.method != "qat":
            self._refuse_changes_of(("quantize",), f"with method {self.method!r}, only with 'qat'")
        if self.quantize is None:
            self._refuse_changes_of(QUANTIZE_SETTINGS, "without quantize")
        elif self.num_layers:
            raise ValueError(
                f"num_layers: found {self.num_layers} with quantize {self.quantize!r}, which quantizes the blocks that "
                "are not trained too; leave num_layers out"
            )
        if self.teacher is None:
            self._refuse_changes_of(TEACHER_SETTINGS, "without teacher")

    def adapters(self) -> AdapterConfig:
        """The adapters of method lora."""
        return AdapterConfig(
            rank=self.rank,
            scale=self.scale,
            dropout=self.dropout,
            keys=tuple(self.keys),
            num_layers=self.num_layers,
        )

    def _check_bounds(self) -> None:
        counts = ("batch_size", "grad_accumulation_steps", "log_every_steps", "eval_batches", "keep_last_checkpoints")
        intervals = ("eval_every_steps", "checkpoint_every_steps", "sample_every_steps")
        amounts = ("loss_chunks", "num_layers", "document_characters", "max_bad_rows", "sample_tokens")
        steps, quantize_steps, seq_len, epochs = self.num_train_steps, self.quantize_steps, self.seq_len, self.epochs
        bounds = {
            **{name: (getattr(self, name) >= 1, "at least 1") for name in counts},
            **{name: (getattr(self, name) >= 0, "0 or more") for name in (*intervals, *amounts)},
            "teacher_weight": (0 < self.teacher_weight <= 1, "more than 0, at most 1"),
            "teacher_temperature": (0 < self.teacher_temperature < float("inf"), "more than 0 and finite"),
            "quantize_steps": (quantize_steps is None or quantize_steps >= 0, "0 or more"),
            "num_train_steps": (steps is None or steps >= 1, "at least 1"),
            "seq_len": (seq_len is None or seq_len >= 1, "at least 1"),
            "epochs": (epochs is None or 0 < epochs < float("inf"), "more than 0 and finite"),
            "seed": (0 <= self.seed <= LARGEST_SEED // 2, f"0 to {LARGEST_SEED // 2}"),
        }
        check_bounds(self, bounds)

    def _refuse_changes_of(self, names: Sequence[str], where: str) -> None:
        """Raise ValueError where a setting is not at its default, which would have no effect."""
        settings = {setting.name: setting for setting in dataclasses.fields(self)}
        for name in names:
            default = [] if name == "keys" else settings[name].default
            if getattr(self, name) != default:
                raise ValueError(f"{name}: has no effect {where}")
