"""Numbers read from HLO text, against programs whose cost is known on paper. They are compiled for eight simulated
devices in a process of their own.
"""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxlm.planning.hlo_costs import hlo_costs

ROOT = Path(__file__).parents[3]
PROGRAM = Path(__file__).parent / "small_programs.py"


@pytest.fixture(scope="module")
def found():
    """Return the costs by program."""
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, PROGRAM], capture_output=True, text=True, check=False, env=environment, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_product_inside_two_loops_counts_as_often_as_it_runs(found):
    assert found["scans"]["flops"] == {"int8": 0, "float": 5 * 3 * 2 * 16 * 32 * 32}
    assert sorted(found["scans"]["loops"].values()) == [3, 5]


def test_a_loop_of_unknown_length_is_named(found):
    assert list(found["until"]["loops"].values()) == [None]
    assert found["until"]["flops"]["float"] == 2 * 16 * 32 * 32


def test_integer_products_are_counted_apart(found):
    assert found["int8"]["flops"] == {"int8": 2 * 64 * 128 * 256, "float": 0}


def test_a_convolution_skips_padding_and_holes(found):
    # 8 positions of 3 taps, less one at each end; then inputs with a hole between them: 15 positions of 3 taps meet 22.
    assert found["padded convolution"]["flops"]["float"] == 2 * 4 * 5 * 6 * (8 * 3 - 2)
    assert found["dilated convolution"]["flops"]["float"] == 2 * 4 * 5 * 6 * 22


def test_collectives_by_kind_dtype_and_bytes(found):
    part = 8 * 128
    collectives = {(c["kind"], c["dtype"]): (c["nbytes"], c["wire_bytes"]) for c in found["collectives"]["collectives"]}
    assert collectives == {
        ("all-gather", "s8"): (8 * part, 7 * part),
        ("all-reduce", "f32"): (4 * part, 2 * 4 * part * 7 / 8),
        ("reduce-scatter", "f32"): (8 * 4 * part, 8 * 4 * part * 7 / 8),
        ("all-to-all", "s32"): (4 * part, 4 * part * 7 / 8),
        ("collective-permute", "f32"): (6 * 4 * part, 6 * 4 * part),  # six times around a loop
    }
    assert found["collectives"]["groups of four"] == 3 / 4


def test_memory_traffic_of_one_product_is_its_arrays(found):
    assert found["int8"]["hbm_bytes"] == 64 * 128 + 128 * 256 + 4 * 64 * 256


def test_the_training_step_has_the_operations_of_the_formula(found):
    step = found["step"]
    assert sum(step["flops"].values()) * 8 == step["model_flops"] + step["scores"] + step["gains"]
    assert step["flops"]["int8"] * 8 == step["forward_flops_of_blocks"]


def test_a_loss_in_chunks_needs_no_more_collectives(found):
    def moved(name, *kinds):
        return sum(c["nbytes"] * c["times"] for c in found[name]["collectives"] if c["kind"] in kinds)

    for kinds in (("all-gather",), ("all-reduce", "reduce-scatter")):
        assert moved("step in chunks", *kinds) == moved("step", *kinds) > 0
    assert sum(found["step in chunks"]["flops"].values()) == sum(found["step"]["flops"].values())


def test_fsdp_all_gathers_codes_and_not_floats(found):
    gathers = [c for c in found["step"]["collectives"] if c["kind"] == "all-gather" and c["op_name"]]
    codes = sum(c["nbytes"] for c in gathers if c["dtype"] == "u8")
    # Once in the forward pass and once in the backward one, four to a byte.
    assert 4 * codes == 2 * found["step"]["codes"]
    in_layers = [c for c in gathers if c["times"] > 1]
    assert in_layers and {c["dtype"] for c in in_layers} == {"u8"}


