"""Exact laws of programs that draw: the program is run once for every way it can go.

The shipped function is compiled as it is, in float64 where its inputs are, but for the
four primitives of `sampling`, which ask the host how they fall, and for `jax.vmap`, which
becomes the loop that it stands for. Keys are replaced by names, so that a run also sees
whether a name is used twice.
"""

import contextlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

from jaxspec import sampling

PRIMITIVES = ("draw", "draw_without_replacement", "perturb", "accept")


def softmax(logits):
    logits = np.asarray(logits, np.float64)
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


class Program:
    """A function of arrays, compiled once, whose draws are made by hand."""

    def __init__(self, f, monkeypatch, beam=None):
        """Takes `Leaves` too if the program has a stochastic beam search."""
        self.f, self.monkeypatch, self.beam = jax.jit(f), monkeypatch, beam
        self.names = set()  # of all keys used since `outcomes` was called

    def outcomes(self, *args):
        """Every result, as a pytree in numpy, and its probability."""
        self.names, unfinished = set(), [()]
        while unfinished:
            self.run = _Run(unfinished.pop(), unfinished, self.beam)
            with self._replaced():
                result = jax.tree.map(np.asarray, self.f(*args))
                jax.effects_barrier()
            self.names |= self.run.names
            yield result, self.run.probability

    def law(self, read, *args):
        """`{read(result): probability}`."""
        law = {}
        for result, probability in self.outcomes(*args):
            value = read(result)
            law[value] = law.get(value, 0.0) + probability
        return law

    @contextlib.contextmanager
    def _replaced(self):
        """Counters are int64 in a float64 world: no fault of the program's."""
        lenient, exact = jax.numpy_dtype_promotion("standard"), jax.enable_x64(True)
        with self.monkeypatch.context() as patch, lenient, exact:
            patch.setattr(jax, "vmap", _loop)
            patch.setattr(sampling, "check_keys", lambda keys: None)  # they are names
            patch.setattr(jax.random, "fold_in", _fold_in)
            patch.setattr(jax.random, "split", _split)
            for primitive in PRIMITIVES:
                patch.setattr(sampling, primitive, getattr(self, primitive))
            yield

    def draw(self, key, logits):
        return self._ask("draw", jnp.int32(0), key, logits)

    def draw_without_replacement(self, key, logits, count):
        like = jnp.zeros(count, jnp.int32), jnp.zeros(count, bool)
        return self._ask(
            "draw_without_replacement", like, key, logits, jnp.int32(count)
        )

    def perturb(self, key, logits, phi, top, count):
        del phi  # known of the path
        like = jnp.zeros(count, jnp.int32), jnp.zeros(count, logits.dtype)
        return self._ask("perturb", like, key, logits, top, jnp.int32(count))

    def accept(self, key, wanted, proposed):
        return self._ask("accept", jnp.bool_(False), key, wanted, proposed)

    def _ask(self, primitive, like, key, *args):
        def answer(key, *args):
            args = [np.asarray(arg) for arg in args]
            result = getattr(self.run, primitive)(int(key), *args)
            return jax.tree.map(
                lambda x, like: np.asarray(x, like.dtype).reshape(like.shape),
                result if isinstance(result, tuple) else (result,),
                like if isinstance(like, tuple) else (like,),
            )

        shapes = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), like
        )
        shapes = shapes if isinstance(shapes, tuple) else (shapes,)
        out = io_callback(answer, shapes, key, *args, ordered=True)
        return tuple(out) if isinstance(like, tuple) else out[0]


def keys(batch):
    """Keys of a batch, as names."""
    return jnp.arange(batch, dtype=jnp.int32)


def distance(first, second):
    """Total variation."""
    keys = set(first) | set(second)
    return 0.5 * sum(abs(first.get(k, 0.0) - second.get(k, 0.0)) for k in keys)


class Leaves:
    """What a stochastic beam search draws: its leaves, without replacement.

    All perturbed values follow from the order of the leaves (Plackett-Luce): a node's is
    the largest below it. Only as much of the order is drawn as the beam looks at.
    """

    def __init__(self, logits, width, length):
        """Takes `logits(path) -> [V]`, the draft's; the beam's width and length."""
        self.logits, self.width, self.length = logits, width, length
        self.vocab = len(logits(()))
        self.paths = list(itertools.product(range(self.vocab), repeat=length))
        self.scores = np.array([self._score(path) for path in self.paths])

    def _score(self, path):
        score = 0.0
        for i, token in enumerate(path):
            logits = np.asarray(self.logits(path[:i]), np.float64)
            score += logits[token] - np.logaddexp.reduce(logits)
        return score

    def order(self, choose):
        """Leaves in order, until every level's beam is known."""
        order, scores = [], self.scores.copy()
        while (scores > -np.inf).any() and not self._is_enough(order):
            leaf = choose(softmax(scores))
            scores[leaf] = -np.inf
            order.append(self.paths[leaf])
        return order

    def _is_enough(self, order):
        return all(
            len({leaf[:level] for leaf in order}) >= min(self.width, self.vocab**level)
            for level in range(1, self.length + 1)
        )


