"""The whole loop on many devices: a mesh, where everything goes, and what is exchanged.

    with sharding.mesh(data=2, tensor=4) as mesh:
        params = jaxspec.Params(sharding.shard_params(config, params, mesh))
        state = jaxspec.init_state(params, prompt, ...)
        state = sharding.shard_state(config, state, mesh)
        state, info = jaxspec.speculative_generate(params, state, ..., check_every=8)

Rows of the batch are cut over `data`; heads, channels, feed-forward and vocabulary over
`tensor`. The ops run on every device's own rows and heads (`shard_map`), the products
between them are the compiler's. In several processes every process runs the same program,
and holds its devices' part of every array.
"""

import contextlib
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding

from jaxspec.decode_state import DecodeState
from jaxspec.drafting import model
from jaxspec.mesh import DATA, TENSOR, sizes
from jaxspec.models import forms, shardings
from jaxspec.models.config import ModelConfig


@contextlib.contextmanager
def mesh(
    data: int = 1, tensor: int = 1, devices: list[jax.Device] | None = None
) -> Iterator[Mesh]:
    """Makes a mesh, and sets it for what is within the context.

    Args:
        data: devices, or groups of them, with rows of their own.
        tensor: devices that share their rows' heads; neighbours, so that what they
            exchange in every layer stays within a host where that is possible.
        devices: all there are by default, those of other processes included.

    Raises:
        ValueError: if there are not as many devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    if min(data, tensor) < 1 or data * tensor != len(devices):
        raise ValueError(
            f"A mesh of {data} x {tensor} takes {data * tensor} devices, and there are "
            f"{len(devices)}; give it as many by `devices`."
        )
    made = jax.make_mesh(
        (data, tensor), (DATA, TENSOR), (AxisType.Auto,) * 2, devices=devices
    )
    with jax.set_mesh(made):
        yield made


def param_shardings(config: ModelConfig, params: Any, mesh: Mesh) -> Any:
    """Where each parameter of a model goes.

    Args:
        config: the shape of the model.
        params: as `forms.split` returns them, unrolled or stacked, arrays or
            their shapes. What is fused would be on every device.
        mesh: with axes `data` and `tensor`.
    """
    return _on(mesh, shardings.param_specs(config, params, sizes(mesh)))


def state_shardings(
    config: ModelConfig,
    state: DecodeState,
    mesh: Mesh,
    draft: ModelConfig | None = None,
) -> DecodeState:
    """Where each array of a state goes.

    Args:
        config: the shape of the target.
        state: of it, arrays or their shapes.
        mesh: with axes `data` and `tensor`.
        draft: the shape of the draft model, if the drafter is one, or of its head
            (`mtp.mtp_config`). The rows of any other drafter's state are cut over `data`.

    Raises:
        ValueError: if the mesh cannot cut the batch evenly, or the shape of a draft model
            is missing.
    """
    axes = sizes(mesh)
    batch = len(state.lengths)
    if batch % axes[DATA]:
        raise ValueError(
            f"A batch of {batch} rows cannot be cut over {axes[DATA]} parts of the axis "
            f"{DATA!r}; add rows, or use a mesh with a smaller one."
        )
    drafter = state.drafter
    if draft is None and isinstance(drafter, model.State):
        raise ValueError("The state has a draft model; give its config as `draft`.")
    specs = shardings.row_specs(state, axes).replace(
        carry=shardings.past_specs(config, state.carry, axes)
    )
    if draft is not None:
        carry = shardings.past_specs(draft, drafter.carry, axes)
        specs = specs.replace(drafter=specs.drafter._replace(carry=carry))
    return _on(mesh, specs)


def shard_params(config: ModelConfig, params: Any, mesh: Mesh) -> Any:
    """Splits fused projections of a model, and puts its params where they go.

    Args:
        config: the shape of the model.
        params: the same in every process, unrolled or stacked.
        mesh: with axes `data` and `tensor`.
    """
    params = forms.split(config, params)
    return put(params, param_shardings(config, params, mesh))


def shard_state(
    config: ModelConfig,
    state: DecodeState,
    mesh: Mesh,
    draft: ModelConfig | None = None,
) -> DecodeState:
    """Puts a state where it goes; the arguments are those of `state_shardings`."""
    return put(state, state_shardings(config, state, mesh, draft))


def put(tree: Any, shardings: Any) -> Any:
    """Puts arrays where they go, each process its own part.

    Args:
        tree: arrays on the mesh already, or held whole by every process.
        shardings: the same pytree of shardings.
    """
    return jax.tree.map(_put, tree, shardings)


def _put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    if sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return jax.jit(lambda x: x, out_shardings=sharding)(leaf)
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _put(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, whole.__getitem__)


def _on(mesh: Mesh, specs: Any) -> Any:
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)


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


def collectives(program: str) -> list[Collective]:
    """Lists what devices exchange when they run `compiled.as_text()` once.

    What is within a loop counts as often as the compiler knows it to run, and once if it
    does not know. Of the branches of a conditional, the one that exchanges most counts.
    """
    computations, entry = _parse(program)

    def total(name: str) -> dict[tuple, int]:
        found: dict[tuple, int] = {}
        for kind, shape, devices, times, branches, bodies in computations.get(name, ()):
            add = [{(kind, shape, devices): 1}] if kind else []
            if branches:
                add.append(max(map(total, branches), key=_weight))
            add += map(total, bodies)
            for key, count in (item for part in add for item in part.items()):
                found[key] = found.get(key, 0) + times * count
        return found

    return [
        Collective(kind, shape, _num_bytes(kind, shape), devices, count)
        for (kind, shape, devices), count in sorted(total(entry).items())
    ]


def _weight(found: dict[tuple, int]) -> int:
    """How many bytes are exchanged in all."""
    return sum(n * _num_bytes(kind, shape) for (kind, shape, _), n in found.items())


_HEADER = re.compile(r"^(ENTRY )?%?([\w.<>-]+) .*\{$")
_COLLECTIVE = re.compile(
    r" = (\(.*?\)|\S+) (all-reduce|all-gather|reduce-scatter|all-to-all"
    r"|collective-permute|collective-broadcast)(?:-start)?\("
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_BODIES = re.compile(r"(?:body|condition|calls|to_apply)=%?([\w.<>-]+)")
_BRANCHES = re.compile(
    r"(?:branch_computations=\{(.*?)\}|true_computation=(\S+), false_computation=(\S+?)"
    r"(?:,|$))"
)
_GROUPS = re.compile(
    r"replica_groups=(?:\{\{([\d,]*)\}|\[\d+,(\d+)\]|mesh\[(.*?)\].*?\{(.*?)\})"
)
_ARRAY = re.compile(r"\b([a-z]+\d*)\w*\[([\d,]*)\]")


def _parse(program: str) -> tuple[dict[str, list[tuple]], str]:
    """What matters of each instruction, by computation, and the first one's name."""
    computations: dict[str, list[tuple]] = {}
    entry, own = "", []
    for line in program.splitlines():
        if (match := _HEADER.match(line)) and not line.startswith(" "):
            own = computations.setdefault(match[2], [])
            entry = match[2] if match[1] else entry
            continue
        kind, shape, devices = "", "", 0
        if match := _COLLECTIVE.search(line):
            shape, kind = re.sub(r"\{[^}]*\}", "", match[1]), match[2]
            devices = _group_size(line)
        trips = _TRIPS.search(line) if " while(" in line else None
        branches = []
        if match := _BRANCHES.search(line):
            names = match[1].split(",") if match[1] else [match[2], match[3]]
            branches = [name.strip().lstrip("%") for name in names]
        bodies = _BODIES.findall(line)
        if kind or branches or bodies:
            times = int(trips[1]) if trips else 1
            own.append((kind, shape, devices, times, branches, bodies))
    return computations, entry


def _group_size(line: str) -> int:
    """How many devices meet, in any of the ways to write it; pairs have no groups."""
    match = _GROUPS.search(line)
    if match is None:
        return 2
    listed, size, axes, over = match.groups()
    if listed is not None:
        return listed.count(",") + 1
    if size is not None:
        return int(size)
    sizes = dict(re.findall(r"'([^']*)'=(\d+)", axes))
    return math.prod(int(sizes[name]) for name in re.findall(r"'([^']*)'", over))


def _num_bytes(kind: str, shape: str) -> int:
    """Size of what an exchange leaves; one that is started also lists what it takes."""
    sizes = []
    for dtype, dims in _ARRAY.findall(shape):
        bits = re.search(r"\d+$", dtype)
        count = math.prod(int(dim) for dim in dims.split(",") if dim)
        sizes.append(count * int(bits[0]) // 8 if bits else count)
    one = kind in ("all-gather", "collective-permute") and len(sizes) == 2
    return max(sizes) if one else sum(sizes)
