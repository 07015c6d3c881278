"""The command `mlxlm finetune`."""

from mlxlm.finetune.finetune_config import FinetuneConfig
from mlxlm.finetune.trainer import finetune


def main(config: FinetuneConfig) -> None:
    """Fine-tune a model on text or chats with MLX; every file of the run goes into output_dir."""
    finetune(config)
