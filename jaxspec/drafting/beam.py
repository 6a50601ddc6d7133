"""Stochastic beam search: whole paths are drawn without replacement, level by level.

Every node of a level has `phi`, the log-probability of its path, and `G`, the same with
noise; both are 0 at the root. Its children have

    phi_y = phi + log q(y),    G_y = phi_y + Gumbel, given that max_y G_y = G,

and the `width` largest `G_y` of the whole level make the next one (Kool, van Hoof and
Welling 2019; the trees of RSD-S, Jeon et al. 2024).

Siblings descend in `G`, which is the order of a draw without replacement. Given all values
and the earlier siblings, which token has the next value is a draw from what is left of `q`:
whether a child is kept is known before its token is, and the target's law is kept.

Which nodes there are depends on all values, and a value on the token drawn before it among
siblings. So a node may be preferred to an earlier one only if its value is larger: with
`s` the score of a draw without replacement (`drafting.survival`), and level by level,

    score = min of s over the nodes of its level and above whose value is no smaller.

A greedy row is a beam search without noise.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec import sampling
from jaxspec.core import Context, Draft
from jaxspec.drafting import builder, survival
from jaxspec.drafting.builder import Builder, Built, Reader

Array = jax.Array


class _Beams(NamedTuple):
    """The nodes of a level."""

    phi: Array  # [B, w]
    value: Array  # [B, w] `G`; minus infinity where there is no node
    score: Array  # [B, w] of each as a draw


def stochastic_beam(width: int, length: int) -> Builder:
    """Makes a builder of trees of `length` levels of `width` nodes.

    A level is narrower where there are not as many children.

    Args:
        width: nodes of a level.
        length: drafts on the longest path.

    Raises:
        ValueError: if either is not positive.
    """
    if width < 1 or length < 1:
        raise ValueError(
            f"Expected a beam of positive width and length, got {width} and {length}."
        )
    return _stochastic_beam(width, length)


@functools.cache
def _stochastic_beam(width: int, length: int) -> Builder:
    num_nodes = 1 + width * length

    def build(reader: Reader, tape, context: Context) -> Built:
        tree = builder.start(context.root, num_nodes)
        zeros = jnp.zeros(context.root.shape, jnp.float32)[:, None]
        beams = _Beams(zeros, zeros, zeros + 1.0)
        start, stop, levels, draft_logits, beyond = 0, 1, [beams], [], []
        for depth in range(length):
            needed = builder.reaches(context, depth + 1)
            tape, drawn = builder.read_level(
                reader,
                tape,
                tree,
                range(start, stop),
                functools.partial(_descend, width=width, start=start),
                context.keys,
                context.sampling,
                beams,
                needed=needed,
            )
            tokens, above, beams, scaled = drawn
            beyond += [depth + 1] * (stop - start)  # depth of what is below
            exists = needed & (beams.value > -jnp.inf)
            parents = jnp.where(exists, start + above, -1)
            tree = builder.grow(tree, stop, tokens, parents)
            draft_logits.append(scaled)
            levels.append(beams)
            start, stop = stop, stop + tokens.shape[1]
        row = builder.read_slots(tree, start)
        beyond = np.pad(np.array(beyond, np.int32), (0, num_nodes - start))
        slots = jnp.where(builder.reaches(context, beyond)[None], row, -1)
        draft = Draft(
            tree=tree,
            kind=jnp.full(slots.shape, Draft.WITHOUT_REPLACEMENT, jnp.int32),
            draft_logits=jnp.concatenate(draft_logits, axis=1),
            logits_row=jnp.maximum(row, 0),
            score=survival.settle(tree, _scores(levels, num_nodes)),
            vocab_ids=reader.vocab_ids,
            max_path=length + 1,
        )
        return Built(tape, draft, slots)

    return Builder(build, num_nodes, num_nodes - width, length + 1, 1)


def _descend(
    logits: Array,
    keys: Array,
    settings: sampling.Sampling,
    beams: _Beams,
    vocab_ids: Array | None,
    *,
    width: int,
    start: int,
) -> tuple[Array, Array, _Beams, Array]:
    """Chooses a level: tokens, the beam above each, both `[B, n]`, values, and logits.

    Args:
        logits: `[B, w, V']` of the level above.
        keys: `[B]`.
        settings: the rows'.
        beams: the level above.
        vocab_ids: `[V']` of a trimmed head.
        width: of the beam.
        start: first slot of the level above.
    """
    batch, count, size = logits.shape
    scaled = builder.law_logits(logits, settings)
    alive, most = beams.value > -jnp.inf, min(width, size)
    above = jnp.where(alive, beams.phi, 0.0)
    phi = above[:, :, None] + jax.nn.log_softmax(scaled)

    def perturbed():
        each = builder.node_keys(keys, settings, jnp.arange(start, start + count))
        top = jnp.where(alive, beams.value, 0.0)  # no noise has a largest of -inf
        nodes = jax.vmap(jax.vmap(functools.partial(sampling.perturb, count=most)))
        return nodes(each, scaled, above, top)

    def likeliest():
        tokens = jax.lax.top_k(scaled, most)[1].astype(jnp.int32)
        return tokens, jnp.take_along_axis(phi, tokens, axis=2)

    columns, values = builder.by_temperature(settings, perturbed, likeliest)
    law = "without_replacement"
    score, _ = survival.of_draws(jnp.exp(above), scaled, columns, law)
    phi = jnp.take_along_axis(phi, columns, axis=2).reshape(batch, -1)
    values = jnp.where(alive[:, :, None], values, -jnp.inf).reshape(batch, -1)
    value, place = jax.lax.top_k(values, min(width, count * most))
    score = jnp.take_along_axis(score.reshape(batch, -1), place, axis=1)
    below = _Beams(jnp.take_along_axis(phi, place, axis=1), value, score)
    columns = jnp.take_along_axis(columns.reshape(batch, -1), place, axis=1)
    return builder.token_ids(columns, vocab_ids), place // most, below, scaled


def _scores(levels: list[_Beams], num_nodes: int) -> Array:
    """Scores `[B, N]`, so that a node ranks before an earlier one by its value alone."""
    depth = np.concatenate([[i] * each.value.shape[1] for i, each in enumerate(levels)])
    value = jnp.concatenate([each.value for each in levels], axis=1)
    score = jnp.concatenate([each.score for each in levels], axis=1)
    above = (depth[None] <= depth[:, None])[None]  # [1, N, N]: of `j` for `i`
    bounds = above & (value[:, None] >= value[:, :, None])
    score = jnp.min(jnp.where(bounds, score[:, None], 1.0), axis=2)
    return jnp.pad(score, ((0, 0), (0, num_nodes - score.shape[1])))
