"""Benchmarks: two things side by side in one run, quoted as a ratio. `scripts/benchmark.py quality --help`."""

import importlib
import sys

from jaxlm.common.command_line import quiet_libraries, run_command

# Each is a module of scripts/benchmarks with a `benchmark` function of a `Settings`.
BENCHMARKS = ("quality", "data", "mixers", "train", "scaling", "mlx")


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "none"
    if name in ("-h", "--help"):
        print(f"usage: benchmark.py {{{','.join(BENCHMARKS)}}} [--help]")
        return
    if name not in BENCHMARKS:
        sys.stderr.write(f"error: benchmark: found {name!r}, expected one of {', '.join(BENCHMARKS)}\n")
        sys.exit(2)
    quiet_libraries()
    module = importlib.import_module(f"benchmarks.{name}")
    run_command(module.benchmark, module.Settings, argv=sys.argv[2:])


if __name__ == "__main__":
    main()
