"""Moves and exchanges are read off a compiled program, wherever XLA hides them."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from jaxspec import sharding
from jaxspec.aot import hlo

PROGRAM = """HloModule jit_f, is_scheduled=true

%fused (param_0: f32[4,8], param_1: s32[]) -> f32[1,8] {
  %param_0 = f32[4,8]{1,0} parameter(0)
  %param_1 = s32[] parameter(1)
  ROOT %row = f32[1,8]{1,0:T(1,128)} dynamic-slice(%param_0, %param_1)
}

%body (loop: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %loop = (s32[], f32[4,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%loop), index=0
  %state = f32[4,8]{1,0} get-tuple-element(%loop), index=1
  %fusion = f32[1,8]{1,0} fusion(%state, %i), kind=kLoop, calls=%fused
  %again = f32[4,8]{1,0} copy(%state), metadata={op_name="x = y"}
  %next = f32[4,8]{1,0} dynamic-update-slice(%again, /*index=1*/%fusion, %i)
  %early = (f32[4,8]{1,0:S(1)}, f32[4,8]{1,0}, u32[]{:S(2)}) copy-start(%next)
  ROOT %tuple = (s32[], f32[4,8]{1,0}) tuple(%i, %next)
}

%condition (loop: (s32[], f32[4,8])) -> pred[] {
  %loop.1 = (s32[], f32[4,8]{1,0}) parameter(0)
  ROOT %keep_going = pred[] constant(false)
}

ENTRY %main (argument: f32[4,8]) -> f32[4,8] {
  %argument = f32[4,8]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %before = f32[4,8]{1,0} copy(%argument)
  %half = bf16[4,8]{1,0} convert(%before)
  %cut = bf16[2,8]{1,0} slice(%half), slice={[0:2], [0:8]}
  %start = (s32[], f32[4,8]{1,0}) tuple(%zero, %before)
  %while = (s32[], f32[4,8]{1,0}) while(%start), condition=%condition, body=%body
  ROOT %result = f32[4,8]{1,0} get-tuple-element(%while), index=1
}
"""


def test_moves_are_listed_with_what_they_move():
    assert {
        move.name: (move.opcode, move.num_bytes) for move in hlo.moves(PROGRAM)
    } == {
        "row": ("dynamic-slice", 32),
        "again": ("copy", 128),
        "next": ("dynamic-update-slice", 32),  # of its update
        "early": ("copy-start", 128),  # one of the two
        "before": ("copy", 128),
        "cut": ("slice", 32),
    }


def test_a_loop_runs_its_body_and_what_that_calls():
    looped = [move.name for move in hlo.moves(PROGRAM) if move.is_looped]
    assert looped == ["row", "again", "next", "early"]


def test_small_moves_are_left_out():
    names = [move.name for move in hlo.moves(PROGRAM, at_least=33)]
    assert names == ["again", "early", "before"]


@pytest.mark.parametrize("donated", [True, False])
def test_a_copy_of_an_argument_that_is_written_is_found(donated):
    def write(state, row):
        def body(i, state):
            return jax.lax.dynamic_update_slice(state, 2 * row, (i, 0))

        return jax.lax.fori_loop(0, 8, body, state)

    shapes = [jax.ShapeDtypeStruct(size, jnp.float32) for size in ((8, 512), (1, 512))]
    jitted = jax.jit(write, donate_argnums=(0,) if donated else ())
    program = jitted.lower(*shapes).compile().as_text()
    large = hlo.moves(program, at_least=8 * 512 * 4)
    assert [move.opcode for move in large] == ([] if donated else ["copy"])
    assert not any(move.is_looped for move in large)


def test_loops_and_branches_are_counted():
    with sharding.mesh(data=2, tensor=4) as mesh:
        columns = jax.sharding.NamedSharding(mesh, PartitionSpec(None, "tensor"))
        x = jax.ShapeDtypeStruct((4, 8), jnp.float32, sharding=columns)

        def total(x):
            return x * jnp.sum(x, axis=1, keepdims=True)

        def loop(x):
            return jax.lax.fori_loop(0, 5, lambda _, x: total(x), total(x))

        program = jax.jit(loop).lower(x).compile().as_text()
    (one,) = hlo.collectives(program)
    assert one.kind == "all-reduce" and one.devices == 4
    assert one.count == 6 and one.num_bytes == 16
