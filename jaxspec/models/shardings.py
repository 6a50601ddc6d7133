"""How params and pasts are cut over a mesh: rows over `data`, heads over `tensor`.

A mixer reads the whole of its input on every device, computes some of the heads, and what
its devices project back is added up: the column and row cuts of Megatron (Shoeybi et al.
2019), for a recurrence as for attention. A mixer is cut where its heads can be: whole
groups of heads that share keys, or none. The rest is on every device.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import PartitionSpec

from jaxspec import mesh
from jaxspec.mesh import TENSOR
from jaxspec.models import joint
from jaxspec.models.config import BLOCKS, GATED, ModelConfig

# Which axis holds the heads, or the channels of heads, counted from the last.
_PARAMS = {
    "mamba2": {"A_log": -1, "dt_bias": -1, "D": -1, "norm": -1}
    | {"in_proj": -1, "conv": -1, "out_proj": -2},
    "mamba1": {"A_log": -1, "dt_bias": -1, "D": -1, "dt_proj": -1, "x_proj": -2}
    | {"in_proj": -1, "conv": -1, "out_proj": -2},
    "delta": {"A_log": -1, "dt_bias": -1} | {"in_proj": -1, "conv": -1, "out_proj": -2},
    "attention": {"qkv_proj": -1, "out_proj": -2},
    "mlp": {"up_proj": -1, "down_proj": -2},
    "moe": {"up_proj": -1, "down_proj": -2}
    | {"shared_up_proj": -1, "shared_down_proj": -2},
}
_PAST = {
    "mamba2": {"tail": -1, "conv": -1, "state": -3, "states": -3, "A": -1}
    | {"ring": -1, "inputs": -1},
    "mamba1": {"tail": -1, "conv": -1, "state": -1, "states": -1, "A": -1}
    | {"ring": -1, "inputs": -1},
    "delta": {"tail": -1, "conv": -1, "state": -3, "states": -3}
    | {"ring": -1, "inputs": -1},
    "attention": {"keys": -1, "values": -1},
}
_FUSED = {  # what has several things side by side, unless it is stored in parts
    "mamba2": ("in_proj", "conv"),
    "mamba1": ("in_proj",),
    "delta": ("in_proj", "conv"),
    "attention": ("qkv_proj",),
    "mlp": ("up_proj",),
    "moe": ("up_proj", "shared_up_proj"),
}
KEY_CHANNELS = ("BC", "qk")  # stored in parts, those that heads share in groups
_KEYS = {
    "mamba2": ("B", *KEY_CHANNELS),
    "mamba1": ("B",),
    "delta": ("k", *KEY_CHANNELS),
}


class Parts(NamedTuple):
    """Into how many equal parts a mixer can be cut.

    Attributes:
        heads: what belongs to heads.
        keys: what heads share in groups, Mamba's B and C, the delta rule's queries and
            keys; 1 is not to be cut.
        channels: those of the convolution; 1 where keys are beside the heads' channels,
            unless they are stored in parts.
    """

    heads: int
    keys: int = 1
    channels: int = 1


def parts(config: ModelConfig, mixer: str) -> Parts:
    """Into how many parts a mixer can be cut: whole groups of heads, where it has some."""
    c = getattr(config, mixer)
    if mixer == "mamba2":
        return Parts(c.ngroups if c.ngroups > 1 else c.nheads, c.ngroups)
    if mixer == "delta":
        groups = c.num_key_heads
        return Parts(groups if groups > 1 else c.num_value_heads, groups)
    if mixer == "mamba1":
        channels = c.expand * config.d_model
        return Parts(channels, channels=channels)
    if mixer == "moe":  # every device has a part of every expert
        return Parts(math.gcd(c.d_ff, c.shared_d_ff))
    return Parts(c.num_kv_heads if mixer == "attention" else c.d_ff)


def is_cut(config: ModelConfig, mixer: str, devices: int) -> bool:
    """Whether a mixer can be cut evenly over so many devices."""
    return devices > 1 and parts(config, mixer).heads % devices == 0


def param_specs(config: ModelConfig, params: Any, axes: dict[str, int]) -> Any:
    """A `PartitionSpec` for every parameter; what is fused is cut only in parts.

    Args:
        config: the shape of the model.
        params: of it, unrolled or stacked, arrays or their shapes.
        axes: sizes of a mesh's axes, see `mesh.sizes`.
    """

    def one(mixer, names, leaf, is_stacked):
        axis = _PARAMS[mixer].get(names[0])
        if axis is None or not is_cut(config, mixer, axes[TENSOR]):
            return PartitionSpec()
        is_gated = getattr(getattr(config, mixer), "activation", GATED[0]) in GATED
        is_whole = len(names) == 2 and names[0] in _FUSED[mixer] and is_gated
        is_bias_after_sum = axis == -2 and names[1] == "bias"
        if is_whole or is_bias_after_sum or _is_shared(config, mixer, names):
            return PartitionSpec()
        if names[0] == "D" and leaf.ndim - is_stacked == 2:  # a weight per channel
            axis = -2
        return _spec(leaf.ndim, {axis: TENSOR})

    def of_block(kind, own, is_stacked):
        return {
            name: _map(one, name, part, is_stacked)
            if name in BLOCKS[kind]
            else jax.tree.map(lambda _: PartitionSpec(), part)
            for name, part in own.items()
        }

    specs = jax.tree.map(lambda _: PartitionSpec(), params)
    for name, kinds in config.storages.items():
        specs[name] = _each(kinds, params[name], of_block)
    if axes[TENSOR] > 1 and config.vocab_size % axes[TENSOR] == 0:
        specs["embed"] = {"embedding": PartitionSpec(TENSOR)}
        columns = params["lm_head"]["kernel"].shape[1] if "lm_head" in params else 1
        if columns % axes[TENSOR] == 0:  # a trimmed head has its own number
            specs["lm_head"] = {"kernel": PartitionSpec(None, TENSOR)}
    return specs


def past_specs(config: ModelConfig, past: Any, axes: dict[str, int]) -> Any:
    """A `PartitionSpec` for every array of a model's carry or tape.

    Args:
        config: the shape of the model.
        past: a carry, `joint`'s or not, or a tape of the network; unrolled or stacked,
            arrays or their shapes.
        axes: sizes of a mesh's axes, see `mesh.sizes`.
    """
    if isinstance(past, joint.Carry):
        inner = past_specs(config, past.past, axes)
        return row_specs(past, axes)._replace(past=inner)

    def one(mixer, names, leaf, is_stacked):
        cuts = {}
        if names[0] != "A":  # rates have no rows
            first = int(is_stacked)
            cuts[first - leaf.ndim] = mesh.rows(leaf.shape[first], axes)
        is_shared = _is_shared(config, mixer, names)
        if is_cut(config, mixer, axes[TENSOR]) and not is_shared:
            cuts[_PAST[mixer][names[0]]] = TENSOR
        return _spec(leaf.ndim, cuts)

    def of_block(kind, own, is_stacked):
        return tuple(
            _map(one, name, part, is_stacked)
            for name, part in zip(BLOCKS[kind], own, strict=True)
        )

    specs = row_specs(past, axes)
    return specs._replace(blocks=_each(config.layers, past.blocks, of_block))


def row_specs(tree: Any, axes: dict[str, int]) -> Any:
    """A `PartitionSpec` for arrays whose first axis are the rows of the batch."""
    return jax.tree.map(
        lambda leaf: PartitionSpec(mesh.rows(leaf.shape[0], axes)), tree
    )


def _is_shared(config: ModelConfig, mixer: str, names: list[str]) -> bool:
    """Whether it is of keys that all heads share."""
    is_key = names[-1] in _KEYS.get(mixer, ())
    return is_key and parts(config, mixer).keys == 1


def _each(kinds: str, storage: Any, f: Callable[..., Any]) -> Any:
    if isinstance(storage, dict):
        return {kind: f(kind, own, True) for kind, own in storage.items()}
    blocks = zip(kinds, storage, strict=True)
    return tuple(f(kind, own, False) for kind, own in blocks)


def _map(f: Callable[..., Any], mixer: str, tree: Any, is_stacked: bool) -> Any:
    def one(path, leaf):
        names = [getattr(key, "key", getattr(key, "name", "")) for key in path]
        return f(mixer, names, leaf, is_stacked)

    return jax.tree_util.tree_map_with_path(one, tree)


def _spec(ndim: int, cuts: dict[int, str | None]) -> PartitionSpec:
    return PartitionSpec(*(cuts.get(axis) for axis in range(-ndim, 0)))
