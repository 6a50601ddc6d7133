"""The contract of a drafter, and of each of its functions."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import jax

from jaxspec.core.drafts import Context, Draft
from jaxspec.core.outcomes import Outcome

Array = jax.Array
State = Any


class Params(NamedTuple):
    """Parameters of the target, and of the drafter if it has any."""

    target: Any
    drafter: Any = None


class Drafter(NamedTuple):
    """Proposes trees of draft tokens.

    Its state is a value with the same leaves after every `init`, `absorb` and `observe`;
    `propose` may add to it what `observe` needs. It holds what the target has absorbed and
    not the root. Whoever decodes without the drafter tells it so with `absorb`.

    Attributes:
        init: makes the state of texts without tokens.
        absorb: takes in what the target has read without drafts.
        propose: makes a draft.
        observe: takes in what became of the draft.
        max_path: nodes on the longest path it proposes, the root included.
        vocab_size: `V` if it has one of its own, else None.
    """

    init: Init
    absorb: Absorb
    propose: Propose
    observe: Observe
    max_path: int
    vocab_size: int | None


class Init(Protocol):
    """`Drafter.init`."""

    def __call__(self, params: Any, batch_size: int, max_length: int, /) -> State:
        """Makes the state of texts without tokens.

        Args:
            params: the drafter's own; None if it has none.
            batch_size: `B`.
            max_length: tokens that there is room for, besides a path.
        """
        ...


class Absorb(Protocol):
    """`Drafter.absorb`."""

    def __call__(
        self, params: Any, state: State, tokens: Array, hidden: Array, lengths: Array, /
    ) -> State:
        """Takes in what the target has read without drafts.

        It is a prompt, a piece of one, or what was decoded by other means.

        Args:
            params: the drafter's own; None if it has none.
            state: after `init`, `absorb` or `observe`.
            tokens: `[B, T]` int32, as the target's `scan` took them.
            hidden: `[B, T, C]`, the target's after each.
            lengths: `[B]` int32; row `b` absorbs its first `lengths[b]` tokens, perhaps
                none.
        """
        ...


class Propose(Protocol):
    """`Drafter.propose`."""

    def __call__(
        self, params: Any, state: State, context: Context, /
    ) -> tuple[State, Draft]:
        """Makes a draft of as many slots in every step.

        Args:
            params: the drafter's own; None if it has none.
            state: after `init`, `absorb` or `observe`.
            context: the texts to continue.

        Returns:
            The state, with whatever `observe` needs, and the draft.
        """
        ...


class Observe(Protocol):
    """`Drafter.observe`."""

    def __call__(self, params: Any, state: State, outcome: Outcome, /) -> State:
        """Takes in what became of the draft, after stops and budgets.

        The target has read `outcome.verdict.path`. A row that is done has an empty path,
        and its state must not change.

        Args:
            params: the drafter's own; None if it has none.
            state: as `propose` returned it.
            outcome: of the draft.
        """
        ...
