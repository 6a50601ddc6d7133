"""How much each verifier accepts: against closed forms, and against what can be had.

For drafts of any joint law `J` at one node, no lossless verifier accepts more than

    1 + min over sets H of tokens of (p(H) - Pr_J(all drafts are in H)).
"""

import itertools

import numpy as np
import pytest

import documented
import enumeration
import lossless
from jaxspec.drafting.static import static_tree
from jaxspec.verification.recursive_rejection import recursive_rejection
from jaxspec.verification.sample_and_match import sample_and_match
from jaxspec.verification.traversal import traversal

VOCAB = 4
VERIFIERS = [sample_and_match(), recursive_rejection(), traversal()]
BUILDERS = {
    "one draw": static_tree((1,), "iid"),
    "two with replacement": static_tree((2,), "iid"),
    "two without": static_tree((2,), "without_replacement"),
    "three without": static_tree((3,), "without_replacement"),
    "the two likeliest": static_tree((2,), "top_k"),
}


def optimum(drafts, target):
    """The most that any lossless verifier accepts."""
    sets = {}
    for key, probability in drafts.items():
        tree = lossless.thawed(key).tree
        tokens = frozenset(tree.tokens[0, tree.parents[0] == 0].tolist())
        sets[tokens] = sets.get(tokens, 0.0) + probability
    most = 1.0
    for size in range(VOCAB + 1):
        for inside in map(set, itertools.combinations(range(VOCAB), size)):
            covered = sum(chance for tokens, chance in sets.items() if tokens <= inside)
            most = min(most, 1.0 + sum(target[t] for t in inside) - covered)
    return most


@pytest.mark.parametrize("name", BUILDERS)
def test_no_more_than_the_optimum(name, monkeypatch):
    rates, best = [], []
    for seed in range(3):
        tables = lossless.tables(VOCAB, 10 + seed)
        drafts, _ = lossless.drafts_of_builder(BUILDERS[name], monkeypatch, tables[1])
        target = enumeration.softmax(lossless.follow(tables[0], ()))
        best.append(optimum(drafts, target))
        rates.append([])
        for verifier in VERIFIERS:
            written = lossless.Written(verifier, drafts, monkeypatch, table=tables[0])
            assert written.distance < 1e-12
            rates[-1].append(written.tokens - 1.0)
            assert rates[-1][-1] <= best[-1] + 1e-12
    cells = [*np.mean(rates, axis=0), np.mean(best)]
    documented.row("acceptance", name, *(f"{cell:.3f}" for cell in cells))


def test_one_draw_is_accepted_with_the_overlap_of_the_laws(monkeypatch):
    tables = lossless.tables(VOCAB, 10)
    drafts, _ = lossless.drafts_of_builder(BUILDERS["one draw"], monkeypatch, tables[1])
    p, q = (enumeration.softmax(lossless.follow(table, ())) for table in tables)
    for verifier in VERIFIERS[1:]:
        written = lossless.Written(verifier, drafts, monkeypatch, table=tables[0])
        assert abs(written.tokens - 1.0 - np.minimum(p, q).sum()) < 1e-12


@pytest.mark.parametrize("verifier", VERIFIERS[1:])
def test_the_targets_own_drafts_are_all_accepted(verifier, monkeypatch):
    table = lossless.tables()[0]
    builder = static_tree((2, 1), "without_replacement")
    drafts, _ = lossless.drafts_of_builder(builder, monkeypatch, table)
    assert abs(lossless.Written(verifier, drafts, monkeypatch).tokens - 3.0) < 1e-12


def test_traversal_may_keep_less_below_the_root(monkeypatch):
    """One draft of weight a third, then two: what is left suits the second one less."""
    tiny = 1e-30
    first = np.log([1 / 3, 2 / 9, 2 / 9, 2 / 9]), np.log([1.0, tiny, tiny, tiny])
    then = (
        np.log([0.2206, 0.2722, 0.0534, 0.4538]),
        np.log([0.9463, 0.0202, 0.0335, tiny]),
    )
    tables = np.zeros((2, VOCAB**2, VOCAB))
    tables[:, VOCAB * lossless.BEFORE + lossless.ROOT] = first
    tables[:, VOCAB * lossless.ROOT] = then
    builder = static_tree((1, 2), "without_replacement")
    drafts, _ = lossless.drafts_of_builder(builder, monkeypatch, tables[1])
    written = [
        lossless.Written(verifier, drafts, monkeypatch, table=tables[0])
        for verifier in VERIFIERS[1:]
    ]
    assert max(w.distance for w in written) < 1e-12
    assert written[1].tokens < written[0].tokens - 5e-4


def block_verification(p, q, drafts):
    """Tokens per call of a chain (Sun et al. 2024), by its own formulas.

    Args:
        p: `p(path) -> [V]`, the target's law.
        q: the draft's.
        drafts: `{tokens: probability}`.
    """
    expected = 0.0
    for tokens, probability in drafts.items():
        reach, keep = [1.0], []
        for i, token in enumerate(tokens):
            ratio = p(tokens[:i])[token] / q(tokens[:i])[token]
            reach.append(min(1.0, reach[-1] * ratio))
        for i in range(1, len(tokens)):
            path = tokens[:i]
            left = np.maximum(reach[i] * p(path) - q(path), 0.0).sum()
            keep.append(left / (left + 1.0 - reach[i]) if reach[i] < 1 else 1.0)
        keep.append(reach[-1])
        above = 1.0  # no longer prefix is kept
        for length in range(len(tokens), 0, -1):
            expected += probability * length * above * keep[length - 1]
            above *= 1.0 - keep[length - 1]
    return 1.0 + expected


@pytest.mark.parametrize("length", [1, 2, 3])
def test_traversal_of_a_chain_is_block_verification(length, monkeypatch):
    builder = static_tree((1,) * length, "iid")
    drafts, _ = lossless.drafts_of_builder(builder, monkeypatch)
    chains = {}
    for key, probability in drafts.items():
        chains[tuple(lossless.thawed(key).tree.tokens[0, 1:].tolist())] = probability

    def law(table):
        return lambda path: enumeration.softmax(lossless.follow(table, path))

    p, q = map(law, lossless.tables())
    written = lossless.Written(traversal(), drafts, monkeypatch)
    assert abs(written.tokens - block_verification(p, q, chains)) < 1e-12
    single = lossless.Written(recursive_rejection(), drafts, monkeypatch)
    assert (written.tokens > single.tokens + 1e-3) == (length > 1)
