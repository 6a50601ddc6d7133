"""Shows what is installed, what it runs on, and what ships with it.

The versions of the packages that matter, the devices that JAX sees, the compiler options
that jaxspec asks for on them, which implementations there are of each kernel (the default
first), what the rollback `auto` stands for, and the models that ship.
"""

import argparse
import importlib.metadata
import json
import platform
from typing import Any

import jax
from rich import console as consoles
from rich import table as tables

from jaxspec import compilation, pretrained
from jaxspec.models import config as configs
from jaxspec.models.rollback import ROLLBACKS, resolve
from pallas_kernels import tree_attention, tree_conv, tree_scan, tree_ssd

OPS = (tree_ssd, tree_scan, tree_conv, tree_attention)


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
            entry = ", ".join(entry) if isinstance(entry, list) else str(entry)
            table.add_row(name if i == 0 else "", key, entry)
    consoles.Console().print(table)


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
        "kernels": {op.__name__.split(".")[-1]: op.implementations() for op in OPS},
        "rollbacks": {"available": list(ROLLBACKS), "auto is": resolve("auto")},
        "models": {name: _describe(name) for name in pretrained.shipped()},
    }


def _describe(name: str) -> str:
    config = configs.from_json((pretrained.find(name) / "config.json").read_text())
    return f"{config.layers}, d_model {config.d_model}, {config.vocab_size} tokens"
