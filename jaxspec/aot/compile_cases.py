"""Compiles kernels for machines that are not here, and reads what the compilers say.

A compiler may end the process that it runs in, so that is another one: run as a program,
this module reads a `Case` a line and writes a `Result` a line.
"""

import json
import math
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import IO, NamedTuple

import jax

from jaxspec.aot import bundles, cases, compilers, hlo
from jaxspec.aot.cases import Case

_PTXAS = re.compile(
    r"Compiling entry function '(\w+?)(?:_mosaic_gpu_kernel)?' for.*?"
    r"(\d+) bytes spill stores.*?Used (\d+) registers",
    re.DOTALL,
)


class Kernel(NamedTuple):
    """What a compiler says of a kernel.

    Attributes:
        name: of the kernel.
        spills: vectors, or bytes on a GPU, stored for want of registers.
        steps: of the grid of a TPU kernel, as far as they are known.
        bundles: issued in one of them, every branch taken.
        registers: of a GPU's thread.
    """

    name: str
    spills: int
    steps: int = 0
    bundles: int = 0
    registers: int = 0


class Result(NamedTuple):
    """What came of a case.

    Attributes:
        case: that case.
        error: why it could not be compiled, None if it could.
        kernels: in it; without those that the same process has compiled before.
        temporary: bytes that the program needs besides arguments and results.
        moves: copies and slices of what is to stay where it is.
    """

    case: Case
    error: str | None
    kernels: tuple[Kernel, ...] = ()
    temporary: int = 0
    moves: tuple[str, ...] = ()


class Compiler:
    """Compiles for one machine in a process of its own; in another one after a crash."""

    def __init__(self, target: str):
        self._target = target
        self._process = None

    def __enter__(self) -> "Compiler":
        return self

    def __exit__(self, *_) -> None:
        self._stop()

    def __call__(self, case: Case) -> Result:
        """Compiles a case; a crash is an error like others."""
        if self._process is None:
            self._start()
        try:
            print(json.dumps(case), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            pass
        if line := self._process.stdout.readline():
            return _read(line)
        status = self._stop()
        self._errors.seek(0)
        words = self._errors.read()[-2000:]
        return Result(case, f"The compiler ended with status {status}: {words}")

    def _start(self) -> None:
        self._errors = tempfile.TemporaryFile("w+")
        self._folder = tempfile.TemporaryDirectory()
        # XLA_FLAGS are meant for the compiler of this process.
        env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
        env |= {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
        env |= {"MOSAIC_GPU_DUMP_PTXAS": "1", **bundles.environment(self._folder.name)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, self._target, self._folder.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=env,
            text=True,
        )

    def _stop(self) -> int | None:
        if self._process is None:
            return None
        process, self._process = self._process, None
        process.communicate()
        self._folder.cleanup()
        return process.returncode


def _read(line: str) -> Result:
    case, error, found, temporary, moves = json.loads(line)
    found = tuple(Kernel(*kernel) for kernel in found)
    return Result(Case(*case), error, found, temporary, tuple(moves))


def compile(target: str, case: Case, folder: pathlib.Path, printed: IO[str]) -> Result:
    """Compiles a case in this process.

    Args:
        target: machine of `targets`.
        case: what to compile.
        folder: where libtpu writes its listings.
        printed: what CUDA's assembler has printed.
    """
    implementation = "pallas_tpu" if target in compilers.TPU else "pallas_gpu"
    program = cases.program(case, implementation)
    donated = () if program.written is None else (program.written,)
    compiled = compilers.compile(
        program.function, *program.args, target=target, donate_argnums=donated
    )
    found = []
    if target in compilers.TPU:
        steps = grids(program)
        for name, listing in bundles.listings(folder):
            if name in steps:
                counts = listing.spills, steps[name], listing.step(case.ring)
                found.append(Kernel(name, *counts))
        for path in folder.iterdir():
            path.unlink()
    else:
        printed.seek(0)
        for name, spills, registers in _PTXAS.findall(printed.read()):
            found.append(Kernel(name, int(spills), registers=int(registers)))
        printed.truncate(0)
    moves = ()
    if size := program.resident_bytes():
        moves = tuple(_resident_moves(compiled.as_text(), size))
    temporary = compiled.memory_analysis().temp_size_in_bytes
    return Result(case, None, tuple(found), temporary, moves)


def _resident_moves(text: str, size: int) -> Iterator[str]:
    """Copies of the whole of what is to stay where it is, and slices of a layer of it."""
    for move in hlo.moves(text, size // cases.LAYERS):
        if "slice" in move.opcode or move.num_bytes >= size:
            yield f"{move.opcode} {move.shape}"


def grids(program: cases.Program) -> dict[str, int]:
    """Steps of the grid of every TPU kernel in a program, by its name.

    An extent that is known only when the kernel starts counts as one.
    """
    found = {}

    def visit(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "pallas_call":
                grid = eqn.params["grid_mapping"].grid
                known = [extent for extent in grid if isinstance(extent, int)]
                found[eqn.params["name"]] = math.prod(known)
            for leaf in jax.tree.leaves(tuple(eqn.params.values())):
                if hasattr(leaf, "jaxpr"):
                    visit(leaf.jaxpr)

    visit(jax.make_jaxpr(program.function)(*program.args).jaxpr)
    return found


def _serve(target: str, folder: pathlib.Path) -> None:
    """Compiles what it reads, and writes what came of it."""
    results = os.fdopen(os.dup(1), "w", buffering=1)
    with tempfile.TemporaryFile("w+") as printed:
        os.dup2(printed.fileno(), 1)
        for line in sys.stdin:
            case = Case(*json.loads(line))
            try:
                result = compile(target, case, folder, printed)
            except Exception as error:  # of any kind: it is what was asked for
                result = Result(case, f"{type(error).__name__}: {error}"[:2000])
            print(json.dumps(result), file=results)


if __name__ == "__main__":
    _serve(sys.argv[1], pathlib.Path(sys.argv[2]))
