"""On a mesh, and in several processes, the loop writes what one device writes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import jaxspec
import meshes
import several
import tiny
from jaxspec import checkpointing, sharding
from jaxspec.aot import hlo
from jaxspec.models import forms, shardings

CASES = {  # model, drafter, rollback, scanned
    "one-group-ngram-replay": ("one-group", "ngram", "replay", False),
    "groups-model-lazy": ("groups", "model", "lazy", False),
    "mamba1-ngram-lazy-scanned": ("mamba1", "ngram", "lazy", True),
    "one-group-model-replay-scanned": ("one-group", "model", "replay", True),
    "delta-ngram-lazy": ("delta", "ngram", "lazy", False),
    "falcon-h1-ngram-replay": ("falcon-h1", "ngram", "replay", False),
    "shared-ngram-lazy-scanned": ("shared", "ngram", "lazy", True),
}
BATCH = len(meshes.PROMPTS)


def sharded(setup, mesh, **settings):
    params = setup.shard(mesh)
    return params, setup.shard_state(setup.start(params, **settings), mesh)


@pytest.mark.parametrize("case", CASES)
def test_a_mesh_writes_the_text_of_one_device(case):
    setup = meshes.Setup(*CASES[case])
    settings = {"temperature": jnp.linspace(0.0, 1.4, BATCH), "top_k": 20}
    expected = setup.decode(setup.params, setup.start(setup.params, **settings))
    with sharding.mesh(data=2, tensor=4) as mesh:
        params, state = sharded(setup, mesh, **settings)
        where = setup.shardings(state, mesh)
        state = setup.decode(params, state, check_every=3)
        same = jax.tree.map(
            lambda leaf, s: leaf.sharding.is_equivalent_to(s, leaf.ndim), state, where
        )
    assert all(jax.tree.leaves(same))
    assert state.done.all()
    setup.check_text(state, expected)
    np.testing.assert_array_equal(state.lengths, expected.lengths)


@pytest.mark.parametrize("scanned", [False, True], ids=["unrolled", "scanned"])
def test_a_past_that_joint_wraps_is_cut_as_any(scanned):
    setups = [
        meshes.Setup("groups", rollback=rollback, scanned=scanned)
        for rollback in ("replay", "joint")
    ]
    with sharding.mesh(data=2, tensor=4) as mesh:
        alone, wrapped = (
            setup.shardings(jax.eval_shape(setup.start, setup.params), mesh).carry
            for setup in setups
        )
    assert wrapped.past == alone
    assert wrapped.pending.spec[0] == wrapped.num_pending.spec[0] == "data"


def test_the_baseline_writes_the_same_text():
    setup = meshes.Setup("groups")
    expected = setup.decode(setup.params, setup.start(setup.params))
    with sharding.mesh(data=2, tensor=4) as mesh:
        params = setup.shard(mesh)
        tokens, lengths = jaxspec.pad_prompts(meshes.PROMPTS, multiple=8)
        state = jaxspec.init_state(
            params, tokens, lengths, target=setup.target, **meshes.SETTINGS
        )
        state = jaxspec.generate(params, state, target=setup.target, check_every=5)
    setup.check_text(state, expected)


def test_looking_less_often_changes_nothing():
    setup = meshes.Setup("one-group", rollback="lazy")
    start = setup.start(setup.params, max_new_tokens=jnp.arange(BATCH) + 1)
    records = {"target": setup.target, "drafter": setup.drafter}

    def run(state, **options):
        return jaxspec.speculative_generate(setup.params, state, **records, **options)

    expected, report = run(start)
    state, same = run(start, check_every=7)
    jax.tree.map(np.testing.assert_array_equal, same, report)
    one, other = (meshes.texts(each).replace(keys=None) for each in (state, expected))
    np.testing.assert_allclose(one.logprobs, other.logprobs, atol=2e-5)
    jax.tree.map(
        np.testing.assert_array_equal,
        one.replace(logprobs=None),  # another program, which may round otherwise
        other.replace(logprobs=None),
    )
    steps = report.target_calls.max()
    state, part = run(start, check_every=7, max_steps=steps - 1)
    assert part.target_calls.max() == steps - 1
    state, rest = run(state, check_every=7, max_steps=100)
    jax.tree.map(np.testing.assert_array_equal, part + rest, report)
    np.testing.assert_array_equal(state.tokens, expected.tokens)
    with pytest.raises(ValueError, match="check_every must be positive, got 0"):
        run(start, check_every=0)


def test_a_text_goes_on_on_another_mesh(tmp_path):
    setup = meshes.Setup("one-group", "model", "lazy")
    expected = setup.decode(setup.params, setup.start(setup.params))
    with sharding.mesh(data=2, tensor=4) as mesh:
        params, state = sharded(setup, mesh)
        state = setup.decode(params, state, max_steps=3)
        assert not state.done.any()
        checkpointing.save(tmp_path, 3, state)
    with sharding.mesh(data=4, tensor=2) as mesh:
        params, like = sharded(setup, mesh)
        state = checkpointing.restore(tmp_path, like)
        assert state.tokens.sharding == like.tokens.sharding
        state = setup.decode(params, state)
    setup.check_text(state, expected)


def compiled_step(name, **options):
    setup = meshes.Setup(name, **options)
    with sharding.mesh(data=2, tensor=4) as mesh:
        params = setup.shard(mesh)
        state = jax.eval_shape(setup.start, params)
        state = jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=where
            ),
            state,
            setup.shardings(state, mesh),
        )

        def step(params, state):
            return jaxspec.speculative_step(
                params,
                state,
                target=setup.target,
                drafter=setup.drafter,
                verifier=jaxspec.sample_and_match(),
            )

        return jax.jit(step).lower(params, state).compile().as_text()


@pytest.mark.parametrize("scanned", [False, True], ids=["unrolled", "scanned"])
def test_a_step_exchanges_no_more_than_it_must(scanned):
    """M*-M: a sum per mixer, one per norm over all heads, one for the embedding."""
    found = hlo.collectives(compiled_step("one-group", scanned=scanned))
    count = {}
    for one in found:
        key = one.kind, one.devices
        count[key] = count.get(key, 0) + one.count
    assert count == {
        ("all-reduce", 4): 1 + 4 + 2,  # [2 rows, 4 nodes, d_model], but the norms'
        ("all-reduce", 2): 1,  # whether any row has a draft
        ("all-to-all", 4): 1,  # logits: columns of many rows for rows of all columns
        ("all-gather", 4): 3,  # the verdict
    }
    largest = max(found, key=lambda one: one.num_bytes)
    rows, nodes = BATCH // 2, 4
    assert largest.num_bytes == 4 * rows * nodes * tiny.config("M").d_model


@pytest.mark.parametrize("scanned", [False, True], ids=["unrolled", "scanned"])
@pytest.mark.parametrize(
    "name", ["one-group", "groups", "mamba1", "delta", "falcon-h1", "experts", "shared"]
)
def test_what_can_be_cut_is_cut(name, scanned):
    config = meshes.CONFIGS[name]
    params = meshes.make_params(name)
    if scanned:
        params = forms.stack(config, params)
    params = forms.split(config, params)
    assert forms.split(config, params) is params
    axes = {"data": 2, "tensor": 4}
    specs = shardings.param_specs(config, params, axes)
    storages = {name: specs[name] for name in config.storages}
    cut = {
        jax.tree_util.keystr(path[-3:], simple=True, separator="/")
        for path, spec in jax.tree_util.tree_flatten_with_path(storages)[0]
        if "tensor" in tuple(spec)
    }
    wanted = {"one-group": "x z dt q k v gate up", "groups": "x z dt BC q k v gate up"}
    wanted |= {"mamba1": "x z", "falcon-h1": "", "experts": "x z dt gate up"}
    wanted |= {"delta": "qk v z b a q k gate up", "shared": "x z dt q k v gate up"}
    for part in wanted[name].split():
        assert any(path.endswith(f"kernel/{part}") for path in cut), part
    assert any(path.endswith("kernel/BC") for path in cut) == (name == "groups")
    assert specs["embed"]["embedding"] == PartitionSpec("tensor")


def test_a_batch_that_cannot_be_cut_is_refused():
    setup = meshes.Setup("groups")
    with sharding.mesh(data=8, tensor=1) as mesh:
        tokens, lengths = jaxspec.pad_prompts(meshes.PROMPTS[:3], multiple=8)
        state = jax.eval_shape(
            lambda params: setup.start(params, (tokens, lengths)), setup.params
        )
        with pytest.raises(ValueError, match="3 rows cannot be cut over 8 parts"):
            setup.shardings(state, mesh)
    with pytest.raises(ValueError, match="3 x 2 takes 6 devices, and there are 8"):
        with sharding.mesh(data=3, tensor=2):
            pass


def test_a_draft_model_is_cut_as_its_config_says():
    setup = meshes.Setup("groups", "model")
    state = jax.eval_shape(setup.start, setup.params)
    with sharding.mesh(data=2, tensor=4) as mesh:
        with pytest.raises(ValueError, match="has a draft model; give its config"):
            sharding.state_shardings(setup.config, state, mesh)


def test_two_processes_write_the_text_of_one(tmp_path):
    several.run(meshes.__file__, tmp_path)
