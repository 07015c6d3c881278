"""Costs of a compiled program, from its optimized HLO text: operations, memory traffic, collectives of one device.

XLA's own cost analysis counts the body of a loop once. Here a computation counts once per run.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from jaxlm.planning.hlo_module import Computation, Instruction, Module, Shape, root_of

COLLECTIVES = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "ragged-all-to-all", "collective-permute")
# These name or arrange buffers, or are counted elsewhere: a loop by its body, an asynchronous start by its end.
_NO_TRAFFIC = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "conditional"}
_NO_TRAFFIC |= {"after-all", "partition-id", "replica-id", "async-start", "async-update", "opt-barrier"}
_NO_TRAFFIC_TARGETS = ("AllocateBuffer", "ConcatBitcast", "AsyncCollectiveStart", "AsyncCollectiveDone", "Sharding")
_SLICES = {"dynamic-slice", "slice", "gather"}


@dataclass(frozen=True)
class Collective:
    """One collective, with all of its runs in a step."""

    kind: str
    dtype: str
    sizes: tuple[int, ...]
    """Sizes of the first operand."""
    computation: str
    op_name: str
    times: int
    nbytes: int
    """Bytes of the full array: the output of an all-gather, the input of a reduction."""
    wire_bytes: float
    """Bytes that this device receives over its links in a ring; an all-reduce is a reduce-scatter and an all-gather."""

    @property
    def is_all_gather(self) -> bool:
        """True if the parts of an array are all-gathered.

        XLA also all-gathers by a ring of permutes in a loop of matrix products: the name of the loop tells an
        all-gather (ag) from a reduction (rs), and bytes are never reduced. On some slices XLA all-gathers bytes by an
        all-reduce of parts padded with zeros, as u32; a model never sums u32.
        """
        ring = self.kind == "collective-permute" and ("_ag" in self.computation or self.dtype in ("s8", "u8"))
        return self.kind == "all-gather" or ring or (self.kind == "all-reduce" and self.dtype == "u32")


@dataclass(frozen=True)
class Costs:
    """Costs of one device and one run of the program."""

    flops: dict[str, int]
    """Multiplications and additions of matrix products and convolutions, by `int8` and `float`."""
    hbm_bytes: int
    """Bytes that instructions read from and write to the main memory of the device."""
    collectives: tuple[Collective, ...]
    loops: dict[str, int | None]
    """Trip count of each loop; None where the text has none, and the body counts once."""

    @property
    def wire_bytes(self) -> float:
        return sum(collective.wire_bytes for collective in self.collectives)

    def collective_bytes(self) -> dict[tuple[str, str], int]:
        """Return the bytes by kind and dtype, largest first."""
        found = Counter()
        for collective in self.collectives:
            found[collective.kind, collective.dtype] += collective.nbytes
        return dict(found.most_common())

    def gathered_bytes(self) -> dict[str, int]:
        """Return the all-gathered bytes by dtype, largest first."""
        found = Counter()
        for collective in self.collectives:
            if collective.is_all_gather:
                found[collective.dtype] += collective.nbytes
        return dict(found.most_common())


def hlo_costs(text: str) -> Costs:
    """Return the costs of a module from the text of `Compiled.as_text()` or `xla_dump_to`.

    Raises ValueError on a text without an entry.
    """
    module = Module(text)
    return Costs(_flops(module), _hbm_bytes(module), tuple(_collectives(module)), module.loops)


def _flops(module: Module) -> dict[str, int]:
    """Return the operations of all matrix products and convolutions."""
    found = {"int8": 0, "float": 0}
    for instruction, name in module.instructions():
        if instruction.opcode in ("dot", "convolution"):
            count = _dot_flops if instruction.opcode == "dot" else _convolution_flops
            kind = "int8" if instruction.shapes[0].dtype.startswith("s") else "float"
            found[kind] += module.times[name] * count(instruction, module.computations[name])
    return found


def _list(attributes: str, name: str) -> list[int]:
    found = re.search(rf"\b{name}={{([\d,]*)}}", attributes)
    return [int(number) for number in found.group(1).split(",")] if found and found.group(1) else []


def _dot_flops(instruction: Instruction, computation: Computation) -> int:
    left = computation[instruction.operands[0]].shapes[0].sizes
    contracted = math.prod(left[axis] for axis in _list(instruction.attributes, "lhs_contracting_dims"))
    return 2 * math.prod(instruction.shapes[0].sizes) * contracted


def _convolution_flops(instruction: Instruction, computation: Computation) -> int:
    """Return two operations per product of two numbers. Padding and the holes of dilation cost nothing."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    assert labels is not None, instruction.attributes
    left, right = (computation[name].shapes[0].sizes for name in instruction.operands[:2])
    size = [
        dict(zip(text, sizes, strict=True))
        for text, sizes in zip(labels.groups(), (left, right, instruction.shapes[0].sizes), strict=True)
    ]
    batch_groups = re.search(r"batch_group_count=(\d+)", instruction.attributes)
    products = size[0]["b"] // (int(batch_groups.group(1)) if batch_groups else 1) * size[1]["i"] * size[1]["o"]
    for dimension, axis in enumerate(sorted(set(labels.group(1)) - {"b", "f"})):
        products *= _valid_positions(instruction.attributes, dimension, size[0][axis], size[1][axis], size[2][axis])
    return 2 * products


