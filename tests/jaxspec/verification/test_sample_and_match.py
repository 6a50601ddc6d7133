"""Sample and match emits the target's law: every way that it can go, enumerated."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import enumeration
import tiny
from jaxspec import sampling
from jaxspec.core import deterministic_draft
from jaxspec.trees import TokenTree
from jaxspec.verification import sample_and_match

VOCAB, MAX_PATH = 3, 3
TREES = {  # tokens, parents
    "root": ([2], [-1]),
    "chain": ([2, 0, 1], [-1, 0, 1]),
    "star": ([2, 0, 1, 2], [-1, 0, 0, 0]),
    "binary": ([2, 0, 1, 0, 2, 1, 2], [-1, 0, 0, 1, 1, 2, 2]),
    "padded": ([2, 1, 1, 0], [-1, -1, 0, 2]),
    "siblings alike": ([2, 1, 1, 0], [-1, 0, 0, 1]),
    "deeper than a path": ([2, 0, 0, 0, 0], [-1, 0, 1, 2, 3]),
}
trees = pytest.mark.parametrize("name", TREES)
emit = sampling.emit  # the shipped one


def make(name, seed=0):
    tokens, parents = (jnp.array(a, jnp.int32) for a in TREES[name])
    shape = (len(tokens), VOCAB)
    logits = 2.0 * jax.random.normal(jax.random.key(seed), shape)
    return TokenTree(tokens, parents), logits


def settings(temperature=1.0, top_k=0, top_p=1.0, position=4):
    return sampling.Sampling(
        jnp.float32(temperature),
        jnp.int32(top_k),
        jnp.float32(top_p),
        jnp.int32(position),
    )


def emitted(tree, verdict):
    """The tokens that a verdict emits, as a tuple."""
    path = [int(node) for node in verdict.path if node >= 0]
    assert len(path) == int(verdict.num_accepted) + 1
    return (*(int(tree.tokens[n]) for n in path[1:]), int(verdict.next_token))


def shipped_law(tree, logits, setting, monkeypatch):
    def verify(tree, logits, setting):
        needs = sampling.needs(jax.tree.map(lambda x: x[None], setting))
        key = enumeration.keys(1)[0]
        return sample_and_match.verify_row(key, tree, logits, setting, needs, MAX_PATH)

    program = enumeration.Program(verify, monkeypatch)
    return program.law(
        lambda verdict: emitted(tree, verdict), tree, np.float64(logits), setting
    )


def target_law(tree, laws, node=0, depth=1):
    """What the target alone emits, until it leaves the tree or the path is full."""
    law = {}
    for token in np.flatnonzero(laws[node] > 0):
        match = (tree.parents == node) & (tree.tokens == token)
        match &= jnp.arange(len(tree.tokens)) > 0
        after = {(): 1.0}
        if match.any() and depth < MAX_PATH:
            after = target_law(tree, laws, int(jnp.argmax(match)), depth + 1)
        for rest, probability in after.items():
            law[(int(token), *rest)] = laws[node][token] * probability
    return law


@trees
def test_the_law_is_the_targets(name, monkeypatch):
    tree, logits = make(name)
    law = shipped_law(tree, logits, settings(), monkeypatch)
    laws = np.stack([enumeration.softmax(row) for row in logits])
    assert abs(sum(law.values()) - 1.0) < 1e-12
    assert enumeration.distance(law, target_law(tree, laws)) < 1e-12


@trees
def test_the_law_is_the_filtered_targets(name, monkeypatch):
    tree, logits = make(name, seed=1)
    law = shipped_law(tree, logits, settings(0.5, top_k=2), monkeypatch)
    kept = np.asarray(logits, np.float64)
    kept = np.where(kept < np.sort(kept)[:, 1:2], -np.inf, kept)
    laws = np.stack([enumeration.softmax(row / 0.5) for row in kept])
    assert enumeration.distance(law, target_law(tree, laws)) < 1e-12


def drafted(tree):
    """`[V]` bool, the tokens of the root's children."""
    here = jnp.where(tree.parents == 0, tree.tokens, VOCAB)
    return jnp.any(here[:, None] == jnp.arange(VOCAB)[None], axis=0)


