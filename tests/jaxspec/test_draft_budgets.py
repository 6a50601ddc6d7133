"""Budgets in the loop: rows are verified within them, and levels beyond are not read."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import contexts
import growing
import jaxspec as js
import texts
import tiny
from jaxspec.drafting.builder import Reader
from jaxspec.drafting.fusion import Pair

BUDGETS = [0, 2, 5]
MODEL = tiny.model(texts.DRAFT, max_path=texts.MAX_PATH)
LOOKUP = js.ngram(6, 4, min_match=1)
OWN = tiny.params(texts.DRAFT)
DRAFTERS = {
    "n-grams": (LOOKUP, None),
    "a chain": (js.draft_model(MODEL, js.chain(4)), OWN),
    "a tree": (
        js.draft_model(MODEL, js.static_tree((2, 2), "without_replacement")),
        OWN,
    ),
    "a beam": (js.draft_model(MODEL, js.stochastic_beam(2, 3)), OWN),
    "DySpec": (js.draft_model(MODEL, js.dyspec(7, 2, max_path=5)), OWN),
    "best first": (js.draft_model(MODEL, js.best_first(7, 2, 2)), OWN),
    "a head": (js.draft_head(texts.HEAD, (2, 1)), None),
    "RASD": (js.rasd(MODEL, js.chain(3), LOOKUP, keep=9), Pair(OWN, None)),
    "RASD, retrieval first": (
        js.rasd(MODEL, js.chain(3), LOOKUP, keep=9, order="retrieval first"),
        Pair(OWN, None),
    ),
}


@pytest.mark.parametrize("name", DRAFTERS)
def test_the_text_is_the_same_and_no_row_exceeds_its_budget(name):
    """Rows with none, few and many; then none has any, and then all have few."""
    drafter, own = DRAFTERS[name]
    own = texts.head_params() if name == "a head" else own
    params, state = texts.start(
        drafter, own, draft_budgets=BUDGETS, **texts.SETTINGS["sampled"]
    )
    go_on = functools.partial(
        js.speculative_generate, params, target=texts.target(), drafter=drafter
    )
    for budgets, steps in ((BUDGETS, 3), ([0, 0, 0], 2), ([1, 1, 3], None)):
        state, info = go_on(
            state.replace(draft_budgets=np.array(budgets)), max_steps=steps
        )
        most = np.array(budgets) * np.asarray(info.target_calls)
        assert (np.asarray(info.drafted) <= most).all()
        assert (np.asarray(info.kept[:, 1:].sum(axis=1)) <= info.drafted).all()
    texts.check_same(state, texts.baseline("sampled"))


LEVELS = {  # reads by the largest budget of all rows
    "a chain": (js.chain(3), {0: 0, 1: 1, 2: 2, 3: 3, 9: 3}),
    "a tree": (js.static_tree((2, 1, 1)), {0: 0, 1: 1, 2: 2, 3: 3, 9: 3}),
    "a beam": (js.stochastic_beam(2, 3), {0: 0, 1: 1, 2: 2, 9: 3}),
    "best first": (js.best_first(6, 2, 2), {0: 0, 1: 1, 2: 2, 9: 3}),
    "DySpec": (js.dyspec(5), {0: 0, 1: 4, 9: 4}),
}


@pytest.mark.parametrize("name", LEVELS)
def test_no_level_is_read_that_no_budget_reaches(name):
    builder, expected = LEVELS[name]
    reads = []

    def read(tape, tree, start, stop):
        jax.debug.callback(lambda: reads.append(start))
        return growing._read(False, tape, tree, start, stop)

    @jax.jit
    def build(budget):
        context = contexts.of_roots(growing.ROOT, growing.KEYS, growing.SETTINGS)
        tape = jnp.full((growing.BATCH, builder.num_read), -1)
        reader = Reader(read, None, growing.VOCAB)
        return builder.build(reader, tape, context._replace(budget=budget))

    whole = growing.grow(builder)
    for most, count in expected.items():
        reads.clear()
        budget = jnp.array([most] + [min(most, 1)] * (growing.BATCH - 1))
        built = build(budget)
        jax.effects_barrier()
        assert len(reads) == count
        found, kept = (js.limit(each, budget) for each in (built.draft, whole.draft))
        np.testing.assert_array_equal(found.tree.parents, kept.tree.parents)
        live = np.asarray(kept.tree.is_node)
        np.testing.assert_array_equal(found.tree.tokens[live], kept.tree.tokens[live])
        if count < max(expected.values()):  # what was not read is not on the tape
            assert (np.asarray(built.slots) < 0).sum() > (whole.slots < 0).sum()