def _valid_positions(attributes: str, dimension: int, size: int, window: int, out: int) -> int:
    """Return the number of pairs of an output and a window position that read an input, in one spatial dimension."""
    options = {}
    found = re.search(r"window={([^}]*)}", attributes)
    for option in found.group(1).split() if found else []:
        name, _, values = option.partition("=")
        options[name] = values.split("x")[dimension]
    stride, hole, spread = (int(options.get(name, 1)) for name in ("stride", "lhs_dilate", "rhs_dilate"))
    before = int(options.get("pad", "0_0").split("_")[0])
    return sum(
        0 <= (at := o * stride + w * spread - before) <= (size - 1) * hole and at % hole == 0
        for o in range(out)
        for w in range(window)
    )


def _collectives(module: Module) -> Iterator[Collective]:
    """Yield every collective once."""
    pieces = set()
    for instruction, name in module.instructions():
        kind = instruction.opcode.removesuffix("-start")
        # A TPU overlaps one collective with several products: its pieces have the same channel and chain.
        piece = tuple(re.findall(r'(?:channel_id=|chain_id=")(\d+)', instruction.attributes))
        if kind not in COLLECTIVES or (len(piece) == 2 and piece in pieces):
            continue
        pieces.add(piece)
        yield from _by_dtype(module, kind, instruction, name)


def _by_dtype(module: Module, kind: str, instruction: Instruction, name: str) -> Iterator[Collective]:
    """Yield one collective per dtype, for a collective of several arrays."""
    times = module.times[name]
    if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"  # a TPU's form of it: a fusion that reduces and keeps a slice
    group_size = _group_size(instruction.attributes, module.num_partitions)
    op_name = re.search(r'op_name="([^"]*)"', instruction.attributes)
    shapes = [shape for operand in instruction.operands for shape in module.computations[name][operand].shapes]
    for dtype in dict.fromkeys(shape.dtype for shape in shapes):
        of_dtype = [shape for shape in shapes if shape.dtype == dtype]
        nbytes = times * sum(shape.nbytes for shape in of_dtype) * (group_size if kind == "all-gather" else 1)
        passes = 2 if kind == "all-reduce" else 1
        share = 1.0 if kind == "collective-permute" else passes * (group_size - 1) / group_size
        yield Collective(
            kind=kind,
            dtype=dtype,
            sizes=of_dtype[0].sizes,
            computation=name,
            op_name=op_name.group(1) if op_name else "",
            times=times,
            nbytes=nbytes,
            wire_bytes=nbytes * share,
        )


