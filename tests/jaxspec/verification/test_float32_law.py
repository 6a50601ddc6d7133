"""In float32, too, the text has the law of the scores that `generate` draws from.

The law of those scores is summed in float64; all that is shipped runs in float32, at
temperatures from 1e-3 to 4, with filters, on tables of any sharpness.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import enumeration
import lossless
import markov
import scripted
from jaxspec import sampling, stepping
from jaxspec.core import Draft, Params
from jaxspec.drafting.beam import stochastic_beam
from jaxspec.drafting.dyspec import dyspec
from jaxspec.drafting.fusion import Pair
from jaxspec.drafting.model import Trimmed, draft_model
from jaxspec.drafting.rasd import rasd
from jaxspec.drafting.static import static_tree
from jaxspec.prefill import init_state
from jaxspec.trees import TokenTree
from jaxspec.verification import proposals
from jaxspec.verification.recursive_rejection import recursive_rejection
from jaxspec.verification.sample_and_match import sample_and_match
from jaxspec.verification.traversal import traversal

BOUND = 1e-6  # of the total variation
VOCAB = lossless.VOCAB
KEEP = np.array([0, 2], np.int32)  # of a trimmed head
VERIFIERS = {
    "sample and match": sample_and_match(),
    "recursive rejection": recursive_rejection(),
    "traversal": traversal(),
}


def random(seed, sharpness=1.0):
    return np.asarray(markov.table(VOCAB, seed, np.float32, sharpness))


def everywhere(*logits):
    return np.tile(np.array(logits, np.float32), (VOCAB**2, 1))


TABLES = {  # the target's and the draft's
    "plain": (random(0), random(1)),
    "sharp": (random(2, 50.0), random(3, 50.0)),
    "a sharp draft": (random(4), random(5, 200.0)),
    "a sure draft": (everywhere(-2.3, -0.8, -0.8), everywhere(0.0, -120.0, -121.0)),
    "disjoint": (everywhere(-1e4, 0.0, -1.0), everywhere(0.0, -3e4, -3e4 - 1.0)),
    "impossible": (everywhere(0.0, -np.inf, 1.0), everywhere(1.0, 0.0, -np.inf)),
    "nearly equal": (random(6), random(6) + random(7, 1e-6)),
    "nearly zero": (everywhere(0.0, -80.0, -95.0), everywhere(-95.0, 0.0, -80.0)),
}
SETTINGS = [  # temperature, top_k, top_p
    (1.0, 0, 1.0),
    (1e-3, 0, 1.0),
    (0.1, 0, 1.0),
    (4.0, 0, 1.0),
    (0.7, 2, 1.0),
    (1.5, 0, 0.8),
    (1.0, 1, 1.0),
]


def trimmed(table):
    return Trimmed(table[:, KEEP], KEEP)


def plain(builder, temperature=None):
    drafter = draft_model(markov.language_model(VOCAB), builder, temperature)
    return drafter, lambda table: table, lossless.past()


def with_trimmed_head(builder):
    drafter = draft_model(markov.language_model(VOCAB), builder)
    return drafter, trimmed, lossless.past()


def fused(builder, order):
    """A builder's tree with a retrieved one: 0 and 2, and 1 after 0."""
    retrieved = TokenTree(
        np.array([[2, 0, 1, 2]], np.int32), np.array([[-1, 0, 1, 0]], np.int32)
    )
    model = markov.language_model(VOCAB)
    drafter = rasd(model, builder, scripted.fixed(3), keep=2, order=order)
    state = Pair(lossless.past(), ())
    return drafter, lambda table: Pair(table, retrieved), state


DISTINCT = static_tree((2,), "without_replacement")
DRAFTERS = {  # a drafter, its params of a table, and its state
    "chain (2), drawn": plain(static_tree((1, 1), "iid")),
    "SpecInfer (2)": plain(static_tree((2,), "iid")),
    "RSD-C (2)": plain(DISTINCT),
    "RSD-C (2), colder": plain(DISTINCT, 0.4),
    "RSD-C (3)": plain(static_tree((3,), "without_replacement")),
    "RSD-C (2), two of three tokens": with_trimmed_head(DISTINCT),
    "DySpec, 4 nodes": plain(dyspec(4)),
    "DySpec, 3 nodes, two of three tokens": with_trimmed_head(dyspec(3)),
    "RASD, RSD-C, draft first": fused(DISTINCT, "draft first"),
    "RASD, RSD-C, retrieval first": fused(DISTINCT, "retrieval first"),
    "likeliest (2, 1)": plain(static_tree((2, 1), "top_k")),
}
LONG = {
    "RSD-C (2, 1)": plain(static_tree((2, 1), "without_replacement")),
    "SpecInfer (2, 1)": plain(static_tree((2, 1), "iid")),
    "RSD-C (1, 2)": plain(static_tree((1, 2), "without_replacement")),
    "DySpec, 5 nodes, two per call": plain(dyspec(5, 2)),
}
BEAMS = {"RSD-S 2 x 1": (2, 1), "RSD-S 2 x 2": (2, 2)}


