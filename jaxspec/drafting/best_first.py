"""Trees of the likeliest paths, found by a beam and cut to size (EAGLE-2, Li et al. 2024).

A node's score is the log-probability of its path. The root is expanded, and then `depth`
times the `width` best of the nodes found last:

    score(y) = score(parent) + log q(y),    y one of the `width` likeliest children.

All nodes that were found make a pool, and the best `num_nodes - 1` of it the tree. A child
scores no more than its parent and comes after it; ties go to what comes first, so that
what is kept is a tree. Nothing is drawn: it has no laws.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec import mesh, ragged, sampling
from jaxspec.core import Context, deterministic_draft
from jaxspec.drafting import builder, survival
from jaxspec.drafting.builder import Builder, Built, Reader

Array = jax.Array


def best_first(num_nodes: int, width: int = 4, depth: int = 3) -> Builder:
    """Makes a builder of trees of the draft model's likeliest paths.

    Args:
        num_nodes: slots of the tree, the root included.
        width: nodes that are expanded together, and children that each of them gets.
        depth: how often that is done after the root.

    Raises:
        ValueError: on sizes out of range, or if fewer nodes are found than kept.
    """
    if num_nodes < 2 or width < 1 or depth < 0:
        raise ValueError(
            "Expected num_nodes >= 2, width >= 1 and depth >= 0, got "
            f"{num_nodes}, {width} and {depth}."
        )
    found = width + depth * width**2
    if found < num_nodes - 1:
        raise ValueError(
            f"A tree of {num_nodes} nodes needs {num_nodes - 1} drafts, and a width of "
            f"{width} and a depth of {depth} find {found}."
        )
    return _best_first(num_nodes, width, depth)


@functools.cache
def _best_first(num_nodes: int, width: int, depth: int) -> Builder:
    num_read = 1 + depth * width
    max_path = min(depth + 2, num_nodes)

    def build(reader: Reader, tape, context: Context) -> Built:
        root = context.root
        read = builder.start(root, num_read)  # the nodes that are expanded
        start, stop, score = 0, 1, None
        pool, scores, places = [], [], [jnp.full((len(root), 1), -1, jnp.int32)]
        beyond = []
        for level in range(depth + 1):
            tape, drawn = builder.read_level(
                reader,
                tape,
                read,
                range(start, stop),
                functools.partial(_expand, width=width),
                score,
                context.sampling,
                needed=builder.reaches(context, level + 1),
                fill=-jnp.inf,
            )
            tokens, score, best = drawn
            count = stop - start
            beyond += [level + 1] * count  # depth of what is below
            each = tokens.shape[1] // count  # children of slot i: from i * each on
            pool.append(tokens)
            scores.append(score)
            if level < depth:
                places.append(start * each + best)
                score = ragged.take(score, best)
                parents = jnp.where(score > -jnp.inf, start + best // each, -1)
                read = builder.grow(read, stop, ragged.take(tokens, best), parents)
                start, stop = stop, stop + best.shape[1]
        keep = functools.partial(_keep, num_nodes=num_nodes)
        tokens, parents, slots, found = mesh.by_rows(
            jax.vmap(keep),
            jnp.concatenate(pool, axis=1),
            jnp.concatenate(scores, axis=1),
            jnp.concatenate(places, axis=1),
        )
        tree = builder.grow(builder.start(root, num_nodes), 1, tokens, parents)
        around = ((0, 0), (1, num_nodes - 1 - slots.shape[1]))
        slots = jnp.pad(slots, around, constant_values=((0, 0), (0, -1)))
        is_read = builder.reaches(context, np.array(beyond, np.int32))
        here = slots[:, :, None] == jnp.arange(len(beyond))[None, None]
        slots = jnp.where(jnp.any(here & is_read[None, None], axis=2), slots, -1)
        score = jnp.exp(jnp.pad(found, around))
        draft = deterministic_draft(tree, max_path, survival.settle(tree, score))
        return Built(tape, draft, slots)

    return Builder(build, num_nodes, num_read, max_path, 1)


def _expand(
    logits: Array,
    score: Array | None,
    settings: sampling.Sampling,
    vocab_ids: Array | None,
    *,
    width: int,
) -> tuple[Array, Array, Array]:
    """Finds the children of a level, their scores, and which of them are the best.

    Args:
        logits: `[B, n, V']` of the level.
        score: `[B, n]` of the level, minus infinity where there is no node; None for 0.
        settings: the rows'.
        vocab_ids: `[V']` of a trimmed head.
        width: children of a node, and how many are the best.
    """
    law = jax.nn.log_softmax(builder.law_logits(logits, settings))
    law, columns = jax.lax.top_k(law, min(width, law.shape[2]))
    law = law if score is None else score[:, :, None] + law
    law, columns = (array.reshape(len(logits), -1) for array in (law, columns))
    best = jax.lax.top_k(law, min(width, law.shape[1]))[1]
    return builder.token_ids(columns, vocab_ids), law, best


def _keep(
    pool: Array, scores: Array, places: Array, *, num_nodes: int
) -> tuple[Array, Array, Array, Array]:
    """Cuts a pool to size: tokens, parents, slots on the tape and scores, all `[n]`.

    Args:
        pool: `[P]` tokens, as many children of every slot of the tape.
        scores: `[P]`.
        places: `[M]` where each slot of the tape is in the pool, -1 for the root.
        num_nodes: of the tree.
    """
    size = len(pool)
    score, kept = jax.lax.top_k(scores, min(num_nodes - 1, size))
    kept = jnp.sort(jnp.where(score > -jnp.inf, kept, size))
    above = jnp.minimum(kept, size - 1) // (size // len(places))  # on the tape
    is_parent = places[above][:, None] == kept[None]
    parents = jnp.where(above > 0, 1 + jnp.argmax(is_parent, axis=1), 0)
    parents = jnp.where(kept < size, parents, -1)
    is_read = kept[:, None] == places[None]
    slots = jnp.where(jnp.any(is_read, axis=1), jnp.argmax(is_read, axis=1), -1)
    kept = jnp.minimum(kept, size - 1)
    return pool[kept], parents, slots.astype(jnp.int32), scores[kept]
