"""The law of what a drafter and a verifier write together, enumerated on tables.

The shipped `propose` and `verify` are run for every way in which their draws can fall. What
a verdict emits is continued by the target to a fixed length, so that the law can be
compared with the target's own.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

import enumeration
import markov
import tiny
from jaxspec.core import emitted_tokens
from jaxspec.drafting.model import State, draft_model

VOCAB, BEFORE, ROOT = 3, 1, 2  # the text so far ends with BEFORE, ROOT
LENGTH = 2  # tokens so far, of which the last is the root


@functools.cache
def tables(vocab=VOCAB, seed=0):
    """Logits of the target and of the draft, float64."""
    with jax.enable_x64(True):
        target = markov.table(vocab, 2 * seed, np.float64)
        return target, markov.table(vocab, 2 * seed + 1, np.float64)


def settings(position=LENGTH - 1):
    exact = jnp.ones((1,), jnp.float64)
    return tiny.settings(1, position=position)._replace(temperature=exact, top_p=exact)


def follow(table, path):
    """Logits of what follows the root and a path, in numpy."""
    before, token = [BEFORE, ROOT, *path][-2:]
    return np.asarray(table)[before * table.shape[1] + token]


def target_law(length, table=None):
    """The target's law of the next tokens."""
    return completed({(): 1.0}, length, table)


def completed(law, length, table=None):
    """Texts shorter than `length` are continued by the target."""
    table = tables()[0] if table is None else table
    result = {}
    for text, probability in law.items():
        for rest in itertools.product(range(table.shape[1]), repeat=length - len(text)):
            whole = (*text, *rest)
            weight = probability
            for i in range(len(text), length):
                weight *= enumeration.softmax(follow(table, whole[:i]))[whole[i]]
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


def drafts_of(drafter, params, state, monkeypatch, beam=None):
    """The law of what a drafter proposes, and the names of the noise it used."""

    def propose(params, state, root):
        keys = enumeration.keys(1)
        return drafter.propose(params, keys, state, root, settings())[1]

    program = enumeration.Program(propose, monkeypatch, beam)
    root = np.array([ROOT], np.int32)
    return program.law(frozen, params, state, root), program.names


def drafts_of_builder(builder, monkeypatch, table=None, beam=None):
    """The same, of a builder on the draft's table."""
    table = tables()[1] if table is None else table
    drafter = draft_model(markov.language_model(table.shape[1]), builder)
    return drafts_of(drafter, table, past(), monkeypatch, beam)


def past():
    """The state of a draft model that has read the text but for the root."""
    return State(np.array([BEFORE], np.int32), None, None)


def changed(drafts, change):
    """The law of drafts that are changed afterwards, by a function of one in numpy."""
    law = {}
    for key, probability in drafts.items():
        new = frozen(change(jax.tree.map(np.array, thawed(key))))
        law[new] = law.get(new, 0.0) + probability
    return law


class Written:
    """What a verifier makes of drafts of some law.

    Attributes:
        law: of the next tokens, as many as the longest path has nodes.
        tokens: emitted per call, on average.
        distance: total variation between the law and the target's.
    """

    def __init__(self, verifier, drafts, monkeypatch, taken=frozenset(), table=None):
        table = tables()[0] if table is None else table
        target, law = markov.language_model(table.shape[1]), {}

        def emit(params, carry, draft):
            _, _, hidden = target.scan_tree(params, carry, draft.tree)
            logits = target.logits(params, hidden)
            verdict = verifier.verify(enumeration.keys(1), draft, logits, settings())
            return emitted_tokens(draft.tree, verdict)

        def text(result):
            tokens, count = result
            return tuple(tokens[0, : int(count[0])].tolist())

        program = enumeration.Program(emit, monkeypatch)
        carry = np.array([BEFORE], np.int32)
        for key, probability in drafts.items():
            draft = thawed(key)
            for words, chance in program.law(text, table, carry, draft).items():
                law[words] = law.get(words, 0.0) + probability * chance
        assert not program.names & taken, "the verifier uses the builder's noise"
        assert abs(sum(law.values()) - 1.0) < 1e-12
        self.tokens = sum(len(words) * chance for words, chance in law.items())
        self.law = completed(law, draft.max_path, table)
        expected = target_law(draft.max_path, table)
        self.distance = enumeration.distance(self.law, expected)
