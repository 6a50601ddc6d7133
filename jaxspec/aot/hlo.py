"""What a compiled program moves about, and what its devices exchange.

A state is meant to stay where it is. XLA copies it where it cannot prove that nobody
reads the old one, and slices a layer out of a stack that a kernel could have indexed;
neither shows in the results, only in the program, `compiled.as_text()`.
"""

import math
import re
from collections.abc import Iterable
from typing import NamedTuple

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.<>-]+) (?:\(.*\) -> .*)?\{$")
_INSTRUCTION = re.compile(
    r"^ +(?:ROOT )?%?([\w.<>-]+) = (\(.*?\)(?= [\w-]+\()|\S+) ([\w-]+)\((.*)$"
)
_ARRAY = re.compile(r"\b([a-z]+\d*)\w*\[([\d,]*)\]")
_NAME = re.compile(r"%([\w.<>-]+)")

_MOVES = ("copy", "copy-start", "slice", "dynamic-slice", "dynamic-update-slice")

_EXCHANGES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all")
_EXCHANGES += ("collective-permute", "collective-broadcast")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_BODIES = re.compile(r"(?:body|condition|calls|to_apply)=%?([\w.<>-]+)")
_BRANCHES = re.compile(
    r"(?:branch_computations=\{(.*?)\}|true_computation=(\S+), false_computation=(\S+?)"
    r"(?:,|$))"
)
_GROUPS = re.compile(
    r"replica_groups=(?:\{\{([\d,]*)\}|\[\d+,(\d+)\]|mesh\[(.*?)\].*?\{(.*?)\})"
)


class Move(NamedTuple):
    """An instruction that moves memory.

    Attributes:
        opcode: `copy`, `copy-start`, `slice`, `dynamic-slice` or `dynamic-update-slice`.
        shape: of what is moved: of the result, or of the update of an update.
        num_bytes: its size.
        is_looped: whether it is within the body of a loop, fusions and calls included.
        name: of the instruction.
    """

    opcode: str
    shape: str
    num_bytes: int
    is_looped: bool
    name: str


class Collective(NamedTuple):
    """An exchange between devices.

    Attributes:
        kind: `all-reduce`, `all-gather`, `all-to-all`, ...
        shape: of a device's result.
        num_bytes: its size.
        devices: how many take part in one exchange.
        count: how often it is run.
    """

    kind: str
    shape: str
    num_bytes: int
    devices: int
    count: int


class _Instruction(NamedTuple):
    name: str
    shape: str
    opcode: str
    rest: str  # operands and attributes


_Computations = dict[str, list[_Instruction]]
_Exchange = tuple[str, str, int]  # kind, shape, devices


def moves(program: str, at_least: int = 0) -> list[Move]:
    """Lists the moves of `at_least` so many bytes.

    A slice within a fusion is listed although it may be read in place.
    """
    computations, _ = _parse(program)
    looped = _looped(computations)
    found = []
    for computation, instructions in computations.items():
        shapes = {i.name: i.shape for i in instructions}
        for name, shape, opcode, rest in instructions:
            if opcode not in _MOVES:
                continue
            if opcode == "dynamic-update-slice":
                shape = shapes[_NAME.findall(rest)[1]]  # of what is written
            size, *_ = _sizes(shape)
            if size >= at_least:
                found.append(Move(opcode, shape, size, computation in looped, name))
    return found


def collectives(program: str) -> list[Collective]:
    """Lists what devices exchange when they run a program once.

    What is within a loop counts as often as the compiler knows it to run, and once if it
    does not know. Of the branches of a conditional, the one that exchanges most counts.
    """
    computations, entry = _parse(program)

    def total(name: str) -> dict[_Exchange, int]:
        found: dict[_Exchange, int] = {}
        for instruction in computations.get(name, ()):
            parts = list(map(total, _BODIES.findall(instruction.rest)))
            if exchange := _exchange(instruction):
                parts.append({exchange: 1})
            if branches := _branches(instruction.rest):
                parts.append(max(map(total, branches), key=_weight))
            trips = _TRIPS.search(instruction.rest)
            times = int(trips[1]) if trips and instruction.opcode == "while" else 1
            for key, count in (item for part in parts for item in part.items()):
                found[key] = found.get(key, 0) + times * count
        return found

    return [
        Collective(kind, shape, _received(kind, shape), devices, count)
        for (kind, shape, devices), count in sorted(total(entry).items())
    ]


def _parse(program: str) -> tuple[_Computations, str]:
    """Instructions by computation, and the name of the first that runs."""
    computations: _Computations = {}
    entry = ""
    for line in program.splitlines():
        if match := _COMPUTATION.match(line):
            instructions = computations.setdefault(match[2], [])
            entry = match[2] if match[1] else entry
        elif match := _INSTRUCTION.match(line):
            instructions.append(_Instruction(*match.groups()))
    return computations, entry


def _looped(computations: _Computations) -> set[str]:
    """The computations that loops run, and those that these call."""
    calls = {
        name: {n for i in instructions for n in _NAME.findall(i.rest)} & {*computations}
        for name, instructions in computations.items()
    }
    waiting = [
        name
        for instructions in computations.values()
        for i in instructions
        if i.opcode == "while"
        for name in _NAME.findall(i.rest)
        if name in computations
    ]
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += calls[name]
    return found


def _exchange(instruction: _Instruction) -> _Exchange | None:
    """The exchange that an instruction is or starts, None if it is none."""
    kind = instruction.opcode.removesuffix("-start")
    if kind not in _EXCHANGES:
        return None
    shape = re.sub(r"\{[^}]*\}", "", instruction.shape)
    return kind, shape, _group_size(instruction.rest)


def _branches(rest: str) -> list[str]:
    """The computations of which a conditional runs one."""
    match = _BRANCHES.search(rest)
    if match is None:
        return []
    names = match[1].split(",") if match[1] else [match[2], match[3]]
    return [name.strip().lstrip("%") for name in names]


def _group_size(rest: str) -> int:
    """How many devices meet, in any of the ways to write it; pairs have no groups."""
    match = _GROUPS.search(rest)
    if match is None:
        return 2
    listed, size, axes, over = match.groups()
    if listed is not None:
        return listed.count(",") + 1
    if size is not None:
        return int(size)
    sizes = dict(re.findall(r"'([^']*)'=(\d+)", axes))
    return math.prod(int(sizes[name]) for name in re.findall(r"'([^']*)'", over))


def _weight(found: dict[_Exchange, int]) -> int:
    """How many bytes are exchanged in all."""
    return sum(n * _received(kind, shape) for (kind, shape, _), n in found.items())


def _received(kind: str, shape: str) -> int:
    """Bytes that an exchange leaves; one that is started also lists what it takes."""
    sizes = _sizes(shape)
    one = kind in ("all-gather", "collective-permute") and len(sizes) == 2
    return max(sizes) if one else sum(sizes)


def _sizes(shape: str) -> list[int]:
    """Bytes of an array, or of each of a tuple."""
    return [_num_bytes(kind, sizes.split(",")) for kind, sizes in _ARRAY.findall(shape)]


def _num_bytes(kind: str, sizes: Iterable[str]) -> int:
    bits = re.search(r"\d+$", kind)  # of `pred` there are none: a byte each
    count = math.prod(int(size) for size in sizes if size)
    return count * int(bits[0]) // 8 if bits else count
