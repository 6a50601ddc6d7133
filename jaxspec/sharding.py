"""The whole loop on many devices: a mesh, and where everything goes.

    with sharding.mesh(data=2, tensor=4) as mesh:
        params = jaxspec.Params(sharding.shard_params(config, params, mesh))
        state = jaxspec.init_state(params, prompt, ...)
        state = sharding.shard_state(config, state, mesh)
        state, info = jaxspec.speculative_generate(params, state, ..., check_every=8)

        layout = sharding.Layout(mesh, config)
        engine = jaxspec.serving.Engine(params, ..., layout=layout)

Rows of the batch are cut over `data`; heads, channels, feed-forward and vocabulary over
`tensor`. The ops run on every device's own rows and heads (`shard_map`), the products
between them are the compiler's. In several processes every process runs the same program,
and holds its devices' part of every array.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxspec.decode_state import DecodeState
from jaxspec.drafting import model
from jaxspec.mesh import DATA, TENSOR, sizes
from jaxspec.models import forms, shardings
from jaxspec.models.config import ModelConfig
from jaxspec.pasts import Past


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


@dataclasses.dataclass(frozen=True)
class Layout:
    """Places on a mesh for the arrays of a target and its drafter.

    Attributes:
        mesh: with axes `data` and `tensor`.
        config: the shape of the target.
        draft: the shape of the draft model, if the drafter is one, or of its head
            (`mtp.mtp_config`). The rows of any other drafter's state are cut over `data`.
    """

    mesh: Mesh
    config: ModelConfig
    draft: ModelConfig | None = None

    @property
    def whole(self) -> NamedSharding:
        """The whole of an array on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    def of(self, tree: Any) -> Any:
        """Shards a `DecodeState` or a `Past`; any other tree is whole on every device.

        Rows that cannot be cut evenly over `data`, as a single one, are on all of it.

        Args:
            tree: arrays or their shapes.

        Raises:
            ValueError: if the shape of a draft model is missing.
        """
        if not isinstance(tree, DecodeState | Past):
            return jax.tree.map(lambda _: self.whole, tree)
        drafter = tree.drafter
        if self.draft is None and isinstance(drafter, model.State):
            raise ValueError("The state has a draft model; give its config as `draft`.")
        axes = sizes(self.mesh)
        specs = shardings.row_specs(tree, axes).replace(
            carry=shardings.past_specs(self.config, tree.carry, axes)
        )
        if self.draft is not None:
            carry = shardings.past_specs(self.draft, drafter.carry, axes)
            specs = specs.replace(drafter=specs.drafter._replace(carry=carry))
        return _on(self.mesh, specs)

    def check_rows(self, num_rows: int) -> None:
        """Refuses a batch that the mesh cannot cut evenly.

        Raises:
            ValueError: saying what it can.
        """
        parts = sizes(self.mesh)[DATA]
        if num_rows % parts:
            raise ValueError(
                f"A batch of {num_rows} rows cannot be cut over {parts} parts of the "
                f"axis {DATA!r}; add rows, or use a mesh with a smaller one."
            )


def state_shardings(
    config: ModelConfig,
    state: DecodeState,
    mesh: Mesh,
    draft: ModelConfig | None = None,
) -> DecodeState:
    """Where each array of a state goes, whose rows are cut evenly.

    Args:
        config: the shape of the target.
        state: of it, arrays or their shapes.
        mesh: with axes `data` and `tensor`.
        draft: as in `Layout`.

    Raises:
        ValueError: if the mesh cannot cut the batch evenly, or the shape of a draft model
            is missing.
    """
    layout = Layout(mesh, config, draft)
    layout.check_rows(len(state.lengths))
    return layout.of(state)


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


def local(tree: Any) -> Any:
    """Takes this process's copy of arrays that are whole on every device."""

    def one(leaf):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = jax.random.key_data(leaf).addressable_data(0)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        return leaf.addressable_data(0)

    return jax.tree.map(one, tree)


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
