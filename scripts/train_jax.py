"""Train a model, or resume a run."""

from jaxlm.common.command_line import quiet_libraries, run_command

quiet_libraries()

import os  # noqa: E402
import sys  # noqa: E402

from jaxlm.parallel.distributed import joined  # noqa: E402
from jaxlm.training.train_config import TrainConfig  # noqa: E402
from jaxlm.training.trainer import train  # noqa: E402


def main(config: TrainConfig) -> None:
    """Train a language model on token shards; every file of the run goes into output_dir."""
    with joined(config.distributed):
        done = train(config)
    if not done:
        # A stop during compilation leaves the compiler at work in a thread that nothing can cancel.
        sys.stdout.flush()
        os._exit(0)


if __name__ == "__main__":
    run_command(main, TrainConfig)
