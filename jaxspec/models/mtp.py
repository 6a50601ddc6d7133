"""A multi-token-prediction head: a layer that drafts from the target's own hidden.

    x_t = fc [norm_e(embed(token_t)); norm_h(before_t)]
    hidden_t = norm(layer(x_t)),    logits = head(hidden_t)

where `before_t` is the target's hidden of token `t - 1`, after its final norm; or, for a
token that the target has not seen, the head's own. The embedding and the head are the
target's. (DeepSeek-V3, Liu et al. 2024, trains such layers; this is the one that is
published with Qwen3-Next and Qwen3.5.) A pair stands where its hidden stood: the first
token of a text has none, and the pair of token `t` has position `t - 1`.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxspec.core import DraftHead
from jaxspec.models import layers
from jaxspec.models.config import ModelConfig
from jaxspec.models.network import Network, Params
from jaxspec.models.past import Carry, Tape
from jaxspec.models.stack import Stack
from jaxspec.trees import TokenTree

SHARED = ("embed", "lm_head")
"""What a head takes of the target's params, where they are."""


class Pair(nn.Module):
    """Makes one vector of a token's embedding and the hidden before it."""

    config: ModelConfig

    def setup(self):
        self.embedding_norm = layers.norm(self.config)
        self.hidden_norm = layers.norm(self.config)
        self.fc = layers.dense(self.config, self.config.d_model)

    def __call__(self, x: jax.Array, before: jax.Array) -> jax.Array:
        """`[B, T, C]` of each, in this order."""
        if before.shape != x.shape:
            raise ValueError(
                f"The head reads a hidden {x.shape} beside its tokens, got "
                f"{before.shape}; is it the target's own?"
            )
        both = self.embedding_norm(x), self.hidden_norm(before.astype(x.dtype))
        return self.fc(jnp.concatenate(both, axis=-1))


def mtp_config(config: ModelConfig) -> ModelConfig:
    """The shape of a model's head: that of a model with other layers.

    Raises:
        ValueError: if there is none.
    """
    if not config.mtp:
        raise ValueError("The model has no multi-token-prediction head (`mtp`).")
    return dataclasses.replace(config, layers=config.mtp, mtp="")


@functools.cache
def mtp_head(config: ModelConfig) -> DraftHead:
    """Makes the functions of a model's head. Equal configs return the same record.

    Its params are those of a model of shape `mtp_config`, and `pair`.

    Args:
        config: the shape of the model.

    Raises:
        ValueError: if it has no head.
    """
    config = mtp_config(config)
    network = Network(config, "replay", 1, 1, Stack(config.layers, False))
    pair = Pair(config)

    def init(key: jax.Array) -> Params:
        network_key, pair_key = jax.random.split(key)
        x = jnp.zeros((1, 1, config.d_model), jnp.dtype(config.dtype))
        own = pair.init(pair_key, x, x)["params"]
        return {**network.init(network_key), "pair": own}

    def init_carry(params: Params, batch_size: int, max_length: int) -> Carry:
        return network.init_carry(params, batch_size, max_length)

    def join(params: Params, tokens: jax.Array, before: jax.Array) -> jax.Array:
        x = network.embed(params, tokens)
        return pair.apply({"params": params["pair"]}, x, before)

    def scan(
        params: Params,
        carry: Carry,
        tokens: jax.Array,
        before: jax.Array,
        lengths: jax.Array,
    ) -> tuple[Carry, jax.Array]:
        x = join(params, tokens, before)
        return network.scan_inputs(params, carry, x, lengths)

    def extend_tree(
        params: Params,
        carry: Carry,
        tape: Tape,
        tree: TokenTree,
        before: jax.Array,
        start: int,
        stop: int,
    ) -> tuple[Tape, jax.Array]:
        x = join(params, tree.tokens[:, start:stop], before)
        # The root is in the carry already, so its children are roots of a forest.
        below = jnp.where(tree.parents > 0, tree.parents, TokenTree.NO_PARENT)
        forest = TokenTree(tree.tokens, below)
        _, tape, hidden = network.extend_inputs(
            params, carry, tape, forest, inputs=x, start=start, stop=stop
        )
        return tape, hidden

    return DraftHead(
        init=init,
        init_carry=init_carry,
        scan=scan,
        init_tape=network.init_tape,
        extend_tree=extend_tree,
        keep=network.keep,
        logits=network.logits,
        vocab_size=config.vocab_size,
        hidden_size=config.d_model,
    )


def share(params: Params, target: Params) -> Params:
    """Gives a head's own params the target's embedding and head, not copied."""
    return {**params, **{name: target[name] for name in SHARED if name in target}}


def own(params: Any) -> Any:
    """What a head does not share."""
    return {name: part for name, part in params.items() if name not in SHARED}
