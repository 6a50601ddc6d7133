"""The whole loop of a published model, compiled for a TPU pod that is not here."""

import jax
import jax.numpy as jnp
import pytest

import jaxspec
from jaxspec import sharding
from jaxspec.aot import compilers, hlo
from jaxspec.measure import published, synthetic
from jaxspec.models import forms

DATA, TENSOR, ROWS = 32, 8, 8  # v5e:16x16; rows of each part of the batch
SETTINGS = {"max_length": 1024, "max_new_tokens": 512}


def placed(shapes, shardings):
    def one(leaf, where):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    return jax.tree.map(one, shapes, shardings)


@pytest.mark.skipif(compilers.missing("v5e") is not None, reason="needs libtpu")
@pytest.mark.parametrize("rollback", ["replay", "lazy"])
def test_the_whole_loop_compiles_for_a_pod(rollback):
    config = published.MODELS["mamba2-2.7b"]
    target = jaxspec.language_model(config, rollback=rollback, scan_layers=True)
    records = {"target": target, "drafter": jaxspec.ngram(8, 8)}
    devices = compilers.devices("v5e", "16x16")
    with sharding.mesh(DATA, TENSOR, devices) as mesh:
        params = jax.eval_shape(
            lambda: forms.split(config, synthetic.params(config, target))
        )
        params = placed(params, sharding.param_shardings(config, params, mesh))
        params = jaxspec.Params(params)
        prompt = jax.ShapeDtypeStruct((DATA * ROWS, 512), jnp.int32)
        state = jax.eval_shape(
            lambda *args: jaxspec.init_state(*args, **records, **SETTINGS),
            params,
            prompt,
        )
        state = placed(state, sharding.state_shardings(config, state, mesh))

        def run(params, state):
            return jaxspec.speculative_generate(params, state, **records, check_every=8)

        compiled = jax.jit(run, donate_argnums=1).lower(params, state).compile()

    num_bytes = 2 * forms.count(config) / TENSOR
    c, layers = config.mamba2, len(config.layers)
    shared = 2 * layers * config.d_model * 2 * c.d_state  # B and C, on every device
    states = 4 * layers * ROWS * c.nheads // TENSOR * c.headdim * c.d_state
    memory, program = compiled.memory_analysis(), compiled.as_text()
    assert states < memory.alias_size_in_bytes < 1.5 * states
    weights = memory.argument_size_in_bytes - memory.alias_size_in_bytes
    assert num_bytes < weights < 1.05 * (num_bytes + shared)
    assert memory.temp_size_in_bytes < 0.1 * memory.argument_size_in_bytes
    moved = [m for m in hlo.moves(program, states // layers) if m.is_looped]
    assert not [m for m in moved if m.shape.startswith("f32")]  # as states alone are
    found = hlo.collectives(program)
    assert {one.devices for one in found} == {DATA, TENSOR}
    assert max(one.num_bytes for one in found if one.devices == DATA) <= 8
