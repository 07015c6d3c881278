"""The script `compile_for.py`: the training step compiled for TPUs that are not here."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from rich.table import Table

from jaxlm.common.command_line import make_console
from jaxlm.planning.chips import GIB
from jaxlm.planning.compile_for import CompileForConfig, Report, compile_for, find_smallest, predict_smallest

# Bytes of a weight in bfloat16 over those it is gathered in: int8, or packed codes, which may be summed as u32.
_BFLOAT16_TIMES = {"s8": 2, "u8": 8, "u32": 8}


def main(settings: CompileForConfig) -> None:
    """Compile the training step of a model for a slice of TPUs without one: memory, operations, collectives, and an
    estimate of the time."""
    report = compile_for(settings)
    smallest = {"predicted": predict_smallest(report)}
    if settings.find_smallest:
        smallest["compiled"] = find_smallest(settings, report)
    print_report(settings, report, smallest)
    if settings.output is not None:
        Path(settings.output).write_text(json.dumps(as_json(settings, report, smallest), indent=2) + "\n")


def print_report(settings: CompileForConfig, report: Report, smallest: dict[str, str | None]) -> None:
    """Show the report as a table."""
    memory, costs, roofline = report.memory, report.costs, report.roofline
    table = Table(title=f"{settings.preset} on {report.topology}, per chip and step")
    table.add_column("what", no_wrap=True)
    table.add_column("found", justify="right")
    table.add_column("remark")
    table.add_row("fits", "yes" if report.fits else "NO", f"{report.hbm_bytes / GIB:.0f} GiB of the chip")
    table.add_row("memory, GiB", _gib(memory.total), "")
    for name in ("arguments", "temporaries", "unaliased"):
        table.add_row(f"  {name}", _gib(getattr(memory, name)), "")
    for kind, flops in costs.flops.items():
        table.add_row(f"{kind} TFLOP", f"{flops / 1e12:.3f}", "")
    work = sum(costs.flops.values()) * report.num_chips / report.model_flops
    table.add_row(
        "model TFLOP", f"{report.model_flops / report.num_chips / 1e12:.3f}", f"the program does {work:.2f} of it"
    )
    table.add_row("HBM traffic, GB", f"{costs.hbm_bytes / 1e9:.2f}", "estimate from the instructions")
    for (kind, dtype), nbytes in costs.collective_bytes().items():
        table.add_row(f"{kind} {dtype}, MB", f"{nbytes / 1e6:,.2f}", "")
    for dtype, nbytes in costs.gathered_bytes().items():
        times = _BFLOAT16_TIMES.get(dtype)
        remark = f"as bfloat16 weights {times * nbytes / 1e6:,.2f}" if times else ""
        table.add_row(f"gathered {dtype}, MB", f"{nbytes / 1e6:,.2f}", remark)
    for name in ("compute", "memory", "interconnect"):
        table.add_row(f"ESTIMATE {name}, ms", f"{1e3 * getattr(roofline, name):.1f}", "at the data sheet's peak")
    for name in ("fastest", "slowest"):
        seconds = getattr(roofline, name)
        table.add_row(f"ESTIMATE {name} step, ms", f"{1e3 * seconds:.1f}", f"MFU {report.mfu(seconds):.1%}")
    for way, shape in smallest.items():
        table.add_row(f"smallest slice, {way}", shape or "none", "with this batch per chip")
    console = make_console()
    console.print(table)
    for name in [name for name, trips in costs.loops.items() if trips is None]:
        console.print(f"loop {name}: trip count not found, its body is counted once")


def as_json(settings: CompileForConfig, report: Report, smallest: dict[str, str | None]) -> dict[str, Any]:
    """Return the report and everything that is computed from it, as plain values."""
    costs, roofline = report.costs, report.roofline
    return {
        "settings": dataclasses.asdict(settings),
        "report": dataclasses.asdict(report),
        "collective_bytes": {f"{kind} {dtype}": size for (kind, dtype), size in costs.collective_bytes().items()},
        "gathered_bytes": costs.gathered_bytes(),
        "estimate": {
            "note": "from the data sheet's peaks, not measured",
            "fastest_step_seconds": roofline.fastest,
            "slowest_step_seconds": roofline.slowest,
            "fastest_mfu": report.mfu(roofline.fastest),
            "slowest_mfu": report.mfu(roofline.slowest),
            **dataclasses.asdict(roofline),
        },
        "smallest_slice": smallest,
    }


def _gib(nbytes: int) -> str:
    return f"{nbytes / GIB:.2f}"
