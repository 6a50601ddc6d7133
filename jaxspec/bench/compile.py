"""Compiles a whole speculative loop of a published model for machines that are not here.

    jaxspec bench compile --model mamba2-2.7b --target v5e --slice 2x2 --tensor 4
    jaxspec bench compile --model mamba2-2.7b --target h200 --batch 64 --rollback lazy

The compilers are those of the machines: libtpu for a TPU, JAX's plugin for a GPU. A step is
`scan_tree`, the head, and `commit`; eight of them make a loop that writes the past where it
is. Printed are, per device, the memory that the loop takes, what it copies of states in
every step (there should be nothing), and what devices exchange; libtpu does not state how
often a loop runs, so that what every layer exchanges is listed once. A slice is named as
the vendor names it, `2x2` or `4x4x4`; its chips make a mesh of `data x tensor`.
"""

import argparse
import dataclasses
import functools
import json
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from rich import table as tables

from jaxspec.aot import compilers, hlo
from jaxspec.cli import options, terminal
from jaxspec.measure import published, steps, synthetic
from jaxspec.mesh import AXES, DATA, sizes
from jaxspec.models import forms, hybrid, shardings
from jaxspec.models.config import ModelConfig
from jaxspec.models.rollback import ROLLBACKS

_STEPS = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument(
        "--model", choices=published.MODELS, default="mamba2-2.7b", metavar="NAME"
    )
    parser.add_argument("--layers", type=int, help="keep the first layers only")
    names = [*compilers.TPU, *compilers.GPU]
    parser.add_argument("--target", choices=names, default="v5e", metavar="NAME")
    parser.add_argument("--slice", help="of a TPU, 2x2 say; one chip by default")
    parser.add_argument(
        "--tensor", type=int, default=1, help="devices that share their rows' heads"
    )
    parser.add_argument("--batch", type=int, default=8, help="(default: %(default)s)")
    parser.add_argument("--nodes", type=int, default=16, help="(default: %(default)s)")
    parser.add_argument("--rollback", choices=ROLLBACKS, default="lazy")
    parser.add_argument(
        "--max-path", type=int, default=8, help="longest path (default: %(default)s)"
    )
    parser.add_argument(
        "--ring", type=int, default=32, help="slots under lazy (default: %(default)s)"
    )
    parser.add_argument(
        "--context", type=int, default=1024, help="tokens in the caches"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else"
    )


