"""Trees that grow where a draft is likeliest to be kept (DySpec, Xiong et al. 2024).

Children of a node are drawn without replacement from laws `D_1, D_2, ..`; its `k`-th is
worth `v_k`, the probability that the target comes to test it if it accepts what the draft
model draws as often as that draws it. With `v_1 = 1` at the root, a draw `y` from `D_k` has

    v_1 of y = v_k D_k[y]  (its first child),    v_(k+1) = v_k (1 - D_k[y])  (next sibling).

Each draw is made where `v` is largest (Algorithm 1), while that is above a threshold
(Algorithm 2). A value is known before the token it belongs to, and so is the decision to
draw it: the target's law is kept.

A value is its node's score too, so that a budget drops what was drawn for least.

The draft model reads a round of draws at a time; until then they have no children.
A greedy row takes the likeliest token left instead of drawing one.

Most draft models are surer than they should be, and what was refused once is refused more
easily again. With curves `a_1, a_2, ..`, one for each rank, measured by `jaxspec tune
survival`, a token of probability `d` among those left is accepted as the child of rank `k`
with probability `a_k(d)`. A child is then drawn where it is likeliest to be accepted; with
`t` in the place of `v`,

    v_k = t_k a_k(max D_k),  t_1 of y = t_k a_k(D_k[y]),  t_(k+1) = t_k (1 - a_k(D_k[y])),

where `v_k` is at most the parent's and the earlier sibling's.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxspec import mesh, sampling
from jaxspec.core import Context, Draft, deterministic_draft
from jaxspec.drafting import builder, survival
from jaxspec.drafting.builder import Builder, Built, Reader
from jaxspec.drafting.survival import Curve

Array = jax.Array


class _Rules(NamedTuple):
    """What a tree may grow to; sizes are in nodes."""

    num_nodes: int
    nodes_per_call: int
    threshold: float
    max_path: int
    max_children: int
    noise: str
    acceptance: tuple[Curve, ...] | None


class _Grown(NamedTuple):
    """The nodes of one tree."""

    columns: Array  # [N] of the head; a node's token
    parents: Array  # [N]
    depth: Array  # [N]
    tested: Array  # [N] how likely the node's next child is to be tested
    value: Array  # [N] of the node's next child, 0 if it will have none
    score: Array  # [N] the value that the node was drawn for


def dyspec(
    num_nodes: int,
    nodes_per_call: int = 1,
    threshold: float = 0.0,
    max_path: int | None = None,
    max_children: int | None = None,
    noise: str = "own",
    acceptance: Sequence[Curve] | None = None,
) -> Builder:
    """Makes a builder of trees that follow the draft model's confidence.

    Args:
        num_nodes: slots of the tree, the root included.
        nodes_per_call: draws between two calls of the draft model.
        threshold: a child worth no more is not drawn, and leaves its slot free.
        max_path: nodes on the longest path, the root included.
        max_children: most children of a node.
        noise: `"own"`; or `"shared"`, which draws with the noise that the target will emit
            with, so that `sample_and_match` accepts more (verifiers that use laws refuse
            it).
        acceptance: curves of each rank, the last one for all that follow; by default the
            draft model is taken at its word.

    Raises:
        ValueError: on sizes out of range, an unknown noise, or curves that are none.
    """
    if num_nodes < 2 or nodes_per_call < 1:
        raise ValueError(
            "Expected num_nodes >= 2 and nodes_per_call >= 1, got "
            f"{num_nodes} and {nodes_per_call}."
        )
    if not 0.0 <= threshold < 1.0:
        raise ValueError(f"Expected a threshold from 0 to below 1, got {threshold}.")
    if noise not in builder.NOISES:
        raise ValueError(f"Expected a noise of {builder.NOISES}, got {noise!r}.")
    drafts = num_nodes - 1
    nodes_per_call = min(nodes_per_call, drafts)
    calls = -(-drafts // nodes_per_call)
    max_path = calls + 1 if max_path is None else min(max_path, calls + 1)
    max_children = drafts if max_children is None else min(max_children, drafts)
    if max_path < 2 or max_children < 1:
        raise ValueError(
            "Expected max_path >= 2 and max_children >= 1, got "
            f"{max_path} and {max_children}."
        )
    if acceptance is not None:
        acceptance = tuple(survival.check(curve) for curve in acceptance)
        if not acceptance:
            raise ValueError("Expected a curve of at least one rank, got none.")
    sizes = num_nodes, nodes_per_call, float(threshold), max_path, max_children
    return _dyspec(_Rules(*sizes, noise, acceptance))


@functools.cache
def _dyspec(rules: _Rules) -> Builder:
    num_nodes, per_call = rules.num_nodes, rules.nodes_per_call
    starts = range(1, num_nodes, per_call)  # of the rounds
    num_read = starts[-1]

    def build(reader: Reader, tape, context: Context) -> Built:
        tree, needed = (
            builder.start(context.root, num_nodes),
            builder.reaches(context, 1),
        )

        def see(tape, tree, start: int, stop: int):
            return builder.when(
                needed, lambda tape: reader.read(tape, tree, start, stop), tape
            )

        tape, logits = see(tape, tree, 0, 1)
        grown, laws = _start(logits, num_nodes), logits[:, :0]
        for start in starts:
            stop = min(start + per_call, num_nodes)
            draw = functools.partial(
                _draw, stop=stop, rules=rules, vocab_size=reader.vocab_size
            )
            laws, grown = mesh.by_rows(
                draw,
                laws,
                logits,
                context.keys,
                context.sampling,
                grown,
                shared=(reader.vocab_ids,),
            )
            tokens = builder.token_ids(grown.columns[:, start:stop], reader.vocab_ids)
            tree = builder.grow(tree, start, tokens, grown.parents[:, start:stop])
            if stop < num_nodes:
                tape, logits = see(tape, tree, start, stop)
        row = builder.read_slots(tree, num_read)
        if rules.noise == "shared":
            draft = deterministic_draft(tree, rules.max_path, grown.score)
            draft = draft.replace(coupled=True)
        else:
            draft = Draft(
                tree=tree,
                kind=jnp.full(row.shape, Draft.WITHOUT_REPLACEMENT, jnp.int32),
                draft_logits=laws,
                logits_row=jnp.maximum(row, 0),
                score=survival.settle(tree, grown.score),
                vocab_ids=reader.vocab_ids,
                max_path=rules.max_path,
            )
        return Built(tape, draft, jnp.where(needed, row, -1))

    return Builder(build, num_nodes, num_read, rules.max_path, 1)


def _start(logits: Array, num_nodes: int) -> _Grown:
    """Roots `[B]`."""
    shape = len(logits), num_nodes
    none = jnp.zeros(shape, jnp.int32)
    value = jnp.zeros(shape, logits.dtype).at[:, 0].set(1.0)
    return _Grown(none, none - 1, none, value, value, value)


def _draw(
    laws: Array,
    logits: Array,
    keys: Array,
    settings: sampling.Sampling,
    grown: _Grown,
    vocab_ids: Array | None,
    *,
    stop: int,
    rules: _Rules,
    vocab_size: int,
) -> tuple[Array, _Grown]:
    """A round: takes in the logits of the last one, and fills slots up to `stop`.

    Args:
        laws: `[B, m, V']` logits over the temperature, of the slots read before.
        logits: `[B, n, V']` of the next slots.
        keys: `[B]`.
        settings: the rows'.
        grown: the trees.
        vocab_ids: `[V']` of a trimmed head.
        stop: the first slot of the next round.
        rules: of the builder.
        vocab_size: of the target.
    """
    needs = sampling.needs(settings)

    def row(laws: Array, key: Array, own: sampling.Sampling, grown: _Grown) -> _Grown:
        draft_key = sampling.noise_key(key, sampling.Role.DRAFT, own.position)
        columns = jnp.arange(laws.shape[1])

        def choose(slot: Array, depth: Array, left: Array) -> Array:
            if rules.noise == "own":
                return sampling.draw(jax.random.fold_in(draft_key, slot), left)
            position = own.position + depth + 1
            noise = builder.emission_noise(key, position, vocab_ids, vocab_size)
            return jnp.argmax(left + noise).astype(jnp.int32)

        def draw(slot: Array, grown: _Grown) -> _Grown:
            node = jnp.argmax(grown.value[: len(laws)]).astype(jnp.int32)
            depth, exists = grown.depth[node], grown.value[node] > rules.threshold
            taken = jnp.where(grown.parents == node, grown.columns, len(columns))
            left = laws[node].at[taken].set(-jnp.inf, mode="drop")
            # Where no child is worth it, here and from now on, column 0 is drawn for sure.
            left = jnp.where(exists | (columns > 0), left, 0.0)
            left = jnp.where(exists | (columns == 0), left, -jnp.inf)
            likeliest = jnp.argmax(left).astype(jnp.int32)
            drawn = jax.lax.cond(
                needs.noise, lambda: choose(slot, depth, left), lambda: likeliest
            )
            column = jnp.where(own.is_drawn, drawn, likeliest)
            return _add(
                grown,
                rules,
                node=node,
                slot=slot,
                exists=exists,
                column=column,
                law=jax.nn.softmax(left),
            )

        if rules.acceptance is not None:
            first = len(laws) - logits.shape[1]
            grown = _value(grown, rules.acceptance[0], laws, first)
        return jax.lax.fori_loop(len(laws), stop, draw, grown)

    laws = jnp.concatenate([laws, builder.law_logits(logits, settings)], axis=1)
    return laws, jax.vmap(row)(laws, keys, settings, grown)


def _value(grown: _Grown, curve: Curve, laws: Array, start: int) -> _Grown:
    """Values the nodes from `start` on, which were read now, by their logits `[m, V']`."""
    # The largest logit is 0.
    likeliest = jnp.exp(-jax.nn.logsumexp(laws[start:], axis=1))
    new = slice(start, len(laws))
    value = grown.tested[new] * curve(likeliest)
    value = jnp.minimum(value, grown.score[new])
    return grown._replace(value=grown.value.at[new].set(value))


def _add(
    grown: _Grown,
    rules: _Rules,
    *,
    node: Array,
    slot: Array,
    exists: Array,
    column: Array,
    law: Array,
) -> _Grown:
    """Adds the token `column`, drawn from `law` `[V']`, below a node, if it exists."""
    siblings, value = grown.parents == node, grown.value[node]
    others = jnp.where(jnp.arange(len(law)) == column, 0.0, law)
    mass, rank, depth = jnp.sum(others), jnp.sum(siblings), grown.depth[node] + 1
    share, rest = law[column], mass
    if rules.acceptance is not None:
        share = _accepted(rules.acceptance, rank, share)
        rest = 1.0 - share
    goes_down = exists & (depth + 1 < rules.max_path)
    goes_on = (mass > 0.0) & (rank + 1 < rules.max_children)
    first = jnp.where(goes_down, grown.tested[node] * share, 0.0)
    following = jnp.where(goes_on, grown.tested[node] * rest, 0.0)
    worth = following
    if rules.acceptance is not None:
        likeliest = jnp.max(others) / jnp.where(mass > 0.0, mass, 1.0)
        worth *= _accepted(rules.acceptance, rank + 1, likeliest)
        worth = jnp.minimum(worth, value)
    beside = jnp.where(siblings | (jnp.arange(len(siblings)) == node), grown.score, 1.0)
    return _Grown(
        grown.columns.at[slot].set(column),
        grown.parents.at[slot].set(jnp.where(exists, node, -1)),
        grown.depth.at[slot].set(depth),
        grown.tested.at[node].set(following).at[slot].set(first),
        grown.value.at[node].set(worth).at[slot].set(first),
        # Only rounding makes a value larger than those before it.
        grown.score.at[slot].set(jnp.minimum(value, jnp.min(beside))),
    )


def _accepted(curves: tuple[Curve, ...], rank: Array, probability: Array) -> Array:
    """The share of draws of a rank and a probability that are accepted."""
    shares = jnp.stack([curve(probability) for curve in curves])
    return shares[jnp.minimum(rank, len(shares) - 1)]
