"""The public loop by its samples: mixed batches, many steps, exact laws of whole texts.

Enumeration looks at a step or two of a row; here are many rows of all kinds, that end at
different times, so that noise used again in the next step, settings that leak from row to
row, and rounding at sure drafts would show. Seeds are fixed, so that a verdict stays.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import chi_square
import drafters
import jaxspec as js
import kinds
import mixed
from jaxspec import sampling
from jaxspec.verification import proposals, traversal

child_law = proposals.child_law  # the shipped one
LEVEL = 1e-5  # of about 50 statistics in every run, 3,000 in a thorough one
ROWS, SEEDS = 5 * 2**9, {"plain": (0, 1), "extreme": (2,)}  # rows of each kind
VERIFIERS = {
    "recursive rejection": js.recursive_rejection(),
    "traversal": js.traversal(),
    "sample and match": js.sample_and_match(),
}
QUICK = [("RSD-C (2, 1)", "recursive rejection", 3), ("RSD-S 2 x 2", "traversal", 1)]


def cases():
    """Every drafter and verifier; who is done is looked up every step, or every third."""
    every = [(entry, verifier) for entry in drafters.ENTRIES for verifier in VERIFIERS]
    every += [(entry, "sample and match") for entry in drafters.SHARED]
    found = [(*pair, (1, 3)[i % 2]) for i, pair in enumerate(every)]
    thorough = [
        pytest.param(*case, marks=pytest.mark.thorough)
        for case in found
        if case not in QUICK
    ]
    return QUICK + thorough


@functools.cache
def counted(entry, verifier, check_every, table):
    """How often each text was written, by kind."""
    drafter, make = (drafters.ENTRIES | drafters.SHARED)[entry]
    machinery = mixed.Machinery(
        mixed.model(), drafter, VERIFIERS[verifier], check_every
    )
    target, draft = mixed.TABLES[table]
    params = js.Params(jnp.asarray(target), make(draft))
    return mixed.counts(
        mixed.compiled(machinery, params, mixed.batch(ROWS), np.uint32(seed))
        for seed in SEEDS[table]
    )


def p_values(counts, laws):
    """One per kind, of its texts; and one of the tokens of all kinds."""
    found = {name: chi_square.of_texts(counts[name], laws[name]) for name in laws}
    pairs = [(counts[name], laws[name]) for name in laws]
    return found | {"tokens": chi_square.of_tokens(pairs)}


def check(counts, laws):
    found = p_values(counts, laws)
    assert min(found.values()) > LEVEL, found


@pytest.mark.parametrize("table", mixed.TABLES)
@pytest.mark.parametrize("entry, verifier, check_every", cases())
def test_texts_have_the_targets_law(entry, verifier, check_every, table):
    check(counted(entry, verifier, check_every, table), mixed.laws(table))


@pytest.mark.thorough
@pytest.mark.parametrize("table", mixed.TABLES)
@pytest.mark.parametrize("verifier", VERIFIERS)
def test_texts_have_the_targets_law_from_the_host(verifier, table):
    """The trees are a suffix decoder's, which knows some texts of the past."""
    drafter = js.silent(3)  # which keeps room for the paths
    machinery = mixed.Machinery(mixed.model(), drafter, VERIFIERS[verifier])
    past = js.SuffixTree(8, np.random.default_rng(2).integers(0, mixed.VOCAB, 80))
    params = js.Params(jnp.asarray(mixed.TABLES[table][0]))

    def write(seed):
        state = mixed.begin(machinery, params, mixed.batch(ROWS), seed)
        records = {"target": machinery.target, "verifier": machinery.verifier}
        host = js.SuffixDecoder(8, offset=3.0, past=past)
        return js.generate_from_host(
            params, state, host=host, num_nodes=5, max_path=3, **records
        )

    check(mixed.counts(map(write, SEEDS[table])), mixed.laws(table))


@pytest.mark.thorough
@pytest.mark.parametrize("verifier", VERIFIERS)
@pytest.mark.parametrize("builder", ["likeliest (2, 1)", "RSD-C (2, 1)"])
def test_texts_have_the_targets_law_with_its_own_head(builder, verifier):
    """A hybrid and its multi-token-prediction head."""
    target = js.language_model(drafters.HYBRID, max_path=mixed.MAX_PATH)
    own = js.mtp_head(drafters.HYBRID)
    drafter = js.draft_head(own, drafters.BUILDERS[builder])
    machinery = mixed.Machinery(target, drafter, VERIFIERS[verifier])
    params, batch = drafters.hybrid_params(), mixed.batch(ROWS)
    runs = [mixed.compiled(machinery, params, batch, np.uint32(0))]
    check(mixed.counts(runs), drafters.hybrid_laws())


def biased(token, by):
    """A token's probability is raised wherever chance has a say, at the others' cost."""

    def next_law(kind, logits):
        law = kinds.next_law(kind, logits)
        if not 0.0 < law[token] < 1.0:
            return law
        new = np.clip(law[token] + by, 0.0, 1.0)
        law = law * (1.0 - new) / (1.0 - law[token])
        law[token] = new
        return law

    follow = functools.partial(mixed.follow, mixed.TABLES["plain"][0])
    return mixed.laws_of(follow, next_law)


