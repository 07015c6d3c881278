"""The same tasks of lm-evaluation-harness in several runtimes: accuracies, and log-likelihoods compared one by one."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.measuring.http_client import free_port, server_process
from rich.table import Table

import jaxlm.load
import jaxlm.tasks
import mlxlm.load
import mlxlm.tasks
from jaxlm.common.command_line import make_console
from jaxlm.common.evaluation.evaluated_model import EvaluatedModel
from jaxlm.common.evaluation.harness import load_harness_tasks, run_harness_tasks
from jaxlm.common.evaluation.probes import write_tasks
from jaxlm.common.formats.open_model import model_path
from jaxlm.conversion.convert import Conversion, convert
from shared_tokenizer.settings import check_bounds, setting

# The log-likelihoods of all choices by task, `[rows][choices]`.
Scores = dict[str, list[list[float]]]
REFERENCE = "JAX"


@dataclass(frozen=True, kw_only=True)
class TasksBenchmark:
    """The models, and the tasks that each runs in every runtime."""

    model: list[str]
    """Artifacts, or run directories, whose artifacts are taken."""
    tasks: list[str] = field(default_factory=lambda: ["probe_addition", "probe_brackets_nested", "probe_induction_24"])
    """Probes, as tasks of lm-evaluation-harness with local files."""
    limit: int = setting(40, at_least=1)
    """Rows of each task."""
    client_python: str | None = None
    """Python of an environment with lm-eval[api] and transformers, which asks our
    server; without one the server is left out."""

    def __post_init__(self) -> None:
        check_bounds(self)


def benchmark(settings: TasksBenchmark) -> None:
    """Run tasks with our adapters, through our server, with transformers and llama.cpp; print what differs."""
    console = make_console()
    with tempfile.TemporaryDirectory() as place:
        known = write_tasks(Path(place) / "tasks")
        if unknown := [name for name in settings.tasks if name not in known]:
            raise ValueError(f"tasks: found {', '.join(unknown)}, expected some of {', '.join(known)}")
        for number, path in enumerate(settings.model):
            console.print(f"{path}:")
            found = _run(settings, model_path(Path(path)).resolve(), Path(place), str(number), console.print)
            console.print(accuracy_table(found, _answers(Path(place) / "tasks", settings)))
            for line in differences(found):
                console.print(line)


def _run(settings: TasksBenchmark, model: Path, place: Path, name: str, log: Any) -> dict[str, Scores]:
    """Return the scores of one model in every runtime that is there."""
    jax_model, params, tokenizer = jaxlm.load.load_model(model)
    mlx_model, _ = mlxlm.load.load_model(model)
    if tokenizer is None:
        raise ValueError(f"{model}: found no tokenizer, expected one to write tasks with")
    found = {
        REFERENCE: _adapted(settings, jaxlm.tasks.evaluated_model("jax", jax_model, params, tokenizer), place),
        "MLX": _adapted(settings, mlxlm.tasks.evaluated_model("mlx", mlx_model, tokenizer), place),
    }
    if settings.client_python is None:
        log("our server: not run, no client_python was given")
    else:
        found["our server"] = _served(settings, settings.client_python, model, place / f"server-{name}")
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("transformers") is None:
        log("transformers: not run, torch or transformers is not installed")
    else:
        arguments = [f"pretrained={model}", "dtype=float32"]
        found["transformers"] = _asked(settings, sys.executable, "hf", arguments, place / f"hf-{name}", "cpu")
    if importlib.util.find_spec("llama_cpp") is None:
        log("llama.cpp: not run, llama-cpp-python is not installed")
    else:
        from benchmarks.measuring.llama_cpp_model import llama_cpp_model

        file = place / f"model-{name}.gguf"
        convert(model, file, Conversion(form="gguf"), lambda *_: None)
        found["llama.cpp"] = _adapted(settings, llama_cpp_model(file, tokenizer, jax_model.config.max_seq_len), place)
    return found


def _adapted(settings: TasksBenchmark, model: EvaluatedModel, place: Path) -> Scores:
    tasks = load_harness_tasks(settings.tasks, str(place / "tasks"))
    found = run_harness_tasks(model, tasks, limit=settings.limit, log=lambda line: None)
    return {task: _scores(samples) for task, samples in found["samples"].items()}


def _served(settings: TasksBenchmark, python: str, model: Path, output: Path) -> Scores:
    port = free_port()
    command = [sys.executable, "-m", "mlxlm.server", "--model", str(model), "--model_name", "model"]
    with server_process([*command, "--port", str(port)], port):
        url = f"http://127.0.0.1:{port}/v1/completions"
        length = mlxlm.load.load_model(model)[0].config.max_seq_len
        # Without add_bos_token, and with a remote tokenizer always, the harness leaves the begin token out.
        arguments = [f"base_url={url}", "model=model", f"max_length={length}", "add_bos_token=True"]
        arguments += ["tokenizer_backend=huggingface", f"tokenizer={model}"]
        return _asked(settings, python, "local-completions", arguments, output)


def _asked(
    settings: TasksBenchmark, python: str, model: str, arguments: Sequence[str], output: Path, device: str | None = None
) -> Scores:
    """Return the scores that lm-evaluation-harness finds in a process of its own."""
    words = ["-m", "lm_eval", "run", "--model", model, "--model_args", *arguments, "--tasks", *settings.tasks]
    words += ["--include_path", str(output.parent / "tasks"), "--limit", str(settings.limit)]
    words += ["--log_samples", "--output_path", str(output)] + ([] if device is None else ["--device", device])
    environment = dict(os.environ) | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "0"}
    done = subprocess.run([python, *words], capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"lm_eval with {model}: {done.stderr[-2000:]}")
    found = Scores()
    for task in settings.tasks:
        (path,) = output.rglob(f"samples_{task}_*.jsonl")
        found[task] = _scores([json.loads(line) for line in path.read_text("utf-8").splitlines()])
    return found


def _scores(samples: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    rows = sorted(samples, key=lambda sample: sample["doc_id"])
    return [[float(each[0]) for each in sample["filtered_resps"]] for sample in rows]


def _answers(directory: Path, settings: TasksBenchmark) -> dict[str, list[int]]:
    """Return the index of the right choice of each row, by task."""
    lines = {name: (directory / f"{name}.jsonl").read_text("utf-8").splitlines() for name in settings.tasks}
    return {name: [json.loads(line)["answer"] for line in found[: settings.limit]] for name, found in lines.items()}


def accuracy_table(found: Mapping[str, Scores], answers: Mapping[str, Sequence[int]]) -> Table:
    """Return a table of accuracies by task and runtime. Of equal choices the first counts."""
    table = Table("task", *found)
    for task, right in answers.items():
        cells = [
            np.mean([int(np.argmax(row)) == at for row, at in zip(scores[task], right, strict=True)])
            for scores in found.values()
        ]
        table.add_row(task, *(f"{cell:.3f}" for cell in cells))
    return table


def differences(found: Mapping[str, Scores]) -> list[str]:
    """Return a line for each runtime beside the reference, and one for each row that it answers otherwise."""
    lines = list[str]()
    for name, scores in found.items():
        if name == REFERENCE:
            continue
        apart = list[float]()
        others = list[str]()
        for task, rows in found[REFERENCE].items():
            for number, (ours, theirs) in enumerate(zip(rows, scores[task], strict=True)):
                apart += [abs(a - b) for a, b in zip(ours, theirs, strict=True)]
                if np.argmax(ours) != np.argmax(theirs):
                    best = sorted(ours)[-2:]
                    others.append(
                        f"  {task}, row {number}: another choice; the best two are {best[1] - best[0]:.1e} apart"
                    )
        over = sum(each > 1e-3 for each in apart)
        lines.append(
            f"{name} and {REFERENCE}: {len(apart)} log-likelihoods, at most {max(apart):.1e} apart, {over} more than "
            f"1e-3, median {np.median(apart):.1e}; {len(others)} rows with another choice"
        )
        lines += others
    return lines
