"""Mixtures of experts, against a float64 loop over tokens and experts."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import oracle
import tiny
from jaxspec import sharding
from jaxspec.aot import hlo
from jaxspec.mesh import rows as cut_rows
from jaxspec.models import experts, layers, moe, shardings
from jaxspec.models.config import MoEConfig
from rounds import (
    MAX_PATH,
    NO_PATH,
    NUM_NODES,
    check_nodes,
    compiled_round,
    read_prompt,
)

TOLERANCE = 2e-5
SIZES = {"num_experts": 12, "top_k": 4, "d_ff": 10}
VARIANTS = {
    "granite": MoEConfig(**SIZES, shared_d_ff=14),
    "qwen3-next": MoEConfig(**SIZES, shared_d_ff=6, shared_gate=True),
    "jamba": MoEConfig(**SIZES, renormalize=False),
    "nemotron-h": MoEConfig(
        **SIZES,
        activation="relu2",
        scores="sigmoid",
        num_groups=4,
        top_groups=2,
        routed_multiplier=2.5,
        shared_d_ff=14,
    ),
    "all-groups": MoEConfig(
        **SIZES, activation="gelu", scores="sigmoid", num_groups=3, top_groups=3
    ),
    "latent": MoEConfig(**SIZES, scores="sigmoid", d_latent=6, shared_d_ff=14),
    "bare-scores": MoEConfig(**SIZES, scores="sigmoid", renormalize=False),
    "all-experts": MoEConfig(num_experts=3, top_k=3, d_ff=5),
    "one-of-two": MoEConfig(num_experts=2, top_k=1, d_ff=5, renormalize=False),
}
variants = pytest.mark.parametrize("name", VARIANTS)


@functools.cache
def layer(name):
    """A config, random params, and the layer as a compiled function of both."""
    config = tiny.config("E", moe=VARIANTS[name])
    module = moe.Mixer(config)
    x = jax.ShapeDtypeStruct((1, config.d_model), jnp.float32)
    shapes = jax.eval_shape(functools.partial(module.init, method="mix"), key(), x)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(0.5 * rng.standard_normal(leaf.shape), leaf.dtype),
        shapes["params"],
    )
    call = jax.jit(lambda params, x: module.apply({"params": params}, x, method="mix"))
    return config, params, call


def key():
    return jax.random.key(0)


def tokens(*shape, seed=1):
    x = np.random.default_rng(seed).standard_normal((*shape, 16))
    return jnp.asarray(x, jnp.float32)


def expected(config, params, x):
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    flat = np.asarray(x, np.float64).reshape(-1, x.shape[-1])
    rows = [oracle.moe(config, params, {}, row, 0) for row in flat]
    return np.stack(rows).reshape(x.shape)


@variants
def test_every_token_has_its_experts(name):
    config, params, call = layer(name)
    x = tokens(3, 7)
    found = call(params, x)
    assert found.dtype == jnp.float32
    assert tiny.relative_error(found, expected(config, params, x)) < TOLERANCE


@pytest.mark.parametrize("name", ["granite", "nemotron-h"])
def test_no_token_matters_to_another(name):
    """Alone, in a step's row, and in a scan with others: near what it is among 21."""
    _, params, call = layer(name)
    x = tokens(3, 7)
    together = call(params, x)
    for row, t in [(0, 0), (1, 3), (2, 6)]:
        alone = call(params, x[row : row + 1, t])
        assert tiny.relative_error(alone[0], together[row, t]) < TOLERANCE


@pytest.mark.parametrize("num_tokens", [5, 70])
def test_no_token_is_dropped(num_tokens):
    """All choose the same experts: the lowest ids, as scores are equal."""
    config, params, call = layer("granite")
    params = params | {"router": {"kernel": jnp.zeros_like(params["router"]["kernel"])}}
    x = tokens(num_tokens)
    found = call(params, x)
    assert tiny.relative_error(found, expected(config, params, x)) < TOLERANCE


def test_many_tokens_have_large_tiles():
    config, params, call = layer("one-of-two")
    x = tokens(230)
    assert experts.tile_rows(230, 2) == 64
    found = call(params, x)
    assert tiny.relative_error(found, expected(config, params, x)) < TOLERANCE


def test_the_bias_is_for_the_choice_alone():
    config, params, call = layer("bare-scores")
    x, none = tokens(1, 1), jnp.zeros_like(params["correction_bias"])
    shifted = call(params | {"correction_bias": none + 3.0}, x)
    np.testing.assert_array_equal(shifted, call(params | {"correction_bias": none}, x))
    last = none.at[-config.moe.top_k :].set(10.0)
    router = params["router"]["kernel"]
    weights, index = moe.route(config.moe, router, last, x[0])
    assert sorted(index[0].tolist()) == [8, 9, 10, 11]
    scores = jax.nn.sigmoid(layers.einsum("rc,ce->re", x[0], router))
    np.testing.assert_allclose(weights[0], scores[0, index[0]], rtol=1e-6)


def test_scores_are_float32_in_bfloat16():
    """Rounded scores would swap experts that are close: their choice is float32's."""
    config, params, _ = layer("granite")
    x = tokens(200).astype(jnp.bfloat16)
    args = params["router"]["kernel"], None
    weights, index = moe.route(config.moe, *args, x)
    _, same = moe.route(config.moe, *args, x.astype(jnp.float32))
    assert weights.dtype == jnp.float32
    np.testing.assert_array_equal(index, same)


