"""Reads a compiled TPU program: its collectives, and the cycles that its compiler expects."""

import re
from collections import defaultdict
from dataclasses import dataclass, field

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = (\((?:[^()]|\([^()]*\))*\)|\S+) ([\w\-]+)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|body|branch_computations)=\{?((?:%[\w.\-]+(?:, )?)+)")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")
# A collective may be spread over other work: one fusion starts it, fusions of this name continue it, one finishes it.
# Each of them names the collective again.
_PIECE = "async_collective_fusion"
# The compiler writes this number of cycles where it has no estimate: -1, unsigned.
_NO_ESTIMATE = 2**64 - 1
_BITS = {"pred": 8, "s4": 4, "u4": 4}


@dataclass
class Collective:
    """Collectives of one kind in a step on one chip: their number, and bytes of the larger of operands and results."""

    count: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class ProgramReport:
    """One step of one chip, with loops multiplied out; a loop whose length depends on the data counts once.

    cycles: the sum of the compiler's estimates. Mosaic kernels have none, so `kernels` counts their calls.
    """

    collectives: dict[str, Collective] = field(default_factory=dict)
    cycles: int = 0
    kernels: int = 0


@dataclass(frozen=True)
class _Instruction:
    name: str
    type: str
    opcode: str
    rest: str


def read_program(text: str) -> ProgramReport:
    """Reads the text of a scheduled HLO module, as `compiled.as_text()` gives it."""
    computations, entry = _computations(text)
    finishing = {
        name
        for name, instructions in computations.items()
        if any('custom_call_target="AsyncCollectiveDone"' in instruction.rest for instruction in instructions)
    }
    times: dict[str, int] = defaultdict(int)
    _count(entry, 1, computations, times)

    collectives: dict[str, Collective] = defaultdict(Collective)
    cycles = kernels = 0
    for name, trips in times.items():
        types = {instruction.name: instruction.type for instruction in computations[name]}
        for instruction in computations[name]:
            cycles += trips * _cycles(instruction)
            kernels += trips * ('custom_call_target="tpu_custom_call"' in instruction.rest)
            kind = instruction.opcode.removesuffix("-start")
            if kind in _COLLECTIVES and not (name.startswith(_PIECE) or name in finishing):
                # The compiler writes a reduce-scatter as a fusion of this name.
                kind = "reduce-scatter" if name.startswith("all-reduce-scatter") else kind
                collectives[kind].count += trips
                collectives[kind].bytes += trips * _payload(instruction, types)
    return ProgramReport(dict(sorted(collectives.items())), cycles, kernels)


def _computations(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    computations: dict[str, list[_Instruction]] = {}
    entry, current = "", []
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif (found := _INSTRUCTION.match(line)) is not None:
            current.append(_Instruction(*found.groups()))
    assert entry, "an HLO module has an entry"
    return computations, entry


def _count(name: str, trips: int, computations: dict[str, list[_Instruction]], times: dict[str, int]) -> None:
    """Adds to `times` how often `name` and each computation that it calls run, if `name` runs `trips` times."""
    times[name] += trips
    for instruction in computations[name]:
        inner = trips
        if instruction.opcode == "while":
            inner *= _trips(instruction, computations)
        if instruction.opcode.endswith(("-done", "-update")):
            continue  # the same computation as its start
        for names in _CALLED.findall(instruction.rest):
            for called in re.findall(r"%([\w.\-]+)", names):
                _count(called, inner, computations, times)


def _trips(loop: _Instruction, computations: dict[str, list[_Instruction]]) -> int:
    """How often a loop runs: its counter starts at 0 and is compared with a constant; 1 if it is compared with data."""
    known = re.search(r"known_trip_count[^\d]*(\d+)", loop.rest)
    if known:
        return int(known[1])
    condition = re.search(r"condition=%([\w.\-]+)", loop.rest)
    assert condition is not None
    constants = [
        int(found[1])
        for instruction in computations[condition[1]]
        if instruction.opcode == "constant" and (found := re.match(r"(\d+)\)", instruction.rest))
    ]
    return max(constants, default=1)


def _cycles(instruction: _Instruction) -> int:
    found = _CYCLES.search(instruction.rest)
    return int(found[1]) if found and int(found[1]) != _NO_ESTIMATE else 0


def _payload(instruction: _Instruction, types: dict[str, str]) -> int:
    operands = sum(_bytes(types.get(name, "")) for name in re.findall(r"%([\w.\-]+)", instruction.rest.split("), ")[0]))
    result = _bytes(instruction.type)
    if instruction.opcode.endswith("-start"):
        # A start operation returns its operands as well, and flags without size.
        result = _bytes(instruction.type.replace("u32[]", "")) - operands
    return max(result, operands)


def _bytes(type_text: str) -> int:
    total = 0
    for dtype, sides in _ARRAY.findall(type_text):
        bits = _BITS.get(dtype) or int((re.search(r"\d+", dtype) or ["0"])[0])
        entries = 1
        for side in sides.split(","):
            entries *= int(side) if side else 1
        total += entries * bits // 8
    return total
