"""Bytes that a rollback moves in one step, as the compiler has it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxspec import sampling
from jaxspec.aot import compilers
from jaxspec.core import LanguageModel
from jaxspec.measure import synthetic
from jaxspec.measure.traffic import Traffic
from jaxspec.trees import TokenTree


def measure(
    model: LanguageModel,
    batch_size: int,
    num_nodes: int,
    max_length: int = 64,
    target: str | None = None,
) -> Traffic:
    """Argument and output bytes of the compiled `scan_tree` and `commit`.

    Outputs that are an argument unchanged are not computed and do not count, nor do
    arguments that nothing reads. Params and hidden states are subtracted; small integer
    arrays (positions, parents, tokens) remain. A state that a kernel writes in place, in
    the rows and steps that fold, is an argument and an output, and counts in full as both:
    how many steps write it is not the compiler's to know. A TPU's arrays are padded to
    tiles, and so is what is counted here.

    Args:
        model: whose functions.
        batch_size: rows.
        num_nodes: of the trees.
        max_length: tokens in the caches.
        target: a machine of `compilers` to compile for; None is the one that runs this.
    """
    params = jax.eval_shape(model.init, sampling.key(0))
    carry = jax.eval_shape(lambda: model.init_carry(None, batch_size, max_length))
    shape = jax.ShapeDtypeStruct((batch_size, num_nodes), jnp.int32)
    tree = TokenTree(shape, shape)
    _, tape, hidden = jax.eval_shape(model.scan_tree, params, carry, tree)
    path = jax.ShapeDtypeStruct((batch_size, model.max_path), jnp.int32)
    reads, writes = _sizes(target, model.scan_tree, params, carry, tree)
    commit = _sizes(target, model.commit, carry, tape, path)
    return Traffic(
        reads - synthetic.num_bytes(params),
        writes - synthetic.num_bytes(hidden),
        *commit,
    )


def _sizes(target: str | None, f: Callable, *args: Any) -> tuple[int, int]:
    """Bytes that a compiled function reads and writes."""
    jaxpr = jax.make_jaxpr(f)(*args).jaxpr
    computed = [i for i, var in enumerate(jaxpr.outvars) if var not in jaxpr.invars]

    def only_computed(*args):
        leaves = jax.tree.leaves(f(*args))
        return [leaves[i] for i in computed]

    if target is None:
        program = jax.jit(only_computed).lower(*args).compile()
    else:
        program = compilers.compile(only_computed, *args, target=target)
    memory = program.memory_analysis()
    return memory.argument_size_in_bytes, memory.output_size_in_bytes