def second_chance(tree, key, *args):
    """The fault of sampling once per path: what was drafted may be drawn twice."""
    token = emit(key, *args)
    again = functools.partial(emit, jax.random.fold_in(key, 1), *args)
    return jax.lax.cond(drafted(tree)[token], lambda: token, again)


def leaning_to_the_drafts(tree, key, logits, setting, needs):
    leaning = logits + drafted(tree)
    return emit(key, leaning, setting, needs)


def colder(tree, key, logits, setting, needs):
    colder = setting._replace(temperature=0.5 * setting.temperature)
    return emit(key, logits, colder, needs)


@pytest.mark.parametrize("wrong", [second_chance, leaning_to_the_drafts, colder])
def test_wrong_emissions_have_another_law(wrong, monkeypatch):
    """What is asserted above would not hold of them."""
    tree, logits = make("chain")
    monkeypatch.setattr(sampling, "emit", functools.partial(wrong, tree))
    law = shipped_law(tree, logits, settings(), monkeypatch)
    laws = np.stack([enumeration.softmax(row) for row in logits])
    assert abs(sum(law.values()) - 1.0) < 1e-12
    assert enumeration.distance(law, target_law(tree, laws)) > 1e-3


@trees
def test_greedy_walks_down_the_argmax(name):
    tree, logits = make(name, seed=2)
    batch = jax.tree.map(lambda x: x[None], (tree, logits, settings(0.0)))
    draft = deterministic_draft(batch[0], MAX_PATH)
    verify = sample_and_match.sample_and_match().verify
    verdict = jax.jit(verify)(jax.random.split(jax.random.key(0), 1), draft, *batch[1:])
    expected, node = [], 0
    for _ in range(MAX_PATH):
        token = int(jnp.argmax(logits[node]))
        expected.append(token)
        match = (tree.parents == node) & (tree.tokens == token)
        match &= jnp.arange(len(tree.tokens)) > 0
        if not match.any():
            break
        node = int(jnp.argmax(match))
    row = jax.tree.map(lambda x: x[0], verdict)
    assert emitted(tree, row) == tuple(expected)
    laws = jax.nn.log_softmax(logits)
    for i, token in enumerate(expected):
        np.testing.assert_allclose(
            row.logprobs[i], laws[int(row.path[i]), token], rtol=1e-5
        )


def test_noise_belongs_to_the_position_not_to_the_tree():
    """The tokens at positions 5, 6, ... are the same from whatever tree."""
    _, logits = make("binary", seed=3)
    seen = {}
    for position in (4, 5):
        for name in ("root", "chain", "star", "binary"):
            tree, _ = make(name)
            same = jnp.broadcast_to(logits[:1], (len(tree.tokens), VOCAB))
            needs = sampling.Needs(jnp.bool_(True), jnp.bool_(False))
            verdict = sample_and_match.verify_row(
                jax.random.key(7), tree, same, settings(position=position), needs, 3
            )
            for i, token in enumerate(emitted(tree, verdict)):
                assert seen.setdefault(position + i, token) == token
    assert len(seen) >= 3


def test_rows_are_independent():
    rng = np.random.default_rng(0)
    tree = tiny.random_tree(rng, 3, 6, MAX_PATH)
    tree = tree.replace(tokens=tree.tokens % VOCAB)
    logits = jnp.asarray(rng.normal(size=(3, 6, VOCAB)), jnp.float32)
    keys = jax.random.split(jax.random.key(1), 3)
    mixed = sampling.Sampling(
        jnp.array([0.0, 0.7, 1.0]), jnp.array([0, 2, 0]), jnp.ones(3), jnp.arange(3)
    )
    verify = jax.jit(sample_and_match.sample_and_match().verify)
    together = verify(keys, deterministic_draft(tree, MAX_PATH), logits, mixed)
    for row in range(3):
        one = jax.tree.map(
            lambda x, row=row: x[row : row + 1], (keys, tree, logits, mixed)
        )
        alone = verify(one[0], deterministic_draft(one[1], MAX_PATH), *one[2:])
        both = jax.tree.map(lambda leaf, row=row: leaf[row], together), alone
        for name, a, b in zip(together._fields, *both, strict=True):
            rtol = 1e-6 if name == "logprobs" else 0.0
            np.testing.assert_allclose(a, b[0], rtol=rtol, err_msg=name)
