"""The contracts: records of pure functions, and the data that passes between them.

A user joins their own model, drafter or verifier by filling in a record; nothing is
inherited. Factories return equal records for equal settings, so that a record can be a
static argument of `jax.jit` and a notebook cell that is run again does not recompile.

    B batch    N nodes of a tree    T tokens    V vocabulary    C width of the hidden
    D nodes on the longest path, the root included    M expanded nodes
"""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from jaxspec import ragged, trees
from jaxspec.sampling import Sampling
from jaxspec.trees import TokenTree

Array = jax.Array
Carry = Any
Tape = Any


class Params(NamedTuple):
    """Parameters of the target, and of the drafter if it has any."""

    target: Any
    drafter: Any = None


class LanguageModel(NamedTuple):
    """A causal language model whose past is a value.

    Every function is pure and natively batched. A carry is any pytree whose leaves have a
    batch axis; nothing else about it is public. To roll back is not to apply a commit; to
    fork is to use a carry twice. `tokens` are int32, `hidden` is after the final norm, in
    the model's dtype.

    Attributes:
        init: `key -> params`.
        init_carry: `params, batch_size, max_length, speculative=True -> carry`, an empty
            past with room for `max_length` tokens and a path. With `speculative=False`
            it serves `step` and `scan` only and carries nothing else.
        step: `params, carry, token [B] -> carry, hidden [B, C]`: the plain recurrence.
        scan: `params, carry, tokens [B, T], lengths [B] -> carry, hidden [B, T, C]`:
            chunk-parallel; row `b` absorbs its first `lengths[b]` tokens, perhaps none.
        prepare: `params, carry -> carry`: the same past with room for a path.
        init_tape: `params, batch_size, num_nodes -> tape`.
        extend_tree: `params, carry, tape, tree, start, stop -> tape, hidden
            [B, stop - start, C]`: some slots of a tree whose parents are on the tape.
            The carry is prepared; `start` and `stop` are static.
        scan_tree: `params, carry, tree -> carry, tape, hidden [B, N, C]`: `prepare`, then
            `extend_tree` over every slot of an empty tape, perhaps fused.
        keep: `tape, slots [B, K] -> tape` of `K` slots: slot `k` of row `b` is what slot
            `slots[b, k]` was, or room for `extend_tree` to fill where that is -1. A node
            stays what it was while all that it hangs from is kept too or committed, so
            that a tree is grown on below a node that a commit made the root.
        commit: `carry, tape, path [B, d] -> carry`: keeps the nodes of a path that starts
            at the root, -1 padded, any `d <= max_path`; takes the carry that `scan_tree`
            or `prepare` returned.
        logits: `params, hidden [..., C] -> [..., V]` float32.
        vocab_size: `V`.
        max_path: the longest path that `commit` takes, in nodes.
    """

    init: Callable[..., Any]
    init_carry: Callable[..., Carry]
    step: Callable[..., tuple[Carry, Array]]
    scan: Callable[..., tuple[Carry, Array]]
    prepare: Callable[..., Carry]
    init_tape: Callable[..., Tape]
    extend_tree: Callable[..., tuple[Tape, Array]]
    scan_tree: Callable[..., tuple[Carry, Tape, Array]]
    keep: Callable[..., Tape]
    commit: Callable[..., Carry]
    logits: Callable[..., Array]
    vocab_size: int
    max_path: int


class DraftHead(NamedTuple):
    """A small model that drafts from what the target makes of a text (EAGLE, MTP).

    It reads pairs: a token, and the target's hidden of the token before it; for tokens
    that the target has not seen, its own hidden of the token before. Its past is of pairs,
    so that it is a token shorter than the text. Every function is pure and natively
    batched; a carry is a value, as in `LanguageModel`.

    Attributes:
        init: `key -> params`.
        init_carry: `params, batch_size, max_length -> carry`, an empty past with room for
            the pairs of as many tokens.
        scan: `params, carry, tokens [B, T], before [B, T, C], lengths [B] -> carry, hidden
            [B, T, C]`: row `b` absorbs its first `lengths[b]` pairs, perhaps none.
        init_tape: `params, batch_size, num_nodes -> tape`.
        extend_tree: `params, carry, tape, tree, before [B, stop - start, C], start, stop ->
            tape, hidden [B, stop - start, C]`: some slots of a tree whose root's pair is in
            the carry, and whose other parents are on the tape. `start` and `stop` are
            static, and `start` is at least 1.
        keep: `tape, slots [B, K] -> tape` of `K` slots, as a `LanguageModel`'s.
        logits: `params, hidden [..., C] -> [..., V]` float32.
        vocab_size: `V`.
        hidden_size: `C`, the target's and its own.
    """

    init: Callable[..., Any]
    init_carry: Callable[..., Carry]
    scan: Callable[..., tuple[Carry, Array]]
    init_tape: Callable[..., Tape]
    extend_tree: Callable[..., tuple[Tape, Array]]
    keep: Callable[..., Tape]
    logits: Callable[..., Array]
    vocab_size: int
    hidden_size: int


