"""What a compiled program costs, read from its optimized HLO text: operations, memory traffic, collectives.

XLA's own cost analysis counts the body of a loop once. Here every computation counts as often as it runs: the trip
count of a loop is its `known_trip_count`, or follows from the constants that its condition compares and its body adds.
Text in, numbers out; all numbers are of one device.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

DTYPE_BITS = {"pred": 8, "bf16": 16} | {f"{kind}{bits}": bits for kind in "sufc" for bits in (2, 4, 8, 16, 32, 64, 128)}
COLLECTIVES = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "ragged-all-to-all", "collective-permute")
# They name or arrange buffers, or are counted elsewhere: a loop by its body, an asynchronous start by its end.
_NO_TRAFFIC = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "conditional"}
_NO_TRAFFIC |= {"after-all", "partition-id", "replica-id", "async-start", "async-update", "opt-barrier"}
_NO_TRAFFIC_TARGETS = ("AllocateBuffer", "ConcatBitcast", "AsyncCollectiveStart", "AsyncCollectiveDone", "Sharding")
_SLICES = {"dynamic-slice", "slice", "gather"}


@dataclass(frozen=True)
class Shape:
    """One array."""

    dtype: str
    sizes: tuple[int, ...]
    in_hbm: bool = True
    """False in the chip's own fast memory."""

    @property
    def nbytes(self) -> int:
        return math.prod(self.sizes) * DTYPE_BITS.get(self.dtype, 8 if self.dtype.startswith("f8") else 0) // 8


@dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    shapes: tuple[Shape, ...]
    opcode: str
    arguments: str
    """The text between the parentheses: names of operands, or a literal."""
    attributes: str
    is_root: bool

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.arguments)

    def called(self, attribute: str) -> str:
        """The computation that an attribute such as `calls` names."""
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
        return found.group(1) if found else ""

    @property
    def hbm_bytes(self) -> int:
        return sum(shape.nbytes for shape in self.shapes if shape.in_hbm)


Computation = dict[str, Instruction]


@dataclass(frozen=True)
class Collective:
    """One collective and all its runs in a step."""

    kind: str
    dtype: str
    sizes: tuple[int, ...]
    """Of the first operand."""
    computation: str
    op_name: str
    times: int
    nbytes: int
    """Of the whole array: what a gather makes, what a reduction takes in."""
    wire_bytes: float
    """What this device receives over its links (a ring's share; a reduction to all is a scatter and a gather)."""

    @property
    def gathers(self) -> bool:
        """Whether it brings parts of an array together.

        XLA also does so by a ring of permutes in a loop of products: the loop's name tells a gather (ag) from a
        reduction (rs), and int8 is never reduced. And, on some slices, by a sum of parts that each stand between zeros,
        of int8 as u32, which a model never sums.
        """
        ring = self.kind == "collective-permute" and ("_ag" in self.computation or self.dtype == "s8")
        return self.kind == "all-gather" or ring or (self.kind == "all-reduce" and self.dtype == "u32")


@dataclass(frozen=True)
class Costs:
    """Of one device and one run of the program."""

    flops: dict[str, int]
    """Multiplications and additions of products, by `int8` and `float`."""
    hbm_bytes: int
    """Read and written by the instructions that touch the device's main memory."""
    collectives: tuple[Collective, ...]
    loops: dict[str, int | None]
    """Trip count of each loop; None where the text does not tell, and its body counts once."""

    @property
    def wire_bytes(self) -> float:
        return sum(collective.wire_bytes for collective in self.collectives)

    def collective_bytes(self) -> dict[tuple[str, str], int]:
        """Bytes by kind and dtype, largest first."""
        found = Counter()
        for collective in self.collectives:
            found[collective.kind, collective.dtype] += collective.nbytes
        return dict(found.most_common())

    def gathered_bytes(self) -> dict[str, int]:
        """Bytes brought together, by dtype, largest first."""
        found = Counter()
        for collective in self.collectives:
            if collective.gathers:
                found[collective.dtype] += collective.nbytes
        return dict(found.most_common())


def hlo_costs(text: str) -> Costs:
    """Cost of a module from its text, as `Compiled.as_text()` or `xla_dump_to` give it."""
    module = _Module(text)
    return Costs(module.flops(), module.hbm_bytes(), tuple(module.collectives()), module.loops)