def _group_size(attributes: str, num_partitions: int) -> int:
    """Return the number of devices per group of a collective, from any of the three notations for groups."""
    listed = re.search(r"replica_groups={{([\d,]*)}", attributes)
    if listed:
        return len(listed.group(1).split(","))
    iota = re.search(r"replica_groups=\[\d+,(\d+)\]<=", attributes)
    if iota:
        return int(iota.group(1))
    mesh = re.search(r"replica_groups=@?mesh\w*\[([^\]]*)\]\s*{([^}]*)}", attributes)
    if mesh:
        sizes = {axis: int(size) for axis, size in re.findall(r"'([^']+)'=(\d+)", mesh.group(1))}
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh.group(2))
        return math.prod(int(part) if part else sizes[axis] for axis, part in axes)
    return num_partitions


def _hbm_bytes(module: Module) -> int:
    """Return the bytes of all instructions outside of fusions. A slice counts as the part that is read or written."""
    return sum(
        module.times[name] * _traffic(module, instruction, module.computations[name])
        for instruction, name in module.instructions()
        if name in module.outer
    )


def _traffic(module: Module, instruction: Instruction, computation: Computation) -> int:
    opcode, operands = instruction.opcode, [computation[name] for name in instruction.operands]
    target = re.search(r'custom_call_target="(\w+)"', instruction.attributes)
    if opcode in _NO_TRAFFIC or opcode.endswith("-start") or (target and target.group(1) in _NO_TRAFFIC_TARGETS):
        return 0
    if opcode.endswith("-done"):
        return _copied(instruction, computation)
    if opcode in _SLICES:
        return instruction.hbm_bytes + instruction.nbytes * operands[0].shapes[0].in_hbm
    if opcode == "dynamic-update-slice":
        return 2 * operands[1].hbm_bytes
    if opcode == "scatter":
        return 3 * operands[2].hbm_bytes
    if opcode == "fusion":
        called = module.computations[instruction.called("calls")]
        reads = sum(_read(module, called, index, operand.hbm_bytes) for index, operand in enumerate(operands))
        return reads + _written(module, called, root_of(called), instruction.shapes)
    return instruction.hbm_bytes + sum(operand.hbm_bytes for operand in operands)


def _copied(done: Instruction, computation: Computation) -> int:
    """Return the bytes of an asynchronous copy or collective, which reads and writes the size of its result."""
    start = computation[done.operands[0]]
    while start.opcode == "async-update":
        start = computation[start.operands[0]]
    return done.hbm_bytes + done.nbytes * any(computation[name].hbm_bytes for name in start.operands)


def _read(module: Module, computation: Computation, index: int, full: int) -> int:
    """Return the bytes that a fusion reads of the operand with this index, at most `full`."""
    name = next(i.name for i in computation.values() if i.opcode == "parameter" and i.arguments == str(index))
    return min(full, _read_of(module, computation, name, full)) if full else 0


def _read_of(module: Module, computation: Computation, name: str, full: int) -> int:
    total = 0
    for user in computation.values():
        if name not in user.operands:
            continue
        indices = [index for index, operand in enumerate(user.operands) if operand == name]
        if user.opcode in _SLICES and indices == [0]:
            total += user.nbytes
        elif user.opcode == "bitcast":
            total += _read_of(module, computation, user.name, full)
        elif user.opcode == "fusion":
            called = module.computations[user.called("calls")]
            total += sum(_read(module, called, index, full) for index in indices)
        elif user.opcode != "dynamic-update-slice" or indices != [0]:  # an array that is updated in place is not read
            return full
    return total


def _written(module: Module, computation: Computation, root: Instruction, shapes: tuple[Shape, ...]) -> int:
    """Return the bytes that a fusion writes. An array that it updates in place counts the bytes of the update."""
    if root.opcode == "tuple" and len(root.operands) == len(shapes):
        parts = zip(root.operands, shapes, strict=True)
        return sum(_written(module, computation, computation[name], (shape,)) for name, shape in parts)
    if not any(shape.in_hbm for shape in shapes):
        return 0
    if root.opcode == "bitcast" and root.operands:
        return _written(module, computation, computation[root.operands[0]], shapes)
    if root.opcode == "fusion":
        called = module.computations[root.called("calls")]
        return _written(module, called, root_of(called), shapes)
    if root.opcode == "dynamic-update-slice":
        return computation[root.operands[1]].nbytes
    return sum(shape.nbytes for shape in shapes if shape.in_hbm)
