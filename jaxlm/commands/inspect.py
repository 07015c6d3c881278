"""The command `jaxlm inspect`: what a model on disk or on the hub is, before anything is done with it."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from jaxlm.common.architecture.config import ModelConfig
from jaxlm.common.architecture.parameters import parameter_count, ternary_parameter_count
from jaxlm.common.command_line import make_console
from jaxlm.conversion.inspection import Inspection, Matrix, inspect_model, lora_memory, our_forms, qat_memory
from shared_tokenizer.settings import setting

_TOKENS = 512
# What an inspection reads of a repository; other forms of the same weights are left there.
_HUB_FILES = ("*.json", "*.safetensors")


@dataclass(frozen=True)
class InspectConfig:
    """A model to look at."""

    source: str = setting(is_model=True)
    """Run directory, artifact, transformers or MLX directory, GGUF or safetensors file; or the name of a model on the
    Hugging Face hub (OWNER/NAME), whose weights are downloaded to its cache."""
    verbose: bool = False
    """Show every matrix, not one line per kind of matrix."""


def main(config: InspectConfig) -> None:
    """Show what a model is: which matrices are ternary and how, the forms that fit it, what fine-tuning needs."""
    console = make_console()
    path = _path(config.source)
    found = inspect_model(path, lambda line: console.print(f"note: {line}"))
    console.print(_matrix_table(found, config.verbose))
    if found.config is None:
        console.print("\na file of weights alone: name its directory for the forms that fit the model")
        return
    console.print(f"\n{_summary(found, found.config)}\n")
    table = Table(box=None, pad_edge=False)
    for heading in ("form", "bytes", ""):
        table.add_column(heading, no_wrap=heading != "", justify="right" if heading == "bytes" else "left")
    for form in our_forms(found.config):
        table.add_row(form.name, "-" if form.bytes is None else f"{form.bytes:,}", form.note)
    console.print(table)
    for line in _memory_lines(found.config):
        console.print(line)
    if found.is_hidden:
        console.print(f"next:   jaxlm convert {config.source} DIR --as ternary")


def _path(source: str) -> Path:
    """Return the local path of a model; one of the hub is downloaded. Raises ValueError where that is not possible."""
    path = Path(source)
    if path.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", source) or Path(source).parent.exists():
        return path
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise ValueError(
            f"{source}: no such directory, and the extra that reads models of the Hugging Face hub is not installed; "
            "install jaxlm[hub]"
        ) from error
    try:
        return Path(snapshot_download(source, allow_patterns=list(_HUB_FILES)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(f"{source}: no such directory, and not read from the hub: {str(error)[:200]}") from error


def _matrix_table(found: Inspection, verbose: bool) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("", "matrix", "shape", "is", "scales per", "exact in", "zeros"):
        table.add_column(heading, no_wrap=True, justify="right" if heading in ("", "zeros") else "left")
    kinds: dict[tuple[Any, ...], list[Matrix]] = {}
    for matrix in found.matrices:
        name = matrix.name if verbose else re.sub(r"^.*?layers\.\d+\.", "*.", matrix.name)
        kinds.setdefault((name, matrix.shape, matrix.form, matrix.scale_per, matrix.scale_dtype), []).append(matrix)
    for (name, shape, *rest), matrices in kinds.items():
        zeros = [matrix.zeros for matrix in matrices if matrix.zeros is not None]
        shares = f"{min(zeros):.1%}" if zeros else ""
        if zeros and f"{max(zeros):.1%}" != shares:
            shares += f" to {max(zeros):.1%}"
        count = f"{len(matrices)} x" if len(matrices) > 1 else ""
        table.add_row(count, name, f"{shape[0]:,} x {shape[1]:,}", *rest, shares)
    return table


def _summary(found: Inspection, config: ModelConfig) -> str:
    total = parameter_count(config)
    if not config.is_ternary:
        return f"a dense model of {total:,} parameters"
    activations = "float activations" if config.activation_bits is None else f"{config.activation_bits}-bit activations"
    return (
        f"a ternary model of {total:,} parameters, {ternary_parameter_count(config) / total:.0%} of them ternary, "
        f"scales per {config.scale_per} in {config.scale_dtype}, {activations}"
        + ("; its config does not say so, and it is read as dense without --as ternary" if found.is_hidden else "")
    )


def _memory_lines(config: ModelConfig) -> list[str]:
    try:
        lora, qat = lora_memory(config, _TOKENS), qat_memory(config, _TOKENS)
    except ValueError:  # there is no estimate for patterns of mixers
        return []
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return [
        f"\nfine-tuning on {_TOKENS} tokens at a time: LoRA about {lora / 1e9:,.1f} GB, all weights about "
        f"{qat / 1e9:,.1f} GB; this machine has {memory / 1e9:,.1f} GB"
    ]
