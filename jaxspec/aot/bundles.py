"""What a TPU kernel costs in instructions: the listings that libtpu writes on request.

A TPU core issues one bundle of instructions per cycle, in order, so the number of bundles
is a lower bound on a kernel's cycles; waits for memory come on top. The compiler writes
the bundles of every computation to a text file, one per line:

    0x2c LB: >> { %v9_v1 = vadd.f32 1.0, %v8_v0  ;;  %s3_s2 = ... } /* Start region 7 */
    0x2d   : >> { %31 = sbr.rel (!%p4_p6) target = $region7 } /* End region 7 */

A branch back to a region's start is a loop. Its limit stands in the test of its exit, if
it is known when it is compiled, and its counter steps by more than one where the loop was
unrolled; a grid has a loop of its own, around all others.
"""

import math
import pathlib
import re
from collections.abc import Iterator
from typing import NamedTuple

_BUNDLE = re.compile(r"^ *(?:0x[0-9a-f]+|0) +(?:[A-Z]{2})? *: [> ]*\{", re.MULTILINE)
_START, _END = (re.compile(rf"{word} region (\d+)\b") for word in ("Start", "End"))
_BRANCH = re.compile(r"sbr\.rel(?: \(!?(%p\w+)\))? target = \$region(\d+)")
_EXIT = re.compile(
    r"(%p\w+) = scmp\.\w+\.s32\.totalorder (?:\(!?%p\w+\), )?(%\w+), (\d+)"
    r" /\* loop exit test \*/"
)
_STRIDE = re.compile(r"(%\w+) = sadd\.s32 (?:\(!?%p\w+\), )?(\d+), ")
_SPILL = re.compile(r"\bvst \[vmem:\[#allocation\d+_spill\]")
_FILE = re.compile(r"\d+-(.+?)(?:\.\d+)?-\d+-final_bundles\.txt")


class Loop(NamedTuple):
    """Bundles `start` to `stop - 1`, run `trips` times (None: not known statically)."""

    start: int
    stop: int
    trips: int | None


class Listing(NamedTuple):
    """The bundles of one kernel.

    Attributes:
        bundles: all of them, each counted once.
        grid: the loop over the grid; None where the grid has one step.
        loops: all other loops, outer ones first.
        spills: stores of vector registers for want of registers.
    """

    bundles: int
    grid: Loop | None
    loops: tuple[Loop, ...]
    spills: int

    def step(self, trips: int = 1) -> int:
        """Bundles issued in one step of the grid, as if every branch were taken.

        Args:
            trips: of the loops whose trips are not known.
        """
        start, stop = self.grid[:2] if self.grid else (0, self.bundles)
        repeated = [loop for loop in self.loops if start <= loop.start < stop]
        counts = (
            math.prod(
                trips if loop.trips is None else loop.trips
                for loop in repeated
                if loop.start <= bundle < loop.stop
            )
            for bundle in range(start, stop)
        )
        return sum(counts)


def parse(text: str) -> Listing:
    """Reads a listing of final bundles."""
    cuts = [match.start() for match in _BUNDLE.finditer(text)]
    bundles = [text[a:b] for a, b in zip(cuts, [*cuts[1:], len(text)], strict=True)]
    starts = {int(name): i for i, b in enumerate(bundles) for name in _START.findall(b)}
    ends = {int(name): i for i, b in enumerate(bundles) for name in _END.findall(b)}
    strides = dict(_STRIDE.findall(text))
    known = {
        predicate: -(-int(limit) // int(strides.get(counter, 1)))
        for predicate, counter, limit in _EXIT.findall(text)
    }
    loops = []
    for i, bundle in enumerate(bundles):
        for predicate, region in _BRANCH.findall(bundle):
            start = starts.get(int(region), i + 1)
            if start <= i:
                stop = max(ends.get(int(region), i), i) + 1
                loops.append(Loop(start, stop, known.get(predicate)))
    loops.sort(key=lambda loop: (loop.start, -loop.stop))
    grid = [loop for loop in loops if "iteration index" in bundles[loop.start]]
    rest = tuple(loop for loop in loops if loop not in grid[:1])
    spills = len(_SPILL.findall(text))
    return Listing(len(bundles), grid[0] if grid else None, rest, spills)


def environment(folder: str | pathlib.Path) -> dict[str, str]:
    """Variables that make libtpu write listings; it reads them when it is loaded."""
    options = {
        "dump_to": folder,
        "dump_llo_text": "true",
        "dump_llo_pass_label_regex": "^final_bundles",
    }
    flags = " ".join(f"--xla_jf_{name}={value}" for name, value in options.items())
    return {"LIBTPU_INIT_ARGS": flags}


def listings(folder: str | pathlib.Path) -> Iterator[tuple[str, Listing]]:
    """The listings in a folder, with the names of their computations."""
    for path in sorted(pathlib.Path(folder).iterdir()):
        if match := _FILE.fullmatch(path.name):
            yield match[1], parse(path.read_text())