class _Module:
    """A module's computations, and how often each runs."""

    def __init__(self, text: str) -> None:
        self.computations, self.entry = parse(text)
        partitions = re.search(r"num_partitions=(\d+)", text[:20000])
        self.num_partitions = int(partitions.group(1)) if partitions else 1
        self.loops: dict[str, int | None] = {}
        self.times: Counter[str] = Counter()
        self.outer: set[str] = set()  # what is not inside a fusion, and so reads and writes memory
        self._run(self.entry, 1, outer=True)

    def _run(self, name: str, times: int, outer: bool) -> None:
        self.times[name] += times
        if outer:
            self.outer.add(name)
        for instruction in self.computations[name].values():
            for callee, runs, is_outer in self._callees(instruction, self.computations[name]):
                self._run(callee, times * runs, outer and is_outer)

    def _callees(self, instruction: Instruction, computation: Computation) -> Iterator[tuple[str, int, bool]]:
        if instruction.opcode == "while":
            trips = self._trip_count(instruction, computation)
            self.loops[instruction.name] = trips
            yield instruction.called("body"), 1 if trips is None else trips, True
        elif instruction.opcode in ("fusion", "async-start"):
            yield instruction.called("calls"), 1, False
        elif instruction.opcode == "call":
            yield instruction.called("to_apply"), 1, True
        elif instruction.opcode == "conditional":
            for branch in _branches(instruction):
                yield branch, 1, True

    def _trip_count(self, loop: Instruction, computation: Computation) -> int | None:
        known = re.search(r'known_trip_count"?:\s*{\s*"?n"?:\s*"?(\d+)', loop.attributes)
        if known:
            return int(known.group(1))
        condition, body = (self.computations[loop.called(name)] for name in ("condition", "body"))
        compare = _root(condition)
        if compare.opcode != "compare" or "direction=LT" not in compare.attributes:
            return None
        counter, bound = (condition[name] for name in compare.operands)
        index = re.search(r"index=(\d+)", counter.attributes)
        if index is None or bound.opcode != "constant":
            return None
        place = int(index.group(1))
        start = _constant(computation, computation[loop.operands[0]].operands[place])
        step = _added(body, _root(body).operands[place], place)
        return None if not step else -(-(int(bound.arguments) - (start or 0)) // step)

    def flops(self) -> dict[str, int]:
        """Of all products."""
        found = {"int8": 0, "float": 0}
        for name, times in self.times.items():
            computation = self.computations[name]
            for instruction in computation.values():
                if instruction.opcode in ("dot", "convolution"):
                    count = _dot_flops if instruction.opcode == "dot" else _convolution_flops
                    kind = "int8" if instruction.shapes[0].dtype.startswith("s") else "float"
                    found[kind] += times * count(instruction, computation)
        return found

    def collectives(self) -> Iterator[Collective]:
        """Every collective, once."""
        pieces = set()
        for name, times in self.times.items():
            computation = self.computations[name]
            for instruction in computation.values():
                kind = instruction.opcode.removesuffix("-start")
                # A TPU hides a collective behind several products: its pieces carry the same channel and chain.
                piece = tuple(re.findall(r'(?:channel_id=|chain_id=")(\d+)', instruction.attributes))
                if kind not in COLLECTIVES or (len(piece) == 2 and piece in pieces):
                    continue
                pieces.add(piece)
                yield from self._collective(kind, instruction, name, times)

    def _collective(self, kind: str, instruction: Instruction, name: str, times: int) -> Iterator[Collective]:
        if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"  # how a TPU writes one: a fusion that reduces and keeps a slice
        ways = _group_size(instruction.attributes, self.num_partitions)
        op_name = re.search(r'op_name="([^"]*)"', instruction.attributes)
        shapes = [shape for operand in instruction.operands for shape in self.computations[name][operand].shapes]
        for dtype in dict.fromkeys(shape.dtype for shape in shapes):
            of_dtype = [shape for shape in shapes if shape.dtype == dtype]
            nbytes = times * sum(shape.nbytes for shape in of_dtype) * (ways if kind == "all-gather" else 1)
            share = 1.0 if kind == "collective-permute" else (2 if kind == "all-reduce" else 1) * (ways - 1) / ways
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

    def hbm_bytes(self) -> int:
        """Traffic of everything that is not inside a fusion; slices count as what is cut out or written."""
        return sum(
            self.times[name] * self._traffic(instruction, self.computations[name])
            for name in self.outer
            for instruction in self.computations[name].values()
        )

    def _traffic(self, instruction: Instruction, computation: Computation) -> int:
        opcode, operands = instruction.opcode, [computation[name] for name in instruction.operands]
        target = re.search(r'custom_call_target="(\w+)"', instruction.attributes)
        if opcode in _NO_TRAFFIC or opcode.endswith("-start") or (target and target.group(1) in _NO_TRAFFIC_TARGETS):
            return 0
        if opcode.endswith("-done"):
            return self._copied(instruction, computation)
        if opcode in _SLICES:
            return (
                instruction.hbm_bytes + sum(shape.nbytes for shape in instruction.shapes) * operands[0].shapes[0].in_hbm
            )
        if opcode == "dynamic-update-slice":
            return 2 * operands[1].hbm_bytes
        if opcode == "scatter":
            return 3 * operands[2].hbm_bytes
        if opcode == "fusion":
            called = self.computations[instruction.called("calls")]
            reads = sum(self._read(called, place, operand.hbm_bytes) for place, operand in enumerate(operands))
            return reads + self._written(called, _root(called), instruction.shapes)
        return instruction.hbm_bytes + sum(operand.hbm_bytes for operand in operands)

    def _copied(self, done: Instruction, computation: Computation) -> int:
        """An asynchronous copy or collective: what it reads and what it writes are of the result's size."""
        start = computation[done.operands[0]]
        while start.opcode == "async-update":
            start = computation[start.operands[0]]
        return done.hbm_bytes + _nbytes(done) * any(computation[name].hbm_bytes for name in start.operands)

    def _read(self, computation: Computation, place: int, full: int) -> int:
        """Bytes of a fusion's operand that are read, at most `full`."""
        name = next(i.name for i in computation.values() if i.opcode == "parameter" and i.arguments == str(place))
        return min(full, self._read_of(computation, name, full)) if full else 0

    def _read_of(self, computation: Computation, name: str, full: int) -> int:
        total = 0
        for user in computation.values():
            if name not in user.operands:
                continue
            places = [place for place, operand in enumerate(user.operands) if operand == name]
            if user.opcode in _SLICES and places == [0]:
                total += _nbytes(user)
            elif user.opcode == "bitcast":
                total += self._read_of(computation, user.name, full)
            elif user.opcode == "fusion":
                called = self.computations[user.called("calls")]
                total += sum(self._read(called, place, full) for place in places)
            elif user.opcode != "dynamic-update-slice" or places != [0]:  # updated in place: not read
                return full
        return total

    def _written(self, computation: Computation, root: Instruction, shapes: tuple[Shape, ...]) -> int:
        """Bytes that a fusion writes; of an array that it updates in place, the update."""
        if root.opcode == "tuple" and len(root.operands) == len(shapes):
            parts = zip(root.operands, shapes, strict=True)
            return sum(self._written(computation, computation[name], (shape,)) for name, shape in parts)
        if not any(shape.in_hbm for shape in shapes):
            return 0
        if root.opcode == "bitcast" and root.operands:
            return self._written(computation, computation[root.operands[0]], shapes)
        if root.opcode == "fusion":
            called = self.computations[root.called("calls")]
            return self._written(called, _root(called), shapes)
        if root.opcode == "dynamic-update-slice":
            return _nbytes(computation[root.operands[1]])
        return sum(shape.nbytes for shape in shapes if shape.in_hbm)


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """Computations by name, and the name of the entry. Raises ValueError where there is none."""
    computations: dict[str, Computation] = {}
    entry = None
    current: Computation | None = None
    for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
        header = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*{$", line)
        if header:
            current = computations[header.group(2)] = {}
            entry = header.group(2) if header.group(1) else entry
        elif current is not None and " = " in line:
            instruction = _instruction(line)
            current[instruction.name] = instruction
        elif line.startswith("}"):
            current = None
    if entry is None:
        raise ValueError("HLO: found no ENTRY computation, expected the text of an optimized module")
    return computations, entry


def _instruction(line: str) -> Instruction:
    left, right = line.split(" = ", 1)
    shape, rest = _split_shape(right)
    opcode, _, rest = rest.partition("(")
    end = _closing(rest)
    return Instruction(
        name=left.split()[-1].lstrip("%"),
        shapes=_shapes(shape),
        opcode=opcode.strip(),
        arguments=rest[:end],
        attributes=rest[end + 1 :],
        is_root=left.lstrip().startswith("ROOT"),
    )


def _split_shape(text: str) -> tuple[str, str]:
    """A shape, which may be a tuple with layouts in it, and what follows."""
    end = _closing(text[1:]) + 2 if text.startswith("(") else text.index(" ")
    return text[:end], text[end:]


def _closing(text: str) -> int:
    """Index of the parenthesis that closes one opened before the text."""
    depth = 1
    for parenthesis in re.finditer(r"[()]", text):
        depth += 1 if parenthesis.group() == "(" else -1
        if depth == 0:
            return parenthesis.start()
    raise ValueError(f"HLO: found no closing parenthesis in {text[:80]!r}")


def _shapes(text: str) -> tuple[Shape, ...]:
    found = re.finditer(r"([a-z]\w*)\[([\d,<=]*)\](\{[^}]*\})?", text)
    return tuple(
        Shape(
            dtype=match.group(1),
            sizes=tuple(int(size.removeprefix("<=")) for size in match.group(2).split(",") if size),
            in_hbm=re.search(r"S\([1-9]\d*\)", match.group(3) or "") is None,
        )
        for match in found
    )


def _nbytes(instruction: Instruction) -> int:
    return sum(shape.nbytes for shape in instruction.shapes)


def _root(computation: Computation) -> Instruction:
    return next(instruction for instruction in computation.values() if instruction.is_root)


def _branches(instruction: Instruction) -> list[str]:
    listed = re.search(r"branch_computations={([^}]*)}", instruction.attributes)
    if listed:
        return re.findall(r"[\w.\-]+", listed.group(1))
    return [instruction.called(f"{case}_computation") for case in ("true", "false")]


def _constant(computation: Computation, name: str) -> int | None:
    """The number that a name stands for, through copies."""
    instruction = computation[name]
    while instruction.opcode in ("copy", "bitcast"):
        instruction = computation[instruction.operands[0]]
    return int(instruction.arguments) if instruction.opcode == "constant" else None


def _added(body: Computation, name: str, place: int) -> int | None:
    """What a loop adds to the element at `place` of its state, where it does nothing else to it."""
    instruction, total = body[name], 0
    while instruction.opcode in ("copy", "bitcast", "add"):
        numbers = {operand: _constant(body, operand) for operand in instruction.operands}
        variable = [operand for operand, number in numbers.items() if number is None]
        if len(variable) != 1:
            return None
        total += sum(number or 0 for number in numbers.values())
        instruction = body[variable[0]]
    is_counter = re.search(rf"\bindex={place}\b", instruction.attributes)
    return total if is_counter else None


def _group_size(attributes: str, num_partitions: int) -> int:
    """Devices that take part in a collective together, from any of the forms in which groups are written."""
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


def _list(attributes: str, name: str) -> list[int]:
    found = re.search(rf"\b{name}={{([\d,]*)}}", attributes)
    return [int(number) for number in found.group(1).split(",")] if found and found.group(1) else []


def _dot_flops(instruction: Instruction, computation: Computation) -> int:
    left = computation[instruction.operands[0]].shapes[0].sizes
    contracted = math.prod(left[place] for place in _list(instruction.attributes, "lhs_contracting_dims"))
    return 2 * math.prod(instruction.shapes[0].sizes) * contracted


def _convolution_flops(instruction: Instruction, computation: Computation) -> int:
    """Two for every product of numbers that are there: padding and holes of dilation cost nothing."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    assert labels is not None, instruction.attributes
    left, right = (computation[name].shapes[0].sizes for name in instruction.operands[:2])
    size = [
        dict(zip(text, sizes, strict=True))
        for text, sizes in zip(labels.groups(), (left, right, instruction.shapes[0].sizes), strict=True)
    ]
    batch_groups = re.search(r"batch_group_count=(\d+)", instruction.attributes)
    products = size[0]["b"] // (int(batch_groups.group(1)) if batch_groups else 1) * size[1]["i"] * size[1]["o"]
    for place, axis in enumerate(sorted(set(labels.group(1)) - {"b", "f"})):
        products *= _valid_positions(instruction.attributes, place, size[0][axis], size[1][axis], size[2][axis])
    return 2 * products


def _valid_positions(attributes: str, place: int, size: int, window: int, out: int) -> int:
    """Pairs of an output position and a window position that meet an input along one spatial dimension."""
    options = {}
    found = re.search(r"window={([^}]*)}", attributes)
    for option in found.group(1).split() if found else []:
        name, _, values = option.partition("=")
        options[name] = values.split("x")[place]
    stride, hole, spread = (int(options.get(name, 1)) for name in ("stride", "lhs_dilate", "rhs_dilate"))
    before = int(options.get("pad", "0_0").split("_")[0])
    return sum(
        0 <= (at := o * stride + w * spread - before) <= (size - 1) * hole and at % hole == 0
        for o in range(out)
        for w in range(window)
    )
