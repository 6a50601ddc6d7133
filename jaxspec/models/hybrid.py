"""From a config to a `LanguageModel`, and what is done to the params of one."""

import functools

import jax
import numpy as np

from jaxspec import sampling
from jaxspec.core import LanguageModel
from jaxspec.models import block, layers
from jaxspec.models import rollback as rollbacks
from jaxspec.models.config import ModelConfig
from jaxspec.models.joint import joint
from jaxspec.models.network import Network, Params
from jaxspec.models.stack import Stack


def language_model(
    config: ModelConfig,
    *,
    rollback: rollbacks.Rollback = "auto",
    max_path: int = 8,
    ring_size: int | None = None,
    scan_layers: bool = False,
) -> LanguageModel:
    """Makes the functions of a model. Equal arguments return the same record.

    Args:
        config: the shape of the model.
        rollback: how rejected drafts leave no trace; see `rollback.py`.
        max_path: the longest path that can be committed, in nodes, the root included.
        ring_size: slots of the rings under `"lazy"`; `2 * max_path` by default.
        scan_layers: whether repeated blocks run under `lax.scan`, with params stacked by
            kind (`stack_params`): for deep models on accelerators. A CPU wants `False`.

    Raises:
        ValueError: on an unknown rollback, or a ring that holds no path.
    """
    ring_size = 2 * max_path if ring_size is None else ring_size
    if max_path < 1:
        raise ValueError(f"max_path must be positive, got {max_path}.")
    if ring_size < max_path:
        raise ValueError(
            f"The ring must hold a path of {max_path} nodes, got ring_size {ring_size}."
        )
    kind = rollbacks.resolve(rollback)
    if kind == "joint":  # its trees hang from a path that is run again
        room = 2 * max_path
        inner = _language_model(config, "replay", room, room, scan_layers)
        return joint(inner, max_path)
    return _language_model(config, kind, max_path, ring_size, scan_layers)


@functools.cache
def _language_model(config, kind, max_path, ring_size, scan_layers) -> LanguageModel:
    stack = Stack(config.layers, scan_layers)
    model = Network(config, kind, max_path, ring_size, stack)
    return LanguageModel(
        init=model.init,
        init_carry=model.init_carry,
        step=model.step,
        scan=model.scan,
        prepare=model.prepare,
        init_tape=model.init_tape,
        extend_tree=model.extend_tree,
        scan_tree=model.scan_tree,
        keep=model.keep,
        commit=model.commit,
        logits=model.logits,
        vocab_size=config.vocab_size,
        max_path=max_path,
    )


def stack_params(config: ModelConfig, params: Params) -> Params:
    """Stacks the params of an unrolled model for a scanned one."""
    stacked = {
        name: Stack(kinds, True).collect(Stack(kinds, False).spread(params[name]))
        for name, kinds in config.storages.items()
    }
    return {**params, **stacked}


def split_projections(config: ModelConfig, params: Params) -> Params:
    """Stores fused projections in parts, each of which can be cut over devices by heads.

    The same function as several narrower products, which the model recognises: `in_proj`
    as z, x, BC and dt and the convolution as x and BC (Mamba-2), as x and z (Mamba-1), as
    qk, v, z, b and a and the convolution as qk and v (delta rule), `qkv_proj` as q, k, v
    and gate, a gated `up_proj` as gate and up. The columns of a fused one, cut evenly,
    are cut within its parts, and devices would have to exchange them.
    """
    if layers.is_split(params):
        return params

    def split(storage):
        if isinstance(storage, dict):
            return {kind: block.split(config, own) for kind, own in storage.items()}
        return tuple(block.split(config, own) for own in storage)

    return {**params, **{name: split(params[name]) for name in config.storages}}


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


def count_params(config: ModelConfig) -> int:
    """The number of parameters."""
    init = language_model(config).init
    shapes = jax.eval_shape(init, sampling.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))