@struct.dataclass
class Draft:
    """A tree of draft tokens and the laws (probability distributions) they were drawn from.

    The verifier needs nothing else. A node's first child is drawn from the softmax of its
    row of logits; a later sibling from the softmax of what has not been tested. In log
    space a law keeps its digits where one token has nearly all of it.

    Scores say which nodes to keep where there is no room for all (`budgets.limit`). They
    may depend on the history, on positions, and on the draft's laws and tokens above a
    node and before it among its siblings; never on what was drawn at the node or below.
    Nor may the company that a node is in: what ranks before it, earlier slots of no
    smaller score and later ones of a larger, is there, with these scores, whatever its
    token is.

    Attributes:
        tree: `N` slots, in the order in which they were drawn.
        kind: `[B, N]` int32, how each node was chosen: `DETERMINISTIC`, `IID` or
            `WITHOUT_REPLACEMENT`.
        draft_logits: `[B, M, V']` float32, of the `M` nodes that were expanded, filtered
            and over the temperature, up to a constant; `M = 0` where all nodes are
            deterministic.
        logits_row: `[B, N]` int32, row of `draft_logits` that a node's children are of.
        score: `[B, N]` float32 from 0 to 1, an estimate of the probability that the path
            down to the node survives: 1 at the root, 0 at padding, no larger at a child
            than at its parent, nor at a later sibling than at an earlier one.
        vocab_ids: `[V']` int32, tokens of the columns of a trimmed head; None for all.
        max_path: nodes on the longest path there can be, the root included.
        coupled: whether tokens were drawn with the noise that emits. Then they know more
            than their laws say, and only a verifier that uses no law may judge them.
    """

    tree: TokenTree
    kind: Array  # [B, N]
    draft_logits: Array  # [B, M, V']
    logits_row: Array  # [B, N]
    score: Array  # [B, N]
    vocab_ids: Array | None
    max_path: int = struct.field(pytree_node=False)
    coupled: bool = struct.field(pytree_node=False, default=False)

    DETERMINISTIC: ClassVar[int] = 0
    IID: ClassVar[int] = 1
    WITHOUT_REPLACEMENT: ClassVar[int] = 2


def deterministic_draft(
    tree: TokenTree, max_path: int, score: Array | None = None
) -> Draft:
    """Makes a draft whose nodes were all chosen without chance.

    Args:
        tree: the tree.
        max_path: nodes on the longest path there can be, the root included.
        score: `[B, N]` of each draft (`Draft.score`; 1 at the root and 0 at padding are
            put here). By default a half to the power of the depth: where nothing is known
            every other draft survives, and a budget keeps the upper levels.
    """
    if score is None:
        score = jnp.exp2(-trees.depth(tree).astype(jnp.float32))
    slots = jnp.arange(tree.num_nodes)[None]
    score = jnp.where(tree.parents >= 0, score.astype(jnp.float32), 0.0)
    zeros = jnp.zeros(tree.parents.shape, jnp.int32)
    return Draft(
        tree=tree,
        kind=zeros,
        draft_logits=jnp.zeros((tree.parents.shape[0], 0, 0), jnp.float32),
        logits_row=zeros,
        score=jnp.where(slots == 0, 1.0, score),
        vocab_ids=None,
        max_path=max_path,
    )


class Verdict(NamedTuple):
    """What the target makes of a draft.

    A row that emits `e` tokens keeps `e` nodes: the root and `e - 1` accepted drafts. Its
    last token is the target's own and becomes the next root (or, where a stop or a budget
    cut the path, whatever stood there).

    Attributes:
        path: `[B, D]` int32, the accepted nodes, the root first, -1 padded.
        num_accepted: `[B]` int32, accepted drafts, the root not counted.
        next_token: `[B]` int32, the token emitted last.
        logprobs: `[B, D]` float32, of the emitted tokens under the target's raw logits.
    """

    path: Array  # [B, D]
    num_accepted: Array  # [B]
    next_token: Array  # [B]
    logprobs: Array  # [B, D]


