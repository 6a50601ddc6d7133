"""Moves of memory are read off a compiled program, wherever XLA hides them."""

import jax
import jax.numpy as jnp
import pytest

from jaxspec.bench import hlo

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
