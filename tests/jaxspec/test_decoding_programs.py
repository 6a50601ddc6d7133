"""The loop as a program: what is compiled, how often, and what it does not copy."""

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxspec
import tiny
from jaxspec import compilation
from jaxspec.aot import hlo
from jaxspec.drafting.ngram import ngram
from jaxspec.models import hybrid
from jaxspec.verification.sample_and_match import sample_and_match
from texts import (
    BUDGETS,
    MAX_LENGTH,
    PROMPTS,
    TARGET,
    baseline,
    check_same,
    make_drafter,
    start,
    target,
)


@contextlib.contextmanager
def heard_compilations():
    """A list that grows with every program that is compiled."""
    heard = []

    def listen(event, *args, **kwargs):
        if event.endswith("backend_compile_duration"):
            heard.append(kwargs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield heard
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


FORMS = {  # of settings; all make the shapes that the first makes
    "other values": {
        "stops": [5, -1],
        "temperature": jnp.array([0.0, 0.5, 2.0]),
        "top_k": 7,
        "top_p": 0.5,
        "max_new_tokens": 3,
        "keys": jax.random.key(9),
        "prompts": [[1, 2], [3], [4, 4, 4]],
    },
    "no stops": {"stops": ()},
    "more stops": {"stops": [5, 6, 7, 8, -1, -1]},
    "stops of each row": {"stops": np.array([[1], [2], [3]])},
    "a stop": {"stops": 3},
    "another room": {"max_length": 40},
    "room by default": {"max_length": None, "max_new_tokens": 16},
    "a token more": {"max_length": None, "max_new_tokens": 17},
    "keys of each row": {"keys": jax.random.split(jax.random.key(1), 3)},
    "lists": {"temperature": [0, 1, 2], "top_k": [1, 2, 3], "top_p": [1, 1, 0.5]},
    "NumPy": {"temperature": np.float64(0.5), "top_p": np.ones(3, np.int64)},
    "weak types": {"temperature": jnp.broadcast_to(jnp.asarray(0.5), (3,))},
    "tokens in NumPy": {"tokens": np.ones((3, 16), np.int64)},
    "many steps": {"max_steps": 100},
    "steps in JAX": {"max_steps": jnp.int32(100)},
    "budgets": {"draft_budgets": [0, 2, 5]},
    "a budget": {"draft_budgets": 3},
    "replaced budgets": {"replace": {"draft_budgets": np.array([1, 0, 4])}},
    "a replaced temperature": {"replace": {"temperature": 0.5, "top_k": 4}},
}


def decode(name, max_steps=None, replace=None, **options):
    """Decodes with speculation and without."""
    drafter, drafter_params = make_drafter(name)
    params, state = start(drafter, drafter_params, **options)
    _, plain = start(**options)
    if replace is not None:
        state, plain = state.replace(**replace), plain.replace(**replace)
    settings = {"target": target(), "max_steps": max_steps}
    jaxspec.speculative_generate(params, state, drafter=drafter, **settings)
    jaxspec.generate(params, plain, **settings)


@pytest.mark.parametrize("name", ["ngram-tree", "model-tree"])
def test_only_shapes_are_compiled_for(name):
    decode(name, stops=[1, 2])
    for form, options in FORMS.items():
        with heard_compilations() as heard:
            decode(name, **options)
        assert heard == [], form
    with heard_compilations() as heard:
        decode(name, max_length=100)
    assert heard != []


def test_a_step_can_be_jitted_by_the_user():
    drafter, _ = make_drafter("ngram-tree")
    params, state = start(drafter)
    step = jax.jit(
        functools.partial(
            jaxspec.speculative_step,
            target=target(),
            drafter=drafter,
            verifier=sample_and_match(),
        )
    )
    while not state.done.all():
        state, _ = step(params, state)
    check_same(state, baseline("greedy"))


def test_init_state_can_be_traced():
    @jax.jit
    def run(params, tokens, lengths):
        state = jaxspec.init_state(
            params,
            tokens,
            lengths,
            target=target(),
            max_length=MAX_LENGTH,
            max_new_tokens=BUDGETS,
        )
        return jaxspec.generate(params, state, target=target())

    tokens, lengths = jaxspec.pad_prompts(PROMPTS, multiple=16)
    state = run(jaxspec.Params(tiny.params(TARGET)), tokens, lengths)
    check_same(state, baseline("greedy"))


@pytest.mark.parametrize("rollback", ["snapshot", "replay", "lazy"])
def test_the_loop_copies_no_state(rollback):
    """Read off the optimised program of a model whose state is large.

    (Under joint XLA copies it: both branches of the conditional in `scan_tree` return it.)
    """
    mamba2 = dataclasses.replace(tiny.MAMBA2, d_state=128)
    config, drafter = tiny.config("MM*", mamba2=mamba2), ngram(4, 4)
    model = hybrid.language_model(config, rollback=rollback, max_path=4)
    params = jaxspec.Params(jax.jit(model.init)(jax.random.key(0)))
    state = jaxspec.init_state(
        params,
        jnp.ones((2, 8), jnp.int32),
        target=model,
        drafter=drafter,
        max_new_tokens=16,
    )
    run = jax.jit(
        lambda params, state: jaxspec.speculative_generate(
            params, state, target=model, drafter=drafter
        )
    )
    options = compilation.compiler_options()
    program = run.lower(params, state).compile(compiler_options=options).as_text()
    state = "f32[2,4,8,128]"
    assert state in program
    copies = [m for m in hlo.moves(program) if m.is_looped and "copy" in m.opcode]
    assert not [copy for copy in copies if copy.shape.startswith(state)]
