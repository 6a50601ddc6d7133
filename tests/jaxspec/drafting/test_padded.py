"""Draft models whose tables are padded to another size than the target's."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxspec
import texts
import tiny
from jaxspec import trees
from jaxspec.drafting.beam import stochastic_beam
from jaxspec.drafting.best_first import best_first
from jaxspec.drafting.dyspec import dyspec
from jaxspec.drafting.fusion import Pair
from jaxspec.drafting.model import draft_model
from jaxspec.drafting.ngram import ngram
from jaxspec.drafting.padded import with_vocab_size
from jaxspec.drafting.rasd import rasd
from jaxspec.drafting.static import static_tree
from jaxspec.models import hybrid

SMALL, LARGE = tiny.VOCAB - 12, tiny.VOCAB + 8
BUILDERS = {
    "top-k": static_tree((3, 2)),
    "rsd-c": static_tree((2, 2), "without_replacement"),
    "rsd-c-shared": static_tree((2, 2), "without_replacement", "shared"),
    "rsd-s": stochastic_beam(2, 3),
    "dyspec": dyspec(6, 2),
    "dyspec-shared": dyspec(6, 2, noise="shared"),
    "best-first": best_first(6, 2, 2),
    "rasd": None,
}
QUICK = {("rsd-s", LARGE), ("dyspec-shared", SMALL), ("rasd", SMALL)}
CASES = [
    pytest.param(
        name,
        size,
        marks=() if (name, size) in QUICK else (pytest.mark.thorough,),
    )
    for name in BUILDERS
    for size in (SMALL, LARGE)
]


@functools.cache
def draft(size, name=texts.DRAFT):
    """A model and its params: the rows that the tables share are those of `name`."""
    config = dataclasses.replace(tiny.CONFIGS[name], vocab_size=size)
    model = hybrid.language_model(config, max_path=texts.MAX_PATH)
    params = dict(tiny.params(name))
    table = params["embed"]["embedding"][:size]
    more = 3.0 * jax.random.normal(
        jax.random.key(7), (size - len(table), table.shape[1])
    )
    params["embed"] = {"embedding": jnp.concatenate([table, more])}
    return model, params


def make(name, size):
    model, params = draft(size)
    model = with_vocab_size(model, tiny.VOCAB)
    if name == "rasd":
        retriever = ngram(6, texts.MAX_PATH, min_match=1)
        builder = static_tree((2, 1), "without_replacement")
        return rasd(model, builder, retriever), Pair(params, None)
    return draft_model(model, BUILDERS[name]), params


@pytest.mark.parametrize("name, size", CASES)
def test_the_text_is_the_targets(name, size):
    drafter, params = make(name, size)
    state, info = texts.speculative(drafter, params, **texts.SAMPLED)
    texts.check_same(state, texts.baseline("sampled"))
    assert (np.asarray(state.tokens) >= SMALL).any()  # the smaller draft lacks some
    assert info.kept[:, 1:].sum() > 0


@pytest.mark.parametrize("name", [name for name in BUILDERS if name != "rasd"])
@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_what_one_of_the_tables_lacks_is_never_drafted(name, size):
    drafter, params = make(name, size)
    settings = {"temperature": jnp.array([0.0, 1.0, 2.0])}
    weights, state = texts.start(drafter, params, **settings)
    propose = jax.jit(jaxspec.propose, static_argnames="drafter")
    _, found = propose(weights, state, drafter=drafter)
    drafted = np.asarray(found.tree.tokens)[np.asarray(found.tree.parents) >= 0]
    assert drafted.size and 0 <= drafted.min() and drafted.max() < min(size, tiny.VOCAB)


def test_a_token_that_the_draft_lacks_is_read_as_its_last():
    model, params = draft(SMALL)
    resized = with_vocab_size(model, tiny.VOCAB)
    carry = model.init_carry(params, 1, 8)
    seen, last = jnp.array([[5, tiny.VOCAB - 1]]), jnp.array([[5, SMALL - 1]])
    found, hidden = resized.scan(params, carry, seen, jnp.array([2]))
    expected, alike = model.scan(params, carry, last, jnp.array([2]))
    np.testing.assert_array_equal(hidden, alike)
    for own, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_array_equal(own, other)
    logits = np.asarray(resized.logits(params, hidden))
    assert np.isfinite(logits[..., :SMALL]).all() and logits.shape[-1] == tiny.VOCAB
    assert np.isneginf(logits[..., SMALL:]).all()


def test_what_reads_beyond_its_table_is_never_asked_to():
    """Looked up as it is, a token beyond the table would be NaN here."""
    rows = jnp.eye(3)

    def step(params, state, token):
        return state, rows.at[token].get(mode="fill", fill_value=jnp.nan)

    model = jaxspec.from_step(
        step,
        lambda params, batch: jnp.zeros((batch, 1)),
        lambda params, hidden: hidden,
        vocab_size=3,
        max_path=3,
    )
    model = with_vocab_size(model, 5)
    carry = model.init_carry(None, 1, 8)
    token, tree = jnp.array([4]), trees.chain(jnp.array([[4, 3]]))
    seen = [model.step(None, carry, token)[1], model.scan_tree(None, carry, tree)[2]]
    seen += [model.scan(None, carry, token[None], jnp.array([1]))[1]]
    tape = model.init_tape(None, 1, 2)
    prepared = model.prepare(None, carry)
    seen += [model.extend_tree(None, prepared, tape, tree, 0, 2)[1]]
    for hidden in seen:
        logits = model.logits(None, hidden)
        expected = np.broadcast_to([0.0, 0.0, 1.0, -np.inf, -np.inf], logits.shape)
        np.testing.assert_array_equal(logits, expected)


def test_noise_is_shared_over_the_targets_tokens():
    """So that the target itself, padded, drafts what is emitted, all of it."""
    model, params = draft(LARGE, texts.TARGET)
    model = with_vocab_size(model, tiny.VOCAB)
    chain = static_tree((1, 1, 1), "without_replacement", "shared")
    settings = {"temperature": 1.0, "max_new_tokens": 11}
    state, info = texts.speculative(draft_model(model, chain), params, **settings)
    texts.check_same(state, texts.autoregressive(**settings))
    steps = np.asarray(info.target_calls)
    written = np.asarray(state.lengths - state.prompt_lengths)
    np.testing.assert_array_equal(steps, -(-written // 4))


def test_the_same_size_is_the_same_model():
    model, _ = draft(SMALL)
    assert with_vocab_size(model, SMALL) is model
    assert with_vocab_size(model, 9) == with_vocab_size(model, 9)
    assert jaxspec.with_vocab_size is with_vocab_size
    with pytest.raises(ValueError, match="vocab_size must be positive, got 0"):
        with_vocab_size(model, 0)
