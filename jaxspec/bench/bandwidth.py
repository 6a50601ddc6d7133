"""Times the recurrent kernels of each rollback alone, against copying an array.

    jaxspec bench kernels --batch 1 8 64 128
    jaxspec bench kernels --implementation xla --layers 2 --batch 1

Random states of a published Mamba-2 shape, several layers of them so that no cache holds
them, go through steps of N nodes of which some are kept: for each rollback what a step does
to the states, their rings and records, without projections. `lazy` runs whole cycles, from
an empty ring to the fold that empties it. GB/s is what a step has to move, by the formula
of `jaxspec bench rollback`, over its time. Then the errors of all kernels, at published
shapes, against float64, relative to the largest output. The last line names the batch from
which `lazy` is ahead of `replay`.
"""

import argparse
import functools
import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich import console as consoles
from rich import progress
from rich import table as tables

from jaxspec import rows, sampling
from jaxspec.bench import errors, published, timing
from jaxspec.bench.verify import copy_bandwidth
from jaxspec.cli import options, terminal
from jaxspec.models.config import ModelConfig
from jaxspec.models.rollback import ROLLBACKS
from pallas_kernels import Inputs, Ring, topology, tree_ssd


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the benchmark's options."""
    names = [name for name, config in published.MODELS.items() if config.mamba2]
    parser.add_argument(
        "--model", choices=names, default="mamba2-2.7b", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--layers", type=int, default=8, help="states at once (default: %(default)s)"
    )
    parser.add_argument(
        "--batch",
        type=int,
        nargs="+",
        default=[1, 8, 64, 128],
        help="(default: 1 8 64 128)",
    )
    parser.add_argument("--nodes", type=int, default=16, help="(default: %(default)s)")
    parser.add_argument(
        "--accepted", type=int, default=4, help="nodes kept (default: %(default)s)"
    )
    parser.add_argument(
        "--max-path", type=int, default=8, help="longest path (default: %(default)s)"
    )
    parser.add_argument(
        "--ring", type=int, default=32, help="slots under lazy (default: %(default)s)"
    )
    parser.add_argument(
        "--rollback", nargs="+", choices=ROLLBACKS, default=list(ROLLBACKS)
    )
    parser.add_argument(
        "--dtype",
        nargs="+",
        choices=("bfloat16", "float32"),
        default=["bfloat16", "float32"],
    )
    parser.add_argument(
        "--implementation",
        nargs="+",
        default=["default"],
        help="names that `jaxspec info` lists; `default` is the platform's",
    )
    parser.add_argument(
        "--cycles", type=int, default=4, help="in a loop (default: %(default)s)"
    )
    parser.add_argument("--repeats", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else"
    )


class Problem(NamedTuple):
    """What all steps of a batch size share."""

    tree: topology.Topology
    inputs: Inputs
    A: jax.Array
    C: jax.Array
    D: jax.Array


def run(args: argparse.Namespace) -> None:
    """Runs the benchmark."""
    names = ("layers", "batch", "nodes", "accepted", "max_path", "cycles", "repeats")
    options.check_positive(args, *names)
    if not args.accepted <= args.max_path <= min(args.nodes, args.ring):
        raise ValueError(
            "Expected --accepted <= --max-path <= --nodes and --ring; got "
            f"{args.accepted}, {args.max_path}, {args.nodes} and {args.ring}."
        )
    copy = copy_bandwidth(args.repeats)
    found = []
    columns = progress.Progress.get_default_columns()
    with progress.Progress(*columns, console=consoles.Console(stderr=True)) as bar:
        task = bar.add_task("", total=len(args.batch) * len(args.dtype))
        for dtype in args.dtype:
            for batch in args.batch:
                bar.update(task, description=f"{dtype}, batch {batch}")
                found += measure(args, batch, dtype, copy)
                bar.advance(task)
    settings = ("model", "layers", "nodes", "accepted", "max_path", "ring")
    record = {
        "environment": timing.environment(),
        "settings": {key: getattr(args, key) for key in settings},
        "copy_gigabytes_per_second": copy / 1e9,
        "rows": found,
        "errors": [
            {"implementation": name, "dtype": dtype, "op": op, "error": error}
            for name in args.implementation
            for dtype in args.dtype
            for op, error in errors.measure(args.nodes, dtype, _chosen(name)).items()
        ],
        "lazy_ahead_from_batch": _lazy_ahead(found),
    }
    if args.json:
        print(json.dumps(record))
    else:
        _print_table(record)


