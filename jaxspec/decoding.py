"""The loop: autoregressive and speculative, every row at its own pace, on the device."""

import functools

import jax
import jax.numpy as jnp

from jaxspec import (
    checks,
    compilation,
    loop_checks,
    mesh,
    ragged,
    sampling,
    spec_info,
    stepping,
)
from jaxspec.core import Drafter, LanguageModel, Params, Verifier
from jaxspec.decode_state import DecodeState, append
from jaxspec.spec_info import SpecInfo
from jaxspec.verification.sample_and_match import sample_and_match

Array = jax.Array


def generate(
    params: Params,
    state: DecodeState,
    *,
    target: LanguageModel,
    max_steps: int | Array | None = None,
    check_every: int = 1,
) -> DecodeState:
    """Decodes one token per target call: the baseline, in one `lax.while_loop`.

    Args:
        params: of the target.
        state: made by `init_state` without a drafter.
        target: the model.
        max_steps: stop after as many steps, if not all rows are done before.
        check_every: steps between two looks at whether all rows are done. On a mesh a
            look is an exchange between all devices; steps after the end are wasted, and
            change nothing.

    Returns:
        The state after; call again to go on. In a row that is done the carry is dead.

    Raises:
        TypeError: on params that are not in `Params`, or something else than a state.
        ValueError: if the state was made with another target, or a setting is out of
            range.
    """
    loop_checks.records(target=target)
    return _generate(
        params,
        loop_checks.one_per_row(state, target),
        loop_checks.steps(max_steps),
        target=target,
        check_every=checks.integer("check_every", check_every, least=1),
    )


@functools.partial(compilation.jit, static_argnames=("target", "check_every"))
def _generate(params, state, max_steps, *, target, check_every):
    """`generate` of arguments of one form each."""
    loop_checks.fits(params, state, target, None)

    def body(loop):
        steps, state = loop
        carry, hidden = target.step(params.target, state.carry, state.root)
        logits = target.logits(params.target, hidden)
        checks.logits(logits, state.lengths.shape, target.vocab_size)
        token, logprob = mesh.by_rows(
            _emit, state.keys, logits, state.sampling, over=mesh.AXES
        )
        count = 1 - state.done.astype(jnp.int32)
        state = append(state, token[:, None], logprob[:, None], count)
        return steps + 1, state.replace(carry=carry)

    return _loop(body, (jnp.int32(0), state), max_steps, check_every)[1]


def _emit(keys: Array, logits: Array, settings: sampling.Sampling):
    """One token per row, and its log-probability."""
    needs = sampling.needs(settings)
    emit = jax.vmap(sampling.emit, (0, 0, 0, None))
    token = emit(keys, logits, settings, needs)
    return token, ragged.take_one(logits, token) - jax.nn.logsumexp(logits, axis=-1)


def speculative_generate(
    params: Params,
    state: DecodeState,
    *,
    target: LanguageModel,
    drafter: Drafter,
    verifier: Verifier | None = None,
    max_steps: int | Array | None = None,
    check_every: int = 1,
) -> tuple[DecodeState, SpecInfo]:
    """Decodes speculatively until all rows are done: one `lax.while_loop`.

    Args:
        params: of the target and the drafter.
        state: made by `init_state` with the same target and drafter.
        target: the model whose law is kept.
        drafter: what proposes.
        verifier: what decides; `sample_and_match` by default.
        max_steps: stop after as many steps, if not all rows are done before. To stream,
            call again and again with a few.
        check_every: steps between two looks at whether all rows are done, as in
            `generate`.

    Returns:
        The state after, and the report of the steps of this call.

    Raises:
        TypeError: on params that are not in `Params`, or something else than a state, a
            drafter or a verifier.
        ValueError: if the state was made with another target or drafter, or a setting is
            out of range.
    """
    verifier = sample_and_match() if verifier is None else verifier
    loop_checks.records(target=target, drafter=drafter, verifier=verifier)
    return _speculate(
        params,
        loop_checks.one_per_row(state, target),
        loop_checks.steps(max_steps),
        target=target,
        drafter=drafter,
        verifier=verifier,
        check_every=checks.integer("check_every", check_every, least=1),
    )


@functools.partial(
    compilation.jit, static_argnames=("target", "drafter", "verifier", "check_every")
)
def _speculate(params, state, max_steps, *, target, drafter, verifier, check_every):
    """`speculative_generate` of arguments of one form each."""
    loop_checks.fits(params, state, target, drafter)

    def body(loop):
        steps, state, report = loop
        state, info = stepping.step(
            params, state, target=target, drafter=drafter, verifier=verifier
        )
        return steps + 1, state, report + info

    start = jnp.int32(0), state, spec_info.empty(state, drafter.max_path)
    loop = _loop(body, start, max_steps, check_every)
    return loop[1], loop[2]


def _loop(body, loop: tuple, max_steps: Array, check_every: int) -> tuple:
    """Runs `body` on `(steps, state, ...)`, and looks who is done every few steps."""

    def advance(loop):
        if check_every == 1:
            return body(loop)
        count = jnp.minimum(check_every, max_steps - loop[0])
        return jax.lax.fori_loop(0, count, lambda _, loop: body(loop), loop)

    def keep_going(loop):
        return (
            ~jnp.all(loop[1].done)  # some row has a token to go
            & (loop[0] < max_steps)  # the caller wants to look in between
        )

    return jax.lax.while_loop(keep_going, advance, loop)
