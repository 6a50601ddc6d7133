"""Shows what is installed, what it runs on, and what ships with it.

The versions of the packages that matter, the devices that JAX sees, the compiler options
that jaxspec asks for on them, which implementation of each kernel serves which platform
(where it refuses a shape, XLA does) and which others can be asked for by name, what the
rollback `auto` stands for, the kinds of drafters and verifiers, the families of published
models that `jaxspec convert` takes, and the models that ship.
"""

import argparse
import importlib.metadata
import json
import platform
from typing import Any

import jax
from rich import table as tables

from checkpoints_conv import families
from jaxspec import compilation, pretrained
from jaxspec.cli import options, terminal
from jaxspec.drafters.kinds import KINDS, Kind
from jaxspec.models.rollback import ROLLBACKS, resolve
from pallas_kernels import (
    PLATFORMS,
    tree_attention,
    tree_conv,
    tree_delta,
    tree_path,
    tree_scan,
    tree_ssd,
)

OPS = (tree_ssd, tree_scan, tree_delta, tree_conv, tree_attention, tree_path)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else"
    )


def run(args: argparse.Namespace) -> None:
    """Runs the command."""
    record = gather()
    if args.json:
        print(json.dumps(record))
        return
    table = tables.Table(show_header=False, box=None)
    for name, value in record.items():
        lines = value if isinstance(value, dict) else {"": value}
        for i, (key, entry) in enumerate(lines.items()):
            if isinstance(entry, dict):
                entry = [f"{k}: {v}" for k, v in entry.items()]
            entry = ", ".join(entry) if isinstance(entry, list) else str(entry)
            table.add_row(name if i == 0 else "", key, entry)
    terminal.console().print(table)


def gather() -> dict[str, Any]:
    """What the command prints."""
    packages = ("jaxspec", "jax", "jaxlib", "flax", "orbax-checkpoint", "numpy")
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
        "devices": [f"{d.platform}:{d.id} {d.device_kind}" for d in jax.devices()],
        "compiler options": compilation.compiler_options(),
        "kernels": {op.__name__.split(".")[-1]: _serving(op) for op in OPS},
        "implementations": {
            op.__name__.split(".")[-1]: op.implementations() for op in OPS
        },
        "rollbacks": {"available": list(ROLLBACKS), "auto is": resolve("auto")},
        "drafters": {name: _kind(kind) for name, kind in KINDS.items()},
        "verifiers": list(options.VERIFIERS),
        "families": list(families.FAMILIES),
        "models": {name: _describe(name) for name in pretrained.shipped()},
    }


def _serving(op: Any) -> dict[str, str]:
    """The implementation of an op on each platform."""
    made = {PLATFORMS[n]: n for n in op.implementations() if n in PLATFORMS}
    return {name: made.get(name, "xla") for name in ("cpu", "tpu", "cuda")}


def _kind(kind: Kind) -> str:
    shapes = f" [N, or {kind.shapes}]" if kind.shapes else " [N]"
    return kind.summary + shapes


def _describe(name: str) -> str:
    config = pretrained.read_config(name)
    return f"{config.layers}, d_model {config.d_model}, {config.vocab_size} tokens"
