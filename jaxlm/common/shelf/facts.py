"""Facts of a model from its files, and of the run that it lies in."""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxlm.common.architecture.parameters import parameter_count, ternary_parameter_count
from jaxlm.common.artifact.model_files import read_config
from jaxlm.common.formats.files_fingerprint import files_fingerprint
from jaxlm.common.formats.open_model import open_model
from jaxlm.common.run.identity import read_identity
from jaxlm.common.run.metrics_log import read_metrics
from jaxlm.common.run.run_directory import SETTINGS_FILES, RunDirectory, read_settings, settings_file_of

# Settings of a run that its card tells: of both trainers, where a run has them.
_RECIPE = (
    "preset",
    "init_from",
    "method",
    "objective",
    "quantize",
    "num_train_steps",
    "batch_size",
    "seq_len",
    "seed",
    "teacher",
)
_OPTIMIZER = ("name", "learning_rate", "schedule", "warmup_steps", "weight_decay")


@dataclass(frozen=True)
class ModelFacts:
    """Facts that a model's own files tell."""

    form: str
    family: str
    parameters: int
    ternary_parameters: int
    vocab_size: int
    max_seq_len: int
    sha256: str


def model_facts(model: Path) -> ModelFacts:
    """Open a model whose files are known whole. Raises ValueError where it cannot be read."""
    artifact = open_model(model, verify=False, log=lambda line: None)
    config = artifact.config
    if model.is_file():
        form, family = "gguf", str((artifact.tokenizer_metadata or {}).get("general.architecture", "unknown"))
    else:
        content = read_config(model)
        ours = "mlx" if "model_file" in content or "quantization" in content else artifact.kind
        form = ours if "jaxlm" in content or ours == "mlx" else "transformers"
        family = str(content.get("model_type", "unknown"))
    return ModelFacts(
        form,
        family,
        parameter_count(config),
        ternary_parameter_count(config),
        config.vocab_size,
        config.max_seq_len,
        files_fingerprint(model),
    )


def run_around(model: Path) -> Path | None:
    """Return the run that a model is, or is the artifact of; None where there is none."""
    for folder in (model, model.parent):
        if any((folder / name).is_file() for name in SETTINGS_FILES):
            return folder
    return None


def run_facts(path: Path) -> tuple[dict[str, Any], dict[str, float]]:
    """Return what a card tells of a run, and its last evaluation. Raises ValueError where it has no settings."""
    run = RunDirectory(path)
    settings = read_settings(path, settings_file_of(path))
    recipe = {name: settings[name] for name in _RECIPE if settings.get(name) is not None}
    if isinstance(settings["model"], str):  # of fine-tuning; training's are fields, which the model's files hold
        recipe["model"] = settings["model"]
    optimizer = settings.get("optimizer")
    if isinstance(optimizer, dict):
        recipe |= {f"optimizer.{name}": optimizer[name] for name in _OPTIMIZER if optimizer.get(name) is not None}
    facts: dict[str, Any] = {"name": path.absolute().name, "recipe": recipe}
    evaluation: dict[str, float] = {}
    with contextlib.suppress(ValueError):  # a damaged log or identity is no reason to keep a model off the shelf
        lines = read_metrics(run.metrics)
        if lines:
            facts |= {"steps": lines[-1]["step"], "tokens": lines[-1].get("data/tokens_seen")}
        held_out = next((line for line in reversed(lines) if "val/loss" in line), None)
        if held_out is not None:
            evaluation = {"step": held_out["step"], "loss": held_out["val/loss"]}
            if "val/bits_per_byte" in held_out:
                evaluation["bits_per_byte"] = held_out["val/bits_per_byte"]
    with contextlib.suppress(ValueError):
        identity = read_identity(path)
        facts["fingerprints"] = dict(identity.fingerprints) if identity is not None else {}
    return facts, evaluation
