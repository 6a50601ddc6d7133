"""On a TPU each rollback moves the bytes that its formula says, and no others.

The compiler is the real one, and the kernels are in its programs. It pads arrays to tiles
of 8 or 16 rows and 128 lanes; here all that is large fills its tiles.
"""

import pytest

from jaxspec.aot import compiled_traffic, compilers
from jaxspec.measure import traffic
from jaxspec.models import hybrid
from jaxspec.models.config import Mamba1Config, Mamba2Config, ModelConfig
from jaxspec.models.rollback import ROLLBACKS

LAYERS = {
    "mamba1": ModelConfig(128, 512, "mm", mamba1=Mamba1Config(d_state=128)),
    "mamba2": ModelConfig(128, 256, "MM", mamba2=Mamba2Config(nheads=128)),
}
BATCH, NODES, RING = 8, 8, 16
SMALL = (
    24_000  # bytes: positions, parents, tokens and paths, a tile of 4 KB and more each
)


@pytest.mark.skipif(compilers.missing("v5e") is not None, reason="needs libtpu")
@pytest.mark.parametrize("rollback", ROLLBACKS)
@pytest.mark.parametrize("config", LAYERS.values(), ids=LAYERS)
def test_the_compiler_reports_the_bytes_of_the_formula(config, rollback):
    model = hybrid.language_model(config, rollback=rollback, max_path=8, ring_size=RING)
    formula = traffic.formula(config, rollback, BATCH, NODES, RING)
    compiled = compiled_traffic.measure(model, BATCH, NODES, target="v5e")
    for expected, found in zip(formula, compiled, strict=True):
        assert expected <= found <= expected + SMALL
