"""A batch that mixes all kinds of rows, written by the public functions and counted.

Models are tables: the next token depends on the last two. The head of a table looks at
what the target made of the token before, as a trained one does.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxspec as js
import kinds

VOCAB, MAX_PATH = 4, 4
ROOM = max(len(kind.prompt) for kind in kinds.KINDS.values()) + kinds.TOKENS
# With so many rows it is worth some of the time that tests else save on compiling.
OPTIONS = {"xla_backend_optimization_level": 1}


class Machinery(NamedTuple):
    """What writes, static to a compiled program."""

    target: js.LanguageModel
    drafter: js.Drafter
    verifier: js.Verifier
    check_every: int = 1


class Batch(NamedTuple):
    """Rows of every kind in turn, as `init_state` takes them."""

    prompts: np.ndarray
    lengths: np.ndarray
    settings: dict[str, np.ndarray]


def _place(before: jax.Array, token: jax.Array) -> jax.Array:
    """The hidden of a token: the row of the table that says what follows."""
    return (before * VOCAB + token)[..., None].astype(jnp.float32)


def _look_up(params: jax.Array, hidden: jax.Array) -> jax.Array:
    return params[hidden[..., 0].astype(jnp.int32)]


@functools.cache
def model() -> js.LanguageModel:
    """Params are logits `[(V + 1) V, V]`; before a text's first token stands `V`."""

    def step(params, before, token):
        return token, _place(before, token)

    def init_state(params, batch_size):
        return jnp.full((batch_size,), VOCAB, jnp.int32)

    return js.from_step(step, init_state, _look_up, vocab_size=VOCAB, max_path=MAX_PATH)


@functools.cache
def head() -> js.DraftHead:
    """Its params are such a table too; all its past is the hidden."""

    def read(tokens, before):
        return _place(before[..., 0].astype(jnp.int32) % VOCAB, tokens)

    def nothing(params, batch_size, size):
        return jnp.zeros((batch_size,), jnp.int32)

    def scan(params, carry, tokens, before, lengths):
        return carry, read(tokens, before)

    def extend_tree(params, carry, tape, tree, before, start, stop):
        return tape, read(tree.tokens[:, start:stop], before)

    return js.DraftHead(
        init=None,
        init_carry=nothing,
        scan=scan,
        init_tape=nothing,
        extend_tree=extend_tree,
        keep=lambda tape, slots: tape,
        logits=_look_up,
        vocab_size=VOCAB,
        hidden_size=1,
    )


def _plain() -> tuple[np.ndarray, np.ndarray]:
    """A target, and a draft that is like it but too sure.

    Then drafts are kept and refused about as often, which shows best if noise is used again
    in the next step. After some pairs two tokens are the likeliest, equally.
    """
    shape = 2, (VOCAB + 1) * VOCAB, VOCAB
    target, other = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    draft = np.float32(2.5) * target + np.float32(0.5) * other
    first, second = np.sort(target, axis=1)[:, :-3:-1].T[..., None]
    target[2::5] = np.where(target == second, first, target)[2::5]
    return target, draft


def _extreme() -> tuple[np.ndarray, np.ndarray]:
    """Every pair of tokens has one of three drafts that are sure of themselves.

    Of one token, where the others lie about the least number of float32, `exp(-87.3)`; of
    each token as against the next; or of tokens that are as good as impossible, while the
    others are so in the draft.
    """
    target, draft = _plain()
    rng = np.random.default_rng(1)
    style = np.arange(len(target))[:, None] % 4
    rank = np.argsort(np.argsort(-draft, axis=1), axis=1)
    unlikely = np.argsort(rng.random(target.shape), axis=1) < VOCAB // 2
    depth = rng.choice([6.0, 9.0, 40.0, 110.0], (2, len(target), 1))
    alone = np.array([0.0, -86.5, -87.5, -88.0])[rank]
    gaps = [alone, draft - 110.0 * rank, draft + unlikely * depth[0]]
    draft = np.select([style < 2, style == 2, style == 3], gaps)
    target = np.where(style == 3, target - unlikely * depth[1], target)
    return target.astype(np.float32), draft.astype(np.float32)


TABLES = {"plain": _plain(), "extreme": _extreme()}


@functools.cache
def laws(table: str) -> dict[str, np.ndarray]:
    """The law of each kind under a target's table, as `chi_square` takes it."""
    return laws_of(functools.partial(follow, TABLES[table][0]))


def follow(table: np.ndarray, text: tuple[int, ...]) -> np.ndarray:
    """Logits `[V]` after a text."""
    before, token = (VOCAB, *text)[-2:]
    return table[before * VOCAB + token]


def laws_of(
    follow: kinds.Follow, next_law: Callable[..., np.ndarray] = kinds.next_law
) -> dict[str, np.ndarray]:
    """Tables `[V + 1, ...]` of the texts of each kind, after any model."""
    found = {}
    for name, kind in kinds.KINDS.items():
        found[name] = np.zeros((VOCAB + 1,) * kinds.TOKENS)
        for text, probability in kinds.law(kind, follow, next_law).items():
            found[name][kinds.cell(text)] = probability
    return found


@functools.cache
def batch(size: int) -> Batch:
    """`size` rows of each kind."""
    every = list(kinds.KINDS.values()) * size
    prompts, lengths = js.pad_prompts([kind.prompt for kind in every], multiple=1)
    most = max(len(kind.stops) for kind in every)
    stops = [(*kind.stops, *(-1,) * most)[:most] for kind in every]
    settings = {
        "max_new_tokens": np.array([kind.budget for kind in every], np.int32),
        "temperature": np.array([kind.temperature for kind in every], np.float32),
        "top_k": np.array([kind.top_k for kind in every], np.int32),
        "top_p": np.array([kind.top_p for kind in every], np.float32),
        "stops": np.array(stops, np.int32),
    }
    return Batch(np.asarray(prompts), np.asarray(lengths), settings)


def begin(
    machinery: Machinery, params: js.Params, batch: Batch, seed
) -> js.DecodeState:
    """The state before the first step."""
    return js.init_state(
        params,
        batch.prompts,
        batch.lengths,
        target=machinery.target,
        drafter=machinery.drafter,
        max_length=ROOM,
        keys=jax.random.key(seed, impl="threefry2x32"),
        **batch.settings,
    )


def write(machinery: Machinery, params: js.Params, batch: Batch, seed):
    """The state after the last step, and the report."""
    state = begin(machinery, params, batch, seed)
    return js.speculative_generate(params, state, **machinery._asdict())


compiled = jax.jit(write, static_argnums=0, compiler_options=OPTIONS)


def counts(runs) -> dict[str, np.ndarray]:
    """How often each kind's texts were written in some runs, each a state and a report."""
    found = {name: np.zeros((VOCAB + 1,) * kinds.TOKENS) for name in kinds.KINDS}
    for state, info in runs:
        assert (np.asarray(info.target_calls) > 1).any()  # steps follow each other
        tokens, lengths = np.asarray(state.tokens), np.asarray(state.lengths)
        for i, (name, kind) in enumerate(kinds.KINDS.items()):
            own = slice(i, None, len(kinds.KINDS))
            places = len(kind.prompt) + np.arange(kinds.TOKENS)
            digits = np.where(places < lengths[own, None], tokens[own, places] + 1, 0)
            np.add.at(found[name], tuple(digits.T), 1.0)
    return found
