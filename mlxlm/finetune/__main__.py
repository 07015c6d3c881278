"""Fine-tune a model on a Mac: `python -m mlxlm.finetune --model DIR --data PATH --output_dir DIR`."""

from jaxlm.common.command_line import quiet_libraries, run_command

quiet_libraries()

from mlxlm.finetune.finetune_config import FinetuneConfig  # noqa: E402
from mlxlm.finetune.trainer import finetune  # noqa: E402


def main(config: FinetuneConfig) -> None:
    """Fine-tune a model on text or chats with MLX; every file of the run goes into output_dir."""
    finetune(config)


if __name__ == "__main__":
    run_command(main, FinetuneConfig)
