"""The optimized HLO text of a program (https://openxla.org/xla), parsed: its computations, and the runs of each.

The trip count of a loop is its `known_trip_count`, or follows from the constant in its condition and the constant that
its body adds to the counter.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

DTYPE_BITS = {"pred": 8, "bf16": 16} | {f"{kind}{bits}": bits for kind in "sufc" for bits in (2, 4, 8, 16, 32, 64, 128)}


@dataclass(frozen=True)
class Shape:
    """The dtype, sizes and memory of one array."""

    dtype: str
    sizes: tuple[int, ...]
    in_hbm: bool = True
    """False for an array in the fast memory of the chip."""

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
    """Text between the parentheses: names of operands, or a literal."""
    attributes: str
    is_root: bool

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.arguments)

    def called(self, attribute: str) -> str:
        """Return the name of the computation in an attribute such as `calls`, or an empty string."""
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
        return found.group(1) if found else ""

    @property
    def hbm_bytes(self) -> int:
        return sum(shape.nbytes for shape in self.shapes if shape.in_hbm)

    @property
    def nbytes(self) -> int:
        return sum(shape.nbytes for shape in self.shapes)


Computation = dict[str, Instruction]


class Module:
    """The computations of a module, and the number of runs of each. Raises ValueError on a text without an entry."""

    def __init__(self, text: str) -> None:
        self.computations, self.entry = parse(text)
        partitions = re.search(r"num_partitions=(\d+)", text[:20000])
        self.num_partitions = int(partitions.group(1)) if partitions else 1
        self.loops: dict[str, int | None] = {}
        """Trip count of each loop; None where the text has none, and the body counts once."""
        self.times: Counter[str] = Counter()
        """Number of runs of each computation."""
        self.outer: set[str] = set()
        """Names of computations that are not inside a fusion, so their instructions read and write memory."""
        self._run(self.entry, 1, outer=True)

    def instructions(self) -> Iterator[tuple[Instruction, str]]:
        """Yield every instruction that runs, with the name of its computation."""
        for name in self.times:
            for instruction in self.computations[name].values():
                yield instruction, name

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
        compare = root_of(condition)
        if compare.opcode != "compare" or "direction=LT" not in compare.attributes:
            return None
        counter, bound = (condition[name] for name in compare.operands)
        index = re.search(r"index=(\d+)", counter.attributes)
        if index is None or bound.opcode != "constant":
            return None
        element = int(index.group(1))
        start = _constant(computation, computation[loop.operands[0]].operands[element])
        step = _increment(body, root_of(body).operands[element], element)
        return None if not step else -(-(int(bound.arguments) - (start or 0)) // step)


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """Return the computations by name, and the name of the entry. Raises ValueError where there is no entry."""
    computations: dict[str, Computation] = {}
    entry = None
    current: Computation | None = None
    for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
        header = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*{$", line)
        if header:
            current = computations[header.group(2)] = {}
            entry = header.group(2) if header.group(1) else entry
        elif current is not None and re.match(r"\s+(?:ROOT )?%?[\w.\-]+ = ", line):
            instruction = _instruction(line)
            current[instruction.name] = instruction
        # Attributes of kernels contain line breaks; a line that begins with }} is inside one.
        elif re.match(r"}(?:[,\s]|$)", line):
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
    """Return the text of a shape, which may be a tuple with layouts in it, and the text after it."""
    end = _closing(text[1:]) + 2 if text.startswith("(") else text.index(" ")
    return text[:end], text[end:]


def _closing(text: str) -> int:
    """Return the index of the parenthesis that closes the one before the text. Raises ValueError without one."""
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


def root_of(computation: Computation) -> Instruction:
    """Return the root instruction of a computation, whose value is its result."""
    return next(instruction for instruction in computation.values() if instruction.is_root)


def _branches(instruction: Instruction) -> list[str]:
    listed = re.search(r"branch_computations={([^}]*)}", instruction.attributes)
    if listed:
        return re.findall(r"[\w.\-]+", listed.group(1))
    return [instruction.called(f"{case}_computation") for case in ("true", "false")]


def _constant(computation: Computation, name: str) -> int | None:
    """Return the number that a name stands for, through copies, or None where it is not a constant."""
    instruction = computation[name]
    while instruction.opcode in ("copy", "bitcast"):
        instruction = computation[instruction.operands[0]]
    return int(instruction.arguments) if instruction.opcode == "constant" else None


def _increment(body: Computation, name: str, element: int) -> int | None:
    """Return the number that a loop adds to this element of its state, or None where it does anything else to it."""
    instruction, total = body[name], 0
    while instruction.opcode in ("copy", "bitcast", "add"):
        numbers = {operand: _constant(body, operand) for operand in instruction.operands}
        variable = [operand for operand, number in numbers.items() if number is None]
        if len(variable) != 1:
            return None
        total += sum(number or 0 for number in numbers.values())
        instruction = body[variable[0]]
    is_counter = re.search(rf"\bindex={element}\b", instruction.attributes)
    return total if is_counter else None
