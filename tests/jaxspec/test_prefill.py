"""Prompts are absorbed in pieces, from any past, and by whoever skipped a step."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxspec as js
import texts
import tiny
from jaxspec import decode_state
from jaxspec.drafting import datastore
from jaxspec.drafting.fusion import Pair
from jaxspec.models import mtp

CONFIG = dataclasses.replace(tiny.CONFIGS[texts.TARGET], mtp="*-")
HEAD = mtp.mtp_head(CONFIG)
CHUNK = 5
PROMPT = np.random.default_rng(0).integers(0, tiny.VOCAB, (3, 16)).astype(np.int32)
LENGTHS = jnp.array([16, 1, 12])
ROOM = {"max_length": 40, "max_new_tokens": 14}


def _head_params():
    own = jax.jit(HEAD.init)(jax.random.key(3))
    return mtp.share(own, tiny.params(texts.TARGET))


def _model():
    return tiny.model(texts.DRAFT, max_path=texts.MAX_PATH)


def _store():
    return datastore.build(PROMPT.tolist())


DRAFTERS = {
    "n-grams": lambda: (js.ngram(6, 4, min_match=1), None),
    "draft model": lambda: (js.draft_model(_model(), (2, 1)), tiny.params(texts.DRAFT)),
    "head": lambda: (js.draft_head(HEAD, (2, 1)), _head_params()),
    "recycling": lambda: (js.recycling(tiny.VOCAB, (2, 1)), None),
    "RASD": lambda: (
        js.rasd(_model(), js.chain(2), js.retrieval(4, 3, min_match=1), keep=9),
        Pair(tiny.params(texts.DRAFT), _store()),
    ),
    "two look-ups": lambda: (
        js.fuse(js.ngram(4, 3, min_match=1), js.retrieval(4, 3, min_match=1), 6),
        Pair(None, _store()),
    ),
    "nothing": lambda: (js.silent(2), None),
}
drafters = pytest.mark.parametrize("name", DRAFTERS)


@functools.cache
def machinery(name, rollback="replay"):
    drafter, own = DRAFTERS[name]()
    target = texts.target(rollback)
    return {"target": target, "drafter": drafter}, js.Params(
        tiny.params(texts.TARGET), own
    )


def begin(name, rollback="replay", **options):
    records, params = machinery(name, rollback)
    options = {"lengths": LENGTHS} | ROOM | options
    return js.init_state(params, options.pop("prompt", PROMPT), **records, **options)


def finish(name, state, rollback="replay"):
    records, params = machinery(name, rollback)
    return js.speculative_generate(params, state, **records)[0]


def same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = map(jax.random.key_data, (a, b))
        np.testing.assert_array_equal(a, b)


def past_of(name, lengths):
    """A past of the first tokens of each prompt, read in pieces of `CHUNK`."""
    records, params = machinery(name)
    past = js.init_past(params, 3, ROOM["max_length"], **records)
    for start in range(0, int(max(lengths)), CHUNK):
        count = jnp.clip(jnp.asarray(lengths) - start, 0, CHUNK)
        piece = PROMPT[:, start : start + CHUNK]
        past = js.absorb(params, past, piece, count, **records)
    return past


@drafters
@pytest.mark.parametrize("known", [(0, 0, 0), (5, 0, 10), (15, 0, 5)])
def test_at_equal_borders_the_bits_are_equal_whatever_is_known(name, known):
    """Every row at its own piece: nothing of it, some, and all but the root."""
    past = past_of(name, known)
    assert past.lengths.tolist() == list(known)
    found = begin(name, past=past, chunk_size=CHUNK)
    same(found, begin(name, chunk_size=CHUNK))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(past))
    same(past, past_of(name, known))  # a past is a value


@pytest.mark.parametrize("name", ["draft model", "head", "RASD"])
def test_pieces_write_the_text_of_the_whole(name):
    whole, pieces = begin(name), begin(name, chunk_size=3)
    assert whole.carry.position.tolist() == pieces.carry.position.tolist()
    texts.check_same(finish(name, pieces), finish(name, whole))


def test_a_past_serves_every_prompt_that_begins_with_it():
    """Also a wider one, and the text is that of the whole prompt."""
    longer = np.concatenate([PROMPT[:, :10], PROMPT[:, :9]], axis=1)
    options = {"prompt": longer, "lengths": jnp.array([19, 13, 12])}
    found = begin("draft model", past=past_of("draft model", (10, 10, 5)), **options)
    texts.check_same(
        finish("draft model", found),
        finish("draft model", begin("draft model", **options)),
    )


@pytest.mark.parametrize(
    "name, rollback",
    [("draft model", rollback) for rollback in ("replay", "lazy", "joint", "snapshot")]
    + [(name, "replay") for name in ("head", "recycling", "n-grams")],
)
def test_whoever_skipped_steps_catches_up(name, rollback):
    """Steps without drafts in between: the drafter is told, and goes on as if drafting."""
    records, params = machinery(name, rollback)
    target, drafter = records.values()

    @jax.jit
    def plain(params, state):
        carry, hidden = target.step(params.target, state.carry, state.root)
        logits = target.logits(params.target, hidden)
        own = drafter.absorb(
            params.drafter,
            state.drafter,
            state.root[:, None],
            hidden[:, None],
            jnp.ones_like(state.lengths),
        )
        token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        logprob = jnp.max(logits, axis=-1) - jax.nn.logsumexp(logits, axis=-1)
        return decode_state.append(
            state.replace(carry=carry, drafter=own),
            token[:, None],
            logprob[:, None],
            jnp.ones_like(state.lengths),
        )

    state = begin(name, rollback)
    state, _ = js.speculative_generate(params, state, **records, max_steps=2)
    for _ in range(2):
        state = plain(params, state)
    expected = begin(name, rollback)
    while (expected.lengths < state.lengths).any():  # one token at a time, drafting
        ready = expected.replace(done=expected.lengths >= state.lengths)
        ready = ready.replace(limits=jnp.minimum(state.lengths, expected.lengths + 1))
        expected, _ = js.speculative_generate(params, ready, **records, max_steps=1)
    if name != "recycling":  # which learns from drafts
        propose = jax.jit(functools.partial(js.propose, drafter=drafter))
        drafts = [
            propose(params, each.replace(done=jnp.zeros(3, bool)))[1].tree
            for each in (state, expected)
        ]
        same(*drafts)
    whole = finish(name, begin(name, rollback), rollback)
    texts.check_same(finish(name, state, rollback), whole)


@pytest.mark.parametrize("kind", ["draft model", "head"])
def test_a_chain_of_none_keeps_up(kind):
    """A step by the root alone, and the drafts after it are those of the text."""
    records, params = machinery(kind)
    drafter = {
        "draft model": lambda: js.draft_model(_model(), js.chain(0)),
        "head": lambda: js.draft_head(HEAD, js.chain(0)),
    }[kind]()
    assert drafter.max_path == 1
    state = begin(kind)
    state, info = js.speculative_generate(
        params, state, target=records["target"], drafter=drafter, max_steps=3
    )
    assert info.drafted.tolist() == [0, 0, 0] and info.kept.sum() == 9
    texts.check_same(finish(kind, state), finish(kind, begin(kind)))


@pytest.mark.parametrize(
    "options, words",
    [
        ({"batch": 2}, "of 2 texts, and there are 3 prompts"),
        ({"max_length": 20, "wanted": 80}, "room for texts of .* max_length is 80"),
        ({"name": "draft model"}, r"another target or drafter: \.drafter"),
        ({"rollback": "lazy"}, r"another target or drafter: \.carry.*ring"),
        (
            {"lengths": (16, 0, 0)},
            r"absorbed \[16  0  0\] .* prompts have \[16  1 12\]",
        ),
    ],
)
def test_a_past_of_something_else_is_refused(options, words):
    name = options.get("name", "n-grams")
    records, params = machinery(name, options.get("rollback", "replay"))
    size = options.get("max_length", ROOM["max_length"])
    past = js.init_past(params, options.get("batch", 3), size, **records)
    if "lengths" in options:
        past = past.replace(lengths=jnp.array(options["lengths"]))
    with pytest.raises(ValueError, match=words):
        begin("n-grams", past=past, max_length=options.get("wanted"))


def test_what_is_no_past_is_refused():
    with pytest.raises(TypeError, match="Expected past to be a Past, got DecodeState"):
        begin("n-grams", past=begin("n-grams"))
    with pytest.raises(ValueError, match="chunk_size must be positive, got 0"):
        begin("n-grams", chunk_size=0)
