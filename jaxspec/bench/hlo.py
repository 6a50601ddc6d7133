"""What a compiled program moves about: copies, slices and updates that are too large.

A state is meant to stay where it is. XLA copies it where it cannot prove that nobody
reads the old one, and slices a layer out of a stack that a kernel could have indexed;
neither shows in the results, only in the program.
"""

import math
import re
from typing import NamedTuple

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.<>-]+) (?:\(.*\) -> .*)?\{$")
_INSTRUCTION = re.compile(
    r"^ +(?:ROOT )?%?([\w.<>-]+) = (\(.*?\)(?= [\w-]+\()|\S+) ([\w-]+)\((.*)$"
)
_ARRAY = re.compile(r"\b([a-z]+\d*)\w*\[([\d,]*)\]")
_NAME = re.compile(r"%([\w.<>-]+)")

_MOVES = ("copy", "copy-start", "slice", "dynamic-slice", "dynamic-update-slice")


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


class _Instruction(NamedTuple):
    name: str
    shape: str
    opcode: str
    rest: str


def moves(program: str, at_least: int = 0) -> list[Move]:
    """Lists the moves of `at_least` so many bytes in `compiled.as_text()`.

    A slice within a fusion is listed although it may be read in place.
    """
    computations = _parse(program)
    looped = _looped(computations)
    found = []
    for computation, instructions in computations.items():
        shapes = {i.name: i.shape for i in instructions}
        for name, shape, opcode, rest in instructions:
            if opcode not in _MOVES:
                continue
            if opcode == "dynamic-update-slice":
                shape = _operand(rest, 1, shapes)
            if (size := _num_bytes(shape)) >= at_least:
                found.append(Move(opcode, shape, size, computation in looped, name))
    return found


def _parse(program: str) -> dict[str, list[_Instruction]]:
    """Instructions by computation."""
    computations: dict[str, list[_Instruction]] = {}
    for line in program.splitlines():
        if match := _COMPUTATION.match(line):
            instructions = computations.setdefault(match[1], [])
        elif match := _INSTRUCTION.match(line):
            instructions.append(_Instruction(*match.groups()))
    return computations


def _looped(computations: dict[str, list[_Instruction]]) -> set[str]:
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


def _operand(rest: str, index: int, shapes: dict[str, str]) -> str:
    """The shape of an operand, by the name of what computes it."""
    return shapes[_NAME.findall(rest)[index]]


def _num_bytes(shape: str) -> int:
    """Size of an array, or of the first of a tuple."""
    kind, sizes = _ARRAY.search(shape).groups()
    count = math.prod(int(size) for size in sizes.split(",") if size)
    bits = re.search(r"\d+$", kind)
    return count * int(bits[0]) // 8 if bits else count
