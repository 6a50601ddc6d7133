"""The cache of pasts: its tree, its bytes, and the bits that come out of it."""

import jax
import numpy as np
import pytest

import engines
import traffic
from jaxspec.serving import Prefixes, Request, pieces, programs
from jaxspec.serving import texts as arrays

A = np.zeros(64, np.float32)  # 256 bytes


def fill(cache, tokens, states):
    """Offers every border of a prompt, with states at some."""
    for depth in range(1, cache.borders(tokens) + 1):
        cache.offer(tokens, depth, [A], [A, A] if depth in states else None)


def test_the_deepest_state_on_the_way_is_found():
    cache = Prefixes(2, 10**6)
    fill(cache, [1, 2, 3, 4, 5, 6, 7], {1, 3})
    hit = cache.lookup([1, 2, 3, 4, 5, 6, 7])
    assert (hit.depth, hit.branch, len(hit.pieces)) == (3, 3, 3)
    hit = cache.lookup([1, 2, 3, 4, 9, 9, 9])
    assert (hit.depth, hit.branch, len(hit.pieces)) == (1, 2, 1)
    hit = cache.lookup([9, 2, 3])
    assert (hit.depth, hit.branch, hit.state) == (0, 0, None)
    assert cache.queries == 17 and cache.hits == 8


def test_a_last_token_is_never_absorbed():
    cache = Prefixes(2, 10**6)
    assert [cache.borders(range(n)) for n in (1, 2, 3, 4, 5)] == [0, 0, 1, 1, 2]


def test_what_spares_least_for_its_bytes_goes_first():
    node = 256 * 3 + 8 * 2 + 512
    cache = Prefixes(2, 3 * node)
    for first in (10, 20, 30):
        fill(cache, [first, 1, 0], {1})
    cache.lookup([10, 1, 0])
    fill(cache, [40, 1, 0], {1})
    known = [cache.lookup([n, 1, 0]).depth for n in (10, 20, 30, 40)]
    assert known == [1, 0, 1, 1] and cache.num_bytes == 3 * node
    cache.clear()
    assert cache.num_bytes == 0 and len(cache) == 0


def test_what_was_never_used_grows_old():
    """A prompt that was common once does not stay for ever."""
    node = 256 * 3 + 8 * 2 + 512
    cache = Prefixes(2, 2 * node)
    fill(cache, [1, 1, 0], {1})
    for _ in range(5):
        cache.lookup([1, 1, 0])
    for n in range(2, 40):
        fill(cache, [n, 1, 0], {1})
        cache.lookup([n, 1, 0])
    assert cache.lookup([1, 1, 0]).depth == 0


def test_nothing_is_kept_where_nothing_fits():
    cache = Prefixes(2, 100)
    fill(cache, [1, 2, 3, 4, 5], {1, 2})
    assert len(cache) == 0 and cache.num_bytes == 0


def test_bytes_are_those_of_the_nodes():
    draw = np.random.default_rng(0)
    cache = Prefixes(2, 20_000)
    for _ in range(300):
        tokens = draw.integers(0, 3, draw.integers(1, 14)).tolist()
        cache.lookup(tokens)
        depths = range(1, cache.borders(tokens) + 1)
        fill(cache, tokens, {d for d in depths if draw.random() < 0.5})
        assert cache.num_bytes == sum(node.num_bytes for node in cache._nodes())
        assert cache.num_bytes <= 20_000
    assert len(cache) > 5


@pytest.mark.parametrize("kind", engines.MORE)
def test_a_hit_has_the_bits_of_a_cold_prompt(kind):
    """From every border, where pieces were kept by other prompts."""
    engine = engines.fresh(kind)
    run, size = engine.programs, traffic.CHUNK
    prompt = np.random.default_rng(0).integers(0, 40, 23).tolist()

    def absorb(past, first, last):
        for depth in range(first, last):
            chunk = jax.device_put(arrays.chunk(prompt, depth, size))
            past = run.absorb(engine._params, past, *chunk)
            kept[depth + 1] = run.state(past), run.piece(past, np.int32(depth * size))
        return past

    kept = {}
    cold = jax.device_get(absorb(run.open(engine._params), 0, 6))
    saved = dict(kept)
    for border in range(1, 6):
        past = run.open(engine._params)
        for depth in range(1, border + 1):
            past = run.put_piece(past, saved[depth][1], np.int32((depth - 1) * size))
        warm = absorb(run.put_state(past, saved[border][0]), border, 6)
        live = zip(*map(jax.tree.leaves, (cold, jax.device_get(warm))), strict=True)
        axes = jax.tree.leaves(programs.cut_of(engine.machinery, engine._params).axes)
        for axis, (one, other) in zip(axes, live, strict=True):
            if axis >= 0:  # rows that are not live hold anything
                one, other = (np.moveaxis(x, axis, 0)[:22] for x in (one, other))
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", engines.MORE)
def test_states_are_kept_at_branches_and_ends(kind):
    engine = engines.fresh(kind)
    common = list(range(1, 13))
    for tail in ([20, 21, 22, 23, 24], [30, 31, 32, 33, 34], [40, 41, 42, 43, 44]):
        ticket = engine.submit(Request(prompt=common + tail, max_new_tokens=2))
        engine.run()
    assert ticket.reused == 12
    nodes = {(node.depth, node.state is not None) for node in engine.prefixes._nodes()}
    assert nodes == {(1, False), (2, False), (3, True), (4, True)}


def test_two_axes_that_grow_are_refused():
    def make(length):
        return np.zeros((1, length, length))

    with pytest.raises(ValueError, match="at most one axis"):
        pieces.cut(lambda n: jax.numpy.asarray(make(n)), 64, 4, 4)