TPU_TEXT = """HloModule jit_step, is_scheduled=true, num_partitions=4

%fused (p: s8[64,32]) -> s8[64,128] {
  %p = s8[64,32]{1,0:T(32,128)(4,1)} parameter(0)
  ROOT %all-gather.1 = s8[64,128]{1,0:T(32,128)(4,1)} all-gather(%p), channel_id=7, replica_groups=mesh['a'=2,'b'=2] \
{'a','b'}, dimensions={1}, frontend_attributes={chain_id="3"}
}

%fused.1 (p.1: s8[64,32]) -> s8[64,128] {
  %p.1 = s8[64,32]{1,0:T(32,128)(4,1)} parameter(0)
  ROOT %all-gather.2 = s8[64,128]{1,0} all-gather(%p.1), channel_id=7, replica_groups={{0,1,2,3}}, dimensions={1}, \
frontend_attributes={chain_id="3"}
}

%all-reduce-scatter.1 (p.2: f32[64]) -> f32[16] {
  %p.2 = f32[64]{0} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %all-reduce.1 = f32[64]{0} all-reduce(%p.2), channel_id=8, replica_groups=[1,4]<=[4], to_apply=%add
  ROOT %dynamic-slice.1 = f32[16]{0} dynamic-slice(%all-reduce.1, %zero), dynamic_slice_sizes={16}
}

%windowed_dot_general_body_ag.1 (state: (s32[], /*index=1*/s8[64,32])) -> (s32[], s8[64,32]) {
  %state = (s32[]{:T(128)}, s8[64,32]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  %x = s8[64,32]{1,0} get-tuple-element(%state), index=1
  %one = s32[]{:T(128)} constant(1)
  %i.1 = s32[]{:T(128)} add(%i, %one)
  %i.2 = s32[]{:T(128)} copy(%i.1)
  %i.3 = s32[]{:T(128)} add(%i.2, %one)
  %start = (s8[64,32]{1,0}, s8[64,32]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x), \
channel_id=9, source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
  %done = s8[64,32]{1,0} collective-permute-done(%start)
  ROOT %tuple = (s32[]{:T(128)}, s8[64,32]{1,0}) tuple(%i.3, %done)
}

%condition (state.1: (s32[], s8[64,32])) -> pred[] {
  %state.1 = (s32[]{:T(128)}, s8[64,32]{1,0}) parameter(0)
  %i.4 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  %bound = s32[]{:T(128)} constant(8)
  ROOT %less = pred[]{:T(512)} compare(%i.4, %bound), direction=LT
}

ENTRY %main (a: s8[64,32], b: f32[64]) -> f32[16] {
  %a = s8[64,32]{1,0} parameter(0)
  %b = f32[64]{0} parameter(1)
  %start.1 = s32[]{:T(128)} constant(2)
  %init = (s32[]{:T(128)}, s8[64,32]{1,0}) tuple(%start.1, %a)
  %loop = (s32[]{:T(128)}, s8[64,32]{1,0}) while(%init), condition=%condition, body=%windowed_dot_general_body_ag.1
  %first = s8[64,128]{1,0} fusion(%a), kind=kCustom, calls=%fused
  %second = s8[64,128]{1,0} fusion(%a), kind=kCustom, calls=%fused.1
  ROOT %scattered = f32[16]{0:T(256)S(1)} fusion(%b), kind=kCustom, calls=%all-reduce-scatter.1
}
"""


def test_collectives_and_loops_in_the_text_of_a_tpu():
    """Pieces of one hidden gather count once, a fused reduction with a slice is a reduce-scatter, a counter that starts
    at 2 and takes two steps of 1 a round reaches 8 in three.
    """
    costs = hlo_costs(TPU_TEXT)
    assert costs.loops == {"loop": 3}
    assert costs.collective_bytes() == {
        ("all-gather", "s8"): 64 * 128,
        ("collective-permute", "s8"): 3 * 64 * 32,
        ("reduce-scatter", "f32"): 64 * 4,
    }
    assert costs.gathered_bytes() == {"s8": 64 * 128 + 3 * 64 * 32}
    assert costs.wire_bytes == 64 * 128 * 3 / 4 + 3 * 64 * 32 + 64 * 4 * 3 / 4


STACK_TEXT = """HloModule jit_stack

%fused (stack: f32[10,256], i: s32[], sums: f32[10,256]) -> f32[10,256] {
  %stack = f32[10,256]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %sums = f32[10,256]{1,0} parameter(2)
  %zero = s32[] constant(0)
  %row = f32[1,256]{1,0} dynamic-slice(%stack, %i, %zero), dynamic_slice_sizes={1,256}
  ROOT %update = f32[10,256]{1,0} dynamic-update-slice(%sums, %row, %i, %zero)
}

ENTRY %main (stack.1: f32[10,256], i.1: s32[], sums.1: f32[10,256]) -> f32[10,256] {
  %stack.1 = f32[10,256]{1,0} parameter(0)
  %i.1 = s32[] parameter(1)
  %sums.1 = f32[10,256]{1,0} parameter(2)
  %fast = f32[10,256]{1,0:T(8,128)S(1)} copy(%stack.1)
  ROOT %fusion = f32[10,256]{1,0} fusion(%stack.1, %i.1, %sums.1), kind=kLoop, calls=%fused
}
"""


def test_memory_traffic_of_a_slice_is_the_slice():
    """One row of a stack is read and one is written in place; a copy into fast memory only reads."""
    row, index = 4 * 256, 4
    assert hlo_costs(STACK_TEXT).hbm_bytes == 10 * row + (row + index + row)


def test_costs_are_plain_values():
    costs = hlo_costs(TPU_TEXT)
    written = json.loads(json.dumps(dataclasses.asdict(costs)))
    assert written["flops"] == costs.flops and len(written["collectives"]) == len(costs.collectives) > 0