@pytest.mark.parametrize("by", [0.01, -0.01])
@pytest.mark.parametrize("token", range(mixed.VOCAB))
def test_a_bias_of_one_percent_is_found(token, by):
    """In one token's probability, in what any case above has written."""
    laws = biased(token, by)
    for case in QUICK:
        assert p_values(counted(*case, "plain"), laws)["tokens"] < LEVEL


def test_samples_of_the_law_itself_are_right():
    """And the statistics are chi-squares: p-values of right samples are uniform."""
    laws, rng, found = mixed.laws("plain"), np.random.default_rng(0), []
    for _ in range(20):
        counts = {
            name: rng.multinomial(2 * ROWS, law.ravel()).reshape(law.shape)
            for name, law in laws.items()
        }
        found.append(p_values(counts, laws))
    greedy = [name for name, kind in kinds.KINDS.items() if kind.is_greedy]
    for name in found[0]:
        values = np.array([one[name] for one in found])
        if name in greedy:
            assert (values == 1.0).all()
        else:
            assert stats.kstest(values, "uniform").pvalue > 1e-3


FAULTS = {
    "none": lambda settings: settings,
    "filters are ignored": lambda settings: settings._replace(
        top_k=jnp.where(settings.top_k == 1, 1, 0), top_p=jnp.ones_like(settings.top_p)
    ),
    "greedy rows are sampled": lambda settings: settings._replace(
        temperature=jnp.where(settings.is_drawn, settings.temperature, 1.0),
        top_k=jnp.where(settings.top_k == 1, 0, settings.top_k),
    ),
    "keys do not know the position": lambda settings: settings._replace(
        position=jnp.zeros_like(settings.position)
    ),
}
RENORMALISED = "laws are renormalised as probabilities"


def renormalised(draft, child, tested):
    """A sibling's law from its probabilities, of which float32 may have lost the last."""
    law = child_law(draft, child, jnp.zeros_like(tested))
    rest = jnp.where(tested, 0.0, law)
    mass = jnp.sum(rest)
    return rest / jnp.where(mass > 0.0, mass, 1.0)


@functools.partial(jax.jit, compiler_options=mixed.OPTIONS)
def write_wrongly(params, batch, fault):
    """One program with all faults; which of them it has is data."""

    def either(*args):
        return jnp.where(fault == len(FAULTS), renormalised(*args), child_law(*args))

    def verify(keys, draft, logits, settings):
        spoiled = [spoil(settings) for spoil in FAULTS.values()]
        spoiled.append(settings)  # renormalised laws have right settings
        settings = jax.tree.map(lambda *each: jnp.stack(each)[fault], *spoiled)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(proposals, "child_law", either)
            verifier = VERIFIERS["recursive rejection"]
            return verifier.verify(keys, draft, logits, settings)

    drafter = drafters.ENTRIES["RSD-C (2, 1)"].drafter
    machinery = mixed.Machinery(mixed.model(), drafter, js.Verifier(verify))
    return mixed.write(machinery, params, batch, 0)


@pytest.mark.parametrize("fault", [*FAULTS, RENORMALISED])
def test_a_verifier_that_is_wrong_is_found(fault):
    table = "extreme" if fault == RENORMALISED else "plain"
    params = js.Params(*map(jnp.asarray, mixed.TABLES[table]))
    number = np.int32([*FAULTS, RENORMALISED].index(fault))
    runs = [write_wrongly(params, mixed.batch(2**10), number)]
    found = p_values(mixed.counts(runs), mixed.laws(table))
    assert (min(found.values()) < LEVEL) == (fault != "none"), found


def by_position(key, draft, logits, settings, needs):
    """Traversal, whose nodes draw with the noise of their place in the text."""
    fold_in = jax.random.fold_in

    def at_node(key, slot):  # on a chain slots are depths; 0 is the last draw's
        position = settings.position
        return fold_in(key, jnp.where(slot == 0, -1 - position, position + slot))

    def without_position(key, role, position):
        return fold_in(key, int(role))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "noise_key", without_position)
        patch.setattr(traversal.jax.random, "fold_in", at_node)
        return traversal.verify_row(key, draft, logits, settings, needs)


def test_noise_that_belongs_to_a_place_in_the_text_is_found():
    """A node refused in one step would be tested with the same noise in the next."""
    wrong = js.Verifier(functools.partial(proposals.verify, by_position))
    drafter = drafters.ENTRIES["chain (2)"].drafter
    machinery = mixed.Machinery(mixed.model(), drafter, wrong)
    params = js.Params(*map(jnp.asarray, mixed.TABLES["plain"]))
    runs = [mixed.compiled(machinery, params, mixed.batch(2**10), np.uint32(0))]
    found = p_values(mixed.counts(runs), mixed.laws("plain"))
    assert min(found.values()) < LEVEL, found
