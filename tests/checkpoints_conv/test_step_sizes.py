"""Bounds of the step sizes are those that a model's authors computed with."""

import json
import math
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

import checkpoints_conv
import jaxspec
import nemotron
import published
import tiny
from checkpoints_conv import families
from jaxspec import files
from weights import record

SPELLINGS = {
    "[0.0, Infinity]": (0.0, math.inf),
    '[0.0, "Infinity"]': (0.0, math.inf),
    '[0.0, "inf"]': (0.0, math.inf),
    '[0.0, {"__float__": "Infinity"}]': (0.0, math.inf),
    "[0.0, null]": (0.0, math.inf),
    "null": (0.0, math.inf),
    "[0.0, 0.05]": (0.0, 0.05),
    '["0.01", 100]': (0.01, 100.0),
}
WITH_LIMITS = ("nemotron_h", "nemotron-experts", "zamba2", "mamba2", "bamba")
WITH_LIMITS += ("granitemoehybrid", "falcon_h1")


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("name", WITH_LIMITS)
def test_limits_of_every_spelling(name, spelling):
    """And `time_step_min`, which says how step sizes are begun, is no bound."""
    own = json.loads((published.source(name) / "config.json").read_text())
    own |= {
        "time_step_min": 0.5,
        "time_step_limit": files.parse_json(spelling, "config"),
    }
    found = families.find(own).read(own).mamba2.dt_limits
    assert found == SPELLINGS[spelling]
    del own["time_step_limit"]
    assert families.find(own).read(own).mamba2.dt_limits == (0.0, math.inf)


def test_the_older_word_for_limits():
    own = json.loads((published.source("nemotron_h") / "config.json").read_text())
    del own["time_step_limit"]
    own |= {"mamba_dt_limit": [0.0, 0.05], "mamba_dt_min": 0.5}
    assert families.find(own).read(own).mamba2.dt_limits == (0.0, 0.05)


@pytest.mark.parametrize("limit", [[0.0, math.inf], [0.0, 0.05], [0.2, 0.9]])
@pytest.mark.parametrize("name", ["nemotron_h", "nemotron-experts"])
def test_nemotron_h_computes_what_float64_does(name, limit, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(published.source(name), source)
    record(source, time_step_limit=limit, time_step_min=0.5)
    checkpoints_conv.convert(source, tmp_path / "dest")
    model, params, _ = jaxspec.load(tmp_path / "dest", max_path=8)
    tokens = np.random.default_rng(0).integers(0, published.VOCAB, (1, 9))
    carry = model.init_carry(params, 1, 16)
    _, hidden = model.scan(params, carry, jnp.asarray(tokens), jnp.array([9]))
    found = model.logits(params, hidden)[0]
    expected = nemotron.logits(source, tokens[0])
    assert tiny.relative_error(found, expected) < 2e-5
