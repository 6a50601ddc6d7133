"""One step of decoding alone, at published shapes: what it computes, and must read."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.measure import synthetic
from jaxspec.models.config import ModelConfig
from jaxspec.trees import TokenTree


def loop(step, steps: int):
    """`carry, tokens = step(params, carry, tokens)` several times, jitted.

    The past is written where it is.
    """

    def call(params, carry, tokens):
        once = functools.partial(step, params)
        return jax.lax.fori_loop(0, steps, lambda _, now: once(*now), (carry, tokens))

    return jax.jit(call, donate_argnums=1)


def autoregressive(model, params, carry, tokens):
    """One step of a token `[B, 1]`."""
    carry, hidden = model.step(params, carry, tokens[:, 0])
    logits = model.logits(params, hidden)
    return carry, jnp.argmax(logits, axis=-1).astype(jnp.int32)[:, None]


def speculative(model, params, carry, tokens, *, max_path: int, accepted: int):
    """One step over a random tree of tokens `[B, N]`, of which `accepted` are kept."""
    parents = _parents(tokens.shape[1], max_path)
    path, batch = _path(parents, accepted, max_path), tokens.shape[0]
    tree = TokenTree(tokens, jnp.broadcast_to(parents, (batch, len(parents))))
    carry, tape, hidden = model.scan_tree(params, carry, tree)
    logits = model.logits(params, hidden)
    carry = model.commit(carry, tape, jnp.broadcast_to(path, (batch, len(path))))
    return carry, jnp.argmax(logits, axis=-1).astype(jnp.int32)


def _parents(nodes: int, max_path: int) -> np.ndarray:
    """A random tree no path of which is longer than `max_path`; its spine is a chain."""
    rng, parents, depth = np.random.default_rng(nodes), [-1], [0]
    spine = min(nodes, max_path)
    for node in range(1, nodes):
        room = [i for i in range(node) if depth[i] < max_path - 1]
        parent = node - 1 if node < spine else int(rng.choice(room or [0]))
        parents.append(parent)
        depth.append(depth[parent] + 1)
    return np.array(parents, np.int32)


def _path(parents: np.ndarray, accepted: int, max_path: int) -> np.ndarray:
    """The first nodes of the spine."""
    slots = np.arange(max_path)
    kept = slots < min(accepted, len(parents))
    return np.where(kept, slots, -1).astype(np.int32)


def read_weights(config: ModelConfig, params: Any, batch: int) -> float:
    """Bytes of the weights that a step of `batch` rows reads, on average.

    A table that is no head is looked up. An expert is read if a row chooses it, and rows
    choose each as often as any other.

    Args:
        config: the shape of the model.
        params: of it, stacked, arrays or their shapes.
        batch: rows.
    """
    table = 0 if config.tie_embeddings else synthetic.num_bytes(params["embed"])
    return synthetic.num_bytes(params) - table - _idle_experts(config, params, batch)


def _idle_experts(config: ModelConfig, params: Any, batch: int) -> float:
    if "E" not in config.layers:
        return 0.0
    own = params["layers"]["E"]["moe"]
    idle = (1 - config.moe.top_k / config.moe.num_experts) ** batch
    return idle * synthetic.num_bytes((own["up_proj"], own["down_proj"]))
