"""A case calls its op with the shapes of its model."""

import jax
import pytest

from jaxspec.aot import cases
from jaxspec.aot.cases import BATCH, LAYERS, Case

CASES = {  # and the shapes of what they return
    Case("tree_ssd", "read", "mamba2-130m", 13, queries=5, ring=4): [(BATCH, 5, 1536)],
    Case("tree_ssd", "verify", "falcon-h1-7b", 8, ring=4): [
        (BATCH, 8, 3072),
        (LAYERS, BATCH, 24, 128, 256),
    ],
    Case("tree_ssd", "fold", "nemotron-h-8b", 8): [(LAYERS, BATCH, 128, 64, 128)],
    Case("tree_scan", "read", "mamba-2.8b", 8): [(BATCH, 8, 5120)],
    Case("tree_scan", "verify", "mamba-2.8b", 8, ring=4): [
        (BATCH, 8, 5120),
        (LAYERS, BATCH, 16, 5120),
    ],
    Case("tree_scan", "fold", "mamba-2.8b", 8): [(LAYERS, BATCH, 16, 5120)],
    Case("tree_delta", "read", "qwen3.5-0.8b", 13, queries=5, ring=4): [
        (BATCH, 5, 2048),
        (BATCH, 5, 2048),
    ],
    Case("tree_delta", "verify", "qwen3.5-9b", 8, ring=4): [
        (BATCH, 8, 4096),
        (BATCH, 8, 4096),
        (LAYERS, BATCH, 32, 128, 128),
    ],
    Case("tree_delta", "fold", "qwen3.5-9b", 8): [(LAYERS, BATCH, 32, 128, 128)],
    Case("tree_conv", "convolve", "mamba2-130m", 8): [(BATCH, 8, 1792)],
    Case("tree_conv", "convolve", "mamba-2.8b", 8, queries=3): [(BATCH, 3, 5120)],
    Case("tree_attention", "attend", "nemotron-h-8b", 8): [(BATCH, 8, 4096)],
}


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_case_calls_its_op(case, dtype):
    program = cases.program(case._replace(dtype=dtype), "xla")
    out = jax.eval_shape(program.function, *program.args)
    assert [leaf.shape for leaf in jax.tree.leaves(out)] == CASES[case]
    for index in (program.written, program.resident):
        if index is not None:
            assert program.args[index].shape[:2] == (LAYERS, BATCH)


def test_what_is_written_in_place_is_a_result():
    for case in CASES:
        program = cases.program(case, "xla")
        if program.written is not None:
            out = jax.eval_shape(program.function, *program.args)
            written = program.args[program.written]
            shapes = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(out)]
            assert (written.shape, written.dtype) in shapes
            assert program.resident_bytes() == written.size * 4


def test_cases_have_names_of_their_own():
    assert len({str(case) for case in CASES}) == len(CASES)
