"""Suffix decoding: what followed the last tokens before, wherever and however often.

With `w` the last `m` tokens of the text and `n(s)` how often the string `s` came, at the
end of the text not counted for `w`, a continuation `x` is taken to follow with probability

    p(x | w) = product over i of n(w x_1 .. x_i) / n(w x_1 .. x_(i-1)) = n(w x) / n(w).

For every `m` the likeliest continuations make a tree, as many as a match of that length
deserves; its score is the sum of their probabilities, the number of drafts that it expects
to be accepted. The tree of the best score is proposed (SuffixDecoding, Oliaro et al. 2024).

The counts are in trees of Python dicts, on the host: one of the text itself, and one of
past outputs if the caller keeps one. `jaxspec.host_decoding` is the loop around them.
"""

import dataclasses
import heapq
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from jaxspec.trees import TokenTree

_END = -1  # of a text; no token


class _Node:
    """A string that occurs in the texts."""

    __slots__ = ("children", "count", "place")

    def __init__(self, count: int, place: int):
        self.count = count
        self.place = place  # where what follows its first occurrence stands
        self.children: dict[int, _Node] | None = None  # by token, once it came twice


class SuffixTree:
    """How often every string of up to `depth` tokens occurs in some texts.

    A node is made only below strings that came twice: before, all that there is to know
    is where the one occurrence is. A token is appended in `O(l)`, with `l <= depth` the
    longest string at the end of the text that came before, and adds at most `l + 1`
    nodes. Nothing is forgotten.
    """

    def __init__(self, depth: int = 32, text: Iterable[int] = ()):
        """Counts the strings of a text, to be extended.

        Args:
            depth: tokens of the longest string that is counted.
            text: the beginning of the first text.

        Raises:
            ValueError: if the depth is not at least 2, or a token is negative.
        """
        if depth < 2:
            raise ValueError(f"Expected a depth of at least 2, got {depth}.")
        self.depth = depth
        self.tokens: list[int] = []  # of all texts, one after the other
        self._root = _Node(0, 0)
        self._root.children = {}
        self._ends = [self._root]  # nodes of the last 0, 1, .. tokens that came before
        self.extend(text)

    def extend(self, tokens: Iterable[int]) -> None:
        """Appends tokens to the text that is being counted."""
        for token in map(int, tokens):
            if token < 0:
                raise ValueError(f"Tokens are not negative, got {token}.")
            self.tokens.append(token)
            ends = [self._root]
            for node in self._ends[: self.depth]:
                following = self.children(
                    node
                )  # stored: strings that go on have theirs
                child = following.get(token)
                if child is None:
                    following[token] = _Node(1, len(self.tokens))
                    continue
                child.children = self.children(child)
                child.count += 1
                ends.append(child)
            self._ends = ends

    def end(self) -> None:
        """Ends a text: what comes next does not follow it."""
        self.tokens.append(_END)
        self._ends = [self._root]

    def children(self, node: _Node) -> dict[int, _Node]:
        """What follows a string, by token."""
        if node.children is not None:
            return node.children
        if node.place == len(self.tokens) or self.tokens[node.place] == _END:
            return {}
        return {self.tokens[node.place]: _Node(1, node.place + 1)}

    def find(self, string: Iterable[int]) -> _Node | None:
        """The node of a string of up to `depth` tokens, None if it does not occur."""
        node = self._root
        for token in string:
            node = self.children(node).get(token)
            if node is None:
                return None
        return node

    def matches(self, text: Sequence[int]) -> Iterator[tuple[int, _Node]]:
        """How many tokens at the end of a text match, and the node of each match."""
        for length in range(1, min(len(text), self.depth - 1) + 1):
            node = self.find(text[-length:])
            if node is None:
                return
            yield length, node

    def continuations(
        self, node: _Node, times: int, count: int, longest: int, least: float
    ) -> list[tuple[int, tuple[int, ...]]]:
        """Finds the likeliest continuations of a string, and how often each came.

        Among equals the shorter one comes first, then the one of lower tokens. Each comes
        after those that it continues.

        Args:
            node: of the string.
            times: how often it came, where something could follow.
            count: at most as many.
            longest: tokens of the longest.
            least: probability below which none is taken.
        """
        found: list[tuple[int, tuple[int, ...]]] = []
        frontier: list[tuple[int, int, tuple[int, ...], _Node]] = []
        heapq.heappush(frontier, (-node.count, 0, (), node))
        while frontier and len(found) <= count:
            occurrences, length, path, here = heapq.heappop(frontier)
            found.append((-occurrences, path))
            if length == longest:
                continue
            for token, child in self.children(here).items():
                if child.count >= least * times:
                    entry = -child.count, length + 1, (*path, token), child
                    heapq.heappush(frontier, entry)
        return found[1:]


@dataclasses.dataclass(frozen=True)
class SuffixDecoder:
    """Proposes by the suffix tree of each text, and by one of the past if there is one.

    Attributes:
        depth: tokens of the longest string that is counted.
        factor, offset: a match of `m` tokens deserves up to `factor * m + offset` drafts.
        min_probability: no draft is less likely.
        past: texts that went before. It is as private as what was put into it: outputs of
            one user are proposed to another only if the caller keeps one tree for both.
            `past.extend(output)` and `past.end()` add an output; nothing else does.
    """

    depth: int = 32
    factor: float = 1.0
    offset: float = 0.0
    min_probability: float = 0.1
    past: SuffixTree | None = None

    def __post_init__(self):
        if self.depth < 2 or not 0.0 < self.min_probability <= 1.0:
            raise ValueError(
                "Expected a depth of at least 2 and 0 < min_probability <= 1, got "
                f"{self.depth} and {self.min_probability}."
            )

    def begin(self, text: Iterable[int]) -> SuffixTree:
        """Reads a text so far; `extend` what it returns with the tokens that follow."""
        return SuffixTree(self.depth, text)

    def propose(
        self, text: SuffixTree, num_nodes: int, max_path: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Proposes a tree: tokens and parents `[num_nodes]` int32, and scores, float32.

        The score of a node is the probability of its continuation (`Draft.score`). Of equal
        trees the longer match wins, and then the text itself. Slot 0 stands for the last
        token, which whoever proposes the tree fills in.

        Args:
            text: from `begin`.
            num_nodes: slots of the tree, the root included.
            max_path: nodes on its longest path, the root included.
        """
        best = 0.0, 0, [], 1
        for tree in (text, self.past):
            if tree is None:
                continue
            for length, node in tree.matches(text.tokens[-tree.depth :]):
                times = node.count - (tree is text)  # which ends with it once more
                if times == 0:
                    break
                count = min(num_nodes - 1, int(self.factor * length + self.offset))
                longest = min(max_path - 1, tree.depth - length)
                found = tree.continuations(
                    node, times, count, longest, self.min_probability
                )
                score = sum(often for often, _ in found) / times
                if (score, length) > best[:2]:
                    best = score, length, found, times
        tokens = np.zeros(num_nodes, np.int32)
        parents = np.full(num_nodes, TokenTree.NO_PARENT, np.int32)
        score = np.zeros(num_nodes, np.float32)
        slots, score[0] = {(): 0}, 1.0
        for slot, (often, path) in enumerate(best[2], start=1):
            tokens[slot], parents[slot] = path[-1], slots[path[:-1]]
            slots[path], score[slot] = slot, often / best[3]
        return tokens, parents, score