def test_bfloat16_is_close():
    config, params, _ = layer("nemotron-h")
    module = moe.Mixer(dataclasses.replace(config, dtype="bfloat16"))
    x = tokens(2, 5).astype(jnp.bfloat16)
    found = jax.jit(module.apply, static_argnames="method")(
        {"params": params}, x, method="mix"
    )
    assert found.dtype == jnp.bfloat16
    wide = expected(config, params, x.astype(jnp.float32))
    assert tiny.relative_error(found.astype(jnp.float32), wide) < 0.03


def test_vmap_is_a_loop():
    _, params, call = layer("qwen3-next")
    x = tokens(2, 3, 2)
    mapped = jax.jit(jax.vmap(call, (None, 0)))(params, x)
    for i in range(2):
        assert tiny.relative_error(mapped[i], call(params, x[i])) < TOLERANCE


def test_gradients_are_those_of_all_experts_at_once():
    config, params, call = layer("jamba")
    x, target = tokens(6), tokens(6, seed=2)

    def dense(params, x):
        weights, index = moe.route(config.moe, params["router"]["kernel"], None, x)
        of_all = jnp.zeros((6, 12)).at[jnp.arange(6)[:, None], index].set(weights)
        up, down = params["up_proj"]["kernel"], params["down_proj"]["kernel"]
        gate, up = jnp.split(jnp.einsum("rc,ecf->ref", x, up), 2, axis=-1)
        h = jax.nn.silu(gate) * up * of_all[..., None]
        return jnp.einsum("ref,efc->rc", h, down)

    def grads(f):
        return jax.jit(jax.grad(lambda p, x: jnp.sum(f(p, x) * target), (0, 1)))

    found, wanted = grads(call)(params, x), grads(dense)(params, x)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert tiny.relative_error(a, b) < TOLERANCE


def test_a_tree_is_scan_along_every_path():
    carry, texts, _ = read_prompt("experts")
    tree = tiny.random_tree(np.random.default_rng(3), 3, NUM_NODES, MAX_PATH)
    _, logits = compiled_round("experts")(carry, tree, NO_PATH)
    nodes = functools.partial(tiny.real_nodes, tree)
    check_nodes("experts", texts, tree, logits, nodes)


# --- On a mesh ---


@pytest.mark.parametrize("name, batch", [("qwen3-next", 4), ("latent", 3)])
def test_devices_have_parts_of_all_experts(name, batch):
    """Rows and width are cut, and added up: once the chosen experts, once the shared."""
    config, params, call = layer(name)
    x = tokens(batch, 5)
    together = call(params, x)
    params = {"layers": ({"norm": {}, "moe": moe.split(config, params)},)}
    axes = {"data": 2, "tensor": 2}
    specs = shardings.param_specs(config, params, axes)["layers"][0]["moe"]
    ups = jax.tree.leaves(specs["up_proj"])
    assert set(ups) == {PartitionSpec(None, None, "tensor")}
    assert specs["down_proj"]["kernel"] == PartitionSpec(None, "tensor", None)
    assert specs["router"]["kernel"] == PartitionSpec()
    with sharding.mesh(**axes, devices=jax.devices()[:4]) as mesh:
        where = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
        params = sharding.put(params["layers"][0]["moe"], where)
        rows = NamedSharding(mesh, PartitionSpec(cut_rows(batch, axes)))
        x = jax.device_put(x, rows)
        run = jax.jit(call, out_shardings=rows).lower(params, x).compile()
        found, exchanged = run(params, x), hlo.collectives(run.as_text())
    assert tiny.relative_error(found, together) < TOLERANCE
    assert {one.kind for one in exchanged} == {"all-reduce"}
    part, width = found.addressable_shards[0].data, config.d_model
    wanted = part.nbytes * (1 + (config.moe.d_latent or width) / width)
    assert sum(one.num_bytes * one.count for one in exchanged) == wanted


def test_what_is_fused_is_not_cut():
    _, params, call = layer("jamba")
    x = tokens(4, 2)
    with sharding.mesh(data=2, tensor=2, devices=jax.devices()[:4]):
        found = jax.jit(lambda params, x: call(params, x))(params, x)
    assert tiny.relative_error(found, call(params, x)) < TOLERANCE


# --- Tiles ---


@pytest.mark.parametrize("num_pairs, num_experts", [(1, 4), (6, 4), (40, 3), (90, 7)])
@pytest.mark.parametrize("size", [1, 8, 16])
def test_a_tile_has_one_expert(num_pairs, num_experts, size):
    sort = jax.jit(experts.sort, static_argnums=(1, 2))
    rng = np.random.default_rng(num_pairs)
    for spread in (1, num_experts):  # all choose one expert, or any
        index = (
            rng.integers(0, spread, num_pairs).astype(np.int32) + num_experts - spread
        )
        expert, slot = map(np.asarray, sort(index, num_experts, size))
        assert len(set(slot)) == num_pairs
        assert slot.min() >= 0
        np.testing.assert_array_equal(expert[slot // size], index)
        assert set(expert) == set(index)  # no other weights are read


def test_tiles_are_as_large_as_experts_are_popular():
    pairs = [6, 48, 384, 3072, 10**6]
    assert [experts.tile_rows(n, 64) for n in pairs] == [8, 8, 8, 32, 128]