def emitted_tokens(tree: TokenTree, verdict: Verdict) -> tuple[Array, Array]:
    """What a verdict emits: tokens `[B, D]`, 0 padded, and how many `[B]`.

    They are the tokens of the path after the root, and the verdict's own token.
    """
    count = jnp.sum(verdict.path >= 0, axis=1, dtype=jnp.int32)
    path = ragged.take(tree.tokens, jnp.maximum(verdict.path, 0))
    accepted = jnp.pad(path[:, 1:], ((0, 0), (0, 1)))
    slots = jnp.arange(path.shape[1])[None]
    tokens = jnp.where(slots < count[:, None] - 1, accepted, 0)
    tokens = jnp.where(slots == count[:, None] - 1, verdict.next_token[:, None], tokens)
    return tokens, count


class Outcome(NamedTuple):
    """What a verified draft has led to: all that a drafter, a server or a report needs.

    Stops and budgets cut a path after it was verified. `shown` and `kept` are of the uncut
    path, so that the end of a text is never taken for a rejection; in a row that was done
    before the step both are empty.

    Attributes:
        tree: the tree that was verified: that of the draft, within the budget of each row.
        verdict: what the row emits, cut.
        tokens: `[B, D]` int32, the emitted tokens, 0 padded.
        count: `[B]` int32, how many they are; 0 in a row that was done.
        hidden: `[B, N, C]`, the target's.
        logits: `[B, N, V]` float32, the target's, raw.
        shown: `[B, N]` bool, drafts whose parent the verifier reached, which it accepted or
            could have accepted.
        kept: `[B, N]` bool, drafts that it accepted.
    """

    tree: TokenTree
    verdict: Verdict
    tokens: Array  # [B, D]
    count: Array  # [B]
    hidden: Array  # [B, N, C]
    logits: Array  # [B, N, V]
    shown: Array  # [B, N]
    kept: Array  # [B, N]


class Context(NamedTuple):
    """The texts that a drafter proposes continuations of.

    Attributes:
        tokens: `[B, L]` int32, the texts so far, 0 beyond their lengths.
        lengths: `[B]` int32, at least 1; the last token is the root.
        keys: `[B]` typed keys, the texts' own; noise is drawn with `sampling.noise_key`.
        sampling: how the target is sampled, which a drafter may imitate; its position is
            the root's.
        budget: `[B]` int32, draft nodes that will be verified at most, 0 in a row that is
            done. What is beyond is cut (`limit`); a drafter may save itself the work.
    """

    tokens: Array  # [B, L]
    lengths: Array  # [B]
    keys: Array  # [B]
    sampling: Sampling
    budget: Array  # [B]

    @property
    def root(self) -> Array:
        """`[B]` int32, the last token of every row."""
        return ragged.take_one(self.tokens, self.lengths - 1)


class Drafter(NamedTuple):
    """Proposes trees of draft tokens.

    Its state is a value with the same leaves after every `init`, `absorb` and `observe`;
    `propose` may add to it what `observe` needs. It holds what the target has absorbed and
    not the root. Whoever decodes without the drafter tells it so with `absorb`.

    Attributes:
        init: `params, batch_size, max_length -> state`, of texts without tokens, with room
            for `max_length` of them and a path.
        absorb: `params, state, tokens [B, T], hidden [B, T, C], lengths [B] -> state`: the
            target has read the first `lengths[b]` tokens, perhaps none, as in its `scan`,
            and has the hidden after each: a prompt, a piece of one, or what was decoded
            without drafts.
        propose: `params, state, Context -> state, Draft`.
        observe: `params, state, Outcome -> state`: what became of the draft, after stops
            and budgets: the target has read `outcome.verdict.path`. A row that is done has
            an empty path, and its state must not change.
        max_path: nodes on the longest path it proposes, the root included.
        vocab_size: `V` if it has one of its own, else None.
    """

    init: Callable[..., Any]
    absorb: Callable[..., Any]
    propose: Callable[..., tuple[Any, Draft]]
    observe: Callable[..., Any]
    max_path: int
    vocab_size: int | None


class Verifier(NamedTuple):
    """Decides which drafts the target accepts, so that its law is kept.

    Attributes:
        verify: `keys [B], draft, logits [B, N, V], Sampling -> Verdict`; the logits are
            the target's, raw and float32.
    """

    verify: Callable[..., Verdict]
