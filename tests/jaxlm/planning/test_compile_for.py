"""Compiling for chips that are not here: tests without a compiler for TPUs, and a full run where there is one."""

import dataclasses
import importlib.util
import json

import pytest

from jaxlm.planning.chips import CHIPS, GIB, chip_of
from jaxlm.planning.compile_for import (
    CompileForConfig,
    Report,
    _temporaries,
    chips_of,
    find_smallest,
    predict_smallest,
    resized,
    resolve_model,
)
from jaxlm.planning.hlo_costs import Collective, Costs
from jaxlm.training.device_memory import Memory
from tests.commands import run


def report(**fields) -> Report:
    """Return the report of a step on 16 chips of 16 GiB whose state needs 1 GiB per chip."""
    gather = Collective("all-gather", "s8", (8,), "body", "", 2, 16, 15e9)
    values = {
        "topology": "v5e:4x4",
        "mesh": {"data": 1, "fsdp": 16, "sequence": 1, "tensor": 1},
        "batch_size": 32,
        "fits": True,
        "hbm_bytes": 16 * GIB,
        "memory": Memory(arguments=GIB, temporaries=3 * GIB, unaliased=0),
        "costs": Costs({"int8": 393 * 10**9, "float": 197 * 10**9}, 819 * 10**7, (gather,), {}),
        "model_flops": 16 * 197e9,
        "chip": CHIPS["v5e"],
        "state_bytes": GIB,
        "gradient_bytes": GIB // 4,
    }
    return Report(**(values | fields))


def test_chips_are_ordered_and_plausible():
    for chip in CHIPS.values():
        # Every chip can do many operations per byte; int8 is as fast as bfloat16, or twice as fast.
        assert 100 < chip.bfloat16_flops / chip.hbm_bandwidth < 1000
        assert 0.99 < chip.int8_flops / chip.bfloat16_flops < 2.01
        assert chip.receive_bandwidth < chip.hbm_bandwidth
        counts = [chips_of(shape) for shape in chip.slices]
        assert counts == sorted(set(counts))
    assert chip_of("v5p:2x2x1") is CHIPS["v5p"]


def test_an_unknown_chip_is_named():
    with pytest.raises(ValueError, match=r"topology: found 'v3:2x2', expected a chip of v4, v5e, v5p, v6e"):
        chip_of("v3:2x2")


def test_a_roofline_is_the_largest_part_and_their_sum():
    roofline = report().roofline
    assert roofline.compute == pytest.approx(2e-3)
    assert roofline.memory == pytest.approx(10e-3)
    assert roofline.interconnect == pytest.approx(75e-3)
    assert (roofline.fastest, roofline.slowest) == pytest.approx((75e-3, 87e-3))
    assert report().mfu(1e-3) == pytest.approx(1)


def test_the_smallest_slice_holds_the_state_that_its_chips_split():
    # 4 GiB per chip on 16 chips, of which they split 1.25 GiB: 5.25 on 8, 7.75 on 4, 12.75 on 2, and 22.75 on one.
    sizes = {1: "v5e:1x1", 4: "v5e:2x2", 8: "v5e:2x4"}
    assert predict_smallest(report(hbm_bytes=24 * GIB)) == sizes[1]
    assert predict_smallest(report(hbm_bytes=16 * GIB)) == sizes[4]
    assert predict_smallest(report(hbm_bytes=6 * GIB)) == sizes[8]
    assert predict_smallest(report(hbm_bytes=2 * GIB)) is None
    # Copies of the model split nothing; and a program that the compiler refused does not fit, whatever its size.
    copies = {"data": 4, "fsdp": 4, "sequence": 1, "tensor": 1}
    assert predict_smallest(report(hbm_bytes=4 * GIB, mesh=copies)) == sizes[8]
    assert predict_smallest(report(hbm_bytes=16 * GIB, mesh=copies, fits=False)) == sizes[8]


@pytest.mark.parametrize("smallest", ["v5e:1x1", "v5e:2x4", "v5e:8x16", None])
def test_the_smallest_slice_is_found_by_compiling(smallest, monkeypatch):
    shapes = [f"v5e:{shape}" for shape in CHIPS["v5e"].slices]
    large_enough = shapes[shapes.index(smallest) :] if smallest else []
    monkeypatch.setattr(
        "jaxlm.planning.compile_for.compile_for", lambda settings: report(fits=settings.topology in large_enough)
    )
    first = report(fits="v5e:4x4" in large_enough)
    assert find_smallest(CompileForConfig(topology="v5e:4x4"), first) == smallest


