"""What an engine has done, in numbers."""

import collections
import dataclasses

import jax

_COMPILED = [0]


@jax.monitoring.register_event_duration_secs_listener
def _listen(event: str, duration: float, **rest) -> None:
    del duration, rest
    _COMPILED[0] += event == "/jax/core/compile/backend_compile_duration"


def compilations() -> int:
    """Programs that this process has compiled since this module was imported."""
    return _COMPILED[0]


@dataclasses.dataclass
class Counts:
    """Sums since the engine was ready.

    Attributes:
        turns: of the loop.
        steps: passes of the target over all rows.
        chunks: of prompts that were absorbed.
        tokens: that were written.
        drafted: drafts that a verifier reached.
        accepted: of those.
        finished: texts, by reason.
        compilations: programs that were compiled within turns: none.
        seconds: in turns.
        host_seconds: of those the host's own, in which it did not wait for the device.
    """

    turns: int = 0
    steps: int = 0
    chunks: int = 0
    tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    compilations: int = 0
    seconds: float = 0.0
    host_seconds: float = 0.0
    finished: collections.Counter = dataclasses.field(
        default_factory=collections.Counter
    )
