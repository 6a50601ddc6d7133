"""Tokens per second of drafters over prompts, beside the autoregressive loop."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxspec import decoding, metrics, padding, prefill, sampling
from jaxspec.core import Verifier
from jaxspec.drafters.sources import Setup
from jaxspec.measure import peer as peers
from jaxspec.measure import timing, totals

Names = tuple[str, str]
"""Of a drafter and a rollback."""


class Job(NamedTuple):
    """Some prompts at one temperature, decoded side by side."""

    prompt: jax.Array
    lengths: jax.Array
    settings: dict[str, Any]
    count: int  # prompts; rows beyond fill the batch up and are not looked at


def jobs(
    ids: Sequence[list[int]], batch: int, seed: int, settings: dict[str, Any]
) -> list[Job]:
    """Cuts prompts into batches of one shape, so that one program serves all.

    Args:
        ids: tokens of each prompt.
        batch: prompts decoded side by side.
        seed: of the noise; every prompt has a key of its own.
        settings: of `init_state`, with `max_new_tokens`.
    """
    prompt, lengths = padding.pad_prompts(ids)
    settings = {
        "max_length": prompt.shape[1] + settings["max_new_tokens"],
        **settings,
    }
    keys = jax.vmap(jax.random.fold_in, (None, 0))(
        sampling.key(seed), np.arange(len(ids))
    )
    found = []
    for start in range(0, len(ids), batch):
        index = np.arange(start, start + batch)
        count, index = int(np.sum(index < len(ids))), index % len(ids)
        own = {**settings, "keys": keys[index]}
        found.append(Job(prompt[index], lengths[index], own, count))
    return found


def measure(
    setups: dict[Names, Setup],
    jobs: list[Job],
    *,
    verifier: Verifier,
    repeats: int,
    peer: peers.Transformers | None = None,
    advance: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Decodes every job autoregressively, with every drafter and by a peer, in turn.

    Args:
        setups: what decodes, by name.
        jobs: at one temperature.
        verifier: what decides.
        repeats: timings of each text, of which the median counts.
        peer: another library, with the same weights.
        advance: called after every job.

    Returns:
        A record for each setup.
    """
    first = next(iter(setups.values()))
    of_drafter = {name: totals.Total() for name in setups}
    of_baseline = totals.Total()
    of_peer = totals.PeerTotal(peer) if peer else None
    written = []
    for number, job in enumerate(jobs):
        decode = _decoder(first, job, None)
        out, _, seconds = _timed(decode, job, repeats, is_first=number == 0)
        of_baseline.add(out, None, seconds)
        baseline, written = out, written + _texts(first.target.tokenizer, out)
        for name, setup in setups.items():
            decode = _decoder(setup, job, verifier)
            out, info, seconds = _timed(decode, job, repeats, is_first=number == 0)
            of_drafter[name].add(out, info, seconds)
            of_drafter[name].agreement.compare(setup.target, baseline, out)
        if of_peer:
            prompt = job.prompt[0, : int(job.lengths[0])].tolist()
            of_peer.decode(first.target, prompt, repeats, job.settings, baseline)
        advance()
    zlib = float(np.mean([metrics.zlib_ratio(text) for text in written]))
    return [
        {
            "name": name,
            "rollback": rollback,
            "temperature": jobs[0].settings["temperature"],
            **total.record(of_baseline),
            "zlib_ratio": zlib,
            "peer": of_peer and of_peer.record(of_baseline),
        }
        for (name, rollback), total in of_drafter.items()
    ]


def _decoder(setup: Setup, job: Job, verifier: Verifier | None) -> Callable[[], Any]:
    """A call that decodes a job: state, info; autoregressively without a verifier."""
    model = setup.target.model
    state = prefill.init_state(
        setup.params,
        job.prompt,
        job.lengths,
        target=model,
        drafter=None if verifier is None else setup.drafter,
        **job.settings,
    )
    jax.block_until_ready(state)
    if verifier is None:
        return lambda: (decoding.generate(setup.params, state, target=model), None)
    return lambda: setup.generate(
        setup.params, state, target=model, drafter=setup.drafter, verifier=verifier
    )


def _timed(decode: Callable[[], Any], job: Job, repeats: int, *, is_first: bool):
    """The prompts' rows of state and info, and the median of the seconds."""
    if is_first:
        jax.block_until_ready(decode())  # compiles
    times = [timing.seconds(decode) for _ in range(repeats)]
    state, info = times[0][0]
    looked_at = state.replace(carry=None, drafter=None), info
    state, info = jax.tree.map(lambda leaf: leaf[: job.count], looked_at)
    return state, info, float(np.median([seconds for _, seconds in times]))


def _texts(tokenizer, state) -> list[str]:
    return [
        tokenizer.decode(tokens[start:length].tolist())
        for tokens, start, length in zip(
            np.asarray(state.tokens),
            np.asarray(state.prompt_lengths),
            np.asarray(state.lengths),
            strict=True,
        )
    ]
