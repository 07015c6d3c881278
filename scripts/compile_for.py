"""Compile the training step for TPUs that are not here: does it fit, what does it move, how fast could it be."""

import os

from jaxlm.common.command_line import run_command

# Before jax is imported: no look at this machine's accelerators, no lock on them, and no log of libtpu.
os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1", TPU_LOG_DIR="disabled")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5e-4")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")

if __name__ == "__main__":
    run_command("jaxlm.commands.compile_for:main")
