"""Rows come and go while others are decoded, and every text is what it is alone."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

import jaxspec as js
import texts
import tiny
from jaxspec.models import forms, mtp
from jaxspec.models.rollback import ROLLBACKS

CONFIG = dataclasses.replace(tiny.CONFIGS[texts.TARGET], mtp="*-")
HEAD = mtp.mtp_head(CONFIG)
MAX_LENGTH = 44
SETTINGS = [
    {"temperature": 0.0, "max_new_tokens": 19},
    {"temperature": 0.8, "top_k": 12, "max_new_tokens": 30},
    {"temperature": 1.3, "top_p": 0.9, "max_new_tokens": 23},
]


@functools.cache
def target_params(scanned):
    params = jax.jit(js.language_model(CONFIG).init)(jax.random.key(5))
    return forms.stack(CONFIG, params) if scanned else params


def make(name, rollback, scanned):
    """The machinery, and its params."""
    target = js.language_model(
        CONFIG, rollback=rollback, max_path=texts.MAX_PATH, scan_layers=scanned
    )
    draft = tiny.model(texts.DRAFT, rollback=rollback, max_path=texts.MAX_PATH)
    drafter, own = {
        "look-up": lambda: (js.ngram(6, 4, min_match=1), None),
        "draft model": lambda: (
            js.draft_model(draft, js.static_tree((2, 1), "without_replacement")),
            tiny.params(texts.DRAFT),
        ),
        "head": lambda: (
            js.draft_head(HEAD, (2, 1)),
            mtp.share(jax.jit(HEAD.init)(jax.random.key(3)), target_params(False)),
        ),
    }[name]()
    params = js.Params(target_params(scanned), own)
    return {"target": target, "drafter": drafter}, params


@functools.cache
def alone(scanned):
    """What `generate` writes of each prompt, at batch 1."""
    target = js.language_model(
        CONFIG, max_path=texts.MAX_PATH, rollback="replay", scan_layers=scanned
    )
    params = js.Params(target_params(scanned))
    states = [begin(params, row, target=target) for row in range(3)]
    return [js.generate(params, state, target=target) for state in states]


def begin(params, row, **machinery):
    """A text of its own, with its own settings and key."""
    tokens, lengths = js.pad_prompts([texts.PROMPTS[row]], multiple=16)
    key = jax.random.fold_in(jax.random.key(7, impl="threefry2x32"), row)
    return js.init_state(
        params,
        tokens,
        lengths,
        **machinery,
        **SETTINGS[row],
        max_length=MAX_LENGTH,
        stops=[3 + row],
        keys=key[None],
    )


def check(state, row, scanned, which):
    """Row `row` of a state is text `which`."""
    text = alone(scanned)[which]
    size = int(text.lengths[0])
    assert state.done[row] and int(state.lengths[row]) == size
    np.testing.assert_array_equal(state.tokens[row, :size], text.tokens[0, :size])
    np.testing.assert_allclose(
        state.logprobs[row, :size], text.logprobs[0, :size], atol=2e-5
    )


CASES = [
    pytest.param(
        name,
        rollback,
        scanned,
        id=f"{name}, {rollback}, {'stacked' if scanned else 'unrolled'}",
        marks=[pytest.mark.thorough] * (scanned and name != "look-up"),
    )
    for name in ("look-up", "draft model", "head")
    for rollback in ROLLBACKS
    for scanned in (False, True)
]


@pytest.mark.parametrize("name, rollback, scanned", CASES)
def test_texts_are_those_of_lone_runs(name, rollback, scanned):
    """Admitted into a running batch, set aside, resumed elsewhere, and forked."""
    machinery, params = make(name, rollback, scanned)
    prompts = [begin(params, row, **machinery) for row in range(3)]
    go_on = functools.partial(js.speculative_generate, params, **machinery)

    def empty(batch_size):
        return js.empty_state(params, batch_size, MAX_LENGTH, **machinery)

    axes = js.rows.axes(empty)
    pool = js.rows.put(axes, empty(2), [1], prompts[0])
    pool, _ = go_on(pool, max_steps=2)
    pool = js.rows.put(axes, pool, [0], prompts[1])  # into a running batch
    pool, _ = go_on(pool, max_steps=2)
    aside = js.rows.take(axes, pool, [1])  # a preemption,
    pool = js.rows.put(axes, pool, [1], prompts[2])  # whose slot is given away
    pool, _ = go_on(pool)
    twins = js.rows.take(axes, aside, [0, 0])  # a fork
    elsewhere = js.rows.put(axes, empty(2), [1, 0], twins)
    assert not elsewhere.done.any()
    elsewhere, _ = go_on(elsewhere)
    check(pool, 0, scanned, 1)
    check(pool, 1, scanned, 2)
    check(elsewhere, 0, scanned, 0)
    check(elsewhere, 1, scanned, 0)
