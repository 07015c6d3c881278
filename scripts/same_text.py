"""Show that MLX says what JAX says: greedy text from the trained run and from the artifact made of it."""

import os

from jaxlm.common.command_line import run_command

os.environ.setdefault("JAX_PLATFORMS", "cpu")

if __name__ == "__main__":
    run_command("jaxlm.commands.same_text:main")
