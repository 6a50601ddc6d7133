"""A draft model's tree and a retrieved one, fused: RASD (Quan et al. 2025).

The draft model `q` reads the retrieved tree in the pass that reads the root, and prunes
it: a node `y` below the path `x` stays if its parent does and

    y is among the `keep` likeliest tokens of q(. | x),  and  q(y | x) >= least.

What is left joins the tree that a builder grows, by longest prefix. Retrieved nodes are
chosen without chance, sampled ones are not, and the verifier tests siblings in the order
of their slots, each against the law it was drawn from. Two orders keep the target's law:

    "draft first"      sampled children, each drawn from q as ever; then the retrieved ones
                       that are not among them, and whatever was retrieved below both.
    "retrieval first"  retrieved children; then sampled ones, drawn from q without the
                       tokens of the retrieved ones. The two trees share the root alone.

No sampled node gives way to a retrieved one: that would choose among drawn tokens, and
the text would no longer have the target's law. Retrieved nodes that do not fit are
dropped, the last first. Which those are depends on the sampled tokens where these come
first, so that the retrieved nodes' scores are then below all of theirs; else the sampled
ones' are below those of the retrieved children of the root, whose rest they are drawn from.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxspec import checks, mesh, ragged, trees
from jaxspec.core import Context, Draft, Drafter, LanguageModel
from jaxspec.drafting import builder as builders
from jaxspec.drafting import fusion, survival
from jaxspec.drafting import model as models
from jaxspec.drafting.builder import Builder, Built, Reader
from jaxspec.drafting.fusion import Pair
from jaxspec.trees import TokenTree

Array = jax.Array

ORDERS = "draft first", "retrieval first"


def rasd(
    model: LanguageModel,
    builder: Builder,
    retriever: Drafter,
    num_nodes: int | None = None,
    keep: int = 10,
    least: float = 0.0,
    order: str = "draft first",
) -> Drafter:
    """Makes a drafter of a draft model and a retriever; its params are a `Pair` of theirs.

    Args:
        model: any `LanguageModel` of the target's vocabulary; its params may be `Trimmed`.
        builder: grows the draft model's tree.
        retriever: `retrieval`, `ngram`, or another that drafts without chance and
            observes nothing but what is emitted.
        num_nodes: slots of the tree; those that the builder does not use are for what is
            retrieved. By default there is a slot for everything.
        keep: how many of the draft model's likeliest tokens a retrieved one is to be among.
        least: the probability that the draft model gives it at least, at temperature 1.
        order: which siblings come first; `"retrieval first"` leaves the draft model the
            tokens that were not retrieved, even its likeliest.

    Raises:
        ValueError: if the order is unknown, sizes are out of range, or the model cannot
            keep paths as long. While proposing, if the model's head has no more than
            `keep` tokens, or the retriever draws by chance.
    """
    checks.record("model", model, LanguageModel)
    checks.record("builder", builder, Builder)
    checks.record("retriever", retriever, Drafter)
    if order not in ORDERS:
        raise ValueError(f"Expected an order of {ORDERS}, got {order!r}.")
    if keep < 1 or not 0.0 <= least <= 1.0:
        raise ValueError(
            f"Expected keep >= 1 and 0 <= least <= 1, got {keep} and {least}."
        )
    if num_nodes is not None and num_nodes < builder.num_nodes:
        raise ValueError(
            f"The builder fills {builder.num_nodes} slots, and there are {num_nodes}."
        )
    max_path = max(builder.max_path, retriever.max_path)
    if model.max_path < max_path:
        raise ValueError(
            f"The draft model keeps paths of {model.max_path} nodes, and there are paths "
            f"of {max_path}; raise the model's max_path."
        )
    return _rasd(model, builder, retriever, num_nodes, keep, least, order)


@functools.cache
def _rasd(model, builder, retriever, num_nodes, keep, least, order) -> Drafter:
    drafter = models.draft_model(model, builder)
    max_path = max(builder.max_path, retriever.max_path)

    def propose(params: Pair, state: Pair, context: Context) -> tuple[Pair, Draft]:
        own, vocab_ids = models.head_for(builder, params.first)
        past, draft = retriever.propose(params.second, state.second, context)
        fusion.check_deterministic(draft)
        size = draft.tree.num_nodes
        carry = model.prepare(own, state.first.carry)
        num_read = size - 1 + builder.num_read
        tape = model.init_tape(own, len(context.lengths), num_read)
        read = functools.partial(models.read, model, own, carry, num_read)
        free = builders.start(context.root, builder.num_read)
        tape, logits = read(tape, trees.join(draft.tree, free), 0, size)
        prune = functools.partial(_prune, keep=keep, least=least)
        kept = mesh.by_rows(
            prune, draft.tree, logits, shared=(vocab_ids,), over=mesh.AXES
        )

        def build(root_logits: Array) -> Built:
            beside = functools.partial(_read_beside, read, draft.tree, root_logits)
            reader = Reader(beside, vocab_ids, model.vocab_size)
            return builder.build(reader, tape, context)

        room = size - 1 if num_nodes is None else num_nodes - builder.num_nodes
        kept = draft.replace(tree=kept)
        built = _fuse(build, logits[:, 0], kept, vocab_ids, order, room, max_path)
        return Pair(models.State(carry, built.tape, built.slots), past), built.draft

    return fusion.together(drafter, retriever, propose, max_path, model.vocab_size)


def _read_beside(
    read: Callable[..., tuple[Any, Array]],
    retrieved: TokenTree,
    root_logits: Array,
    tape: Any,
    tree: TokenTree,
    start: int,
    stop: int,
) -> tuple[Any, Array]:
    """Reads slots of a tree that shares the tape, and its root, with what was retrieved."""
    if stop == 1:
        return tape, root_logits[:, None]
    if start == 0:
        raise ValueError("A builder reads the root first, and alone.")
    shift = retrieved.num_nodes - 1
    return read(tape, trees.join(retrieved, tree), start + shift, stop + shift)


def _prune(
    tree: TokenTree, logits: Array, vocab_ids: Array | None, *, keep: int, least: float
) -> TokenTree:
    """The tree without what the draft model finds unlikely, logits `[B, N, V']`."""
    if keep >= logits.shape[2]:
        raise ValueError(
            f"Expected keep below the {logits.shape[2]} tokens of the head, got {keep}."
        )
    values, tokens = jax.lax.top_k(logits, keep)
    laws = jnp.exp(values - jax.nn.logsumexp(logits, axis=-1, keepdims=True))
    tokens = jnp.where(laws >= least, builders.token_ids(tokens, vocab_ids), -1)
    allowed = ragged.take(tokens, jnp.maximum(tree.parents, 0))  # [B, N, keep]
    likely = jnp.any(allowed == tree.tokens[:, :, None], axis=2)
    likely |= jnp.arange(tree.num_nodes)[None] == 0
    stays = jnp.all(likely[:, None] | ~trees.ancestor_mask(tree), axis=2)
    return tree.replace(parents=jnp.where(stays, tree.parents, TokenTree.NO_PARENT))


def _fuse(
    build: Callable[[Array], Built],
    root_logits: Array,
    retrieved: Draft,
    vocab_ids: Array | None,
    order: str,
    room: int,
    max_path: int,
) -> Built:
    """Builds the draft model's tree and joins `room` retrieved nodes to it."""
    kept = retrieved.tree
    if order == "draft first":
        built = build(root_logits)
        tree = built.draft.tree
        at = tree.num_nodes
        tree, places = trees.graft(tree, kept, at + room, max_path)
    else:
        root, at = builders.start(kept.tokens[:, 0], 1), 1
        tree, places = trees.graft(root, kept, at + room, max_path)
        rest = mesh.by_rows(
            _without, root_logits, tree, shared=(vocab_ids,), over=mesh.AXES
        )
        built = build(rest)
        tree = trees.join(tree, built.draft.tree)

    def widen(array: Array, value: int) -> Array:
        free = jnp.full((len(array), room), value, array.dtype)
        return jnp.concatenate([array[:, :at], free, array[:, at:]], axis=1)

    here = places[:, None] == jnp.arange(tree.num_nodes)[None, :, None]
    drawn = widen(built.draft.score, -1)
    looked_up = jnp.max(jnp.where(here, retrieved.score[:, None], 0.0), axis=2)
    draft = built.draft.replace(
        tree=tree,
        score=survival.settle(tree, _scores(tree, drawn, looked_up, order)),
        kind=widen(built.draft.kind, Draft.DETERMINISTIC),
        logits_row=widen(built.draft.logits_row, 0),
        max_path=max_path,
    )
    # Every node of the retrieved tree was read in its place there, wherever it is now.
    shift = kept.num_nodes - 1
    own = widen(jnp.where(built.slots > 0, built.slots + shift, built.slots), -1)
    own = own.at[:, 0].set(0)
    found = jnp.argmax(here, axis=2).astype(jnp.int32)
    return Built(built.tape, draft, jnp.where(jnp.any(here, axis=2), found, own))


