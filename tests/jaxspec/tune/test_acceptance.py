"""Accepted ranks are counted at the right places, by the right law."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import texts
import tiny
from jaxspec.drafting.model import Trimmed
from jaxspec.models import forms
from jaxspec.tune import acceptance

WIDTH = 3
KEEP = np.arange(0, tiny.VOCAB, 2)
PROMPTS = texts.PROMPTS
rng = np.random.default_rng(0)
TEXTS = [rng.integers(0, tiny.VOCAB, n).tolist() for n in (20, 1, 33)]
PLACES = [
    [*prompt, *text][:end]
    for prompt, text in zip(PROMPTS, TEXTS, strict=True)
    for end in range(len(prompt), len(prompt) + len(text))
]


def pair(name):
    return tiny.model(name), tiny.params(name)


def laws(name, temperature=1.0):
    logits = np.stack([tiny.oracle_logits(name, place)[-1] for place in PLACES])
    return np.asarray(jax.nn.softmax(logits / temperature))


def measure(target, draft, temperature, width=WIDTH, seed=0):
    return acceptance.measure(
        target, draft, PROMPTS, TEXTS, temperature=temperature, width=width, seed=seed
    )


@pytest.mark.parametrize("is_trimmed", [False, True])
def test_greedy_ranks_are_those_of_the_targets_choice(is_trimmed):
    expected = np.zeros(WIDTH + 1, int)
    draft = pair(texts.DRAFT)
    if is_trimmed:
        params = forms.trim_head(draft[1], KEEP)
        draft = draft[0], Trimmed(params, jnp.asarray(KEEP, jnp.int32))
    for wanted, law in zip(laws(texts.TARGET), laws(texts.DRAFT), strict=True):
        order = np.argsort(-law, kind="stable")
        order = order[np.isin(order, KEEP)] if is_trimmed else order
        rank = np.flatnonzero(order == np.argmax(wanted))
        expected[min(rank[0], WIDTH) if rank.size else WIDTH] += 1
    found = measure(pair(texts.TARGET), draft, 0.0)
    assert found.tolist() == expected.tolist() and (expected > 0).sum() > 1


def test_a_model_accepts_itself():
    for temperature in (0.0, 1.0):
        found = measure(pair(texts.TARGET), pair(texts.TARGET), temperature)
        assert found.tolist() == [len(PLACES), 0, 0, 0]


def test_the_first_child_is_accepted_where_the_laws_overlap():
    temperature, seeds = 1.3, 12
    overlap = np.minimum(
        laws(texts.TARGET, temperature), laws(texts.DRAFT, temperature)
    ).sum(axis=1)
    found = sum(
        measure(pair(texts.TARGET), pair(texts.DRAFT), temperature, seed=seed)
        for seed in range(seeds)
    )
    assert found.sum() == seeds * len(PLACES)
    spread = np.sqrt(seeds * np.sum(overlap * (1 - overlap)))
    assert abs(found[0] - seeds * overlap.sum()) < 4 * spread
    assert found[1] > 0


def test_everything_drawn_leaves_nothing_to_refuse():
    found = measure(pair(texts.TARGET), pair(texts.DRAFT), 1.0, width=tiny.VOCAB)
    assert found[-1] == 0


def test_widths_that_do_not_fit_are_refused():
    for width in (0, tiny.VOCAB + 1):
        with pytest.raises(ValueError, match="width from 1 to 48"):
            measure(pair(texts.TARGET), pair(texts.DRAFT), 1.0, width=width)