def measure(args, batch: int, dtype: str, copy: float) -> list[dict[str, Any]]:
    """The rows of a batch size."""
    config = published.MODELS[args.model]
    steps = args.cycles * steps_of_a_cycle(args)
    calls = {}
    for name in args.implementation:
        chosen = _chosen(name)
        for kind in args.rollback:
            step = _STEPS[kind](config, args, batch, dtype, chosen)
            calls[kind, name] = _looped(step, steps)
    times = timing.medians(calls, args.repeats)
    return [
        {
            "rollback": kind,
            "implementation": name,
            "batch": batch,
            "dtype": dtype,
            "milliseconds": 1e3 * seconds / steps,
            "gigabytes_per_second": (
                moved := _moved(config, args, kind, dtype) * batch * args.layers
            )
            * steps
            / seconds
            / 1e9,
            "of_copy": moved * steps / seconds / copy,
        }
        for (kind, name), seconds in times.items()
    ]


def _chosen(name: str) -> str | None:
    return None if name == "default" else name


def steps_of_a_cycle(args) -> int:
    """Steps from an empty ring to the one that folds it."""
    return (args.ring - args.max_path) // args.accepted + 1


def _moved(config: ModelConfig, args, kind: str, dtype: str) -> float:
    """Bytes per row, layer and step: what a step of the kernels reads and writes."""
    m, act = config.mamba2, jnp.dtype(dtype).itemsize
    state = 4 * m.d_inner * m.d_state
    record = (m.d_inner + m.ngroups * m.d_state) * act + 4 * m.nheads
    outputs = args.nodes * (4 * m.d_inner + m.ngroups * m.d_state * act)
    read, path = args.nodes * record + outputs, args.max_path * record
    folds = 1 / steps_of_a_cycle(args)
    return {
        "lazy": (1 + folds) * state + args.ring * record + read + 2 * path,
        "replay": 3 * state + read + 2 * path,
        "snapshot": (2 * args.nodes + 3) * state + read,
        "joint": 3 * state + read + 2 * path,
    }[kind]


