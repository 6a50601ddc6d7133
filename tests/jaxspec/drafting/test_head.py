"""A head drafts beside its target, and its past is of what the target made of the text."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import contexts
import jaxspec
import texts
import tiny
from jaxspec import sharding
from jaxspec.core import Verdict
from jaxspec.drafting.beam import stochastic_beam
from jaxspec.drafting.best_first import best_first
from jaxspec.drafting.dyspec import dyspec
from jaxspec.drafting.head import draft_head
from jaxspec.drafting.model import Trimmed
from jaxspec.drafting.static import static_tree
from jaxspec.models import mtp
from jaxspec.verification.recursive_rejection import recursive_rejection
from jaxspec.verification.traversal import traversal

CONFIG, HEAD, params = texts.HEADED, texts.HEAD, texts.head_params
MIXED = {"temperature": jnp.array([0.8, 0.0, 1.3]), "top_k": jnp.array([0, 0, 9])}


@functools.cache
def expected(is_greedy):
    return texts.baseline("greedy") if is_greedy else texts.autoregressive(**MIXED)


CASES = {  # builder, and a verifier other than the default
    "one draft": (static_tree((1,)), None),
    "static": (static_tree((3, 1), "without_replacement"), recursive_rejection()),
    "beam": (stochastic_beam(2, 3), traversal()),
    "dyspec": (dyspec(6, 2), None),
    "best first": (best_first(6, 2, 2), None),
}


@pytest.mark.parametrize("name", CASES)
def test_the_text_is_the_autoregressive_one(name):
    """Rows end at different times, and one has a prompt of one token."""
    builder, verifier = CASES[name]
    settings = MIXED if verifier is None else texts.GREEDY
    drafter, model = draft_head(HEAD, builder), texts.target()
    both, state = texts.start(drafter, params(), **settings)
    options = {"target": model, "drafter": drafter, "verifier": verifier}
    state, _ = jaxspec.speculative_generate(both, state, **options)
    texts.check_same(state, expected(verifier is not None))
    if name == "best first":
        check_past(drafter, state)


def check_past(drafter, state):
    """It is what a prefill of the whole text makes: nothing is left of drafts."""
    model, (rows, width) = texts.target(), state.tokens.shape
    carry = model.init_carry(tiny.params(texts.TARGET), rows, width)
    args = tiny.params(texts.TARGET), carry, state.tokens, state.lengths - 1
    _, hidden = jax.jit(model.scan)(*args)

    @jax.jit
    def read(params, state, hidden):
        fresh = drafter.init(params, rows, width - texts.MAX_PATH)
        fresh = drafter.absorb(params, fresh, state.tokens, hidden, state.lengths - 1)
        return drafter.propose(params, fresh, state.context)[0]  # reads the last pair

    found, fresh = state.drafter, read(params(), state, hidden)
    np.testing.assert_array_equal(found.carry.position, state.lengths - 1)
    for one, other in zip(*map(jax.tree.leaves, (found, fresh)), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_a_row_that_is_done_does_not_change():
    drafter = draft_head(HEAD, (2, 1))
    _, state = texts.start(drafter, params())
    path = jnp.array([[-1, -1, -1], [0, 1, 3], [-1, -1, -1]])
    verdict = Verdict(path, jnp.array([0, 2, 0]), jnp.array([7, 7, 7]), None)
    hidden = jnp.full((3, 5, CONFIG.d_model), 0.5)

    @jax.jit
    def turn(params, before):
        between, draft = drafter.propose(params, before, state.context)
        outcome = contexts.outcome(draft.tree, verdict, hidden)
        return between, drafter.observe(params, between, outcome)

    before, after = turn(params(), state.drafter)  # between the last pair is read
    assert not before.due.any() and not after.due.any()
    before, after = before._replace(due=None), after._replace(due=None)
    for one, other in zip(*map(jax.tree.leaves, (before, after)), strict=True):
        np.testing.assert_array_equal(one[::2], other[::2])
        assert (one[1] != other[1]).any()


def test_a_mesh_writes_the_same_text():
    """The head is cut as its target is, and shares what is cut already."""
    drafter, model = draft_head(HEAD, (2, 1)), texts.target()
    shape = mtp.mtp_config(CONFIG)
    with sharding.mesh(tensor=2, devices=jax.devices()[:2]) as mesh:
        target = sharding.shard_params(CONFIG, tiny.params(texts.TARGET), mesh)
        own = sharding.shard_params(shape, params(), mesh)
        both = jaxspec.Params(target, mtp.share(own, target))
        tokens, lengths = jaxspec.pad_prompts(texts.PROMPTS, multiple=16)
        records = {"target": model, "drafter": drafter}
        room = {"max_length": texts.MAX_LENGTH, "max_new_tokens": texts.BUDGETS}
        state = jaxspec.init_state(both, tokens, lengths, **records, **room)
        state = sharding.shard_state(CONFIG, state, mesh, shape)
        keys = state.drafter.carry.blocks[0][0].keys
        assert keys.sharding.spec[2] == "tensor"
        state, _ = jaxspec.speculative_generate(both, state, **records)
    texts.check_same(state, expected(True))


def test_equal_settings_give_equal_drafters():
    again = mtp.mtp_head(dataclasses.replace(CONFIG))
    assert draft_head(HEAD, [2, 1]) == draft_head(again, (2, 1))
    assert draft_head(HEAD, [2, 1]) != draft_head(HEAD, (1, 2))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="draws 49 children.*has 48 tokens"):
        draft_head(HEAD, (tiny.VOCAB + 1,))
    with pytest.raises(ValueError, match="no multi-token-prediction head"):
        mtp.mtp_head(tiny.CONFIGS[texts.TARGET])
    drafter, prompt = draft_head(HEAD), jnp.ones((1, 4), jnp.int32)
    state = drafter.init(params(), 1, 16)
    with pytest.raises(ValueError, match=r"got \(1, 4, 8\); is it the target's own"):
        hidden = jnp.zeros((1, 4, 8))
        drafter.absorb(params(), state, prompt, hidden, jnp.array([3]))
    narrow = Trimmed(params(), jnp.arange(2))
    with pytest.raises(ValueError, match="draws 3 children .* trimmed head has 2 tok"):
        draft_head(HEAD, (3,)).init(narrow, 1, 16)


@pytest.mark.parametrize(
    "blocks, message",
    [("M", "Unknown block 'M' in mtp"), ("*E", "a block 'E', which needs .*`moe`")],
)
def test_heads_attend_or_have_no_past(blocks, message):
    config = dataclasses.replace(CONFIG, moe=None)
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, mtp=blocks)
