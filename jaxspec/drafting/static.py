"""Static trees: a topology fixed beforehand, and a law to draw children from.

    chain + iid                      Leviathan 2023, Chen 2023
    branching + iid                  SpecInfer 2023
    branching + without_replacement  RSD-C (Jeon et al. 2024)
    measured + without_replacement   Sequoia 2024 (the topology: `drafting.sequoia`)
    any + top_k                      the static trees of EAGLE and Medusa 2024

In a greedy row every law takes the likeliest tokens.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec import sampling, trees
from jaxspec.core import Context, Draft, deterministic_draft
from jaxspec.drafting import builder, survival
from jaxspec.drafting.builder import Builder, Built, Reader

Array = jax.Array

KINDS = {
    "top_k": Draft.DETERMINISTIC,
    "iid": Draft.IID,
    "without_replacement": Draft.WITHOUT_REPLACEMENT,
}


class Level(NamedTuple):
    """Nodes that are read together, and the children that are drawn from them."""

    start: int
    stop: int
    children: tuple[int, ...]  # slots, one after the other
    parent: tuple[int, ...]  # of each child, counted from `start`
    rank: tuple[int, ...]  # of each child among its siblings


def static_tree(
    topology: Sequence[int],
    law: str = "top_k",
    noise: str = "own",
    acceptance: Sequence[float] | None = None,
) -> Builder:
    """Makes a builder of trees of one shape.

    Args:
        topology: children of each node, level by level, as `(3, 2, 1)`; or the parent of
            every slot, -1 first, level by level, as `trees.from_branching` makes them.
        law: how children are chosen: `"top_k"`, the likeliest; `"iid"`, each drawn from
            the model's law; `"without_replacement"`, drawn from what is left of it.
        noise: `"own"`; or `"shared"`, which draws with the noise that the target will emit
            with, so that `sample_and_match` accepts more (for laws without replacement
            and chains; verifiers that use laws refuse it).
        acceptance: share of the nodes at which the child of each rank is the one accepted,
            as `sequoia.optimal_tree` takes it. Scores are then products of these; by
            default the model is taken at its word (`drafting.survival`).

    Raises:
        ValueError: if the topology is no tree, level by level, or a choice is unknown.
    """
    if law not in KINDS or noise not in builder.NOISES:
        raise ValueError(
            f"Expected a law of {tuple(KINDS)} and a noise of {builder.NOISES}, got "
            f"{law!r} and {noise!r}."
        )
    topology = parents_of(topology)
    levels = levels_of(topology)
    counts = [max(level.rank) + 1 for level in levels]
    if noise == "shared" and (law == "top_k" or (law == "iid" and max(counts) > 1)):
        raise ValueError(
            f"Shared noise orders the children of a draw; the law {law!r} of topology "
            f"{topology} has none. Use 'without_replacement'."
        )
    if acceptance is not None:
        acceptance = tuple(float(share) for share in acceptance)
    return _static_tree(topology, law, noise, acceptance)


def chain(length: int, law: str = "iid", noise: str = "own") -> Builder:
    """A chain of `length` drafts; of none, the root alone, for a step without drafts."""
    return static_tree((1,) * length, law, noise) if length else _root_alone()


@functools.cache
def _root_alone() -> Builder:
    def build(reader: Reader, tape, context: Context) -> Built:
        del reader
        tree = builder.start(context.root, 1)
        draft = deterministic_draft(tree, 1)
        return Built(tape, draft, jnp.full_like(tree.parents, -1))

    return Builder(build, 1, 1, 1, 1)


@functools.cache
def _static_tree(
    topology: tuple[int, ...],
    law: str,
    noise: str,
    acceptance: tuple[float, ...] | None,
) -> Builder:
    levels = levels_of(topology)
    num_nodes, num_read = len(topology), levels[-1].stop
    read = np.concatenate([np.arange(level.start, level.stop) for level in levels])
    # The depth of the children of what is read, else 0.
    beyond = np.zeros(num_nodes, np.int32)
    for depth, level in enumerate(levels):
        beyond[level.start : level.stop] = depth + 1
    row = np.zeros(num_nodes, np.int32)  # of a node's logits
    row[read] = np.arange(len(read)) * (law != "top_k" and noise == "own")

    def build(reader: Reader, tape, context: Context) -> Built:
        root = context.root
        tree = builder.start(root, num_nodes)
        draw = functools.partial(
            _children, law=law, noise=noise, vocab_size=reader.vocab_size
        )
        draft_logits, reach = [], jnp.ones(root.shape, jnp.float32)[:, None]
        scores = [reach]
        for depth, level in enumerate(levels):
            tape, drawn = builder.read_level(
                reader,
                tape,
                tree,
                range(level.start, level.stop),
                functools.partial(draw, level=level, depth=depth),
                context.keys,
                context.sampling,
                reach[:, : level.stop - level.start],
                needed=builder.reaches(context, depth + 1),
            )
            tokens, exists, scaled, score, reach = drawn
            scores.append(score)
            parents = jnp.array(level.parent) + level.start
            exists &= (tree.parents[:, parents] >= 0) | (parents == 0)[None]
            parents = jnp.where(exists, parents[None], -1)
            tree = builder.grow(tree, level.children[0], tokens, parents)
            draft_logits.append(scaled)
        shape = tree.parents.shape
        score = jnp.concatenate(scores, axis=1)
        if acceptance is not None:
            score = jnp.broadcast_to(survival.of_ranks(topology, acceptance), shape)
        kind = Draft.DETERMINISTIC if noise == "shared" else KINDS[law]
        draft = Draft(
            tree=tree,
            kind=jnp.full(shape, kind, jnp.int32),
            draft_logits=jnp.concatenate(draft_logits, axis=1),
            logits_row=jnp.broadcast_to(jnp.asarray(row)[None], shape),
            score=survival.settle(tree, score),
            vocab_ids=reader.vocab_ids,
            max_path=len(levels) + 1,
            coupled=noise == "shared",
        )
        on_tape = builder.reaches(context, beyond) & (beyond > 0)
        slots = jnp.where(tree.is_node & on_tape[None], jnp.arange(num_nodes)[None], -1)
        return Built(tape, draft, slots.astype(jnp.int32))

    most = max(max(level.rank) for level in levels) + 1
    return Builder(build, num_nodes, num_read, len(levels) + 1, most)


def _children(
    logits: Array,
    keys: Array,
    settings: sampling.Sampling,
    reach: Array,
    vocab_ids: Array | None,
    *,
    level: Level,
    depth: int,
    law: str,
    noise: str,
    vocab_size: int,
) -> tuple[Array, Array, Array, Array, Array]:
    """Draws a level from nodes of some reach `[B, m]`.

    Returns tokens `[B, n]`, whether each exists, logits `[B, m, V']`, and the scores and
    the reach of the tokens.
    """
    most = max(level.rank) + 1
    scaled = builder.law_logits(logits, settings)
    nodes = jax.vmap(jax.vmap(functools.partial(sampling.largest, count=most)))
    likeliest = functools.partial(nodes, scaled)
    draft_logits = scaled[:, :0]

    def drawn():
        slots = jnp.arange(level.start, level.stop)
        draw = functools.partial(_draws, law=law, count=most)
        return jax.vmap(jax.vmap(draw))(
            builder.node_keys(keys, settings, slots), scaled
        )

    def drawn_as_emitted():
        emission = jax.vmap(builder.emission_noise, (0, 0, None, None))
        position = settings.position + depth + 1
        return nodes(scaled + emission(keys, position, vocab_ids, vocab_size)[:, None])

    if law == "top_k":
        tokens, exists = likeliest()
    elif noise == "shared":
        tokens, exists = builder.by_temperature(settings, drawn_as_emitted, likeliest)
    else:
        tokens, exists = builder.by_temperature(settings, drawn, likeliest)
        draft_logits = scaled
    score, reach = survival.of_draws(reach, scaled, tokens, law)
    here = np.array(level.parent), np.array(level.rank)
    tokens = builder.token_ids(tokens, vocab_ids)
    found = tokens, exists, score, reach
    tokens, exists, score, reach = (array[:, *here] for array in found)
    return tokens, exists, draft_logits, score, reach


def _draws(key: Array, logits: Array, law: str, count: int) -> tuple[Array, Array]:
    """Draws `count` children of one node."""
    if law == "without_replacement":
        return sampling.draw_without_replacement(key, logits, count)
    draw = jax.vmap(sampling.draw, (0, None))
    return draw(jax.random.split(key, count), logits), jnp.ones((count,), bool)


def parents_of(topology: Sequence[int]) -> tuple[int, ...]:
    """The parent of every slot, of a topology written in either way (`static_tree`).

    Raises:
        ValueError: if there is nothing, or a branching factor is not positive.
    """
    topology = tuple(map(int, topology))
    if topology[:1] == (trees.TokenTree.NO_PARENT,):
        return topology
    if not topology:
        raise ValueError("Expected a topology of at least one level, got ().")
    return tuple(trees.from_branching(topology).tolist())


@functools.cache
def levels_of(topology: tuple[int, ...]) -> list[Level]:
    """Cuts a topology into levels.

    Raises:
        ValueError: if it is no tree, or not level by level.
    """
    depth = [0]
    for slot, parent in enumerate(topology[1:], start=1):
        if not 0 <= parent < slot:
            raise ValueError(
                f"Slot {slot} of the topology has parent {parent}; expected one of the "
                f"slots before it. Parents: {topology}."
            )
        depth.append(depth[parent] + 1)
    if depth != sorted(depth) or len(depth) < 2:
        raise ValueError(
            f"Expected parents of at least two slots, level by level, got {topology}."
        )
    levels = []
    for d in range(depth[-1]):
        start = depth.index(d)
        children = [slot for slot, own in enumerate(depth) if own == d + 1]
        above = [topology[slot] for slot in children]
        rank = [above[:i].count(parent) for i, parent in enumerate(above)]
        stop = max(above) + 1
        parent = tuple(slot - start for slot in above)
        levels.append(Level(start, stop, tuple(children), parent, tuple(rank)))
    return levels
