"""The law of what a drafter and a verifier write together, enumerated on tables.

The shipped `propose` and `verify` are run for every way in which their draws can fall. What
a verdict emits is continued by the target to a fixed length, so that the law can be
compared with the target's own.
"""

import functools
import itertools

import jax
import numpy as np

import contexts
import enumeration
import markov
from jaxspec import sampling
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


def settings(temperature=1.0, top_k=0, top_p=1.0, dtype=np.float64, batch=1):
    """How rows are sampled, in numpy; what comes next is the root's successor."""
    row = sampling.Sampling(
        temperature=np.asarray(temperature, dtype),
        top_k=np.asarray(top_k, np.int32),
        top_p=np.asarray(top_p, dtype),
        position=np.asarray(LENGTH - 1, np.int32),
    )
    return jax.tree.map(lambda leaf: np.array(np.broadcast_to(leaf, (batch,))), row)


def scores(table, settings):
    """Logits `[V * V, V]` that `generate` draws from; the likeliest token's, if greedy."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        found = np.asarray(_law_logits(table, settings))
    best = np.arange(found.shape[1]) == np.argmax(table, axis=1)[:, None]
    return found if settings.is_drawn[0] else np.where(best, 0.0, -np.inf)


@jax.jit
def _law_logits(table, settings):
    row, needs = jax.tree.map(lambda leaf: leaf[0], settings), sampling.needs(settings)
    return jax.vmap(sampling.law_logits, (0, None, None))(table, row, needs)


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


def proposing(drafter, monkeypatch):
    """A drafter as a program, compiled once for all params and settings of a dtype."""

    def propose(params, state, root, settings):
        context = contexts.of_roots(root, enumeration.keys(len(root)), settings)
        return drafter.propose(params, state, context)[1]

    return enumeration.Program(propose, monkeypatch)


def judging(verifier, monkeypatch, vocab=VOCAB):
    """A verifier as a program: the tokens that it emits, and their count."""
    target = markov.language_model(vocab)

    def emit(params, carry, draft, settings):
        _, _, hidden = target.scan_tree(params, carry, draft.tree)
        logits, keys = target.logits(params, hidden), enumeration.keys(len(carry))
        verdict = verifier.verify(keys, draft, logits, settings)
        return emitted_tokens(draft.tree, verdict)

    return enumeration.Program(emit, monkeypatch)


def proposed(program, params, state, settings, beam=None):
    """The law of what a program of `proposing` proposes, and the names of its noise."""
    program.beam = beam
    root = np.full(len(settings.top_k), ROOT, np.int32)
    return program.law(frozen, params, state, root, settings), program.names


def drafts_of(drafter, params, state, monkeypatch, beam=None):
    """The same of a drafter, at temperature 1."""
    return proposed(proposing(drafter, monkeypatch), params, state, settings(), beam)


def drafts_of_builder(builder, monkeypatch, table=None, beam=None):
    """The same of a builder on the draft's table."""
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
        program = judging(verifier, monkeypatch, table.shape[1])
        self._judge(program, drafts, table, settings(), taken)

    @classmethod
    def by(cls, program, drafts, table, settings, taken):
        """By a program of `judging`, with other settings."""
        self = cls.__new__(cls)
        self._judge(program, drafts, table, settings, taken)
        return self

    def _judge(self, program, drafts, table, settings, taken):
        def text(result):
            tokens, count = result
            return tuple(tokens[0, : int(count[0])].tolist())

        law, carry = {}, np.array([BEFORE], np.int32)
        for key, probability in drafts.items():
            draft = thawed(key)
            found = program.law(text, table, carry, draft, settings)
            assert not program.names & taken, "the verifier uses the builder's noise"
            for words, chance in found.items():
                law[words] = law.get(words, 0.0) + probability * chance
        assert abs(sum(law.values()) - 1.0) < 1e-12
        self.tokens = sum(len(words) * chance for words, chance in law.items())
        wanted = scores(table, settings)
        self.law = completed(law, draft.max_path, wanted)
        self.distance = enumeration.distance(
            self.law, target_law(draft.max_path, wanted)
        )
