"""Benchmarks: two things side by side in one run, quoted as a ratio. `scripts/benchmark.py quality --help`."""

import sys

from jaxlm import __version__
from jaxlm.common.command_line import choose_command

# Each is a module of scripts/benchmarks with a function `benchmark`; its command is named as its file.
BENCHMARKS = {
    "quality": "presets side by side on the same tokens: held-out loss, probes and speed",
    "train": "the training step against PyTorch's: tokens/s, peak memory, utilization",
    "data": "preparation against the bare tokenizer library; the cost of batches in a training step",
    "mixers": "MLGRU against attention: training by sequence length, decoding by context",
    "mlx": "fine-tuning and generation against stock mlx-lm: tokens/s, peak memory",
    "server.serve": "our server and mlx-lm's: tokens/s and time to the first token by the number of clients",
    "tasks": "the same tasks of lm-evaluation-harness in several runtimes: accuracies, log-likelihoods one by one",
    "server.soak": "many clients of our server for minutes: equal answers, flat memory, no errors",
    "objectives": "the step of each objective beside that of plain training: time and memory",
    "samples": "accuracy on a task by the number of samples: the best by a verifier, the majority",
    "generate": "generation by JAX and by transformers: tokens/s by the number of prompts",
    "convert": "conversion with its proof against a copy of the file: MB/s, peak memory",
    "products": "the products of a linear layer by form and route: GFLOP/s, exactness",
    "profile": "where the time of a training step goes, by the kind of operation",
    "accelerator": "all that has to be measured on a GPU or TPU, in one go",
    "scaling": "the cost of a step when the sequence, batch, layers or devices double",
}

if __name__ == "__main__":
    commands = {
        module.rpartition(".")[2]: (f"benchmarks.{module}:benchmark", text) for module, text in BENCHMARKS.items()
    }
    choose_command("benchmark.py", commands, sys.argv[1:], version=__version__)
