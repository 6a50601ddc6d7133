"""The functions of a pool, each compiled once, before the first request.

The pool is a `DecodeState` whose rows are let to requests. All functions are pure; those
that change the pool, or a past on the way, take its memory (donation).

    open    params                    -> past     of one text, nothing absorbed
    absorb  params, past*, chunk      -> past     the tokens that come next
    admit   pool*, past, row, text    -> pool     a text whose prompt is absorbed
    take    pool, row                 -> value    a row set aside: a state of one
    put     pool*, row, value, key    -> pool     and put back, here or elsewhere
    step    params, pool*, control    -> pool, news
    resize  pool, index               -> pool     of another number of rows

A step runs one round or several, and stops after the one in which a text ends. Those that
take a pool are compiled for each number of rows, a step for each number of nodes as well.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxspec import (
    budgets,
    compilation,
    padding,
    pasts,
    prefill,
    rows,
    sampling,
    stepping,
)
from jaxspec.core import Outcome, Params
from jaxspec.decode_state import DecodeState
from jaxspec.pasts import Past
from jaxspec.serving import buckets, news, pieces
from jaxspec.serving.machinery import Machinery

Array = jax.Array


class Text(NamedTuple):
    """A request as the device takes it, of one row.

    Attributes:
        tokens: `[1, W]` int32, the prompt, 0 padded.
        length: `[1]` int32.
        limit: `[1]` int32, length at which the text is done.
        settings: the fields of `DecodeState` that are the request's, `[1, ...]`; the
            key is `[1, 2]` uint32.
    """

    tokens: Any
    length: Any
    limit: Any
    settings: dict[str, Any]


class Control(NamedTuple):
    """What the host says before a step.

    Attributes:
        budgets: `[R]` int32, draft nodes of each row at most.
        stop: `[R]` bool, rows that are given up.
        rounds: int32, steps at most.
    """

    budgets: Any
    stop: Any
    rounds: Any


class Programs(NamedTuple):
    """The compiled functions (see above, and `pieces`), by rows, nodes or both.

    Attributes:
        resize: by the numbers of rows before and after.
        step: by the numbers of rows and nodes.
        value: the shapes of a row that is taken.
    """

    open: Callable[..., Past]
    absorb: Callable[..., Past]
    state: Callable[..., list[Array]]
    piece: Callable[..., list[Array]]
    put_state: Callable[..., Past]
    put_piece: Callable[..., Past]
    pool: Mapping[int, Callable[..., DecodeState]]
    admit: Mapping[int, Callable[..., DecodeState]]
    take: Mapping[int, Callable[..., DecodeState]]
    put: Mapping[int, Callable[..., DecodeState]]
    resize: Mapping[tuple[int, int], Callable[..., DecodeState]]
    step: Mapping[tuple[int, int], Callable[..., tuple[DecodeState, Array]]]
    value: DecodeState


def compile_all(
    machinery: Machinery, params: Params, watch: Callable[[str], None]
) -> Programs:
    """Compiles the functions side by side, in threads.

    Args:
        machinery: of the engine.
        params: of the target and the drafter.
        watch: is told the name of each function when it is ready.
    """
    jobs = {(name, key): job for name, key, job in _jobs(machinery, params)}
    options = compilation.compiler_options()

    def compile_one(name):
        function, args, donated = jobs[name]
        jitted = jax.jit(function, donate_argnums=donated, compiler_options=options)
        compiled = jitted.lower(*args).compile()
        watch(name[0])
        return compiled

    order = sorted(jobs, key=lambda name: name[0] != "step")  # the longest first
    found: dict[str, Any] = {}
    with futures.ThreadPoolExecutor(max_workers=2) as threads:
        for (name, key), program in zip(
            order, threads.map(compile_one, order), strict=True
        ):
            if key is None:
                found[name] = program
            else:
                found.setdefault(name, {})[key] = program
    value = jax.eval_shape(functools.partial(_empty, machinery, batch_size=1), params)
    return Programs(**{"resize": {}} | found, value=value)


def num_programs(machinery: Machinery) -> int:
    """Programs that are compiled for an engine."""
    rows, nodes = len(machinery.rows), len(machinery.nodes)
    return 6 + 4 * rows + rows * (rows - 1) + rows * nodes


def _jobs(machinery: Machinery, params: Params) -> Iterator[tuple[str, Any, tuple]]:
    """Functions, their sizes, the shapes of arguments, and which of these are donated."""
    m = machinery
    axes = rows.axes(functools.partial(_empty, m, params))
    cut = cut_of(m, params)
    begin = functools.partial(_open, m, max_length=m.max_length)
    past = jax.eval_shape(begin, params)
    one = jax.eval_shape(functools.partial(_empty, m, batch_size=1), params)
    row = number = jax.ShapeDtypeStruct((), jnp.int32)
    chunk = jax.ShapeDtypeStruct((1, m.chunk), jnp.int32)
    count = jax.ShapeDtypeStruct((1,), jnp.int32)
    text = text_shapes(m)
    state = jax.eval_shape(functools.partial(pieces.state, cut), past)
    piece = jax.eval_shape(functools.partial(pieces.piece, cut), past, number)
    put_state = functools.partial(pieces.put_state, cut)
    put_piece = functools.partial(pieces.put_piece, cut)
    yield "open", None, (begin, (params,), ())
    yield "absorb", None, (_absorb(m), (params, past, chunk, count), (1,))
    yield "state", None, (functools.partial(pieces.state, cut), (past,), ())
    yield "piece", None, (functools.partial(pieces.piece, cut), (past, number), ())
    yield "put_state", None, (put_state, (past, state), (0,))
    yield "put_piece", None, (put_piece, (past, piece, number), (0,))
    put = functools.partial(_put_back, axes)
    take, resize = functools.partial(_take, axes), functools.partial(_resize, axes)
    for size in m.rows:
        make = functools.partial(_empty, m, batch_size=size)
        pool = jax.eval_shape(make, params)
        control = Control(
            budgets=jax.ShapeDtypeStruct((size,), jnp.int32),
            stop=jax.ShapeDtypeStruct((size,), jnp.bool_),
            rounds=number,
        )
        yield "pool", size, (make, (params,), ())
        yield "admit", size, (_admit(m, axes), (pool, past, row, text), (0,))
        yield "take", size, (take, (pool, row), ())
        yield "put", size, (put, (pool, row, one, text.settings["keys"]), (0,))
        for other in m.rows:
            index = jax.ShapeDtypeStruct((other,), jnp.int32)
            if other != size:
                yield "resize", (size, other), (resize, (pool, index), ())
        for nodes in m.nodes:
            yield (
                "step",
                (size, nodes),
                (_step(m, nodes), (params, pool, control), (1,)),
            )


def cut_of(machinery: Machinery, params: Any) -> pieces.Cut:
    """How the pasts of an engine are cut."""
    m = machinery

    def make(max_length):
        return _open(m, params, max_length)

    return pieces.cut(make, m.max_length, m.chunk, m.target.max_path)


def text_shapes(machinery: Machinery) -> Text:
    """The shapes of a `Text`."""
    one = jax.ShapeDtypeStruct((1,), jnp.int32)
    real = jax.ShapeDtypeStruct((1,), jnp.float32)
    settings = {"temperature": real, "top_k": one, "top_p": real, "draft_budgets": one}
    width = padding.round_up(machinery.num_stops, padding.STOPS)
    settings["stops"] = jax.ShapeDtypeStruct((1, width), jnp.int32)
    settings["keys"] = jax.ShapeDtypeStruct((1, 2), jnp.uint32)
    tokens = jax.ShapeDtypeStruct((1, machinery.width), jnp.int32)
    return Text(tokens, one, one, settings)


def _empty(m: Machinery, params: Params, batch_size: int) -> DecodeState:
    """A pool whose rows are all free."""
    return prefill.empty_state(
        params,
        batch_size,
        m.max_length,
        target=m.target,
        drafter=m.drafter,
        speculative=True,
        num_stops=m.num_stops,
    )


def _open(m: Machinery, params: Params, max_length: int) -> Past:
    return pasts.init_past(
        params, 1, max_length, target=m.target, drafter=m.drafter, speculative=True
    )


def _absorb(m: Machinery) -> Callable[..., Past]:
    def absorb(params, past, tokens, count):
        return pasts.absorb(
            params, past, tokens, count, target=m.target, drafter=m.drafter
        )

    return absorb


def _admit(m: Machinery, axes: Any) -> Callable[..., DecodeState]:
    def admit(pool, past, row, text):
        keys = sampling.wrap(text.settings["keys"])
        state = prefill.begin(
            past,
            text.tokens,
            text.length,
            text.limit,
            text.settings | {"keys": keys},
            m.target.max_path,
        )
        return _put(axes, pool, row, state)

    return admit


def _take(axes: Any, pool: DecodeState, row: Array) -> DecodeState:
    return jax.tree.map(
        lambda axis, leaf: jax.lax.dynamic_slice_in_dim(leaf, row, 1, axis), axes, pool
    )


def _put(axes: Any, pool: DecodeState, row: Array, value: DecodeState) -> DecodeState:
    def write(axis, leaf, new):
        return jax.lax.dynamic_update_slice_in_dim(leaf, new, row, axis)

    return jax.tree.map(write, axes, pool, value)


def _put_back(
    axes: Any, pool: DecodeState, row: Array, value: DecodeState, key: Array
) -> DecodeState:
    return _put(axes, pool, row, value.replace(keys=sampling.wrap(key)))


def _resize(axes: Any, pool: DecodeState, index: Array) -> DecodeState:
    return jax.tree.map(lambda axis, leaf: jnp.take(leaf, index, axis=axis), axes, pool)


def _round(m: Machinery, num_nodes: int) -> Callable[..., tuple[DecodeState, Outcome]]:
    """A round that verifies so many nodes: `params, state -> state, outcome`."""

    def without_drafts(params, state):
        return stepping.step_without_drafts(
            params, state, target=m.target, drafter=m.drafter, verifier=m.verifier
        )

    def with_drafts(params, state):
        state, draft = stepping.propose(params, state, drafter=m.drafter)
        index = None
        if num_nodes < m.num_nodes:
            most = jnp.minimum(state.context.budget, num_nodes - 1)
            draft = budgets.limit(draft, most)
            tree = draft.tree
            draft, index = buckets.compact(draft, num_nodes)
        state, outcome = stepping.verify(
            params, state, draft, target=m.target, verifier=m.verifier
        )
        if index is not None:
            outcome = buckets.spread(outcome, tree, index)
        return stepping.observe(params, state, outcome, drafter=m.drafter), outcome

    return with_drafts if num_nodes > 1 else without_drafts


def _step(m: Machinery, num_nodes: int) -> Callable[..., tuple[DecodeState, Array]]:
    """Rounds of all rows: `params, pool, control -> pool, news [M, R, W]`."""
    advance_all = _round(m, num_nodes)

    def one(params, state):
        ran = ~state.done
        state, outcome = advance_all(params, state)
        sizes = m.drafter.max_path, m.num_nodes
        return state, news.pack(outcome, state.done, ran, *sizes)

    def step(params, pool, control):
        pool = pool.replace(
            done=pool.done | control.stop, draft_budgets=control.budgets
        )
        live = ~pool.done
        width = news.width(m.drafter.max_path, m.num_nodes)
        nothing = jnp.zeros((m.rounds, len(live), width), jnp.int32)

        def keep_going(loop):
            count, state, _ = loop
            all_go_on = ~jnp.any(live & state.done) & jnp.any(live)
            return all_go_on & (count < jnp.minimum(control.rounds, m.rounds))

        def advance(loop):
            count, state, found = loop
            state, packed = one(params, state)
            found = jax.lax.dynamic_update_index_in_dim(found, packed, count, 0)
            return count + 1, state, found

        _, pool, found = jax.lax.while_loop(
            keep_going, advance, (jnp.int32(0), pool, nothing)
        )
        return pool, found

    return step