def beam_of(table, settings, width, length):
    scores = lossless.scores(table, settings)
    return enumeration.Leaves(functools.partial(lossless.follow, scores), width, length)


def distances(drafter, monkeypatch, cases, beam=None):
    """The distance between the law and the target's, for every verifier and case."""
    drafter, params_of, past = drafter
    proposing = lossless.proposing(drafter, monkeypatch)
    judging = {
        name: lossless.judging(verifier, monkeypatch)
        for name, verifier in VERIFIERS.items()
    }
    found = {}
    for tables, setting in cases:
        target, draft = TABLES[tables]
        settings = lossless.settings(*setting, dtype=np.float32)
        leaves = None if beam is None else beam_of(draft, settings, *beam)
        drafts, names = lossless.proposed(
            proposing, params_of(draft), past, settings, leaves
        )
        for name, program in judging.items():
            written = lossless.Written.by(program, drafts, target, settings, names)
            found[name, tables, setting] = written.distance
    return found


def some(seed):
    """Every table and every setting at least once."""
    rng = np.random.default_rng(seed)
    return [
        (name, SETTINGS[(place + shift) % len(SETTINGS)])
        for shift in rng.choice(len(SETTINGS), 2, replace=False)
        for place, name in enumerate(TABLES)
    ]


def check(found):
    worst = max(found, key=found.get)
    assert found[worst] < BOUND, (worst, found[worst])


@pytest.mark.parametrize("name", DRAFTERS)
def test_the_law_is_that_of_the_scores(name, monkeypatch):
    check(distances(DRAFTERS[name], monkeypatch, some(sorted(DRAFTERS).index(name))))


@pytest.mark.parametrize("name", BEAMS)
def test_the_law_of_a_stochastic_beam(name, monkeypatch):
    width, length = BEAMS[name]
    drafter = plain(stochastic_beam(width, length))
    check(distances(drafter, monkeypatch, some(length), (width, length)))


@pytest.mark.thorough
@pytest.mark.parametrize("name", [*DRAFTERS, *LONG])
def test_the_law_is_that_of_the_scores_of_every_table(name, monkeypatch):
    cases = [(table, setting) for table in TABLES for setting in SETTINGS]
    check(distances((DRAFTERS | LONG)[name], monkeypatch, cases))


# --- Batches and consecutive steps ---


MIXED = lossless.settings([0.0, 1.0], dtype=np.float32, batch=2)


def written_by_two(verifier, monkeypatch):
    """The joint law of two rows, one greedy and one sampled; each completed to a path."""
    target, draft = TABLES["plain"]
    drafter, _, past = plain(DISTINCT)
    past = jax.tree.map(lambda leaf: np.repeat(leaf, 2, axis=0), past)
    proposing = lossless.proposing(drafter, monkeypatch)
    drafts, taken = lossless.proposed(proposing, draft, past, MIXED)
    program, law = lossless.judging(verifier, monkeypatch), {}
    carry = np.full(2, lossless.BEFORE, np.int32)
    for key, probability in drafts.items():
        one = lossless.thawed(key)
        for words, chance in program.law(_texts, target, carry, one, MIXED).items():
            law[words] = law.get(words, 0.0) + probability * chance
        assert not program.names & taken
    return law


def _texts(result):
    tokens, count = result
    rows = zip(tokens.tolist(), count.tolist(), strict=True)
    return tuple(tuple(row[:size]) for row, size in rows)


def distances_of_two(verifier, monkeypatch):
    """Of the greedy row and of the sampled one."""
    law = written_by_two(verifier, monkeypatch)
    found = []
    for row, settings in enumerate(MIXED.temperature.tolist()):
        own = {}
        for texts, chance in law.items():
            own[texts[row]] = own.get(texts[row], 0.0) + chance
        wanted = lossless.scores(
            TABLES["plain"][0], lossless.settings(settings, dtype=np.float32)
        )
        expected = lossless.target_law(2, wanted)
        completed = lossless.completed(own, 2, wanted)
        found.append(enumeration.distance(completed, expected))
    return found


@pytest.mark.parametrize("name", VERIFIERS)
def test_a_greedy_row_beside_a_sampled_one(name, monkeypatch):
    assert max(distances_of_two(VERIFIERS[name], monkeypatch)) < BOUND


def twice(builder, verifier, monkeypatch):
    """The law of what two consecutive steps write, three tokens of it."""
    target, draft = TABLES["plain"]
    model = markov.language_model(VOCAB)
    drafter = draft_model(model, builder)
    machinery = {"target": model, "drafter": drafter}
    prompt = jnp.array([[lossless.BEFORE, lossless.ROOT]], jnp.int32)
    params = Params(jnp.asarray(target), jnp.asarray(draft))
    state = init_state(params, prompt, **machinery, max_new_tokens=4, temperature=1.0)

    def steps(params, state):
        state = state.replace(keys=enumeration.keys(1))
        for _ in range(2):
            state, _ = stepping.speculative_step(
                params, state, verifier=verifier, **machinery
            )
        return state.tokens, state.lengths

    def text(result):
        tokens, lengths = result
        return tuple(tokens[0, 2 : int(lengths[0])].tolist())[:3]

    state = jax.tree.map(np.asarray, state.replace(keys=None))
    program = enumeration.Program(steps, monkeypatch)
    law = program.law(text, jax.tree.map(np.asarray, params), state)
    wanted = lossless.scores(target, lossless.settings(dtype=np.float32))
    expected = lossless.target_law(3, wanted)
    return enumeration.distance(lossless.completed(law, 3, wanted), expected)


