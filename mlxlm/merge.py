"""The command `mlxlm merge`: add adapters to the weights of their model.

A dense weight absorbs an update exactly. A ternary weight is ternarised again: the update changes the model only where
codes flip, and by the new scale. Also, an adapter multiplies the input of its layer (after the layer's own norm) as
floats, but the merged weight multiplies the quantized input. So the loss after merging differs from the loss with the
adapters; `--data` reports both, and the loss of the base model.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from jaxlm.common.artifact.artifact import write_artifact
from jaxlm.common.command_line import make_console, run_command
from jaxlm.common.formats.open_model import open_model
from jaxlm.common.next_command import next_command
from mlxlm.adapters.merged_tensors import LayerMerge, MergedTensors, adapters_of
from mlxlm.evaluate import evaluate_text
from mlxlm.load import load_model
from mlxlm.merge_config import MergeConfig
from mlxlm.model.language_model import LanguageModel
from shared_tokenizer.chat.template import copy_chat_template
from shared_tokenizer.data.evaluation import Evaluation
from shared_tokenizer.data.evaluation_text import as_texts, evaluation_table
from shared_tokenizer.load import tokenizer_directory
from shared_tokenizer.manifest import sealed_directory, verify_where_sealed
from shared_tokenizer.tokenizers.tokenizer import Tokenizer

REPORT = "merge.json"


@dataclass(frozen=True)
class MergeReport:
    """The changes of the weights and, if there is text, the losses before and after."""

    layers: list[LayerMerge]
    evaluations: dict[str, Evaluation]
    """By name: base, with adapters, merged."""


def merge(config: MergeConfig) -> MergeReport:
    """Write the merged artifact atomically, with its report in it.

    Raises ValueError, and writes nothing, if the adapters belong to another model, if the output directory exists, or
    if the model is packed without `from_packed`.
    """
    source = Path(config.model)
    texts = as_texts(config.read(config.data)) if config.data else []
    with sealed_directory(Path(config.output_dir)) as directory:
        artifact = open_model(source)
        model, tokenizer = load_model(source, adapter_path=config.adapter_path)
        tensors = MergedTensors(artifact, adapters_of(model))
        if tensors.packed_names and not config.from_packed:
            raise ValueError(_refusal(source, tensors))
        evaluations = {}
        if texts:
            evaluations["base"] = _evaluate(load_model(source), texts, config)
            evaluations["with adapters"] = _evaluate((model, tokenizer), texts, config)
        del model  # so that only one model is in memory
        with tokenizer_directory(source, tokenizer) as tokenizer_dir:
            write_artifact(directory, artifact.config, artifact.kind, tensors.read, tokenizer_dir=tokenizer_dir)
        verify_where_sealed(Path(config.adapter_path))
        copy_chat_template(Path(config.adapter_path), directory)
        if texts:
            evaluations["merged"] = _evaluate(load_model(directory, verify=False), texts, config)
        report = MergeReport(tensors.layers, evaluations)
        (directory / REPORT).write_text(json.dumps(asdict(report), indent=2) + "\n", "utf-8")
    return report


def _refusal(source: Path, tensors: MergedTensors) -> str:
    """Return the error for a packed model, with the share of codes that would keep their value, and the way out."""
    for name in tensors.packed_names:
        tensors.read(name)
    weights, flipped = _totals(tensors.layers)
    return (
        f"{source}: found a packed model, expected latent weights: the update would flip {flipped:,} of {weights:,} "
        f"codes and be lost on the other {1 - flipped / weights:.2%}; merge into the latent artifact that it was "
        "packed from, or keep the adapters next to it (--adapter_path), or accept that loss with --from_packed true"
    )


def _evaluate(loaded: tuple[LanguageModel, Tokenizer | None], texts: list[str], config: MergeConfig) -> Evaluation:
    model, tokenizer = loaded
    if tokenizer is None:
        raise ValueError(f"{config.model}: found no tokenizer, so text cannot be evaluated; leave out data")
    return evaluate_text(model, tokenizer, texts, config.seq_len, config.batch_size)


def _totals(layers: list[LayerMerge]) -> tuple[int, int]:
    """Return the number of ternary weights, and the number of their codes that flipped."""
    ternary = [layer for layer in layers if layer.codes_flipped is not None]
    return sum(layer.weights for layer in ternary), sum(layer.codes_flipped or 0 for layer in ternary)


def main(config: MergeConfig) -> None:
    """Add adapters to the weights of their model."""
    report = merge(config)
    console = make_console()
    console.print(_layer_table(report.layers))
    weights, flipped = _totals(report.layers)
    if weights:
        console.print(f"ternary codes: {flipped:,} of {weights:,} flipped ({flipped / weights:.2%})")
    if report.evaluations:
        console.print(evaluation_table(report.evaluations))
    console.print(f"merged: {config.output_dir}\nreport: {Path(config.output_dir) / REPORT}")
    console.print(f"next:   {next_command('mlx-generate', '--model', config.output_dir, '--prompt', '...')}")


def _layer_table(layers: list[LayerMerge]) -> Table:
    table = Table()
    for heading in ("weight", "size", "update / weight", "codes flipped", "share"):
        table.add_column(heading, justify="left" if heading == "weight" else "right")
    for layer in layers:
        flipped = layer.codes_flipped
        codes = ("", "") if flipped is None else (f"{flipped:,}", f"{flipped / layer.weights:.2%}")
        table.add_row(layer.name, f"{layer.weights:,}", f"{layer.relative_update:.4f}", *codes)
    return table


if __name__ == "__main__":
    run_command(main)
