"""The settings of a fine-tuning run; its flags are generated from these fields."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxlm.common.run.optimizer_config import OptimizerConfig
from jaxlm.common.run.run_config import RunConfig, check_accumulation
from jaxlm.common.sampling import LARGEST_SEED
from mlxlm.adapters.adapter_config import AdapterConfig
from shared_tokenizer.preparation.prepare_config import TextConfig
from shared_tokenizer.settings import check_unchanged, setting

Method = Literal["lora", "qat", "full"]
LORA_SETTINGS = ("rank", "scale", "dropout", "keys")
QUANTIZE_SETTINGS = ("quantize_steps", "quantize_from_step")
LONGEST_DEFAULT = 512


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(RunConfig, TextConfig):
    """One fine-tuning run. Raises ValueError on a value out of range or without effect."""

    settings_file: ClassVar[str] = "finetune.yaml"

    model: str = setting(group="model", basic=True, resumable=True, is_model=True)
    """Artifact, transformers or MLX directory or GGUF file of the model."""
    data: list[str] = setting(group="data", basic=True, resumable=True)
    """Text or chats (txt, json, jsonl, csv, parquet, folders of them), or token shards of scripts/prepare_data.py."""
    method: Method = setting("lora", group="training", basic=True)
    """lora trains adapters next to frozen weights; qat the latent weights of a ternary or quantized model; full the
    weights of a dense one."""
    batch_size: int = setting(4, group="training", basic=True, at_least=1)
    """Sequences, or pairs of answers, per optimizer step, over all processes."""
    seq_len: int | None = setting(None, group="training", basic=True, at_least=1)
    """Tokens per sequence, at most the model's context; by default 512, or the context where that is shorter."""
    latent_dtype: Literal["float32", "bfloat16"] = setting("float32", group="devices")
    """qat: precision of the trained weights; bfloat16 takes half the memory, and updates are rounded by chance, up or
    down, so that small ones are not lost."""
    grad_checkpoint: bool = setting(False, group="devices", basic=True, resumable=True)
    """Gradient checkpointing: save the inputs of the blocks only and recompute the rest. Less memory, more time."""
    loss_chunks: int = setting(1, group="devices", at_least=0)
    """Chunks of the tokens that the loss is computed in, so that the logits of all tokens never exist: less memory
    where the vocabulary is large; 0 picks as few as keep them small, 1 computes all at once."""
    rank: int = setting(8, group="lora", basic=True)
    """lora: rank of every adapter."""
    scale: float = setting(20.0, group="lora")
    """LoRA scale: the output is `W x + scale * B A x` (mlx-lm's convention, not alpha / rank)."""
    dropout: float = setting(0.0, group="lora")
    """lora: share of an adapter's inputs that training leaves out."""
    keys: list[str] = setting(factory=list, group="lora")
    """lora: linear layers by name, for example q_proj v_proj; by default all of the blocks."""
    num_layers: int = setting(0, group="training", at_least=0)
    """Train only so many of the last blocks; 0 trains all of the model."""
    checkpoint_every_steps: int = setting(100, group="checkpoints", resumable=True, at_least=0)
    """Steps between checkpoints; 0 saves only at the end or when stopped."""
    optimizer: OptimizerConfig = setting(factory=lambda: OptimizerConfig(learning_rate=1e-4, warmup_steps=0))
    """The optimizer and its schedule."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.seed <= LARGEST_SEED // 2:
            raise ValueError(f"seed: found {self.seed}, expected 0 to {LARGEST_SEED // 2}")
        check_accumulation(self.batch_size, self.grad_accumulation_steps)
        if self.method == "lora":
            self.adapters()  # its values are in range
            if self.optimizer.name == "muon":
                raise ValueError(
                    "optimizer.name: found 'muon' with method 'lora', expected 'adamw', as the factors of an adapter "
                    "are not the matrix that Muon orthogonalizes; for muon take method qat or full"
                )
        else:
            check_unchanged(self, LORA_SETTINGS, f"with method {self.method!r}, only with 'lora'")
        if self.method != "qat":
            check_unchanged(self, ("quantize", "latent_dtype"), f"with method {self.method!r}, only with 'qat'")
        if self.quantize is None:
            check_unchanged(self, QUANTIZE_SETTINGS, "without quantize")
        elif self.latent_dtype != "float32":
            raise ValueError(
                f"latent_dtype: found {self.latent_dtype!r} with quantize {self.quantize!r}, which mixes them with "
                "floats at first; leave latent_dtype out"
            )
        elif self.num_layers:
            raise ValueError(
                f"num_layers: found {self.num_layers} with quantize {self.quantize!r}, which quantizes the blocks that "
                "are not trained too; leave num_layers out"
            )

    def adapters(self) -> AdapterConfig:
        """Return the adapters of method lora."""
        return AdapterConfig(
            rank=self.rank,
            scale=self.scale,
            dropout=self.dropout,
            keys=tuple(self.keys),
            num_layers=self.num_layers,
        )