def run(args: argparse.Namespace) -> None:
    """Runs the command."""
    options.check_positive(args, "tensor", "batch", "nodes", "max_path", "context")
    if reason := compilers.missing(args.target):
        raise ModuleNotFoundError(reason)
    # Compilers are loaded without their machines; JAX gives up a plugin that finds none.
    jax.config.update("jax_platforms", "cpu")
    record = measure(args)
    if args.json:
        print(json.dumps(record))
    else:
        _print_table(record)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Compiles the loop and reads off the program what it does."""
    config = published.MODELS[args.model]
    if args.layers is not None:
        config = dataclasses.replace(config, layers=config.layers[: args.layers])
    devices = compilers.devices(args.target, args.slice)
    if len(devices) % args.tensor or args.batch % (len(devices) // args.tensor):
        raise ValueError(
            f"{len(devices)} devices make no mesh of groups of {args.tensor}, or "
            f"{args.batch} rows are not a multiple of the groups."
        )
    shape = len(devices) // args.tensor, args.tensor
    mesh = Mesh(np.array(devices).reshape(shape), AXES, (AxisType.Auto,) * 2)
    started = time.perf_counter()
    compiled = _compile(args, config, mesh)
    seconds = time.perf_counter() - started
    memory, program = compiled.memory_analysis(), compiled.as_text()
    state = _state_shape(config, args.tensor)
    return {
        "settings": {k: v for k, v in vars(args).items() if k not in _NOT_SETTINGS},
        "mesh": dict(zip(AXES, shape, strict=True)),
        "jax": jax.__version__,
        "seconds": seconds,
        "bytes_per_device": {
            "arguments": memory.argument_size_in_bytes,
            "written in place": memory.alias_size_in_bytes,
            "temporary": memory.temp_size_in_bytes,
            "program": memory.generated_code_size_in_bytes,
        },
        "state_bytes": _state_bytes(config, args.batch // shape[0], state),
        "moves": [
            move._asdict()
            for move in hlo.moves(program)
            if move.is_looped
            and _is_state(move.shape, (args.batch // shape[0], *state))
        ],
        "collectives": [c._asdict() for c in hlo.collectives(program)],
    }


_NOT_SETTINGS = ("json", "run", "command", "bench")


def _compile(args, config: ModelConfig, mesh: Mesh) -> jax.stages.Compiled:
    settings = dict(max_path=args.max_path, ring_size=args.ring, scan_layers=True)
    model = hybrid.language_model(config, rollback=args.rollback, **settings)
    params = jax.eval_shape(
        lambda: forms.split(config, synthetic.params(config, model))
    )
    carry = jax.eval_shape(
        lambda p: model.init_carry(p, args.batch, args.context), params
    )
    tokens = jax.ShapeDtypeStruct((args.batch, args.nodes), jnp.int32)
    axes = sizes(mesh)
    where = (
        shardings.param_specs(config, params, axes),
        shardings.past_specs(config, carry, axes),
        PartitionSpec(DATA if axes[DATA] > 1 else None),
    )
    placed = jax.tree.map(
        lambda leaf, spec: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec)
        ),
        (params, carry, tokens),
        where,
    )
    step = functools.partial(
        steps.speculative, model, max_path=args.max_path, accepted=3
    )
    loop = steps.loop(step, _STEPS)
    with jax.set_mesh(mesh):
        return loop.lower(*placed).compile()


def _state_bytes(config: ModelConfig, rows: int, shape: tuple[int, ...]) -> int:
    """Of all layers of one device."""
    layers = sum(config.layers.count(kind) for kind in "MmPS")
    return 4 * layers * rows * int(np.prod(shape))


def _state_shape(config: ModelConfig, tensor: int) -> tuple[int, ...]:
    if config.mamba2 is not None:
        m = config.mamba2
        return m.nheads // tensor, m.headdim, m.d_state
    return config.mamba1.d_state, config.mamba1.expand * config.d_model // tensor


def _is_state(shape: str, state: tuple[int, ...]) -> bool:
    """Whether an array ends in a state `[B, ...]`, heads and their width in one or two."""
    rows, first, second, *rest = state
    endings = [state, (rows, first * second, *rest)]
    return any(
        re.search(rf"f32\[([\d,]*,)?{','.join(map(str, ending))}\]", shape)
        for ending in endings
    )


def _print_table(record: dict[str, Any]) -> None:
    settings, console = record["settings"], terminal.console()
    table = tables.Table(show_header=False, box=None)
    shape = "x".join(str(n) for n in record["mesh"].values())
    table.add_row("model", f"{settings['model']}, {settings['rollback']}")
    table.add_row("machine", f"{settings['target']} {settings['slice'] or ''}, {shape}")
    table.add_row("compiled in", f"{record['seconds']:.1f} s, jax {record['jax']}")
    for name, size in record["bytes_per_device"].items():
        table.add_row(name, f"{size / 2**20:,.1f} MiB per device")
    table.add_row("states", f"{record['state_bytes'] / 2**20:,.1f} MiB per device")
    moves = [f"{move['opcode']} {move['shape']}" for move in record["moves"]]
    table.add_row("states moved", "\n".join(moves) or "none")
    console.print(table)
    if record["collectives"]:
        exchanges = tables.Table(title="exchanges in the program, per device")
        for heading in ("", "devices", "shape", "kB", "times"):
            exchanges.add_column(heading)
        for c in record["collectives"]:
            cells = (
                c["kind"],
                c["devices"],
                c["shape"],
                c["num_bytes"] / 1e3,
                c["count"],
            )
            exchanges.add_row(*map(str, cells))
        console.print(exchanges)
