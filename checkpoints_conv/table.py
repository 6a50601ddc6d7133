"""Tables of names: which published tensors a parameter is made of, and back.

A model is a list of parts (the embedding, each block, each set of weights that blocks
share, the final norm, the head), a part a list of leaves, and a leaf the tensors that it
joins by an invertible layout. `convert` and `export` follow the same table, one in each
direction, so what one does the other undoes bit by bit.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from jaxspec.models.config import ModelConfig


class Tensor(NamedTuple):
    """A published tensor."""

    name: str
    shape: tuple[int, ...]


class Layout(NamedTuple):
    """How tensors become one array.

    Attributes:
        join: arrays -> array.
        part: array, how many rows each tensor has -> arrays.
    """

    join: Callable[[list[np.ndarray]], np.ndarray]
    part: Callable[[np.ndarray, list[int]], list[np.ndarray]]


class Leaf(NamedTuple):
    """A parameter, `path` within its part: `mamba2.in_proj.kernel`."""

    path: str
    tensors: tuple[Tensor, ...]
    layout: Layout

    def join(self, arrays: list[np.ndarray]) -> np.ndarray:
        """The parameter, of the tensors."""
        return np.asarray(self.layout.join(arrays), order="C")

    def part(self, array: np.ndarray) -> list[np.ndarray]:
        """The tensors, of the parameter."""
        sizes = [tensor.shape[0] for tensor in self.tensors]
        return [np.ascontiguousarray(a) for a in self.layout.part(array, sizes)]

    def ordered(self, order: np.ndarray) -> "Leaf":
        """The same with rows in another order: `order[i]` becomes row i.

        Rows of tensors below each other, before any transposition.
        """
        layout, inverse = self.layout, np.argsort(order)

        def join(arrays):
            return layout.join([np.concatenate(arrays)[order]])

        def part(array, sizes):
            (whole,) = layout.part(array, [len(order)])
            return _cut(whole[inverse], sizes)

        return self._replace(layout=Layout(join, part))


class Part(NamedTuple):
    """What is written at once: `embed`, `layers.3`, `shared.0`, `final_norm`, `lm_head`."""

    name: str
    leaves: tuple[Leaf, ...]

    def tensors(self) -> list[Tensor]:
        """All that it is made of."""
        return [tensor for leaf in self.leaves for tensor in leaf.tensors]


def _cut(array: np.ndarray, sizes: list[int]) -> list[np.ndarray]:
    return np.split(array, np.cumsum(sizes)[:-1])


def _join_filters(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays)[:, 0].T


AS_IT_IS = Layout(lambda a: a[0], lambda a, n: [a])
"""One tensor of any shape."""

ROWS = Layout(np.concatenate, _cut)
"""Tensors `[n, ...]` below each other."""

COLUMNS = Layout(lambda a: np.concatenate(a).T, lambda a, n: _cut(a.T, n))
"""Tensors `[n, C]` beside each other, transposed: `[C, sum n]`."""

FILTERS = Layout(_join_filters, lambda a, n: _cut(a.T[:, None], n))
"""Filters of a convolution, a channel each: `[E, 1, K]` to `[K, E]`."""

STACK = Layout(lambda a: a[0].swapaxes(1, 2), lambda a, _: [a.swapaxes(1, 2)])
"""The kernels of all experts in one tensor, transposed: `[E, n, C]` to `[E, C, n]`."""


def rows(path: str, *tensors: tuple) -> Leaf:
    """Vectors, or tables as they are: each tensor is `name, size, ...`."""
    named = (Tensor(name, tuple(shape)) for name, *shape in tensors)
    return Leaf(path, tuple(named), ROWS)


def columns(path: str, *tensors: tuple) -> Leaf:
    """Kernels of projections: each tensor is `name, out, in`."""
    return rows(path, *tensors)._replace(layout=COLUMNS)


def stack(path: str, name: str, *shape: int) -> Leaf:
    """Kernels of experts in one tensor of shape `experts, out, in`."""
    return Leaf(path, (Tensor(name, shape),), STACK)


def experts(path: str, count: int, *tensors: tuple) -> Leaf:
    """Kernels of experts, one after another: `[n, C]` to `[count, C, n]`.

    Each tensor is `name, out, in`; an expert may have several, which stand beside each
    other.
    """

    def join(arrays):
        whole = np.concatenate(arrays)
        return whole.reshape(count, -1, whole.shape[1]).swapaxes(1, 2)

    def part(array, sizes):
        return _cut(array.swapaxes(1, 2).reshape(-1, array.shape[1]), sizes)

    return columns(path, *tensors)._replace(layout=Layout(join, part))


def linear(
    path: str, names: Iterable[tuple[str, int]], width: int, bias: bool
) -> Iterator[Leaf]:
    """A projection of `width` inputs onto one thing, or several at once.

    Args:
        path: of the projection.
        names: of what is projected onto, without `.weight`, and its size.
        width: of the input.
        bias: whether there is one.
    """
    names = list(names)
    weights = [(f"{name}.weight", size, width) for name, size in names]
    yield columns(f"{path}.kernel", *weights)
    if bias:
        yield rows(f"{path}.bias", *[(f"{name}.bias", size) for name, size in names])


def model(
    config: ModelConfig,
    embed: str,
    final_norm: str,
    head: str,
    blocks: Iterable[Iterable[Leaf]],
    shared: Iterable[Iterable[Leaf]] = (),
) -> list[Part]:
    """The parts of a model.

    Args:
        config: of it.
        embed: name of the embedding.
        final_norm: of the norm before the head.
        head: of the head.
        blocks: the leaves of each block.
        shared: those of each set of weights that blocks share.
    """
    table = (config.vocab_size, config.d_model)
    parts = [Part("embed", (rows("embedding", (embed, *table)),))]
    parts += [Part(f"layers.{i}", tuple(block)) for i, block in enumerate(blocks)]
    parts += [Part(f"shared.{i}", tuple(leaves)) for i, leaves in enumerate(shared)]
    parts += [Part("final_norm", (rows("scale", (final_norm, config.d_model)),))]
    if not config.tie_embeddings:
        parts += [Part("lm_head", (columns("kernel", (head, *table)),))]
    return parts
