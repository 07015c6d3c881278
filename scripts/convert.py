"""Convert a run directory or an artifact into an artifact of another kind, with a report."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jaxlm.spec.command_line import make_console, quiet_libraries, run_command

quiet_libraries()

from rich.table import Table  # noqa: E402

from jaxlm.convert import REPORT, ConversionReport, convert  # noqa: E402


@dataclass(frozen=True)
class ConvertConfig:
    """What to convert, and into what."""

    source: str
    """Run directory or artifact."""
    destination: str
    """Artifact directory to create."""
    to: Literal["packed", "latent"] = "packed"
    """packed: ternary codes in 2 bits and their scales; latent: float weights that training can go on from."""
    float_dtype: Literal["float32", "bfloat16"] = "float32"
    """How what is not ternary is stored; bfloat16 rounds it."""


def main(config: ConvertConfig) -> None:
    """Convert a run directory or an artifact into an artifact of another kind, and prove that it is the same model."""
    report = convert(Path(config.source), Path(config.destination), config.to, config.float_dtype)
    print_report(report, Path(config.destination))


def print_report(report: ConversionReport, destination: Path) -> None:
    """Show every tensor and what the comparison found."""
    console = make_console()
    table = Table()
    for heading in ("tensor", "shape", "type"):
        table.add_column(heading, no_wrap=True)
    table.add_column("bytes", justify="right")
    for tensor in report.tensors:
        table.add_row(tensor["name"], str(list(tensor["shape"])), tensor["dtype"], f"{tensor['bytes']:,}")
    console.print(table)
    console.print(f"bytes: {report.bytes_found:,} found, {report.bytes_predicted:,} predicted")
    console.print(f"ternary codes: {report.ternary_codes:,} compared, {report.codes_differing:,} differ")
    console.print(
        f"logits: largest difference {report.logits_max_difference:.2e}, mean {report.logits_mean_difference:.2e}, "
        f"KL {report.kl_divergence:.2e}, same top token {report.top1_agreement:.1%}"
    )
    console.print(f"report: {destination / REPORT}")


if __name__ == "__main__":
    run_command(main, ConvertConfig, positional=True)
