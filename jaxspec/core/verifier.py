"""The contract of a verifier."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import jax

from jaxspec.core.drafts import Draft
from jaxspec.core.outcomes import Verdict
from jaxspec.sampling import Sampling

Array = jax.Array


class Verifier(NamedTuple):
    """Decides which drafts the target accepts, so that its law is kept.

    Attributes:
        verify: judges a draft.
    """

    verify: Verify


class Verify(Protocol):
    """`Verifier.verify`."""

    def __call__(
        self, keys: Array, draft: Draft, logits: Array, sampling: Sampling, /
    ) -> Verdict:
        """Judges a draft.

        Args:
            keys: `[B]` typed keys, the texts' own; noise is drawn with
                `sampling.noise_key`, or, as `generate` draws it, `emission_noise`.
            draft: the trees, and the laws that they were drawn from.
            logits: `[B, N, V]` float32, the target's, raw.
            sampling: how the target is sampled.
        """
        ...
