"""Each rollback moves the bytes that its formula says, and no others."""

import pytest

import tiny
from jaxspec.aot import compiled_traffic
from jaxspec.measure import traffic
from jaxspec.models import hybrid
from jaxspec.models.config import DeltaConfig, Mamba1Config, Mamba2Config
from jaxspec.models.rollback import ROLLBACKS

CONFIGS = {
    "mamba1": tiny.config("mm", mamba1=Mamba1Config()),
    "delta": tiny.config("GG", delta=DeltaConfig(4, 2, 16, 64)),
    "mamba2": tiny.config("MM", mamba2=Mamba2Config(nheads=4, headdim=16, d_state=64)),
}
BATCH, NODES, RING = 2, 6, 8
SMALL = 400  # bytes: positions, parents, tokens and paths of the batch


@pytest.mark.parametrize("rollback", ROLLBACKS)
@pytest.mark.parametrize("name", CONFIGS)
def test_compiled_bytes_are_those_of_the_formula(name, rollback):
    config = CONFIGS[name]
    model = hybrid.language_model(config, rollback=rollback, max_path=4, ring_size=RING)
    formula = traffic.formula(config, rollback, BATCH, NODES, RING)
    compiled = compiled_traffic.measure(model, BATCH, NODES)
    for expected, found in zip(formula, compiled, strict=True):
        assert expected <= found <= expected + SMALL


def test_the_rollbacks_differ():
    config = CONFIGS["mamba2"]
    totals = [sum(traffic.formula(config, r, 1, 8, 16)) for r in ROLLBACKS]
    assert len(set(totals)) == len(ROLLBACKS)
