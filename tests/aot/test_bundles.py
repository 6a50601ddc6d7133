"""The kernels' instructions do not become more: static counts, with a margin.

After a change that is meant, `jaxspec bench cycles --json` has the new numbers.
"""

import pytest

from jaxspec.bench import kernels, survey, targets
from jaxspec.bench.kernels import Case

MARGIN = 1.1
CASES = {
    "read": Case("tree_ssd", "read", "mamba2-2.7b", 64),
    "verify": Case("tree_ssd", "verify", "mamba2-2.7b", 64, ring=32),
    "groups": Case("tree_ssd", "verify", "nemotron-h-8b", 16, ring=32),
    "walk": Case("tree_scan", "read", "mamba-2.8b", 64),
    "walk and fold": Case("tree_scan", "verify", "mamba-2.8b", 64, ring=32),
    "convolve": Case("tree_conv", "convolve", "mamba2-2.7b", 64),
    "attend": Case("tree_attention", "attend", "nemotron-h-8b", 64),
}
BUNDLES = {  # per head or per token
    "v5e": {
        "read": 70,
        "verify": 141,
        "groups": 109,
        "walk": 303,
        "walk and fold": 312,
        "convolve": 30,
        "attend": 435,
    },
    "v6e": {
        "read": 84,
        "verify": 143,
        "groups": 136,
        "walk": 302,
        "walk and fold": 313,
        "convolve": 30,
        "attend": 334,
    },
}


@pytest.fixture(scope="module", params=BUNDLES)
def chip(request):
    if reason := targets.missing(request.param):
        pytest.skip(reason)
    with survey.Compiler(request.param) as compiler:
        yield request.param, compiler


@pytest.mark.parametrize("name", CASES)
def test_instructions_do_not_become_more(chip, name):
    chip, compiler = chip
    case = CASES[name]
    result = compiler(case)
    assert result.error is None
    steps = sum(kernel.steps * kernel.bundles for kernel in result.kernels)
    count = steps / kernels.num_units(case) / kernels.BATCH
    assert 0 < count <= MARGIN * BUNDLES[chip][name]
