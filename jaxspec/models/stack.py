"""A stack of blocks, written out or scanned, and how it stores what its blocks own.

A storage holds one pytree per block. Unrolled, it is a tuple in order: right on a CPU,
where a scan would copy every block's weights in each token. Scanned, it is a dict with
the blocks of a kind stacked along a leading axis: one program for a deep model. The
pattern is cut into runs of a repeated unit, and each run is one `lax.scan` whose carry
holds the stacked storage whole.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Storage = Any  # a tuple of pytrees, or a dict of stacked pytrees


class Run(NamedTuple):
    """`count` repetitions of the blocks `unit`."""

    unit: str
    count: int


@functools.cache
def find_runs(layers: str) -> tuple[Run, ...]:
    """Cuts a pattern into runs, at each place the one that covers most blocks.

    >>> find_runs("MM*-MM*-M")
    (Run(unit='MM*-', count=2), Run(unit='M', count=1))
    """
    runs, start = [], 0
    while start < len(layers):
        best = Run(layers[start], 1)
        for size in range(1, (len(layers) - start) // 2 + 1):
            unit, count = layers[start : start + size], 1
            while layers.startswith(unit, start + count * size):
                count += 1
            if count > 1 and count * size > best.count * len(best.unit):
                best = Run(unit, count)
        runs.append(best)
        start += best.count * len(best.unit)
    return tuple(runs)


class Stack(NamedTuple):
    """The blocks of a model.

    Attributes:
        layers: kinds of the blocks, in order, one character each.
        scanned: whether the stack is scanned.
    """

    layers: str
    scanned: bool

    def collect(self, blocks: list[Any]) -> Storage:
        """Puts one pytree per block into a storage."""
        if not self.scanned:
            return tuple(blocks)
        kinds: dict[str, list[Any]] = {}
        for kind, block in zip(self.layers, blocks, strict=True):
            kinds.setdefault(kind, []).append(block)
        return {
            kind: jax.tree.map(lambda *leaves: jnp.stack(leaves), *group)
            for kind, group in kinds.items()
        }

    def spread(self, storage: Storage) -> list[Any]:
        """Undoes `collect`."""
        if not self.scanned:
            return list(storage)
        seen: dict[str, int] = {}
        blocks = []
        for kind in self.layers:
            index = seen.get(kind, 0)
            seen[kind] = index + 1
            blocks.append(jax.tree.map(lambda leaf, i=index: leaf[i], storage[kind]))
        return blocks

    def share(
        self, f: Callable[..., Any], storage: Storage, kind: str, shared: Storage
    ) -> Storage:
        """Gives the blocks of a kind what they use in turn: `f(block, shared)`.

        Scanned, it stays as it is, and `run` takes turns where there are fewer entries
        than blocks.
        """
        if self.scanned:
            return {**storage, kind: f(storage[kind], shared[kind])}
        turns = itertools.cycle(shared)
        blocks = zip(self.layers, storage, strict=True)
        return tuple(f(own, next(turns)) if k == kind else own for k, own in blocks)

    def map(self, f: Callable[..., Any], *storages: Storage) -> Storage:
        """Applies `f(kind, *blocks)` to every block on its own, in one pass if stacked."""
        if not self.scanned:
            blocks = zip(self.layers, *storages, strict=True)
            return tuple(f(kind, *block) for kind, *block in blocks)
        out = {}
        for kind in dict.fromkeys(self.layers):
            blocks = [storage[kind] for storage in storages]
            owns_arrays = bool(jax.tree.leaves(blocks))
            g = functools.partial(f, kind)
            out[kind] = jax.vmap(g)(*blocks) if owns_arrays else g(*blocks)
        return out

    def run(
        self,
        f: Callable[..., tuple[jax.Array, Any]],
        x: jax.Array,
        params: Storage,
        reads: Storage,
        writes: Storage,
    ) -> tuple[jax.Array, Storage]:
        """Runs `x, writes = f(kind, x, params, reads, writes, layer)` through the blocks.

        Unrolled, a block is given its own reads and writes, and no layer. Scanned, it is
        given those of all blocks of its kind, stacked, and its index among them: what is
        as large as a state is to be read and written in place, not sliced.
        """
        if not self.scanned:
            out = []
            for i, kind in enumerate(self.layers):
                x, write = f(kind, x, params[i], reads[i], writes[i], None)
                out.append(write)
            return x, tuple(out)

        first = dict.fromkeys(self.layers, 0)
        for run in find_runs(self.layers):
            offsets = [run.unit[:j].count(kind) for j, kind in enumerate(run.unit)]
            base = dict(first)

            def body(state, repeat, run=run, offsets=offsets, base=base):
                x, writes = state
                writes = dict(writes)
                for kind, offset in zip(run.unit, offsets, strict=True):
                    layer = base[kind] + repeat * run.unit.count(kind) + offset
                    block = _at(params[kind], layer, self.layers.count(kind))
                    x, writes[kind] = f(
                        kind, x, block, reads[kind], writes[kind], layer
                    )
                return (x, writes), None

            repeats = jnp.arange(run.count, dtype=jnp.int32)
            (x, writes), _ = jax.lax.scan(body, (x, writes), repeats)
            for kind in set(run.unit):
                first[kind] += run.count * run.unit.count(kind)
        return x, writes

    def pair(self, first: Storage, second: Storage) -> Storage:
        """A storage of what two hold of every block."""
        if not self.scanned:
            return tuple(zip(first, second, strict=True))
        return {kind: (first[kind], second[kind]) for kind in first}

    def part(self, pairs: Storage) -> tuple[Storage, Storage]:
        """Undoes `pair`."""
        if not self.scanned:
            return tuple(zip(*pairs, strict=True))
        parts = ({kind: pair[i] for kind, pair in pairs.items()} for i in range(2))
        return tuple(parts)


def _at(stacked: Any, index: jax.Array, count: int) -> Any:
    """What one of `count` blocks has; where there are fewer entries, it is their turn."""

    def one(leaf):
        entries = leaf.shape[0]
        turn = index if entries == count else index % entries
        return jax.lax.dynamic_index_in_dim(leaf, turn, keepdims=False)

    return jax.tree.map(one, stacked)
