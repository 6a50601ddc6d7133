"""Bytes that each rollback moves in one step, by formula.

Per recurrent layer and row of the batch, with `s` the bytes of the state, `c` of one
token's record, `e` of one token's convolution input, `t = (K - 1) e` of the tail, `N`
nodes and `W` slots of the ring:

    rollback    scan_tree reads    scan_tree writes        commit reads        commit writes
    snapshot    s + t              N (s + e)               s + t + N (s + e)   s + t
    replay      s + t              N (c + e)               s + t + N (c + e)   s + t
    lazy        s + t + W c        N (c + e) + s           t + N (c + e) + W c t + W c
    joint       s + t              N (c + e) + s + t       -                   -

The write of `s` by lazy's `scan_tree` is XLA's: a state that is folded in some steps is
written in all of them. A kernel that writes under a predicate pays it when the ring is
full, once in about `W - D + 1` tokens. Joint keeps tokens instead of records, and pays for
it in arithmetic: its pass has `D + N` rows. The tapes of replay and joint also hold the
layer's decay rates, once per batch.
"""

from typing import NamedTuple

from jaxspec.measure.synthetic import num_bytes
from jaxspec.models import block, rollback
from jaxspec.models.config import ModelConfig


class Traffic(NamedTuple):
    """Bytes moved in one step of a batch, without params and hidden states."""

    scan_tree_reads: int
    scan_tree_writes: int
    commit_reads: int
    commit_writes: int


class _Layer(NamedTuple):
    state: int
    record: int
    conv: int
    tail: int
    rates: int


def formula(
    config: ModelConfig, rollback: str, batch_size: int, num_nodes: int, ring_size: int
) -> Traffic:
    """The table above, summed over the recurrent layers and the batch."""
    total = Traffic(0, 0, 0, 0)
    for s, c, e, t, rates in _layers(config):
        ring, tape = ring_size * c, num_nodes * (c + e)
        states = num_nodes * (s + e)
        reads, writes, commit_reads, commit_writes = {
            "snapshot": (s + t, states, s + t + states, s + t),
            "replay": (s + t, tape, s + t + tape, s + t),
            "lazy": (s + t + ring, tape + s, t + tape + ring, t + ring),
            "joint": (s + t, tape + s + t, 0, 0),
        }[rollback]
        layer = [
            batch_size * reads,
            batch_size * writes + rates * (rollback in ("replay", "joint")),
            batch_size * commit_reads + rates * (rollback == "replay"),
            batch_size * commit_writes,
        ]
        total = Traffic(*(a + b for a, b in zip(total, layer, strict=True)))
    return total


def _layers(config: ModelConfig) -> list[_Layer]:
    """What the recurrent mixers of a model keep, by their own empty pasts."""
    layers = []
    for kind in config.layers:
        one, split = 1, False
        carries = block.init_carry(config, kind, one, one, one, split)
        tapes = block.init_tape(config, kind, one, one, "replay", split)
        for carry, tape in zip(carries, tapes, strict=True):
            if isinstance(carry, rollback.Carry):
                sizes = map(num_bytes, (carry.state, carry.ring, tape.conv, carry.tail))
                layers.append(_Layer(*sizes, rates=num_bytes(tape.A)))
    return layers
