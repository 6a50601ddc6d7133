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
    whole   value                     -> value    the same on every device of a mesh

Those that take a pool are compiled for each number of rows, a step (`steps`) for each
number of nodes as well.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxspec import (
    compilation,
    padding,
    pasts,
    prefill,
    rows,
    sampling,
)
from jaxspec.core import Params
from jaxspec.decode_state import DecodeState
from jaxspec.pasts import Past
from jaxspec.serving import pieces, steps
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


class Programs(NamedTuple):
    """The compiled functions (see above, and `pieces`), by rows, nodes or both.

    Attributes:
        resize: by the numbers of rows before and after.
        step: by the numbers of rows and nodes.
        value: the shapes of a row that is taken.
        whole: None without a mesh.
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
    whole: Callable[..., DecodeState] | None = None


class Job(NamedTuple):
    """A function to compile.

    Attributes:
        function: pure.
        args: the shapes of its arguments, or arrays.
        donated: which of them it takes the memory of.
        out: where its results go on a mesh; None without one.
    """

    function: Callable[..., Any]
    args: tuple
    donated: tuple[int, ...]
    out: Any


def compile_all(
    machinery: Machinery, params: Params, watch: Callable[[str, int, int], None]
) -> Programs:
    """Compiles the functions side by side, in threads.

    Args:
        machinery: of the engine.
        params: of the target and the drafter.
        watch: is told the name of each function when it is ready, how many are, and of
            how many.
    """
    with _on_mesh(machinery):
        jobs = {(name, key): job for name, key, job in _jobs(machinery, params)}
        value = _shapes(machinery, params, 1)
    options = compilation.compiler_options()

    def compile_one(name):
        job = jobs[name]
        where = {} if job.out is None else {"out_shardings": job.out}
        with _on_mesh(machinery):
            jitted = jax.jit(
                job.function,
                donate_argnums=job.donated,
                compiler_options=options,
                **where,
            )
            return jitted.lower(*job.args).compile()

    order = sorted(jobs, key=lambda name: name[0] != "step")  # the longest first
    found: dict[str, Any] = {}
    with futures.ThreadPoolExecutor(max_workers=2) as threads:
        compiled = zip(order, threads.map(compile_one, order), strict=True)
        for done, ((name, key), program) in enumerate(compiled, 1):
            watch(name, done, len(order))
            if key is None:
                found[name] = program
            else:
                found.setdefault(name, {})[key] = program
    return Programs(**{"resize": {}} | found, value=value)


def _on_mesh(m: Machinery) -> contextlib.AbstractContextManager:
    """The ambient mesh of what is traced; a thread begins without one."""
    return contextlib.nullcontext() if m.layout is None else jax.set_mesh(m.layout.mesh)


def _place(m: Machinery, tree: Any) -> Any:
    """Shapes with where they go on the mesh, if there is one."""
    if m.layout is None:
        return tree
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=where
        ),
        tree,
        m.layout.of(tree),
    )


def _where(tree: Any) -> Any:
    """Takes the shardings of shapes."""
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def _shapes(m: Machinery, params: Params, num_rows: int) -> DecodeState:
    """The shapes of a pool, and where it goes."""
    make = functools.partial(_empty, m, batch_size=num_rows)
    return _place(m, jax.eval_shape(make, params))


def _jobs(machinery: Machinery, params: Params) -> Iterator[tuple[str, Any, Job]]:
    """Functions by their names and sizes."""
    m = machinery
    cut = cut_of(m, params)

    def job(function, args, donated=(), out=None):
        return Job(function, args, donated, None if m.layout is None else _where(out))

    def host(*shape, dtype=jnp.int32):
        return _place(m, jax.ShapeDtypeStruct(shape, dtype))

    begin = functools.partial(_open, m, max_length=m.max_length)
    past = _place(m, jax.eval_shape(begin, params))
    one = _shapes(m, params, 1)
    number, chunk = host(), (host(1, m.chunk), host(1))
    text = _place(m, text_shapes(m))
    state, piece = pieces.shapes(cut, past)
    absorb, put_state = _absorb(m), functools.partial(pieces.put_state, cut)
    put_piece = functools.partial(pieces.put_piece, cut)
    get_state = functools.partial(pieces.state, cut)
    get_piece = functools.partial(pieces.piece, cut)
    yield "open", None, job(begin, (params,), out=past)
    yield "absorb", None, job(absorb, (params, past, *chunk), (1,), past)
    yield "state", None, job(get_state, (past,), out=state)
    yield "piece", None, job(get_piece, (past, number), out=piece)
    yield "put_state", None, job(put_state, (past, state), (0,), past)
    yield "put_piece", None, job(put_piece, (past, piece, number), (0,), past)
    if m.layout is not None:
        out = jax.tree.map(lambda _: number, one)
        yield "whole", None, job(lambda value: value, (one,), out=out)
    axes = rows.axes(functools.partial(_empty, m, params))
    admit, take = _admit(m, axes), functools.partial(_take, axes)
    put, resize = functools.partial(_put_back, axes), functools.partial(_resize, axes)
    for size in m.rows:
        make = functools.partial(_empty, m, batch_size=size)
        pool = _shapes(m, params, size)
        control = steps.Control(host(size), host(size, dtype=jnp.bool_), number)
        key = text.settings["keys"]
        yield "pool", size, job(make, (params,), out=pool)
        yield "admit", size, job(admit, (pool, past, number, text), (0,), pool)
        yield "take", size, job(take, (pool, number), out=one)
        yield "put", size, job(put, (pool, number, one, key), (0,), pool)
        for other in m.rows:
            if other != size:
                out = _shapes(m, params, other)
                yield "resize", (size, other), job(resize, (pool, host(other)), out=out)
        for nodes in m.nodes:
            step, args = steps.step_of(m, nodes), (params, pool, control)
            out = pool, number  # where news go, each number on every device
            yield "step", (size, nodes), job(step, args, (1,), out)


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
