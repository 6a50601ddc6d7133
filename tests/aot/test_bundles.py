"""The kernels' instructions do not become more: static counts, with a margin.

After a change that is meant, `jaxspec bench cycles --json` has the new numbers.
"""

import pytest

from jaxspec.aot import cases, compile_cases, compilers
from jaxspec.aot.cases import Case

MARGIN = 1.1
CASES = {
    "read": Case("tree_ssd", "read", "mamba2-2.7b", 64),
    "verify": Case("tree_ssd", "verify", "mamba2-2.7b", 64, ring=32),
    "groups": Case("tree_ssd", "verify", "nemotron-h-8b", 16, ring=32),
    "solve": Case("tree_delta", "read", "qwen3.5-9b", 16),
    "solve and fold": Case("tree_delta", "verify", "qwen3.5-9b", 64, ring=32),
    "level": Case("tree_delta", "read", "qwen3.5-0.8b", 13, queries=5, ring=24),
    "walk": Case("tree_scan", "read", "mamba-2.8b", 64),
    "walk and fold": Case("tree_scan", "verify", "mamba-2.8b", 64, ring=32),
    "convolve": Case("tree_conv", "convolve", "mamba2-2.7b", 64),
    "attend": Case("tree_attention", "attend", "nemotron-h-8b", 64),
}
BUNDLES = {  # per head or per token
    "v5e": {
        "read": 76,
        "verify": 143,
        "groups": 117,
        "solve": 146,
        "solve and fold": 549,
        "level": 134,
        "walk": 297,
        "walk and fold": 307,
        "convolve": 52,
        "attend": 435,
    },
    "v6e": {
        "read": 84,
        "verify": 144,
        "groups": 127,
        "solve": 154,
        "solve and fold": 507,
        "level": 174,
        "walk": 291,
        "walk and fold": 305,
        "convolve": 41,
        "attend": 334,
    },
}


@pytest.fixture(scope="module", params=BUNDLES)
def chip(request):
    if reason := compilers.missing(request.param):
        pytest.skip(reason)
    with compile_cases.Compiler(request.param) as compiler:
        yield request.param, compiler


@pytest.mark.parametrize("name", CASES)
def test_instructions_do_not_become_more(chip, name):
    chip, compiler = chip
    case = CASES[name]
    result = compiler(case)
    assert result.error is None
    steps = sum(kernel.steps * kernel.bundles for kernel in result.kernels)
    count = steps / cases.num_units(case) / cases.BATCH
    assert 0 < count <= MARGIN * BUNDLES[chip][name]
