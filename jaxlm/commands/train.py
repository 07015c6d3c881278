"""The command `jaxlm train`: token shards -> model."""

import os
import sys

from jaxlm.parallel.distributed import joined
from jaxlm.training.train_config import TrainConfig
from jaxlm.training.trainer import train


def main(config: TrainConfig) -> None:
    """Train a language model on token shards; every file of the run goes into output_dir."""
    with joined(config.distributed):
        done = train(config)
    if not done:
        # A stop during compilation leaves the compiler at work in a thread that nothing can cancel.
        sys.stdout.flush()
        os._exit(0)
