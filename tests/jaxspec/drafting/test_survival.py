"""Scores keep their promises: of order, and of what they do not know."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import contexts
import growing
import tiny
from jaxspec.drafting import survival
from jaxspec.drafting.beam import _Beams, _scores, stochastic_beam
from jaxspec.drafting.best_first import best_first
from jaxspec.drafting.dyspec import dyspec
from jaxspec.drafting.ngram import ngram
from jaxspec.drafting.recycling import ACCEPTANCE, recycling
from jaxspec.drafting.static import static_tree
from jaxspec.drafting.survival import Curve

CURVES = Curve((0.0, 1.0), (0.3, 0.9)), Curve((0.2, 0.8), (0.05, 0.4))
BUILDERS = {
    "chain": static_tree((1, 1, 1), "iid"),
    "SpecInfer": static_tree((3, 2), "iid"),
    "RSD-C": static_tree((3, 2), "without_replacement"),
    "Sequoia": static_tree((3, 2), "without_replacement", acceptance=(0.5, 0.1, 0.2)),
    "likeliest": static_tree((3, 2)),
    "RSD-S": stochastic_beam(3, 3),
    "EAGLE-2": best_first(9, 3, 2),
    "DySpec": dyspec(9),
    "DySpec in rounds": dyspec(12, 4),
    "DySpec, measured": dyspec(9, 2, acceptance=CURVES),
    "DySpec, shared": dyspec(9, 2, noise="shared", acceptance=CURVES),
    "RSD-C, shared": static_tree((3, 2), "without_replacement", "shared"),
}
builders = pytest.mark.parametrize("name", BUILDERS)


def check_order(tree, score):
    """1 at the root, 0 at padding, never more than above or before."""
    assert score.dtype == np.float32
    for row in range(len(score)):
        real = tiny.real_nodes(tree, row)
        assert score[row, 0] == 1.0
        assert (np.delete(score[row], real) == 0.0).all()
        for node in real[1:]:
            parent = tree.parents[row, node]
            assert 0.0 <= score[row, node] <= score[row, parent]
            for other in range(node):
                if tree.parents[row, other] == parent:
                    assert score[row, node] <= score[row, other]


@pytest.mark.parametrize("trimmed", [False, True])
@builders
def test_scores_descend(name, trimmed):
    draft = growing.grow(BUILDERS[name], trimmed).draft
    check_order(draft.tree, draft.score)
    assert len(np.unique(draft.score)) > 3


SILENT = "RSD-S", "EAGLE-2", "likeliest"  # its values decide; nothing is drawn


@pytest.mark.parametrize("name", [name for name in BUILDERS if name not in SILENT])
def test_a_score_is_known_before_the_token(name):
    """Rows that drew the same so far have the same score next, whatever the key."""
    same = tiny.settings(growing.BATCH, 1.0)
    root, seen, varied = jnp.full_like(growing.ROOT, 1), {}, 0
    for seed in range(20):
        keys = jax.random.split(jax.random.key(seed), growing.BATCH)
        draft = growing.grow(BUILDERS[name], keys=keys, root=root, settings=same).draft
        tree = draft.tree
        for tokens, parents, score in zip(
            tree.tokens, tree.parents, draft.score, strict=True
        ):
            for slot in range(1, tree.num_nodes):
                before = (*tokens[:slot].tolist(), *parents[: slot + 1].tolist())
                found = seen.setdefault(before, (score[slot], tokens[slot]))
                assert found[0] == score[slot]
                varied += found[1] != tokens[slot]
    assert varied > 20


def test_scores_of_draws_are_the_equations():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 3, 5)).astype(np.float32)
    logits -= logits.max(axis=2, keepdims=True)
    columns = np.argsort(rng.random((2, 3, 5)), axis=2)[:, :, :3].astype(np.int32)
    reach = rng.random((2, 3)).astype(np.float32)
    q = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    own = np.take_along_axis(q, columns, axis=2)
    most, u = q.max(axis=2)[:, :, None], reach[:, :, None]
    left = 1 - np.concatenate([0 * u, np.cumsum(own, axis=2)[:, :, :2]], axis=2)
    refused = np.concatenate([0 * u + 1, np.cumprod(1 - own, axis=2)[:, :, :2]], axis=2)
    expected = {
        "top_k": (u * own, u * own),
        "without_replacement": (u * np.minimum(most, left), u * own),
        "iid": (u * refused * most, u * refused * own),
    }
    for law, pair in expected.items():
        found = survival.of_draws(*map(jnp.asarray, (reach, logits, columns)), law)
        for one, other in zip(found, pair, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5)


def test_a_measured_topology_scores_by_ranks():
    parents = (-1, 0, 0, 0, 1, 1, 2)
    found = survival.of_ranks(parents, (0.5, 0.1, 0.2))
    np.testing.assert_allclose(found, [1, 0.5, 0.1, 0.1, 0.25, 0.05, 0.05])
    assert survival.of_ranks((-1, 0, 0), (0.5,)).tolist() == [1, 0.5, 0]


def test_a_beam_prefers_a_later_node_for_its_value_alone():
    """However its levels' own scores lie."""
    rng = np.random.default_rng(0)
    levels, value = [], np.zeros((50, 1))
    for width in (1, 3, 3):
        value = np.sort(
            rng.choice(value.ravel(), (50, width)) - rng.random((50, width))
        )
        score = jnp.asarray(rng.random((50, width)))
        levels.append(_Beams(score, jnp.asarray(value[:, ::-1]), score))
    found = np.asarray(_scores(levels, 9))
    assert (found[:, 7:] == 0.0).all()
    values = np.concatenate([each.value for each in levels], axis=1)
    own = np.concatenate([each.score for each in levels], axis=1)
    assert (found[:, :7] <= own).all()
    swapped = 0
    for i in range(7):
        for j in range(i + 1, 7):
            before = found[:, j] > found[:, i]
            assert (values[before, j] > values[before, i]).all()
            swapped += before.sum()
    assert swapped > 20


