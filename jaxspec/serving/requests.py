"""What is asked of an engine, and what it answers."""

import dataclasses
import enum
from collections.abc import Sequence
from typing import Any

from jaxspec.decode_state import NO_BUDGET, DecodeState


class QueueFull(RuntimeError):
    """As many requests wait as may; come back later."""


class Draining(RuntimeError):
    """The engine finishes what it has, and takes no more requests."""


class Finish(enum.StrEnum):
    """Why nothing more is written for a request."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    DEADLINE = "deadline"
    ERROR = "error"


@dataclasses.dataclass(frozen=True)
class Request:
    """A text to go on with, and how.

    Attributes:
        prompt: tokens, at least one.
        max_new_tokens: tokens to add at most.
        temperature: 0 is greedy.
        top_k: 0 keeps all tokens.
        top_p: 1 keeps all tokens.
        stops: tokens that end the text; a stop is part of it.
        seed: of the text's key.
        draft_budget: draft nodes that a step verifies at most.
        priority: the lower goes first, and takes the row of a higher one.
        deadline: seconds after the submission at which the text ends, whole or not.
        client: who asks; each row that a client has counts as one step of priority.
    """

    prompt: Sequence[int]
    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    stops: Sequence[int] = ()
    seed: int = 0
    draft_budget: int = NO_BUDGET
    priority: int = 0
    deadline: float | None = None
    client: str = ""


@dataclasses.dataclass(frozen=True)
class Delta:
    """News of a request.

    Attributes:
        id: the ticket's.
        tokens: that were added.
        logprobs: of each, under the target's raw logits.
        finish: why it ended, else None.
    """

    id: int
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: Finish | None = None


@dataclasses.dataclass(eq=False)
class Ticket:
    """A request on its way. The engine writes to it; read it at any time.

    Attributes:
        id: of the request in this engine.
        request: as it was submitted.
        arrival: seconds, on the engine's clock.
        tokens: added so far.
        logprobs: of each.
        finish: why it ended, None while it has not.
        error: what went wrong, if something did.
        row: where it runs, None where it does not.
        first_token: seconds, on the engine's clock, of the first token, else None.
        ended: seconds, on the engine's clock, else None.
        steps: steps of the target that it took part in.
        reused: tokens of the prompt that came from the cache.
    """

    id: int
    request: Request
    arrival: float
    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    finish: Finish | None = None
    error: str | None = None
    row: int | None = None
    first_token: float | None = None
    ended: float | None = None
    steps: int = 0
    reused: int = 0


@dataclasses.dataclass(frozen=True)
class Suspended:
    """A request that was set aside in the middle: all there is to go on elsewhere.

    Attributes:
        request: as it was submitted.
        tokens: written so far.
        logprobs: of each.
        value: its row, a state of one.
    """

    request: Request
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    value: DecodeState | Any