@pytest.mark.parametrize("name", VERIFIERS)
def test_two_steps_in_a_row(name, monkeypatch):
    """No noise is used in both, which the enumeration itself asserts."""
    assert twice(static_tree((1,), "iid"), VERIFIERS[name], monkeypatch) < BOUND


@pytest.mark.thorough
@pytest.mark.parametrize("name", VERIFIERS)
def test_two_steps_in_a_row_with_siblings(name, monkeypatch):
    assert twice(DISTINCT, VERIFIERS[name], monkeypatch) < BOUND


# --- What this sees and the enumeration in float64, of one row, at temperature 1, does not


def renormalised(draft, child, tested):
    """The law of a sibling as probabilities, of which those tested are zeroed."""
    law = jax.nn.softmax(draft.draft_logits[0])
    rest = jnp.where(tested & (draft.kind[child] != Draft.IID), 0.0, law)
    mass = jnp.sum(rest)
    return rest / jnp.where(mass > 0.0, mass, 1.0)


class _Accepting(enumeration.Program):
    """A token that was not proposed at all is accepted."""

    def accept(self, key, wanted, proposed):
        return super().accept(key, wanted, jnp.maximum(proposed, 1e-30))


def test_laws_renormalised_as_probabilities_are_seen(monkeypatch):
    case = [("a sure draft", SETTINGS[0])]
    right = distances(DRAFTERS["RSD-C (2)"], monkeypatch, case)
    assert right["recursive rejection", *case[0]] < BOUND
    monkeypatch.setattr(proposals, "child_law", renormalised)
    monkeypatch.setattr(enumeration, "Program", _Accepting)
    wrong = distances(DRAFTERS["RSD-C (2)"], monkeypatch, case)
    assert wrong["recursive rejection", *case[0]] > 0.1


def test_a_law_without_the_targets_filters_is_seen(monkeypatch):
    shipped = sampling.law

    def unfiltered(logits, settings, needs):
        everything = settings._replace(
            top_k=settings.top_k * 0, top_p=settings.top_p * 0 + 1
        )
        return shipped(logits, everything, needs)

    monkeypatch.setattr(sampling, "law", unfiltered)
    cases = [("plain", (0.7, 2, 1.0)), ("plain", (1.5, 0, 0.8))]
    for key, distance in distances(DRAFTERS["RSD-C (2)"], monkeypatch, cases).items():
        assert (distance > 1e-2) == (key[0] != "sample and match")


def test_a_law_that_samples_greedy_rows_is_seen(monkeypatch):
    def sampled(logits, settings, needs):
        return jax.nn.softmax(sampling.law_logits(logits, settings, needs))

    monkeypatch.setattr(sampling, "law", sampled)
    greedy, other = distances_of_two(recursive_rejection(), monkeypatch)
    assert greedy > 0.1 and other < BOUND


def test_a_verify_key_without_its_position_is_seen(monkeypatch):
    shipped = sampling.noise_key

    def fixed(key, role, position):
        return shipped(key, role, position * (role != sampling.Role.VERIFY))

    monkeypatch.setattr(sampling, "noise_key", fixed)
    with pytest.raises(Exception, match="noise is used twice"):
        twice(static_tree((1,), "iid"), recursive_rejection(), monkeypatch)


# --- Nodes whose own logits are not finite ---


@pytest.mark.parametrize("builder", ["RSD-C (2)", "RSD-C (2, 1)"])
@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_draft_without_a_law_of_its_own_is_kept_as_often(
    builder, broken, monkeypatch
):
    """The token before it was the target's to choose; what follows is its own affair."""
    target, draft = TABLES["plain"]
    target = target.copy()
    target[VOCAB * lossless.ROOT + 1] = broken  # after the token 1
    settings = lossless.settings(dtype=np.float32)
    drafter, _, past = (DRAFTERS | LONG)[builder]
    proposing = lossless.proposing(drafter, monkeypatch)
    drafts, taken = lossless.proposed(proposing, draft, past, settings)
    wanted = enumeration.softmax(lossless.follow(target, ()))
    for verifier in VERIFIERS.values():
        judging = lossless.judging(verifier, monkeypatch)
        found = first_tokens(judging, drafts, target, settings)
        np.testing.assert_allclose(found, wanted, atol=BOUND)


def first_tokens(judging, drafts, target, settings):
    """Probabilities of the first token that is emitted."""
    found, carry = np.zeros(VOCAB), np.array([lossless.BEFORE], np.int32)
    for key, probability in drafts.items():
        one = lossless.thawed(key)
        for texts, chance in judging.law(_texts, target, carry, one, settings).items():
            found[texts[0][0]] += probability * chance
    return found
