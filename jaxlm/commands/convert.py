"""The commands `jaxlm convert` and `jaxlm verify`: a model in another form, and two models compared."""

import re
from pathlib import Path

from rich.table import Table

from jaxlm.commands.other_programs import other_program
from jaxlm.common.command_line import make_console
from jaxlm.common.formats.as_ternary import TernaryReading
from jaxlm.common.formats.mlx import MODEL_FILE
from jaxlm.common.next_command import next_command
from jaxlm.conversion.compare import (
    LogitComparison,
    WeightComparison,
    compare_logits,
    compare_weights,
    probe_logits,
)
from jaxlm.conversion.convert import Conversion, ConversionReport, convert
from jaxlm.conversion.convert_config import ConvertConfig, VerifyConfig
from jaxlm.conversion.output import report_path
from jaxlm.load import open_weights
from mlxlm.model.model_file import model_file_source


def main(config: ConvertConfig) -> None:
    """Convert a model into another form, and prove that it is the same model."""
    conversion = Conversion(
        form=config.to,
        float_dtype=config.float_dtype,
        ternary_type=config.ternary_type,
        with_tokenizer=config.with_tokenizer,
        model_file=model_file_source() if config.to == "mlx" else None,
        logits_tolerance=config.tolerance if config.verify else None,
    )
    reading = None
    if config.read_as == "ternary":
        reading = TernaryReading(config.scale_per, config.activation_bits)
    elif (config.scale_per, config.activation_bits) != (None, "auto"):
        raise ValueError("scale_per and activation_bits: found without --as ternary, with which alone they are read")
    destination, console = Path(config.destination), make_console()
    with console.status("converting") as status:

        def log(phase: str) -> None:
            status.update(phase)
            if not console.is_terminal:
                console.print(f"{phase} ...")

        report = convert(Path(config.source), destination, conversion, other_program(config.to), log, reading)
    print_report(report, config.verbose)
    console.print(f"report: {report_path(destination, config.to)}\nmodel:  {destination}")
    if config.to in ("packed", "latent"):
        console.print(f"next:   {next_command('mlx-generate', '--model', str(destination), '--prompt', '...')}")
    elif config.to == "mlx":
        trust = " --trust-remote-code" if (destination / MODEL_FILE).is_file() else ""
        console.print(f"next:   mlx_lm.generate --model {destination}{trust} --prompt ...")


def verify(config: VerifyConfig) -> None:
    """Compare two models, whatever forms they are in; a difference beyond the tolerance is an error."""
    first, second = open_weights(config.first)[:2], open_weights(config.second)[:2]
    weights = compare_weights(*first, *second)
    logits = compare_logits(probe_logits(*first), probe_logits(*second))
    print_comparison(weights, logits, "jaxlm")
    if weights.codes_differing or not logits.mean_difference <= config.tolerance:
        raise ValueError(
            f"{config.second}: not the model of {config.first}: {weights.codes_differing:,} codes differ, and logits "
            f"by {logits.mean_difference:.2e} on average, expected at most {config.tolerance:.2e}"
        )


def print_report(report: ConversionReport, verbose: bool) -> None:
    """Print the tensors, one row per kind or all of them, and the comparison."""
    console = make_console()
    table = Table(box=None, pad_edge=False)
    for heading in ("", "tensor", "stored as", "bytes"):
        table.add_column(heading, no_wrap=True, justify="right" if heading in ("", "bytes") else "left")
    for (name, form), sizes in _tensor_kinds(report, verbose).items():
        table.add_row(f"{len(sizes)} x" if len(sizes) > 1 else "", name, form, f"{sum(sizes):,}")
    console.print(table)
    console.print(f"bytes: {report.bytes_found:,} found, {report.bytes_predicted:,} predicted")
    print_comparison(report.weights, report.logits, report.logits_by)
    for warning in report.warnings:
        console.print(f"warning: {warning}")


def _tensor_kinds(report: ConversionReport, verbose: bool) -> dict[tuple[str, str], list[int]]:
    """Return the bytes of the tensors by (name, type and shape); the layers of a kind together, unless verbose."""
    kinds: dict[tuple[str, str], list[int]] = {}
    for tensor in report.tensors:
        name = tensor["name"] if verbose else re.sub(r"^.*?layers\.\d+\.|^blk\.\d+\.", "*.", tensor["name"])
        form = f"{tensor['dtype']} {list(tensor['shape'])}"
        kinds.setdefault((name, form), []).append(tensor["bytes"])
    return kinds


def print_comparison(weights: WeightComparison, logits: LogitComparison, logits_by: str) -> None:
    """Print the differences of two models."""
    console = make_console()
    console.print(
        f"ternary codes: {weights.ternary_codes:,} compared, {weights.codes_differing:,} differ; scales: "
        f"{weights.scales_differing:,} differ"
    )
    console.print(
        f"floats: {weights.floats:,} compared, {weights.floats_differing:,} differ, at most by "
        f"{weights.floats_max_difference:.2e}"
    )
    console.print(
        f"logits by {logits_by}: largest difference {logits.max_difference:.2e}, mean {logits.mean_difference:.2e}, "
        f"KL {logits.kl_divergence:.2e}, same top token {logits.top1_agreement:.1%}"
    )
