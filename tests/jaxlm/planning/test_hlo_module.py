import pytest

from jaxlm.planning.hlo_module import Module, Shape, root_of

TEXT = """HloModule jit_loop, num_partitions=2

%body (state: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %state = (s32[], f32[4,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = f32[4,8]{1,0} get-tuple-element(%state), index=1
  %two = s32[] constant(2)
  %i.1 = s32[] add(%i, %two)
  %sine = f32[4,8]{1,0} fusion(%x), kind=kLoop, calls=%fused
  ROOT %tuple = (s32[], f32[4,8]{1,0}) tuple(%i.1, %sine)
}

%fused (p: f32[4,8]) -> f32[4,8] {
  %p = f32[4,8]{1,0} parameter(0)
  ROOT %sine.1 = f32[4,8]{1,0} sine(%p)
}

%condition (state.1: (s32[], f32[4,8])) -> pred[] {
  %state.1 = (s32[], f32[4,8]{1,0}) parameter(0)
  %i.2 = s32[] get-tuple-element(%state.1), index=0
  %bound = s32[] constant(BOUND)
  ROOT %less = pred[] compare(%i.2, %bound), direction=LT
}

ENTRY %main (a: f32[4,8]) -> (s32[], f32[4,8]) {
  %a = f32[4,8]{1,0:T(8,128)S(1)} parameter(0)
  %zero = s32[] constant(0)
  %init = (s32[], f32[4,8]{1,0}) tuple(%zero, %a)
  ROOT %loop = (s32[], f32[4,8]{1,0}) while(%init), condition=%condition, body=%body
}
"""


@pytest.mark.parametrize(("bound", "trips"), [(8, 4), (7, 4), (2, 1)])
def test_a_loop_runs_until_its_counter_reaches_the_bound(bound, trips):
    module = Module(TEXT.replace("BOUND", str(bound)))
    assert module.loops == {"loop": trips}
    assert module.times == {"main": 1, "body": trips, "fused": trips}


def test_instructions_that_read_memory_are_outside_of_fusions():
    module = Module(TEXT.replace("BOUND", "8"))
    assert (module.outer, module.num_partitions) == ({"main", "body"}, 2)


def test_an_instruction_has_its_parts():
    main = Module(TEXT.replace("BOUND", "8")).computations["main"]
    loop = root_of(main)
    assert (loop.opcode, loop.operands, loop.called("body")) == ("while", ["init"], "body")
    assert loop.nbytes == loop.hbm_bytes == 4 + 4 * 4 * 8
    # In the fast memory of the chip.
    assert (main["a"].nbytes, main["a"].hbm_bytes) == (4 * 4 * 8, 0)


def test_bytes_of_small_types():
    assert [Shape(dtype, (6,)).nbytes for dtype in ("s4", "pred", "f8e4m3fn", "bf16", "f32")] == [3, 6, 6, 12, 24]
    assert Shape("token", ()).nbytes == 0


def test_no_text_is_refused():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        Module("")


def test_attributes_may_hold_line_ends():
    kernel = """
  %kernel = f32[4,8]{1,0} custom-call(%x), frontend_attributes={kernel_metadata={
"blocks":"{\\"size\\": 512}"
}}, metadata={op_name="a = b"}
  %sine ="""
    module = Module(TEXT.replace("BOUND", "8").replace("\n  %sine =", kernel, 1))
    assert root_of(module.computations["body"]).name == "tuple"
    assert module.times["body"] == 4
