"""The command `mlxlm finetune`."""

import os
import sys

from mlxlm.finetune.finetune_config import FinetuneConfig
from mlxlm.finetune.trainer import finetune


def main(config: FinetuneConfig) -> None:
    """Fine-tune a model on text or chats with MLX; every file of the run goes into output_dir."""
    if not finetune(config):
        # All is saved; a closing terminal sends its signal once more, and it must not reach the end of Python.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
