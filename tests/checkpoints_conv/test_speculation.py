"""Speculation changes no text of a converted model, whatever family drafts."""

import functools

import numpy as np
import pytest

import jaxspec
import published
from jaxspec import metrics
from jaxspec.drafters.sources import trim
from jaxspec.models.rollback import ROLLBACKS

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [200], [31, 41, 59, 26, 53, 58, 97, 93, 23, 84, 62]]
NEW, SHAPE = 64, "model:2"
ALWAYS = ("falcon_h1",)  # under all rollbacks; each mixer has tests of its own of them
CASES = [
    pytest.param(
        name,
        rollback,
        marks=() if rollback == "lazy" or name in ALWAYS else (pytest.mark.thorough,),
    )
    for name in published.names()
    for rollback in ROLLBACKS
]


def draft_of(name):
    """Of another family than the target's."""
    return "small-mamba" if name == "mamba2" else "small-mamba2"


@functools.cache
def make_drafter(name):
    draft = published.converted(draft_of(name))
    return jaxspec.drafter(SHAPE, load(name, "replay"), draft=draft)


@functools.cache
def load(name, rollback):
    return jaxspec.load(published.converted(name), rollback=rollback, max_path=3)


def start(name, rollback, made=None):
    model, params, _ = load(name, rollback)
    tokens, lengths = jaxspec.pad_prompts(PROMPTS, multiple=16)
    weights = jaxspec.Params(params, made and made.params.drafter)
    drafter = made and made.drafter
    options = {"target": model, "drafter": drafter, "max_new_tokens": NEW}
    return weights, jaxspec.init_state(weights, tokens, lengths, **options)


@functools.cache
def plain(name):
    weights, state = start(name, "replay")
    return jaxspec.generate(weights, state, target=load(name, "replay").model)


@pytest.mark.parametrize("name, rollback", CASES)
def test_speculation_changes_nothing(name, rollback):
    made = make_drafter(name)
    weights, state = start(name, rollback, made)
    model, params, _ = load(name, rollback)
    state, info = jaxspec.speculative_generate(
        weights, state, target=model, drafter=made.drafter
    )
    for row in range(len(PROMPTS)):
        found = metrics.compare(model, params, plain(name), state, row)
        assert found.identical or found.near_tie
    assert metrics.block_efficiency(info) > 1.1


def test_tables_may_be_padded_otherwise(tmp_path):
    """So that it was 288 tokens that drafted above, and here 280 draft for these.

    A vocabulary that was counted with the larger table is cut to what both have.
    """
    assert load("small-mamba2", "replay").model.vocab_size == published.VOCAB + 8
    draft = published.converted("mamba")
    made = jaxspec.drafter(SHAPE, load("small-mamba2", "replay"), draft=draft)
    assert made.drafter.vocab_size == published.VOCAB + 8
    keep = np.array([3, 5, published.VOCAB - 1, published.VOCAB + 7], np.int32)
    loaded = jaxspec.load(draft)
    for size in (published.VOCAB + 8, published.VOCAB - 1):
        model, params = trim(loaded, size, keep)
        assert model.vocab_size == size
        kept = [i for i in keep if i < min(size, published.VOCAB)]
        assert params.vocab_ids.tolist() == kept
        assert params.params["lm_head"]["kernel"].shape[1] == len(kept)