def _scores(tree: TokenTree, drawn: Array, looked_up: Array, order: str) -> Array:
    """Scores of a fused tree: of its drawn slots, -1 at others, and of the retrieved."""
    slots = jnp.arange(tree.num_nodes)[None]
    is_drawn = tree.is_node & (drawn >= 0.0)
    if order == "draft first":
        least = jnp.min(jnp.where(is_drawn, drawn, 1.0), axis=1, keepdims=True)
        return jnp.where(is_drawn, drawn, looked_up * least)
    first = (tree.parents == 0) & ~is_drawn
    rest = jnp.prod(jnp.where(first, 1.0 - looked_up, 1.0), axis=1, keepdims=True)
    least = jnp.min(jnp.where(first, looked_up, 1.0), axis=1, keepdims=True)
    score = jnp.where(is_drawn, drawn * jnp.minimum(rest, least), looked_up)
    return jnp.where(slots == 0, 1.0, score)


def _without(logits: Array, tree: TokenTree, vocab_ids: Array | None) -> Array:
    """Logits `[B, V']` at the root without the tokens of its children."""
    tokens = tree.tokens
    if vocab_ids is not None:
        tokens = jnp.searchsorted(vocab_ids, tokens).astype(jnp.int32)
    columns = jnp.where(tree.parents == 0, tokens, logits.shape[1])
    drop = jax.vmap(lambda row, at: row.at[at].set(-jnp.inf, mode="drop"))
    return drop(logits, columns)
