"""Tokens per call of a drafter over prompts, and what a cycle costs."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec import decoding, padding, prefill, sampling
from jaxspec.core import Verifier
from jaxspec.drafters.sources import Setup
from jaxspec.measure import resampling, timing
from jaxspec.measure.resampling import Interval


class Prompts(NamedTuple):
    """Rows of a batch: every prompt at every temperature."""

    tokens: jax.Array  # [R, T]
    lengths: jax.Array  # [R]
    temperature: np.ndarray  # [R]
    domain: np.ndarray  # [R] which file
    number: np.ndarray  # [R] which prompt
    temperatures: tuple[float, ...]  # all of them, as asked for


def at_every_temperature(
    domains: Sequence[Sequence[list[int]]], temperatures: Sequence[float]
) -> Prompts:
    """Rows of the prompts of some domains, as tokens."""
    ids = [own for domain in domains for own in domain]
    domain = np.repeat(np.arange(len(domains)), list(map(len, domains)))
    tokens, lengths = padding.pad_prompts(ids)
    each = np.tile(np.arange(len(ids)), len(temperatures))
    temperature = np.repeat(np.float32(temperatures), len(ids))
    return Prompts(
        tokens=tokens[each],
        lengths=lengths[each],
        temperature=temperature,
        domain=domain[each],
        number=each,
        temperatures=tuple(temperatures),
    )


def decode(
    setup: Setup,
    verifier: Verifier,
    prompts: Prompts,
    *,
    max_new_tokens: int,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Decodes all rows side by side.

    Returns:
        A record for each temperature and domain, in order.
    """
    machinery = {"target": setup.target.model, "drafter": setup.drafter}
    keys = jax.vmap(jax.random.fold_in, (None, 0))(
        sampling.key(seed), jnp.arange(len(prompts.lengths))
    )
    state = prefill.init_state(
        setup.params,
        prompts.tokens,
        prompts.lengths,
        **machinery,
        max_length=prompts.tokens.shape[1] + max_new_tokens,
        max_new_tokens=max_new_tokens,
        temperature=prompts.temperature,
        stops=setup.target.stops,
        keys=keys,
    )
    state, info = setup.generate(setup.params, state, **machinery, verifier=verifier)
    written = np.asarray(state.lengths - state.prompt_lengths)
    calls, drafted = np.asarray(info.target_calls), np.asarray(info.drafted)
    found = []
    for temperature in prompts.temperatures:
        for domain in range(prompts.domain.max() + 1):
            here = prompts.temperature == np.float32(temperature)
            here &= prompts.domain == domain
            low, middle, high = resampling.ratio(written[here], calls[here])
            found.append(
                {
                    "temperature": temperature,
                    "domain": domain,
                    "tokens": int(written[here].sum()),
                    "target_calls": int(calls[here].sum()),
                    "drafted_per_call": float(drafted[here].sum() / calls[here].sum()),
                    "block_efficiency": middle,
                    "low": low,
                    "high": high,
                    "per_prompt": (written[here] / calls[here]).round(3).tolist(),
                    "max_path": setup.drafter.max_path,
                }
            )
    return found


def cycle(
    setup: Setup,
    verifier: Verifier,
    prompts: Prompts,
    *,
    temperature: float,
    steps: int,
    repeats: int,
) -> Interval:
    """A cycle in autoregressive steps, at batch 1: the first prompt, timed in turn."""
    machinery = {"target": setup.target.model, "drafter": setup.drafter}
    room = steps * (setup.drafter.max_path + 1)
    begin = functools.partial(
        prefill.init_state,
        setup.params,
        prompts.tokens[:1],
        prompts.lengths[:1],
        target=setup.target.model,
        max_length=prompts.tokens.shape[1] + room,
        max_new_tokens=room,
        temperature=temperature,
    )
    plain, state = begin(), begin(drafter=setup.drafter)
    calls = {
        "autoregressive": lambda: decoding.generate(
            setup.params, plain, target=setup.target.model, max_steps=steps
        ),
        "speculative": lambda: setup.generate(
            setup.params, state, **machinery, verifier=verifier, max_steps=steps
        ),
    }
    found = timing.rounds(calls, repeats)
    return resampling.median(found["speculative"] / found["autoregressive"])
