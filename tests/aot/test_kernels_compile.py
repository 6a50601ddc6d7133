"""Every kernel compiles for every machine, at the shapes of published models.

The compilers are the real ones; the machines are not here. One process per machine does
the work, as a compiler that fails may take its process with it.
"""

import fnmatch

import pytest

from jaxspec.aot import compile_cases, compilers
from jaxspec.aot.cases import Case

NODES = (8, 16, 64, 256)
RING = 32
TEMPORARY = 2**27  # bytes, what fast memory holds; a copy of all layers' rings is more
MACHINES = [*compilers.TPU, "h100", "b200"]  # an H200 runs an H100's code

MAMBA2 = ("mamba2-130m", "mamba2-2.7b", "nemotron-h-8b", "falcon-h1-7b")
MAMBA2 += ("granite-4-h-small",)
MAMBA1 = ("mamba-2.8b",)
DELTA = ("qwen3.5-0.8b", "qwen3.5-9b")
ATTENTION = ("nemotron-h-8b", "falcon-h1-7b")
CONVOLUTION = ("mamba2-2.7b", "nemotron-h-8b", "mamba-2.8b")

_V5 = (
    "tree_ssd.read-*-N8-*",
    "tree_ssd.read-*-N16-bfloat16",
    "tree_ssd.read-mamba2-130m-N13-*",
    "tree_ssd.read-mamba2-2.7b-N64-bfloat16",
    "tree_ssd.fold-mamba2-130m-*",
    "tree_ssd.fold-falcon-*",
    "tree_scan.*",
    "tree_conv.*-N8-*",
    "tree_conv.*-N13-*",
    "tree_conv.*-N16-*",
)
NO_SPILLS = {  # cases whose kernels keep all vectors in registers
    "v5e": _V5,
    "v5p": _V5,
    "v6e": (
        "tree_ssd.read-*-N8-*",
        "tree_ssd.read-*-N13-*",
        "tree_ssd.read-*-N16-*",
        "tree_ssd.read-*-N64-bfloat16",
        "tree_ssd.fold-mamba2-130m-*",
        "tree_ssd.fold-falcon-*",
        "tree_scan.*-N256-*",
        "tree_conv.convolve-mamba*-N8-*",
    ),
    "v7x": (
        "tree_ssd.fold-*",
        "tree_scan.*-N256-*",
        "tree_conv.*-N8-*",
        "tree_conv.*-N16-*",
    ),
}
SPILLS = {  # vectors per bundle of others; and beyond 64 nodes or in float32
    "tree_ssd": (0.2, 0.3),
    "tree_delta": (0.35, 0.35),
    "tree_scan": (0.05, 0.05),
    "tree_conv": (0.4, 0.5),
    "tree_attention": (0.3, 0.6),
}
MORE_SPILLS = {  # of one case: what spills less there takes more bundles
    ("v6e", "tree_delta.verify-qwen3.5-9b-N64-W32-float32"): 0.41,
}


def most_spills(machine, case, kernel):
    """How many vectors a kernel may put away; none at all on a GPU."""
    kept = NO_SPILLS.get(machine, ()) if machine in compilers.TPU else ("*",)
    if any(fnmatch.fnmatchcase(str(case), pattern) for pattern in kept):
        return 0
    if share := MORE_SPILLS.get((machine, str(case))):
        return share * kernel.bundles
    is_large = case.nodes > 64 or case.dtype == "float32"
    return SPILLS[case.op][is_large] * kernel.bundles


def recurrences(op, model, nodes, **kwargs):
    """`read` is `verify` without a ring, and `fold` is of a path."""
    yield Case(op, "verify", model, nodes, ring=RING, **kwargs)
    if model in ("mamba2-130m", "mamba2-2.7b", *MAMBA1):
        yield Case(op, "read", model, nodes, **kwargs)
    if nodes == 8:
        yield Case(op, "fold", model, nodes, **kwargs)


def cases():
    for nodes in NODES:
        for model in MAMBA2:
            yield from recurrences("tree_ssd", model, nodes)
        for model in MAMBA1:
            yield from recurrences("tree_scan", model, nodes)
        for model in DELTA:
            yield Case("tree_delta", "verify", model, nodes, ring=RING)
        for model in CONVOLUTION:
            yield Case("tree_conv", "convolve", model, nodes)
        for model in ATTENTION:
            yield Case("tree_attention", "attend", model, nodes)
    exact = {"nodes": 64, "dtype": "float32"}
    yield from recurrences("tree_ssd", "mamba2-130m", **exact)
    yield from recurrences("tree_ssd", "mamba2-2.7b", **exact)
    yield from recurrences("tree_scan", "mamba-2.8b", **exact)
    yield Case("tree_delta", "verify", "qwen3.5-9b", ring=RING, **exact)
    yield Case("tree_delta", "fold", "qwen3.5-9b", 8)
    yield Case("tree_conv", "convolve", "mamba2-130m", **exact)
    yield Case("tree_attention", "attend", "nemotron-h-8b", **exact)
    some = {"nodes": 13, "queries": 5}  # a drafter's last level
    yield Case("tree_ssd", "read", "mamba2-130m", ring=24, **some)
    yield Case("tree_ssd", "read", "falcon-h1-7b", ring=24, **some)
    yield Case("tree_scan", "read", "mamba-2.8b", ring=24, **some)
    yield Case("tree_delta", "read", "qwen3.5-9b", ring=24, **some)
    yield Case("tree_conv", "convolve", "mamba2-130m", **some)
    yield Case("tree_attention", "attend", "falcon-h1-7b", **some)


@pytest.fixture(scope="module", params=MACHINES)
def machine(request):
    if reason := compilers.missing(request.param):
        pytest.skip(reason)
    return request.param


@pytest.fixture(scope="module")
def compile_case(machine):
    with compile_cases.Compiler(machine) as compiler:
        yield compiler


@pytest.mark.parametrize("case", list(cases()), ids=str)
def test_kernels_compile(machine, compile_case, case):
    if case.op == "tree_delta" and case.nodes > 64 and machine not in compilers.TPU:
        pytest.skip("more than 64 nodes of the gated delta rule run in XLA on a GPU")
    result = compile_case(case)
    assert result.error is None
    assert result.moves == ()
    assert result.temporary < TEMPORARY
    if machine in compilers.TPU:  # a GPU kernel that was compiled before is not again
        assert result.kernels
    for kernel in result.kernels:
        assert kernel.spills <= most_spills(machine, case, kernel)
