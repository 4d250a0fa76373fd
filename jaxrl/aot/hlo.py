"""Reads an executable's HLO text: its collectives with their executions and bytes, and its memory traffic.

XLA's own counts (cost_analysis) take the body of a loop once. Here everything is multiplied by the trip counts of the
loops around it: known_trip_count where XLA states it, or else the constant that the loop counter is compared with.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

_BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "bf16": 16, "f16": 16, "s32": 32, "u32": 32,
    "f32": 32, "s64": 64, "u64": 64, "f64": 64, "c64": 64, "c128": 128, "f8e4m3fn": 8, "f8e5m2": 8, "f8e4m3b11fnuz": 8,
}  # fmt: skip
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all",
         "collective-broadcast")  # fmt: skip
_ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([0-9,]*)\](\{[^}]*\})?")
_CALLED = re.compile(r"\b(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call",
         "optimization-barrier", "partition-id", "after-all", "iota"}  # fmt: skip

_IN_PLACE = {"dynamic-update-slice": 1, "scatter": 2}  # the operand that is written into the first one


class Array(NamedTuple):
    dtype: str
    shape: tuple[int, ...]
    on_chip: bool  # in the chip's own memory (VMEM), not in HBM

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * _BITS.get(self.dtype, 0) // 8

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Instruction:
    name: str
    opcode: str
    result: tuple[Array, ...]
    arguments: str  # the text between the parentheses
    text: str  # attributes
    root: bool

    @property
    def operands(self) -> list[str]:
        """Their names."""
        return re.findall(r"%([\w.\-]+)", self.arguments)

    @property
    def called(self) -> list[str]:
        """The computations that it runs: those of a fusion or call, or the branches of a conditional."""
        names = _CALLED.findall(self.text)
        for branches in _BRANCHES.findall(self.text):
            names += [b.strip().lstrip("%") for b in branches.split(",")]
        return names


@dataclass(frozen=True)
class Collective:
    """One collective operation and how often it runs."""

    kind: str  # of KINDS
    arrays: tuple[Array, ...]  # on the larger side: an all-gather's results, a reduce-scatter's operands
    group: int  # devices that take part in one
    loops: tuple[int, ...]  # trip counts of the loops around it, outermost first; 0: unknown
    where: str  # JAX's name of the source operation

    @property
    def count(self) -> int:
        """Executions; a loop with an unknown trip count counts once."""
        return math.prod(n or 1 for n in self.loops)

    @property
    def bytes(self) -> int:
        """Bytes of the arrays in one execution."""
        return sum(a.bytes for a in self.arrays)

    @property
    def sent(self) -> float:
        """Bytes that a device sends in one execution with a ring algorithm (Thakur et al. 2005, section 4)."""
        share = (self.group - 1) / self.group
        if self.kind == "collective-permute":
            return float(self.bytes)
        return self.bytes * share * (2 if self.kind == "all-reduce" else 1)

    def __str__(self) -> str:
        loops = " x ".join(str(n or "?") for n in self.loops)
        shapes = ", ".join(map(str, self.arrays))
        return f"{self.kind} {shapes} over {self.group}" + (f", {loops} times" if loops else "") + f" ({self.where})"


Computations = dict[str, list[Instruction]]


def parse(text: str) -> tuple[Computations, str]:
    """The computations of an HLO module's text by name, and the name of its entry."""
    computations: Computations = {}
    body: list[Instruction] = []
    entry = ""
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY")) and line.rstrip().endswith("{"):
            name = line.removeprefix("ENTRY").split("(")[0].strip().lstrip("%")
            body = computations[name] = []
            entry = name if line.startswith("ENTRY") else entry
        elif line.startswith(" ") and " = " in line:
            body.append(_instruction(line))
    return computations, entry


def _instruction(line: str) -> Instruction:
    left, _, right = line.strip().partition(" = ")
    type_text, right = _first(right)
    opcode, _, rest = right.partition("(")
    operands, attributes = _first("(" + rest)
    return Instruction(
        name=left.removeprefix("ROOT ").lstrip("%"),
        opcode=opcode.strip(),
        result=_arrays(type_text),
        arguments=operands[1:-1],
        text=attributes,
        root=left.startswith("ROOT "),
    )


def _first(text: str) -> tuple[str, str]:
    """Splits a type, or operands in parentheses, from the rest of the text."""
    if not text.startswith("("):
        head, _, tail = text.partition(" ")
        return head, tail
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[: i + 1], text[i + 1 :].lstrip()
    return text, ""


def _arrays(type_text: str) -> tuple[Array, ...]:
    return tuple(
        Array(dtype, tuple(int(n) for n in shape.split(",") if n), "S(" in layout)
        for dtype, shape, layout in _ARRAY.findall(type_text)
        if dtype in _BITS
    )


def walk(computations: Computations, name: str, loops: tuple[int, ...] = ()) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Each computation that runs outside fusions, from `name` on, with the trip counts of the loops around it."""
    yield name, loops
    for instruction in computations.get(name, ()):
        if instruction.opcode == "while":
            trips = trip_count(computations, name, instruction)
            yield from walk(computations, _named(instruction.text, "body"), (*loops, trips))
        elif instruction.opcode in ("call", "conditional", "async-start"):
            for called in instruction.called:
                yield from walk(computations, called, loops)


def trip_count(computations: Computations, name: str, loop: Instruction) -> int:
    """How often the body of a while loop in computation `name` runs; 0 if that depends on data.

    Where XLA does not state it: the loop counter grows by one constant until it reaches another.
    """
    known = re.search(r'known_trip_count[^0-9}]*"?n"?[^0-9]*(\d+)', loop.text)
    if known:
        return int(known.group(1))
    condition = {i.name: i for i in computations.get(_named(loop.text, "condition"), [])}
    root = next((i for i in condition.values() if i.root), None)
    if root is None or root.opcode != "compare" or "direction=LT" not in root.text:
        return 0
    counter, limit = (condition[operand] for operand in root.operands)
    index = re.search(r"index=(\d+)", counter.text)
    end = _constant(limit)
    if index is None or end is None:
        return 0
    body = {i.name: i for i in computations.get(_named(loop.text, "body"), [])}
    step = _step(body, int(index.group(1)))
    caller = {i.name: i for i in computations[name]}
    start = _constant(_element(caller, loop.operands[0], int(index.group(1)))) or 0
    return -(-(end - start) // step)


def _step(body: dict[str, Instruction], index: int) -> int:
    """What a loop body adds to its counter, element `index` of its argument."""
    root = next((i for i in body.values() if i.root), None)
    added = _element(body, root.name, index) if root else None
    if added is None or added.opcode != "add":
        return 1
    constants = [_constant(body.get(operand)) for operand in added.operands]
    return next((c for c in constants if c), 1)


def _element(by_name: dict[str, Instruction], name: str, index: int) -> Instruction | None:
    """The instruction that computes element `index` of a tuple, looking through copies and bitcasts."""
    made = by_name.get(name)
    if made is None or made.opcode != "tuple" or index >= len(made.operands):
        return None
    element = by_name.get(made.operands[index])
    while element is not None and element.opcode in ("copy", "bitcast") and element.operands:
        element = by_name.get(element.operands[0])
    return element


def _constant(instruction: Instruction | None) -> int | None:
    if instruction is None or instruction.opcode != "constant" or not instruction.arguments.isdigit():
        return None
    return int(instruction.arguments)


def collectives(text: str) -> list[Collective]:
    """The collectives in an executable's text, including the fused and asynchronous ones of TPUs."""
    computations, entry = parse(text)
    found = []
    for name, loops in walk(computations, entry):
        chains: set[tuple[str, str]] = set()
        for instruction in computations[name]:
            found += _collectives_of(computations, instruction, loops, chains)
    return found


def _collectives_of(
    computations: Computations, instruction: Instruction, loops: tuple[int, ...], chains: set[tuple[str, str]]
) -> Iterator[Collective]:
    kind = instruction.opcode.removesuffix("-start")
    if kind in KINDS:
        # An asynchronous TPU collective runs in steps, in fusions that all name its chain: it counts as one.
        chain = re.search(r'chain_id="(\d+)"', instruction.text)
        channel = re.search(r"channel_id=(\d+)", instruction.text)
        if chain and channel:
            if (chain.group(1), channel.group(1)) in chains:
                return
            chains.add((chain.group(1), channel.group(1)))
        yield _collective(kind, instruction, loops)
    elif instruction.opcode == "fusion":
        for called in instruction.called:
            for inner in computations.get(called, ()):
                for c in _collectives_of(computations, inner, loops, chains):
                    # An all-reduce of which each device keeps only a slice.
                    scattered = c.kind == "all-reduce" and called.startswith("all-reduce-scatter")
                    yield Collective("reduce-scatter", c.arrays, c.group, c.loops, c.where) if scattered else c


def _collective(kind: str, instruction: Instruction, loops: tuple[int, ...]) -> Collective:
    arrays = instruction.result
    if instruction.opcode.endswith("-start") and kind != "all-reduce":  # (operands, results, contexts)
        n = len(instruction.operands)
        arrays = arrays[n : 2 * n] or arrays
    group = _group(instruction.text)
    if kind == "reduce-scatter":
        sizes = [(a.shape[0] * group, *a.shape[1:]) if a.shape else a.shape for a in arrays]
        arrays = tuple(Array(a.dtype, shape, a.on_chip) for a, shape in zip(arrays, sizes))
    where = re.search(r'op_name="([^"]*)"', instruction.text)
    return Collective(kind, arrays, group, loops, where.group(1) if where else instruction.name)


def _group(text: str) -> int:
    """Devices of one replica group, in any notation of XLA; 1 where it states none."""
    listed = re.search(r"replica_groups=\{\{([0-9,]*)\}", text)
    if listed:
        return len(listed.group(1).split(","))
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=", text)
    if iota:
        return int(iota.group(2))
    mesh = re.search(r"replica_groups=@?mesh\w*\[([^\]]*)\][^{]*\{([^}]*)\}", text)
    if mesh:
        sizes = dict(re.findall(r"'([^']*)'=(\d+)", mesh.group(1)))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']*)'", mesh.group(2)) if axis in sizes)
    return 2 if "source_target_pairs" in text else 1


def hbm_bytes(text: str) -> float:
    """Bytes that one device reads from and writes to its HBM, loops included: operands and results of all operations.

    A fusion that reads a slice of an operand, or writes one into its result in place, counts only the slice. Arrays in
    on-chip memory do not count. Where a loop's trip count depends on data (decoding runs until rows are finished), only
    one trip is counted, without what comes before and after.
    """
    computations, entry = parse(text)
    total, run = 0.0, list(walk(computations, entry))
    open_ended = any(0 in loops for _, loops in run)
    for name, loops in run:
        if open_ended and 0 not in loops:
            continue
        trips = math.prod(n or 1 for n in loops)
        by_name = {i.name: i for i in computations[name]}
        total += trips * sum(_traffic(computations, by_name, i) for i in computations[name])
    return total


def _traffic(computations: Computations, by_name: dict[str, Instruction], instruction: Instruction) -> float:
    if instruction.opcode in _FREE or instruction.opcode.endswith("-done"):
        return 0.0
    operands = [by_name[o].result if o in by_name else () for o in instruction.operands]
    result = instruction.result
    if instruction.opcode in ("copy-start", "slice-start"):  # (to, from, context), (from, to, context)
        to, source = sorted(result[:2], key=lambda a: (a.bytes, not a.on_chip))
        return float(to.bytes * ((not to.on_chip) + (not source.on_chip)))
    if "output_to_operand_aliasing" in instruction.text:  # buffers that asynchronous collectives pass through
        kept = re.findall(r"\{(\d*)\}: \((\d+), \{\}", instruction.text)
        results, passed = {int(out or 0) for out, _ in kept}, {int(operand) for _, operand in kept}
        result = tuple(a for i, a in enumerate(result) if i not in results)
        operands = [() if i in passed else arrays for i, arrays in enumerate(operands)]
    written = float(_in_hbm(result))
    if instruction.opcode in ("dynamic-slice", "gather"):
        return 2 * written
    if instruction.opcode in _IN_PLACE:
        return 2.0 * _in_hbm(operands[_IN_PLACE[instruction.opcode]])
    if instruction.opcode != "fusion":
        return written + sum(map(_in_hbm, operands))
    called = instruction.called[0] if instruction.called else ""
    read = sum(_read(computations, called, index, _in_hbm(arrays)) for index, arrays in enumerate(operands))
    inside = list(_nested(computations, called))
    inner = {i.name: i for i in inside}
    for i in inside:  # written in place
        if i.opcode in _IN_PLACE:
            operand = i.operands[_IN_PLACE[i.opcode]]
            update = _in_hbm(inner[operand].result, anywhere=True) if operand in inner else 0
            written -= max(0, min(written, _in_hbm(i.result)) - update)
    return read + written


def _nested(computations: Computations, name: str) -> Iterator[Instruction]:
    """The instructions of a fused computation, including those of nested fusions."""
    for instruction in computations.get(name, ()):
        yield instruction
        if instruction.opcode == "fusion":
            for called in instruction.called:
                yield from _nested(computations, called)


def _read(computations: Computations, name: str, index: int, size: int) -> float:
    """Bytes that a fused computation reads of its parameter `index`, which has `size` bytes."""
    inside = computations.get(name, [])
    names = {i.name for i in inside if i.opcode == "parameter" and i.arguments == str(index)}
    names |= {i.name for i in inside if i.opcode == "bitcast" and i.operands[:1] and i.operands[0] in names}
    read = 0.0
    for use in inside:
        operands = use.operands
        places = [k for k, operand in enumerate(operands) if operand in names]
        if not places or use.opcode == "bitcast":
            continue
        if use.opcode in ("dynamic-slice", "gather"):
            read += _in_hbm(use.result, anywhere=True)
        elif use.opcode == "fusion" and use.called:
            read += sum(_read(computations, use.called[0], k, size) for k in places)
        elif use.opcode not in _IN_PLACE or places != [0]:
            return float(size)
    return min(float(size), read)


def _in_hbm(arrays: Sequence[Array], anywhere: bool = False) -> int:
    return sum(a.bytes for a in arrays if anywhere or not a.on_chip)


def _named(text: str, attribute: str) -> str:
    found = re.search(rf"\b{attribute}=%?([\w.\-]+)", text)
    return found.group(1) if found else ""
