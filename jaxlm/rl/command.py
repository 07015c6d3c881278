"""The command `jaxlm train-rl`: a model and rewards -> a model."""

from jaxlm.ops.machine.user_cache import keep_programs
from jaxlm.rl.rl_config import RLConfig
from jaxlm.rl.rl_trainer import train_rl


def main(config: RLConfig) -> None:
    """Train a language model by rewards for its answers; every file of the run goes into output_dir."""
    keep_programs()
    train_rl(config)