def test_slices_that_the_sequence_axis_does_not_divide_are_passed_over(monkeypatch):
    split = report(mesh={"data": 1, "fsdp": 4, "sequence": 4, "tensor": 1}, batch_size=4)
    # 4 GiB per chip on 16 chips, of which all split 1.25 GiB: less than 24 on one, which cannot share a sequence.
    assert predict_smallest(dataclasses.replace(split, hbm_bytes=24 * GIB)) == "v5e:2x2"
    compiled = []

    def compile_for(settings):
        compiled.append((settings.topology, settings.batch_size))
        return split

    monkeypatch.setattr("jaxlm.planning.compile_for.compile_for", compile_for)
    assert find_smallest(CompileForConfig(topology="v5e:4x4"), split) == "v5e:2x2"
    assert compiled == [("v5e:2x2", 1)]


def test_another_slice_keeps_the_batch_of_a_chip():
    settings = resized(CompileForConfig(topology="v5e:4x4", batch_size=32), report(), "v5e:2x4")
    assert (settings.topology, settings.batch_size) == ("v5e:2x4", 16)
    assert settings.mesh.sizes(8) == (1, 8, 1, 1)


def test_temporaries_of_main_memory_only():
    dump = (
        "allocation 1: size 7, color 1, page 0, preallocated-temp:\nallocation 2: size 5, page 0, preallocated-temp:\n"
    )
    assert _temporaries(dump) == 5
    with pytest.raises(ValueError, match="found no temporaries"):
        _temporaries("")


def test_a_longer_sequence_than_the_presets_is_allowed():
    assert resolve_model(CompileForConfig(topology="", seq_len=4096)).max_seq_len == 4096


MISTAKES = {
    ("--topology", "v9:2x2"): "topology: found 'v9:2x2'",
    ("--topology", "v5e:2x2", "--preset", "none"): "preset: found 'none'",
}
WITH_LIBTPU = {
    ("--topology", "v5e:3x5"): "topology: found 'v5e:3x5', expected a shape such as 1x1",
    ("--topology", "v5e:2x2", "--mesh.fsdp", "3"): "expected sizes that multiply to the 4 devices",
    ("--topology", "v5e:2x2", "--batch_size", "3"): "batch_size: found 3, expected a multiple of 4",
}
MISSING = {("--topology", "v5e:2x2"): "libtpu: not found, expected the compiler for TPUs; pip install '.[tpu-aot]'"}


@pytest.mark.parametrize("arguments", MISTAKES | (WITH_LIBTPU if importlib.util.find_spec("libtpu") else MISSING))
def test_a_mistake_is_one_line(arguments):
    done = run("scripts/compile_for.py", *arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and (MISTAKES | WITH_LIBTPU | MISSING)[arguments] in lines[0]


def test_a_small_step_is_compiled_or_libtpu_named(tmp_path):
    output = tmp_path / "report.json"
    shape = {"vocab_size": 256, "hidden_size": 128, "intermediate_size": 256, "num_heads": 1, "num_kv_heads": 1}
    arguments = ["--topology", "v5e:2x2", "--seq_len", "128", "--model", json.dumps(shape), "--output", output]
    done = run("scripts/compile_for.py", *arguments)
    if importlib.util.find_spec("libtpu") is None:
        assert done.returncode == 2 and "pip install '.[tpu-aot]'" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    written = json.loads(output.read_text())
    assert written["report"]["fits"] and written["smallest_slice"]["predicted"] == "v5e:1x1"
    assert "ESTIMATE" in done.stdout
    gathered_in_layers = [
        c for c in written["report"]["costs"]["collectives"] if c["times"] > 1 and c["kind"] == "all-gather"
    ]
    assert gathered_in_layers and {c["dtype"] for c in gathered_in_layers} == {"u8"}


def test_a_report_is_plain_values():
    written = json.loads(json.dumps(dataclasses.asdict(report())))
    assert written["fits"] == report().fits and written["mesh"] == report().mesh