def _problem(config: ModelConfig, nodes: int, batch: int, dtype: str) -> Problem:
    """A chain with branches, and random records."""
    m, rng = config.mamba2, np.random.default_rng(0)
    parents = np.arange(-1, nodes - 1)
    parents[nodes // 2 + 1 :] = rng.integers(0, nodes // 2 + 1, nodes - nodes // 2 - 1)
    tree = topology.derive(jnp.tile(jnp.array(parents, jnp.int32), (batch, 1)))
    inputs, C = _records(config, (batch, nodes), dtype, sampling.key(0))
    A = -jnp.linspace(0.1, 1.0, m.nheads, dtype=jnp.float32)
    return Problem(tree, inputs, A, C, jnp.ones((m.d_inner,), jnp.float32))


def _records(config: ModelConfig, leading: tuple[int, ...], dtype: str, key):
    """Random inputs `[*leading, ...]` and queries."""
    m, keys = config.mamba2, jax.random.split(key, 4)
    width = m.ngroups * m.d_state

    def normal(key, width):
        return jax.random.normal(key, (*leading, width), jnp.dtype(dtype))

    dt = jax.random.uniform(keys[1], (*leading, m.nheads), jnp.float32, 0.001, 0.1)
    inputs = Inputs(normal(keys[0], m.d_inner), dt, normal(keys[2], width))
    return inputs, normal(keys[3], width)


def _states(config: ModelConfig, layers: int, batch: int) -> jax.Array:
    m = config.mamba2
    shape = layers, batch, m.nheads, m.headdim, m.d_state
    return jax.random.normal(sampling.key(1), shape, jnp.float32)


def _looped(step, steps: int):
    """A call of several steps, which goes on from where the last one stopped."""
    start, once = step
    loop = jax.jit(
        lambda past: jax.lax.fori_loop(0, steps, lambda _, past: once(past), past),
        donate_argnums=0,
    )
    now = [start]

    def call():
        now[0] = loop(now[0])
        return now[0]

    return call


def _lazy(config, args, batch: int, dtype: str, implementation):
    problem = _problem(config, args.nodes, batch, dtype)
    slots = args.layers, batch, args.ring
    ring, _ = _records(config, slots, dtype, sampling.key(2))
    path = jax.tree.map(lambda a: a[:, : args.max_path], problem.inputs)
    append = jax.vmap(rows.write, (0, None, None))

    def step(past):
        states, ring, length, total = past
        fold = length + args.max_path > args.ring

        def layer(i, now):
            states, total = now
            y, states = tree_ssd.verify(
                *problem,
                states,
                Ring(ring, length),
                fold,
                layer=i,
                implementation=implementation,
            )
            return states, total + y

        states, total = jax.lax.fori_loop(0, args.layers, layer, (states, total))
        length = jnp.where(fold, 0, length)
        ring = jax.tree.map(lambda r, new: append(r, new, length), ring, path)
        return states, ring, length + args.accepted, total

    states = _states(config, args.layers, batch)
    return (states, ring, jnp.zeros((batch,), jnp.int32), _total(problem)), step


def _replay(config, args, batch: int, dtype: str, implementation, pending: int = 0):
    problem = _problem(config, args.nodes + pending, batch, dtype)
    slots = args.layers, batch, args.max_path
    path, _ = _records(config, slots, dtype, sampling.key(2))
    rates = jnp.tile(problem.A[None], (args.layers, 1))
    fold = functools.partial(tree_ssd.fold, implementation=implementation)

    def step(past):
        states, total = past

        def layer(i, total):
            read = functools.partial(tree_ssd.read, implementation=implementation)
            return total + read(*problem, states, layer=i)

        total = jax.lax.fori_loop(0, args.layers, layer, total)
        return jax.vmap(fold)(states, rates, path), total

    return (_states(config, args.layers, batch), _total(problem)), step


def _joint(config, args, batch: int, dtype: str, implementation):
    return _replay(config, args, batch, dtype, implementation, args.max_path)


def _snapshot(config, args, batch: int, dtype: str, implementation):
    del implementation  # XLA's; there is no kernel of it
    problem = _problem(config, args.nodes, batch, dtype)
    last = jnp.full((batch,), args.accepted - 1, jnp.int32)
    m = config.mamba2

    def step(past):
        states, total = past

        def layer(i, now):
            states, total = now
            nodes = tree_ssd.node_states(
                problem.tree.parents, problem.inputs, problem.A, states[i]
            )
            grouped = nodes.reshape(*nodes.shape[:2], m.ngroups, -1, *nodes.shape[3:])
            C = problem.C.astype(jnp.float32)
            C = C.reshape(*C.shape[:2], m.ngroups, m.d_state)
            y = jnp.einsum("bigmps,bigs->bigmp", grouped, C)
            state = rows.take_one(nodes, last)
            states = jax.lax.dynamic_update_index_in_dim(states, state, i, 0)
            return states, total + y.reshape(total.shape)

        return jax.lax.fori_loop(0, args.layers, layer, (states, total))

    return (_states(config, args.layers, batch), _total(problem)), step


_STEPS = {"lazy": _lazy, "replay": _replay, "snapshot": _snapshot, "joint": _joint}


def _total(problem: Problem) -> jax.Array:
    """Somewhere to add outputs up, so that no compiler drops them."""
    return jnp.zeros(problem.inputs.x.shape, jnp.float32)


def _lazy_ahead(found: list[dict[str, Any]]) -> int | None:
    """The least batch from which on lazy is ahead of replay, None if there is none."""
    times: dict[int, dict[str, float]] = {}
    for row in found:
        times.setdefault(row["batch"], {})[row["rollback"]] = row["milliseconds"]
    ahead = None
    for batch, by_name in sorted(times.items(), reverse=True):
        if not by_name.get("lazy", np.inf) < by_name.get("replay", -np.inf):
            break
        ahead = batch
    return ahead


def _print_table(record: dict[str, Any]) -> None:
    where, settings = record["environment"], record["settings"]
    copy = record["copy_gigabytes_per_second"]
    table = tables.Table(
        title=f"{settings['model']}, {settings['layers']} layers, "
        f"{settings['nodes']} nodes; {where['device']}, copy {copy:.0f} GB/s, "
        f"jax {where['jax']}, {where['date']}"
    )
    headings = ("", "implementation", "dtype", "batch", "ms", "GB/s", "of copy")
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="left" if i < 3 else "right")
    for row in record["rows"]:
        table.add_row(
            row["rollback"],
            row["implementation"],
            row["dtype"],
            str(row["batch"]),
            f"{row['milliseconds']:.3f}",
            f"{row['gigabytes_per_second']:.0f}",
            f"{100 * row['of_copy']:.0f} %",
        )
    console = terminal.console()
    console.print(table)
    table = tables.Table(title="errors against float64")
    for heading in ("", "implementation", "dtype", "error"):
        table.add_column(heading)
    for row in record["errors"]:
        error = f"{row['error']:.1e}"
        table.add_row(row["op"], row["implementation"], row["dtype"], error)
    console.print(table)
    ahead = record["lazy_ahead_from_batch"]
    found = "at no batch size" if ahead is None else f"from batch {ahead} on"
    console.print(f"lazy is ahead of replay {found}")
