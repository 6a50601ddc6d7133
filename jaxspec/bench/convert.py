"""Times converting a published checkpoint, and what memory that takes.

    jaxspec bench convert --model mamba2-2.7b

A checkpoint of random bfloat16 in the shape of a published model is written in shards of
a GiB, converted by `jaxspec convert` and brought back by `jaxspec export`, each in a
process of its own whose peak memory is measured, and deleted. The disk has to hold it
three times.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np

from checkpoints_conv import exporting, families
from jaxspec import tokenizer_files
from jaxspec.cli import terminal
from jaxspec.measure import published, timing
from jaxspec.models.config import ModelConfig

_TOKENIZER = {"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 0}}}
_TOKENIZER["model"]["unk_token"] = "a"


# A process counts what its parent had when it was forked, so that one has to be small.
_WATCH = """
import resource, subprocess, sys
status = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(status)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the benchmark's options."""
    parser.add_argument(
        "--model",
        choices=published.MODELS,
        default="mamba2-2.7b",
        metavar="NAME",
        help=f"one of {', '.join(published.MODELS)} (default: %(default)s)",
    )
    parser.add_argument(
        "--folder",
        type=pathlib.Path,
        help="where to write (default: the system's folder for such files)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else"
    )


def run(args: argparse.Namespace) -> None:
    """Runs the benchmark."""
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        paths = [pathlib.Path(folder) / name for name in ("source", "dest", "back")]
        size, largest = write(published.MODELS[args.model], paths[0])
        record = {
            "environment": timing.environment(),
            "model": args.model,
            "gib": size / 2**30,
            "largest_part_gib": largest / 2**30,
            "convert": _measure("convert", *paths[:2]),
            "export": _measure("export", *paths[1:]),
        }
    if args.json:
        print(json.dumps(record))
        return
    console = terminal.console()
    console.print(
        f"{args.model}: {record['gib']:.2f} GiB in bfloat16, the largest part "
    )
    console.print(f"of which is {record['largest_part_gib']:.2f} GiB")
    for name in ("convert", "export"):
        one = record[name]
        console.print(
            f"{name}: {one['seconds']:.1f} s, {one['peak_gib']:.2f} GiB at most"
        )


def write(config: ModelConfig, folder: pathlib.Path) -> tuple[int, int]:
    """Writes random weights as a published checkpoint: bytes in all, of a part at most.

    Raises:
        ValueError: if no family of published models has this one.
    """
    family, record = families.publish(config)
    parts = family.parts(config)

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        noise = np.random.default_rng(0).standard_normal(1 << 20, np.float32)
        noise = (0.02 * noise).astype(ml_dtypes.bfloat16)
        for part in parts:
            for tensor in part.tensors():
                yield tensor.name, np.resize(noise, tensor.shape)

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(record))
    (folder / tokenizer_files.NAME).write_text(json.dumps(_TOKENIZER))
    exporting.write_shards(folder, tensors(), exporting.SHARD_BYTES)
    sizes = [
        2 * sum(int(np.prod(tensor.shape)) for tensor in part.tensors())
        for part in parts
    ]
    return sum(sizes), max(sizes)


def _measure(command: str, *paths: pathlib.Path) -> dict[str, Any]:
    """Seconds and peak memory of a command in a process of its own."""
    line = [sys.executable, "-m", "jaxspec", command, *map(str, paths), "--json"]
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _WATCH, *line], capture_output=True, text=True
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        raise ValueError(f"jaxspec {command} failed: {done.stderr}")
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    return {"seconds": seconds, "peak_gib": int(done.stdout) * unit / 2**30}
