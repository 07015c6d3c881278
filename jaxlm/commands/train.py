"""The command `jaxlm train`: token shards -> model."""

import atexit
import os
import sys

from jaxlm.parallel.distributed import joined
from jaxlm.training.train_config import TrainConfig
from jaxlm.training.trainer import train


def main(config: TrainConfig) -> None:
    """Train a language model on token shards; every file of the run goes into output_dir."""
    try:
        with joined(config.distributed):
            done = train(config)
    except OSError:
        # Threads of a save that has failed print tracebacks while Python ends: the error is told in one line.
        atexit.register(_leave, 2)
        raise
    if not done:
        # A stop during compilation leaves the compiler at work in a thread that nothing can cancel.
        _leave(0)


def _leave(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
