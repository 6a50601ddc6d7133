"""Two drafters in one tree: what each proposes alone, merged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import contexts
import tiny
from jaxspec import trees
from jaxspec.core import Verdict
from jaxspec.drafting import datastore
from jaxspec.drafting.fusion import Pair, fuse
from jaxspec.drafting.model import draft_model
from jaxspec.drafting.ngram import ngram
from jaxspec.drafting.rasd import rasd
from jaxspec.drafting.retrieval import retrieval
from jaxspec.drafting.static import chain
from texts import SETTINGS, baseline, check_same, settings, speculative

rng = np.random.default_rng(0)
STORE = datastore.build([rng.integers(0, 3, 40).tolist() for _ in range(5)])
TEXT = jnp.asarray(rng.integers(0, 3, (6, 12)), jnp.int32)
LENGTHS = jnp.array([12, 3, 7, 1, 9, 12])
FIRST, SECOND = ngram(6, 5), retrieval(12, 4)
PARAMS = Pair(None, STORE)


def propose(drafter, params):
    context = contexts.of_texts(TEXT, LENGTHS)
    state = drafter.init(params, 6, 40)
    return jax.jit(drafter.propose)(params, state, context)[1].tree


def strings(tree, row):
    """The tokens from below the root to every node, in order."""
    tokens = np.asarray(tree.tokens)[row]
    paths = [tiny.path_of(tree, row, node) for node in tiny.real_nodes(tree, row)]
    return [tuple(tokens[path[1:]].tolist()) for path in paths]


@pytest.mark.parametrize("num_nodes", [1, 8, 17, 20])
def test_the_first_ones_nodes_come_first_and_the_others_fill_the_rest(num_nodes):
    drafter = fuse(FIRST, SECOND, num_nodes)
    assert drafter.max_path == 5
    tree = trees.check(propose(drafter, PARAMS))
    alone = propose(FIRST, None)
    other = propose(SECOND, STORE)
    assert tree.num_nodes == num_nodes
    for row in range(6):
        both = [*strings(alone, row), *strings(other, row)]
        assert strings(tree, row) == list(dict.fromkeys(both))[:num_nodes]


@settings
def test_text_is_the_same_and_both_are_of_use(setting):
    """Row 1 is in the datastore; row 0 repeats itself, as greedy texts do."""
    state = baseline(setting)
    known = np.asarray(state.tokens[1, : state.lengths[1]]).tolist()
    drafter = fuse(ngram(6, 5, min_match=1), retrieval(6, 5, min_match=1), 11)
    params = Pair(None, datastore.build([known]))
    found, info = speculative(drafter, params, **SETTINGS[setting])
    check_same(found, state)
    assert 3 * info.target_calls[1] < info.kept[1].sum()
    if setting == "greedy":
        assert info.target_calls[0] < info.kept[0].sum()


SHORT = ngram(4, 3, min_match=1)  # its own paths are shorter than the joint ones
LONG = retrieval(12, 8, min_match=1)
JOINT = {
    "fuse": (fuse(SHORT, LONG, 14), Pair(None, STORE)),
    "fuse, the other way round": (fuse(LONG, SHORT, 14), Pair(STORE, None)),
    "in two": (fuse(fuse(SHORT, SHORT, 6), LONG, 14), Pair(Pair(None, None), STORE)),
    "rasd": (
        rasd(tiny.model("mamba2", max_path=8), chain(7), SHORT, keep=40),
        Pair(tiny.params("mamba2"), None),
    ),
}


@pytest.mark.parametrize("name", JOINT)
def test_drafts_at_the_end_of_the_cache_are_those_of_a_long_one(name):
    """One token is emitted at a time, up to the last that fits."""
    drafter, params = JOINT[name]
    text = jnp.asarray(np.tile([1, 2, 0, 2, 1, 1], (2, 3)), jnp.int32)
    keys, settings = jax.random.split(jax.random.key(0)), tiny.settings(2)

    @jax.jit
    def emit(state, tokens, lengths):
        context = contexts.of_texts(tokens, lengths, keys, settings)
        state, draft = drafter.propose(params, state, context)
        path = jnp.full((2, drafter.max_path), -1).at[:, 0].set(0)
        verdict = Verdict(path, jnp.zeros(2, jnp.int32), text[0, lengths], None)
        outcome = contexts.outcome(draft.tree, verdict)
        return drafter.observe(params, state, outcome), draft.tree

    def drafted(max_length):
        lengths, width = jnp.array([10, 9]), max_length + drafter.max_path
        whole = jnp.pad(text, ((0, 0), (0, width - text.shape[1])))
        state = drafter.init(params, 2, max_length)
        state = drafter.absorb(params, state, text, None, lengths - 1)
        for _ in range(8):
            live = jnp.arange(width)[None] < lengths[:, None]
            tokens = jnp.where(live, whole, 0)
            state, tree = emit(state, tokens, lengths)
            lengths = lengths + 1
            yield strings(tree, 0), strings(tree, 1)

    assert list(drafted(18)) == list(drafted(40))


def test_what_is_drawn_by_chance_is_refused():
    model = tiny.model("mamba2", max_path=5)
    drafter = fuse(FIRST, draft_model(model, chain(2)), 8)
    params = Pair(None, tiny.params("mamba2"))
    keys, sampling = jax.random.split(jax.random.key(0), 6), tiny.settings(6)
    state = jax.eval_shape(lambda: drafter.init(params, 6, 40))
    context = contexts.of_texts(TEXT, LENGTHS, keys, sampling)
    with pytest.raises(ValueError, match="without chance.*2 laws"):
        jax.eval_shape(drafter.propose, params, state, context)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="num_nodes >= 1, got 0"):
        fuse(FIRST, SECOND, 0)
    with pytest.raises(ValueError, match=r"vocabularies of \[7, 8\] tokens"):
        fuse(FIRST._replace(vocab_size=7), SECOND._replace(vocab_size=8), 4)


def test_equal_settings_give_equal_drafters():
    assert fuse(FIRST, SECOND, 8) == fuse(ngram(6, 5), retrieval(12, 4), num_nodes=8)
    assert fuse(FIRST, SECOND, 8) != fuse(SECOND, FIRST, 8)