# --- DySpec by measured acceptance ---


def by_hand(row, num_nodes, curves):
    """A tree that takes the likeliest token where that promises most, one by one."""
    parents, paths = [-1] * num_nodes, {0: [int(growing.ROOT[row])]}
    scores, drawn, tested = [1.0] + [0.0] * (num_nodes - 1), {0: []}, {0: 1.0}

    def left(node):
        law = growing.law(growing.law_logits(row, paths[node]))
        law[drawn[node]] = 0.0
        return law / law.sum() if law.sum() > 1e-12 else law

    def value(node):
        before = [scores[n] for n in range(num_nodes) if parents[n] == node]
        curve = curves[min(len(drawn[node]), len(curves) - 1)]
        worth = tested[node] * np.interp(left(node).max(), *curve)
        return min([worth, scores[node], *before])

    for slot in range(1, num_nodes):
        node = max(paths, key=lambda n: (round(value(n), 6), -n))
        column = int(np.argmax(left(node)))
        curve = curves[min(len(drawn[node]), len(curves) - 1)]
        share = np.interp(left(node)[column], *curve)
        scores[slot], parents[slot] = value(node), node
        paths[slot], drawn[slot] = [*paths[node], column], []
        tested[slot] = tested[node] * share
        tested[node] *= 1.0 - share
        drawn[node].append(column)
    return parents, scores


def test_measured_acceptance_says_where_to_grow():
    greedy = tiny.settings(growing.BATCH, [0.0, 0.0, 0.0, 0.0])
    draft = growing.grow(dyspec(9, acceptance=CURVES), settings=greedy).draft
    plain = growing.grow(dyspec(9), settings=greedy).draft
    differ = 0
    growing_temperature = growing.TEMPERATURE[:]
    growing.TEMPERATURE[:] = [0.0] * 4
    try:
        for row in range(growing.BATCH):
            parents, scores = by_hand(row, 9, CURVES)
            assert draft.tree.parents[row].tolist() == parents
            np.testing.assert_allclose(draft.score[row], scores, rtol=1e-4)
            differ += parents != plain.tree.parents[row].tolist()
    finally:
        growing.TEMPERATURE[:] = growing_temperature
    assert differ > 0


def test_a_curve_is_linear_between_its_points():
    curve = Curve((0.2, 0.6), (0.1, 0.5))
    found = curve(jnp.array([0.0, 0.2, 0.3, 0.6, 1.0]))
    np.testing.assert_allclose(found, [0.1, 0.1, 0.2, 0.5, 0.5], rtol=1e-6)


@pytest.mark.parametrize(
    "bad, message",
    [
        (Curve((0.0, 1.0), (0.5, 0.2)), "none below the one before"),
        (Curve((0.0, 1.0), (0.5, 1.2)), "from 0 to 1"),
        (Curve((0.0, 1.0), (0.5,)), "a share for each of 2"),
        (Curve((), ()), "from 0 to 1"),
    ],
)
def test_what_is_no_curve_is_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        dyspec(4, acceptance=[bad])
    with pytest.raises(ValueError, match=message):
        survival.calibrated(ngram(4, 3), bad)
    with pytest.raises(ValueError, match="at least one rank"):
        dyspec(4, acceptance=[])


# --- Drafters ---


def proposed(drafter, state, text):
    context = contexts.of_texts([text])
    return drafter.propose(None, state, context)[1]


def test_a_look_up_scores_by_how_much_agrees():
    text = [1, 2, 3, 9, 1, 2, 4, 9, 1, 2]
    draft = jax.tree.map(np.asarray, proposed(ngram(7, 4, min_match=1), (), text))
    check_order(draft.tree, draft.score)
    first = np.flatnonzero(draft.tree.parents[0] == 0)
    agreed = {4: 2.0**3, 3: 2.0**2}  # 9 1 2 came before 4, and 1 2 before 3
    every = 1.0 + sum(agreed.values())
    for slot in first:
        expected = agreed[int(draft.tree.tokens[0, slot])] / every
        assert draft.score[0, slot] == pytest.approx(expected)


def test_recycled_nodes_score_by_rank():
    drafter = recycling(6, (2, 1), successors=2)
    state = drafter.init(None, 1, 8)
    state = state._replace(successors=jnp.ones_like(state.successors))
    draft = proposed(drafter, state, [1, 2])
    a, b = ACCEPTANCE[:2]
    np.testing.assert_allclose(draft.score[0], [1, a, b, a * a, a * b], rtol=1e-6)


def test_a_calibrated_drafter_proposes_the_same_with_other_scores():
    text, curve = [1, 2, 3, 9, 1, 2, 4, 9, 1, 2], Curve((0.1, 0.6), (0.2, 0.3))
    plain = ngram(7, 4, min_match=1)
    drafter = survival.calibrated(plain, curve)
    assert survival.calibrated(plain, curve) == drafter
    before, after = (proposed(own, (), text) for own in (plain, drafter))
    np.testing.assert_array_equal(before.tree.parents, after.tree.parents)
    mapped = np.interp(before.score[0, 1:], *curve)
    mapped[np.asarray(before.tree.parents[0, 1:]) < 0] = 0.0
    np.testing.assert_allclose(after.score[0, 1:], mapped, rtol=1e-5)
    assert after.score[0, 0] == 1.0