class _Run:
    """One run of a program: makes given choices first, and notes others for later."""

    def __init__(self, choices, unfinished, beam):
        self.given, self.made = choices, []
        self.unfinished, self.probability = unfinished, 1.0
        self.names = set()
        self.beam, self.order, self.seen = beam, None, []

    def choose(self, weights):
        possible = np.flatnonzero(np.asarray(weights) > 0).tolist()
        if len(self.made) < len(self.given):
            choice = self.given[len(self.made)]
        else:
            choice, *others = possible
            self.unfinished.extend((*self.made, other) for other in others)
        self.made.append(choice)
        self.probability *= float(weights[choice])
        return choice

    def name(self, key):
        assert key not in self.names, "noise is used twice"
        self.names.add(key)

    def draw(self, key, logits):
        self.name(key)
        weights = softmax(logits)
        return 0 if np.isnan(weights).any() else self.choose(weights)  # as argmax does

    def draw_without_replacement(self, key, logits, count):
        self.name(key)
        logits, count = np.array(logits, np.float64), int(count)
        tokens, exists = np.zeros(count, np.int32), np.zeros(count, bool)
        for i in range(count):
            if np.isneginf(logits).all():
                break
            tokens[i], exists[i] = self.choose(softmax(logits)), True
            logits[tokens[i]] = -np.inf
        return tokens, exists

    def accept(self, key, wanted, proposed):
        self.name(key)
        possible = wanted > 0.0 and proposed > 0.0
        chance = min(1.0, float(wanted) / float(proposed)) if possible else 0.0
        return self.choose(np.array([1.0 - chance, chance])) == 1

    def perturb(self, key, logits, top, count):
        """Children and values: minus the place in the order of the best leaf below."""
        self.name(key)
        if self.order is None:
            self.order = self.beam.order(self.choose)
            self.values = {(): 0.0}
            for place, leaf in enumerate(self.order):
                for level in range(1, len(leaf) + 1):
                    self.values.setdefault(leaf[:level], -1.0 - place)
            self.level = [()]
        elif top == 0.0:  # no node: all others have values below the root's
            return np.arange(count), np.full(count, -np.inf)
        if not self.level:  # all beams of the level above were asked for
            self.level, self.seen = self.seen, []
        node = next(n for n in self.level if self.values[n] == float(top) or n == ())
        self.level.remove(node)
        children = [(*node, token) for token in range(self.beam.vocab)]
        self.seen += [child for child in children if child in self.values]
        never = -1e6 - np.arange(len(children))
        values = [self.values.get(c, never[i]) for i, c in enumerate(children)]
        values = np.where(np.isneginf(logits), -np.inf, values)
        best = np.argsort(-values, kind="stable")[:count]
        return best, values[best]


def _loop(f, in_axes=0, out_axes=0):
    """`jax.vmap`, by its definition."""
    assert out_axes == 0

    def looped(*args):
        axes = in_axes if isinstance(in_axes, tuple) else (in_axes,) * len(args)
        pairs = list(zip(args, axes, strict=True))
        sizes = {
            leaf.shape[0]
            for arg, axis in pairs
            if axis == 0
            for leaf in jax.tree.leaves(arg)
        }
        (size,) = sizes
        results = []
        for i in range(size):
            one = [
                jax.tree.map(lambda leaf, i=i: leaf[i], arg) if axis == 0 else arg
                for arg, axis in pairs
            ]
            results.append(f(*one))
        return jax.tree.map(lambda *leaves: _stack(leaves), *results)

    return looped


def _stack(leaves):
    return jnp.stack([jnp.asarray(leaf) for leaf in leaves])


def _fold_in(key, data):
    """A name made of a name and a number, mixed so that no two are likely the same."""
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jnp.int64(0)
    mixed = jnp.asarray(key, jnp.int64) * 6364136223846793005
    mixed = (
        mixed + jnp.asarray(data, jnp.int64) + 1
    ) * 2862933555777941757 + 3037000493
    return mixed ^ (mixed >> 29)


def _split(key, num=2):
    return jnp.stack([_fold_in(key, 10**6 + i) for i in range(num)])
