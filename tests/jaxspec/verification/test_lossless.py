"""Whatever builds the tree, the text has the target's law: enumerated, in float64.

The shipped `propose` and `verify` are run on a table of a model for every way in which
their draws can fall. What a verdict emits is continued by the target to a fixed length, and
its law compared with the target's own.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import enumeration
import markov
import tiny
from jaxspec.core import emitted_tokens
from jaxspec.drafting.model import State, draft_model
from jaxspec.drafting.static import static_tree
from jaxspec.verification.recursive_rejection import recursive_rejection
from jaxspec.verification.sample_and_match import sample_and_match
from jaxspec.verification.traversal import traversal

VOCAB, ROOT, BEFORE = 3, 2, 1
VERIFIERS = {
    "sample and match": sample_and_match(),
    "recursive rejection": recursive_rejection(),
    "traversal": traversal(),
}
BUILDERS = {
    "chain, iid": static_tree((1, 1), "iid"),
    "SpecInfer (2, 1)": static_tree((2, 1), "iid"),
    "RSD-C (2, 2)": static_tree((2, 2), "without_replacement"),
    "RSD-C (3, 1)": static_tree((3, 1), "without_replacement"),
    "top-k (2, 1)": static_tree((2, 1), "top_k"),
}


@functools.cache
def tables():
    with jax.enable_x64(True):
        return markov.table(VOCAB, 0, np.float64), markov.table(VOCAB, 1, np.float64)


def settings():
    exact = jnp.ones((1,), jnp.float64)
    return tiny.settings(1, position=4)._replace(temperature=exact, top_p=exact)


def follow(table, path):
    """Logits of what follows the root and a path, in numpy."""
    before, token = [BEFORE, ROOT, *path][-2:]
    return np.asarray(table)[before * VOCAB + token]


def target_law(length):
    """The target's law of the next tokens."""
    law = {}
    for text in itertools.product(range(VOCAB), repeat=length):
        steps = (
            enumeration.softmax(follow(tables()[0], text[:i]))[token]
            for i, token in enumerate(text)
        )
        law[text] = float(np.prod(list(steps)))
    return law


def completed(law, length):
    """Texts shorter than `length` are continued by the target."""
    result = {}
    for text, probability in law.items():
        for rest in itertools.product(range(VOCAB), repeat=length - len(text)):
            whole = (*text, *rest)
            weight = probability
            for i in range(len(text), length):
                weight *= enumeration.softmax(follow(tables()[0], whole[:i]))[whole[i]]
            result[whole] = result.get(whole, 0.0) + weight
    return result


def frozen(draft):
    """A draft as something hashable."""
    leaves, structure = jax.tree.flatten(draft)
    arrays = tuple((a.shape, a.dtype.str, a.tobytes()) for a in map(np.asarray, leaves))
    return arrays, structure


def thawed(key):
    arrays, structure = key
    leaves = [np.frombuffer(b, d).reshape(shape) for shape, d, b in arrays]
    return structure.unflatten(leaves)


def drafts_of(builder, monkeypatch, beam=None):
    """The law of what a builder on the draft's table proposes, and the names it used."""
    drafter = draft_model(markov.language_model(VOCAB), builder)

    def propose(params, carry, root):
        state = State(carry, None, None)
        return drafter.propose(params, enumeration.keys(1), state, root, settings())[1]

    program = enumeration.Program(propose, monkeypatch, beam)
    start = np.array([BEFORE], np.int32), np.array([ROOT], np.int32)
    return program.law(frozen, tables()[1], *start), program.names


def text_law(verifier, drafts, monkeypatch, taken=frozenset()):
    """The law of the texts that a verifier makes of drafts of some law."""
    target, law = markov.language_model(VOCAB), {}

    def emit(params, carry, draft):
        _, _, hidden = target.scan_tree(params, carry, draft.tree)
        logits = target.logits(params, hidden)
        verdict = verifier.verify(enumeration.keys(1), draft, logits, settings())
        return emitted_tokens(draft.tree, verdict)

    def text(result):
        tokens, count = result
        return tuple(tokens[0, : int(count[0])].tolist())

    program = enumeration.Program(emit, monkeypatch)
    for key, probability in drafts.items():
        draft = thawed(key)
        carry = np.array([BEFORE], np.int32)
        for words, chance in program.law(text, tables()[0], carry, draft).items():
            law[words] = law.get(words, 0.0) + probability * chance
    assert not program.names & taken, "the verifier uses the builder's noise"
    assert abs(sum(law.values()) - 1.0) < 1e-12
    return completed(law, draft.max_path)


@pytest.mark.parametrize("verifier", VERIFIERS)
@pytest.mark.parametrize("name", BUILDERS)
def test_the_law_is_the_targets(name, verifier, monkeypatch):
    drafts, names = drafts_of(BUILDERS[name], monkeypatch)
    law = text_law(VERIFIERS[verifier], drafts, monkeypatch, names)
    length = len(next(iter(law)))
    assert enumeration.distance(law, target_law(length)) < 1e-12
