"""Parses shapes of trees: `8`, `chain:4`, `3,2,1`, `3x4`."""

import functools
import itertools
import math
import operator

RANKS = (0.53, 0.11, 0.06, 0.04)  # how often the draw of each rank is kept (tune tree)
MOST = 1024  # nodes of a tree; sizes beyond that take minutes to plan, and no pass pays
LONGEST = 8  # drafts on a path; beyond that a small model is hardly ever right


class NoShape(Exception):
    """Raised when a string is not a valid shape of a tree."""


def numbers(text: str, separator: str, count: int | None = None) -> tuple[int, ...]:
    """Positive numbers, as many as said."""
    try:
        found = tuple(int(part) for part in text.split(separator))
    except ValueError:
        raise NoShape from None
    if min(found) < 1 or count not in (None, len(found)):
        raise NoShape
    return found


def nodes(text: str, least: int = 2) -> int:
    """One number."""
    (count,) = numbers(text, ",", 1)
    if not least <= count <= MOST:
        raise NoShape
    return count


def levels(shape: str) -> tuple[int, ...]:
    """Children of each node, level by level: given, a chain, or of a number of nodes."""
    if shape.startswith("chain:"):
        return (1,) * nodes(shape.removeprefix("chain:"), 1)
    if "," not in shape:
        return branching(nodes(shape))
    children = numbers(shape, ",")
    if 1 + sum(itertools.accumulate(children, operator.mul)) > MOST:
        raise NoShape
    return children


@functools.cache
def branching(num_nodes: int) -> tuple[int, ...]:
    """Never more children below than above, and most accepted by `RANKS` if alike."""
    best, most = (1,), 0.0
    unfinished = [((), 1, 1, 1.0, 1.0)]
    while unfinished:
        levels, width, size, reach, tokens = unfinished.pop()
        if tokens > most:
            best, most = levels, tokens
        for children in range(1, min([*levels[-1:], len(RANKS)]) + 1):
            more, kept = width * children, reach * sum(RANKS[:children])
            if size + more <= num_nodes and len(levels) < LONGEST:
                new = (*levels, children), more, size + more, kept, tokens + kept
                unfinished.append(new)
    return best


def beam(shape: str) -> tuple[int, int]:
    """Width and length: given, or no wider than long."""
    if "x" in shape:
        width, length = numbers(shape, "x", 2)
        if 1 + width * length > MOST:
            raise NoShape
        return width, length
    drafts = nodes(shape) - 1
    length = min(drafts // math.isqrt(drafts), LONGEST)
    return drafts // length, length
