"""The forms that params are stored in: stacked, in parts, with a head of their own."""

import functools
from typing import Any

import jax
import numpy as np

from jaxspec import sampling
from jaxspec.models import block, initial, layers
from jaxspec.models.config import ModelConfig
from jaxspec.models.stack import Stack

Params = dict[str, Any]


def stack(config: ModelConfig, params: Params) -> Params:
    """Stacks the params of an unrolled model for a scanned one."""
    stacked = {
        name: Stack(kinds, True).collect(Stack(kinds, False).spread(params[name]))
        for name, kinds in config.storages.items()
    }
    return {**params, **stacked}


def split(config: ModelConfig, params: Params) -> Params:
    """Stores fused projections in parts, each of which can be cut over devices by heads.

    The same function as several narrower products, which the model recognises: `in_proj`
    as z, x, BC and dt and the convolution as x and BC (Mamba-2), as x and z (Mamba-1), as
    qk, v, z, b and a and the convolution as qk and v (delta rule), `qkv_proj` as q, k, v
    and gate, a gated `up_proj` as gate and up. The columns of a fused one, cut evenly,
    are cut within its parts, and devices would have to exchange them.
    """
    if layers.is_split(params):
        return params

    def each(storage):
        if isinstance(storage, dict):
            return {kind: block.split(config, own) for kind, own in storage.items()}
        return tuple(block.split(config, own) for own in storage)

    return {**params, **{name: each(params[name]) for name in config.storages}}


def separate_head(params: Params) -> Params:
    """Adds the tied embedding, transposed, as a head of its own.

    The same function with more memory. On a CPU, XLA multiplies several rows with a
    transposed table ten times slower than one row; with this copy it does not.
    """
    if "lm_head" in params:
        return params
    return {**params, "lm_head": {"kernel": params["embed"]["embedding"].T}}


def trim_head(params: Params, keep: jax.Array) -> Params:
    """Keeps the columns of the head that some tokens have, `keep` `[n]` ascending.

    Logits are of these tokens only, in this order; every token can still be an input. A
    tied embedding gets a head of its own (`separate_head`).

    Raises:
        ValueError: if the tokens are not ascending ids of the head's.
    """
    params = separate_head(params)
    kernel, keep = params["lm_head"]["kernel"], np.asarray(keep)
    inside = keep.size and 0 <= keep[0] and keep[-1] < kernel.shape[1]
    if not inside or (np.diff(keep) <= 0).any():
        raise ValueError(
            f"Expected ascending ids from 0 to {kernel.shape[1] - 1}, got {keep}."
        )
    return {**params, "lm_head": {"kernel": kernel[:, keep]}}


def count(config: ModelConfig) -> int:
    """The number of parameters."""
    draw = functools.partial(initial.params, config, Stack(config.layers, False))
    shapes = jax.eval_shape(draw, sampling.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))
