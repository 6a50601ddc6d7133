"""The loop as a program: what is compiled, how often, and what it does not copy."""

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest

import jaxspec
import tiny
from jaxspec import compilation
from jaxspec.bench import hlo
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


@pytest.mark.parametrize("name", ["ngram-tree", "model-tree"])
def test_only_shapes_are_compiled_for(name):
    drafter, drafter_params = make_drafter(name)

    def run(**options):
        params, state = start(drafter, drafter_params, **options)
        jaxspec.speculative_generate(params, state, target=target(), drafter=drafter)
        plain = start(**options)
        jaxspec.generate(*plain, target=target())

    other_values = {
        "stops": [5, -1],
        "temperature": jnp.array([0.0, 0.5, 2.0]),
        "top_k": 7,
        "top_p": 0.5,
        "max_new_tokens": 3,
        "keys": jax.random.key(9),
        "prompts": [[1, 2], [3], [4, 4, 4]],
    }
    run(stops=[1, 2])
    with heard_compilations() as heard:
        run(**other_values)
        assert heard == []
        run(stops=[5, -1, -1])  # another shape
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
