"""Adapters made part of a model: `python -m mlxlm.merge --model DIR --adapter_path DIR --output_dir DIR`.

A dense weight takes an update in exactly. A ternary one is ternarised again: what the model then computes has changed
only by the codes that flipped, and by its scale. Besides, an adapter sees the input of its layer (after the layer's own
norm) unquantized, and the merged weight sees it quantized. So the loss after merging is not the loss with the adapters;
`--data` reports both, and that of the base.
"""

import dataclasses
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.table import Table

from jaxlm.common.artifact.artifact import write_artifact
from jaxlm.common.command_line import make_console, run_command
from jaxlm.common.formats.open_model import open_model
from mlxlm.adapters.merged_tensors import LayerMerge, MergedTensors, adapters_of
from mlxlm.evaluate import evaluate_text
from mlxlm.load import load_model
from mlxlm.model.language_model import LanguageModel
from shared_tokenizer.chat.template import copy_chat_template
from shared_tokenizer.data.evaluation import Evaluation
from shared_tokenizer.data.evaluation_text import EvaluationText, evaluation_table
from shared_tokenizer.load import tokenizer_directory
from shared_tokenizer.manifest import sealed_directory
from shared_tokenizer.tokenizers.tokenizer import Tokenizer

REPORT = "merge.json"


@dataclass(frozen=True, kw_only=True)
class MergeConfig(EvaluationText):
    """What to merge, and on which text to measure what it does."""

    model: str
    """Model that the adapters were trained on; of a ternary one the latent artifact."""
    adapter_path: str
    """Directory of the adapters."""
    output_dir: str
    """Artifact to create: latent, in float32, for training to go on from or scripts/convert.py to pack."""
    data: list[str] = field(default_factory=list)
    """Files, folders or stdlib: report the loss on this text before, with the adapters, and after."""
    from_packed: bool = False
    """Merge into a packed model too, which has no latent weights: what is smaller than half the step from one code to
    the next is lost. The result is packed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for setting in dataclasses.fields(EvaluationText):
            if not self.data and getattr(self, setting.name) != setting.default:
                raise ValueError(f"{setting.name}: found {getattr(self, setting.name)}, but no data to evaluate on")


@dataclass(frozen=True)
class MergeReport:
    """What became of the weights and, where there was text, of the loss."""

    layers: list[LayerMerge]
    evaluations: dict[str, Evaluation]


def merge(config: MergeConfig) -> MergeReport:
    """Write the merged artifact, atomically and with its report in it.

    Raises ValueError, leaving nothing behind, where the adapters are another model's, the place is taken, or the model
    is packed and that was not allowed.
    """
    source = Path(config.model)
    texts = config.read(config.data) if config.data else []
    with sealed_directory(Path(config.output_dir)) as place:
        artifact = open_model(source)
        model, tokenizer = load_model(source, adapter_path=config.adapter_path)
        tensors = MergedTensors(artifact, adapters_of(model))
        if tensors.packed_names and not config.from_packed:
            raise ValueError(_refusal(source, tensors))
        evaluations = {}
        if texts:
            evaluations["base"] = _evaluate(load_model(source), texts, config)
            evaluations["with adapters"] = _evaluate((model, tokenizer), texts, config)
        del model  # one at a time
        with tokenizer_directory(source, tokenizer) as tokenizer_dir:
            write_artifact(place, artifact.config, artifact.kind, tensors.read, tokenizer_dir=tokenizer_dir)
        copy_chat_template(Path(config.adapter_path), place)
        if texts:
            evaluations["merged"] = _evaluate(load_model(place, verify=False), texts, config)
        report = MergeReport(tensors.layers, evaluations)
        (place / REPORT).write_text(json.dumps(asdict(report), indent=2) + "\n", "utf-8")
    return report


def _refusal(source: Path, tensors: MergedTensors) -> str:
    """Why adapters are not merged into codes, with the share of the update that would be lost, and the way out."""
    for name in tensors.packed_names:
        tensors.read(name)
    weights, flipped = _totals(tensors.layers)
    return (
        f"{source}: packed, so codes are all that is left of its ternary weights: the update would flip {flipped:,} of "
        f"{weights:,} codes and be lost on the other {1 - flipped / weights:.2%}; merge into the latent artifact that "
        "it was packed from, or keep the adapters beside it (--adapter_path), or take that loss with --from_packed true"
    )


def _evaluate(loaded: tuple[LanguageModel, Tokenizer | None], texts: list[str], config: MergeConfig) -> Evaluation:
    model, tokenizer = loaded
    if tokenizer is None:
        raise ValueError(f"{config.model}: found no tokenizer, so text cannot be evaluated; leave out data")
    return evaluate_text(model, tokenizer, texts, config.seq_len, config.batch_size)


def _totals(layers: list[LayerMerge]) -> tuple[int, int]:
    """Ternary weights, and how many of their codes flipped."""
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
    console.print(f"merged: {config.output_dir}; report: {Path(config.output_dir) / REPORT}")


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
