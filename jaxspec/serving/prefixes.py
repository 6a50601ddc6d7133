"""A cache of pasts: what prompts have in common is absorbed once.

The prompts form a tree whose edges are chunks of tokens. Every node holds what its chunk
added to the caches of attention; the state of recurrent layers, which is large and is all
of the past, is kept at few of them: at branches, when a second prompt leaves the way of a
first, and at the last border of a prompt (Marconi, Pan et al. 2024). A prompt starts from
the deepest state on its way.

When there are too many bytes, what saves least time for its bytes goes first, as in
Greedy-Dual-Size-Frequency (Cherkasova 1998): with `c` the chunks that a node spares, `f`
how often it did, and `clock` the value of what went last,

    value = clock + f c / bytes.

It lives on the host and knows no model: states and pieces are lists of arrays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from jaxspec import checks

Chunk = tuple[int, ...]


@dataclasses.dataclass(eq=False)
class Node:
    """A border: the tokens up to it are its ancestors' chunks and its own."""

    parent: Node | None
    chunk: Chunk
    depth: int
    piece: Any = None
    state: Any = None
    uses: int = 0
    value: tuple[float, int] = (0.0, 0)
    num_bytes: int = 0
    children: dict[Chunk, Node] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Hit:
    """What is known of a prompt.

    Attributes:
        depth: chunks that need not be absorbed.
        state: at that border, None at the beginning.
        pieces: of the chunks up to it.
        branch: the deepest border of the prompt that another one has passed. A state is
            worth keeping there.
    """

    depth: int
    state: Any
    pieces: tuple[Any, ...]
    branch: int


class Prefixes:
    """A tree of pasts within a number of bytes.

    Attributes:
        max_bytes: of all that is kept.
        num_bytes: that are.
        queries: tokens of the prompts that were looked up.
        hits: tokens of those that were known.
    """

    def __init__(self, chunk: int, max_bytes: int):
        self.chunk = checks.integer("chunk", chunk, least=1)
        self.max_bytes = checks.integer("max_bytes", max_bytes, least=0)
        self.num_bytes = self.queries = self.hits = 0
        self._root = Node(None, (), 0)
        self._clock = 0.0
        self._touches = 0

    def __len__(self) -> int:
        return sum(1 for _ in self._nodes())

    def borders(self, tokens: Sequence[int]) -> int:
        """Chunks of a prompt that can be known; its last token is never absorbed."""
        return (len(tokens) - 1) // self.chunk

    def lookup(self, tokens: Sequence[int]) -> Hit:
        """What is known of a prompt."""
        node, path = self._root, []
        for chunk in self._chunks(tokens):
            if chunk not in node.children:
                break
            node = node.children[chunk]
            path.append(node)
        depth = max((each.depth for each in path if each.state is not None), default=0)
        self.queries += len(tokens)
        self.hits += depth * self.chunk
        if depth:  # only what is used is worth more for it (SGLang 31643)
            self._value(path[depth - 1], used=True)
        return Hit(
            depth=depth,
            state=path[depth - 1].state if depth else None,
            pieces=tuple(each.piece for each in path[:depth]),
            branch=len(path),
        )

    def offer(
        self, tokens: Sequence[int], depth: int, piece: Any, state: Any = None
    ) -> None:
        """Keeps the piece of a prompt's chunk `depth`, from 1, and the state behind it.

        Args:
            tokens: of the prompt, at least as many as are known.
            depth: chunks up to the border.
            piece: what the last of them added.
            state: at the border; None where it is not worth keeping.
        """
        node = self._root
        chunks = list(self._chunks(tokens))[:depth]
        for chunk in chunks[:-1]:
            if chunk not in node.children:
                return  # what lies before it is gone: it cannot be used
            node = node.children[chunk]
        new = node.children.get(chunks[-1])
        if new is None:
            new = Node(node, chunks[-1], depth)
            node.children[new.chunk] = new
            new.piece = piece
        if new.state is None:
            new.state = state
        self._value(new, used=False)
        self._shrink()

    def clear(self) -> None:
        """Forgets everything."""
        self._root.children.clear()
        self.num_bytes = 0

    def _chunks(self, tokens: Sequence[int]):
        size = self.chunk
        for i in range(self.borders(tokens)):
            yield tuple(tokens[i * size : (i + 1) * size])

    def _value(self, node: Node, used: bool) -> None:
        """Sets what a node is worth, and its bytes."""
        node.uses += used
        self.num_bytes -= node.num_bytes
        node.num_bytes = _num_bytes(node)
        self.num_bytes += node.num_bytes
        spared = node.depth - self._known_above(node) if node.state is not None else 1
        share = (1 + node.uses) * spared / max(node.num_bytes, 1)
        self._touches += 1  # of equals, what was not seen for longest goes first
        node.value = self._clock + share, self._touches

    @staticmethod
    def _known_above(node: Node) -> int:
        above = node.parent
        while above is not None and above.parent is not None and above.state is None:
            above = above.parent
        return above.depth if above is not None else 0

    def _nodes(self):
        stack = list(self._root.children.values())
        while stack:
            node = stack.pop()
            stack += node.children.values()
            yield node

    def _shrink(self) -> None:
        """Drops what is worth least until the rest fits."""
        while self.num_bytes > self.max_bytes:
            states = [n for n in self._nodes() if n.state is not None]
            leaves = [n for n in self._nodes() if n.state is None and not n.children]
            node = min(leaves or states, key=lambda node: node.value)
            self._clock = max(self._clock, node.value[0])
            self.num_bytes -= node.num_bytes
            if node.children:
                node.state = None
                node.num_bytes = _num_bytes(node)
                self.num_bytes += node.num_bytes
            else:
                del node.parent.children[node.chunk]


def _num_bytes(node: Node) -> int:
    """Bytes of a node's arrays, and about what it takes on the host by itself."""
    arrays = [*(node.piece or ()), *(node.state or ())]
    return sum(array.nbytes for array in arrays) + 8 * len(node.chunk) + 512
