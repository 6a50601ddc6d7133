"""What every `LanguageModel` promises, against a float64 loop over tokens."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from jaxspec import trees
from jaxspec.models import hybrid
from jaxspec.models.rollback import ROLLBACKS
from jaxspec.trees import TokenTree

TOLERANCE = 2e-5
LENGTHS = (19, 7, 0)
MAX_PATH, NUM_NODES = 5, 7
NO_PATH = jnp.full((3, MAX_PATH), -1, jnp.int32)
HYBRID = tiny.CONFIGS["hybrid"].layers


def grouped(names):
    """One worker per model, so that what it compiled serves all tests of the model."""
    return [pytest.param(n, marks=pytest.mark.xdist_group(n)) for n in names]


models = pytest.mark.parametrize(
    "name", grouped([n for n in tiny.CONFIGS if n != "small-hybrid"])
)
rollbacks = pytest.mark.parametrize("rollback", ROLLBACKS)
layouts = pytest.mark.parametrize("scanned", [False, True], ids=["unrolled", "scanned"])
# Rollback and trees differ by mixer, not by its options.
tree_models = pytest.mark.parametrize(
    "name",
    grouped(["mamba1", "mamba2-groups", "attention-window", "parallel", "hybrid"]),
)


@functools.cache
def model_and_params(name, rollback="replay", scanned=False):
    model = tiny.model(name, rollback=rollback, max_path=MAX_PATH, scan_layers=scanned)
    params = tiny.params(name)
    if scanned:
        params = hybrid.stack_params(tiny.CONFIGS[name], params)
    return model, params


@functools.cache
def compiled_round(name, rollback="replay", scanned=False):
    """`(carry, tree, path) -> carry, logits`: one speculative step, compiled once."""
    model, params = model_and_params(name, rollback, scanned)

    @jax.jit
    def round_(params, carry, tree, path):
        carry, tape, hidden = model.scan_tree(params, carry, tree)
        return model.commit(carry, tape, path), model.logits(params, hidden)

    return functools.partial(round_, params)


@functools.cache
def compiled_scan(name, rollback="replay", scanned=False):
    model, params = model_and_params(name, rollback, scanned)

    @jax.jit
    def scan(params, carry, tokens, lengths):
        carry, hidden = model.scan(params, carry, tokens, lengths)
        return carry, model.logits(params, hidden)

    return functools.partial(scan, params)


@functools.cache
def compiled_step(name, rollback="replay", scanned=False):
    model, params = model_and_params(name, rollback, scanned)

    @jax.jit
    def step(params, carry, token):
        carry, hidden = model.step(params, carry, token)
        return carry, model.logits(params, hidden)

    return functools.partial(step, params)


def read_prompt(name, rollback="replay", scanned=False, max_length=40, seed=0):
    """A carry after ragged prompts, the prompts, and the logits of every token."""
    model, params = model_and_params(name, rollback, scanned)
    tokens = tiny.random_tokens(np.random.default_rng(seed), 3, max(LENGTHS))
    carry = model.init_carry(params, 3, max_length)
    carry, logits = compiled_scan(name, rollback, scanned)(
        carry, tokens, jnp.array(LENGTHS)
    )
    texts = [np.asarray(tokens[b, :n]).tolist() for b, n in enumerate(LENGTHS)]
    return carry, texts, logits


@models
@layouts
def test_scan_is_the_recurrence(name, scanned):
    _, texts, logits = read_prompt(name, scanned=scanned)
    for row, text in enumerate(texts[:2]):
        expected = tiny.oracle_logits(name, text)
        assert tiny.relative_error(logits[row, : len(text)], expected) < TOLERANCE


@models
@layouts
def test_step_is_the_recurrence(name, scanned):
    model, params = model_and_params(name, scanned=scanned)
    tokens = tiny.random_tokens(np.random.default_rng(0), 2, 12)
    carry, logits = model.init_carry(params, 2, 12, False), []
    for t in range(12):
        carry, seen = compiled_step(name, scanned=scanned)(carry, tokens[:, t])
        logits.append(seen)
    for row in range(2):
        expected = tiny.oracle_logits(name, np.asarray(tokens[row]))
        assert tiny.relative_error(jnp.stack(logits, 1)[row], expected) < TOLERANCE


@tree_models
def test_scan_goes_on_from_step_and_step_from_scan(name):
    model, params = model_and_params(name)
    scan, step = compiled_scan(name), compiled_step(name)
    tokens = tiny.random_tokens(np.random.default_rng(1), 1, 17)
    chunk = jnp.pad(tokens, ((0, 2), (0, 2)))  # the shape that is compiled already
    carry = model.init_carry(params, 3, 40)
    carry, _ = scan(carry, chunk, jnp.array([3, 1, 0]))
    carry, _ = step(carry, jnp.broadcast_to(tokens[:, 3], (3,)))
    chunk = jnp.roll(chunk, -4, axis=1)
    carry, _ = scan(carry, chunk, jnp.array([12, 0, 0]))
    _, logits = step(carry, jnp.broadcast_to(tokens[:, 16], (3,)))
    expected = tiny.oracle_logits(name, np.asarray(tokens[0]))[-1]
    assert tiny.relative_error(logits[0], expected) < TOLERANCE


def check_nodes(name, texts, tree, logits, nodes):
    """The logits of some nodes are those of the text and the path to the node."""
    assert jnp.isfinite(logits).all()  # padding too
    for row, text in enumerate(texts):
        for node in nodes(row):
            path = np.asarray(tree.tokens)[row, tiny.path_of(tree, row, node)]
            expected = tiny.oracle_logits(name, [*text, *path])[-1]
            assert tiny.relative_error(logits[row, node], expected) < TOLERANCE


@tree_models
@rollbacks
def test_scan_tree_on_a_chain_is_scan(name, rollback):
    carry, texts, _ = read_prompt(name, rollback)
    chain = trees.chain(tiny.random_tokens(np.random.default_rng(2), 3, NUM_NODES))
    parents = jnp.where(jnp.arange(NUM_NODES) < MAX_PATH, chain.parents[0], -1)
    chain = chain.replace(parents=jnp.broadcast_to(parents[None], (3, NUM_NODES)))
    _, logits = compiled_round(name, rollback)(carry, chain, NO_PATH)
    check_nodes(name, texts, chain, logits, lambda row: range(MAX_PATH))


@tree_models
@rollbacks
def test_scan_tree_is_scan_along_every_path(name, rollback):
    carry, texts, _ = read_prompt(name, rollback)
    tree = tiny.random_tree(np.random.default_rng(3), 3, NUM_NODES, MAX_PATH)
    _, logits = compiled_round(name, rollback)(carry, tree, NO_PATH)
    nodes = functools.partial(tiny.real_nodes, tree)
    check_nodes(name, texts, tree, logits, nodes)


@pytest.mark.parametrize("name", grouped(["parallel", "hybrid"]))
@rollbacks
def test_extending_by_levels_is_scan_tree(name, rollback):
    model, params = model_and_params(name, rollback)
    carry, _, _ = read_prompt(name, rollback)
    parents = jnp.asarray(trees.from_branching((2, 2)))[None]
    tokens = tiny.random_tokens(np.random.default_rng(4), 3, NUM_NODES)
    tree = TokenTree(tokens, jnp.broadcast_to(parents, tokens.shape))
    path = jnp.broadcast_to(jnp.array([[0, 2, 5, -1, -1]]), (3, MAX_PATH))

    @jax.jit
    def by_levels(params, carry, tree, path):
        carry, levels = model.prepare(params, carry), []
        tape = model.init_tape(params, 3, NUM_NODES)
        for start, stop in ((0, 1), (1, 3), (3, 7)):
            tape, hidden = model.extend_tree(params, carry, tape, tree, start, stop)
            levels.append(hidden)
        logits = model.logits(params, jnp.concatenate(levels, axis=1))
        return model.commit(carry, tape, path), logits

    round_ = compiled_round(name, rollback)
    carries, logits = zip(
        by_levels(params, carry, tree, path), round_(carry, tree, path), strict=True
    )
    assert tiny.relative_error(logits[0], logits[1]) < TOLERANCE
    after = [round_(carry, tree, NO_PATH)[1] for carry in carries]
    assert tiny.relative_error(after[0], after[1]) < TOLERANCE


def choose_path(rng, tree, row, turn):
    """A path to keep: all sorts in turn, at random otherwise."""
    nodes = tiny.real_nodes(tree, row)
    if turn % 5 == 1 and row == 0:
        return [0]  # everything rejected
    if turn % 5 == 2 and row == 1:
        return []  # the row is done
    if turn % 5 == 3:  # everything accepted
        return max((tiny.path_of(tree, row, n) for n in nodes), key=len)
    return tiny.path_of(tree, row, rng.choice(nodes))


def commit_at_random(round_, carry, texts, num_nodes, turns, seed):
    """Runs many rounds; every fourth no row has a draft, after accepted drafts."""
    rng = np.random.default_rng(seed)
    for turn in range(turns):
        padding = 1.0 if turn % 4 == 3 else 0.2
        tree = tiny.random_tree(rng, 3, num_nodes, MAX_PATH, padding)
        paths = [choose_path(rng, tree, row, turn) for row in range(3)]
        padded = jnp.array([tiny.pad_path(path, MAX_PATH) for path in paths])
        carry, _ = round_(carry, tree, padded)
        for row, path in enumerate(paths):
            texts[row] += np.asarray(tree.tokens)[row, path].tolist()
    return carry


@tree_models
@rollbacks
def test_after_any_commits_the_model_is_as_if_run_afresh(name, rollback):
    carry, texts, _ = read_prompt(name, rollback, max_length=60)
    round_ = compiled_round(name, rollback)
    carry = commit_at_random(round_, carry, texts, NUM_NODES, 11, seed=5)
    tree = tiny.random_tree(np.random.default_rng(6), 3, NUM_NODES, MAX_PATH)
    _, logits = round_(carry, tree, NO_PATH)
    nodes = functools.partial(tiny.real_nodes, tree)
    check_nodes(name, texts, tree, logits, nodes)


@rollbacks
def test_fewer_nodes_than_the_longest_path(rollback):
    carry, texts, _ = read_prompt("hybrid", rollback)
    round_ = compiled_round("hybrid", rollback)
    carry = commit_at_random(round_, carry, texts, 3, 6, seed=7)
    tree = tiny.random_tree(np.random.default_rng(8), 3, 3, MAX_PATH)
    _, logits = round_(carry, tree, NO_PATH)
    nodes = functools.partial(tiny.real_nodes, tree)
    check_nodes("hybrid", texts, tree, logits, nodes)


@rollbacks
def test_step_goes_on_from_any_commits(rollback):
    """With entries in the ring, or tokens pending."""
    carry, texts, _ = read_prompt("hybrid", rollback)
    round_ = compiled_round("hybrid", rollback)
    carry = commit_at_random(round_, carry, texts, NUM_NODES, 2, seed=9)
    _, logits = compiled_step("hybrid", rollback)(carry, jnp.array([7, 8, 9]))
    for row, text in enumerate(texts):
        expected = tiny.oracle_logits("hybrid", [*text, 7 + row])[-1]
        assert tiny.relative_error(logits[row], expected) < TOLERANCE


@rollbacks
def test_the_end_of_the_cache(rollback):
    """A row that fills its cache to the last token is right until then."""
    end = 26
    carry, texts, _ = read_prompt("hybrid", rollback, max_length=end)
    rng = np.random.default_rng(10)
    while min(map(len, texts)) < end:
        tree = tiny.random_tree(rng, 3, NUM_NODES, MAX_PATH)
        paths = [choose_path(rng, tree, row, 3) for row in range(3)]
        paths = [p[: end - len(t)] for p, t in zip(paths, texts, strict=True)]
        padded = jnp.array([tiny.pad_path(path, MAX_PATH) for path in paths])
        carry, logits = compiled_round("hybrid", rollback)(carry, tree, padded)
        for row, path in enumerate(paths):
            texts[row] += np.asarray(tree.tokens)[row, path].tolist()
            if path:
                expected = tiny.oracle_logits("hybrid", texts[row])[-1]
                error = tiny.relative_error(logits[row, path[-1]], expected)
                assert error < TOLERANCE


@rollbacks
def test_scanned_layers_are_unrolled_layers(rollback):
    tree = tiny.random_tree(np.random.default_rng(11), 3, NUM_NODES, MAX_PATH)
    path = jnp.array([tiny.pad_path(p, MAX_PATH) for p in ([0], [], [0])])
    seen = []
    for scanned in (False, True):
        carry, _, _ = read_prompt("hybrid", rollback, scanned)
        for _ in range(8):  # until a ring has been folded
            carry, logits = compiled_round("hybrid", rollback, scanned)(
                carry, tree, path
            )
        seen.append(logits)
    assert tiny.relative_error(seen[1], seen[0]) < TOLERANCE


@rollbacks
def test_an_outer_vmap_is_a_loop(rollback):
    model, params = model_and_params("hybrid", rollback)
    rng = np.random.default_rng(12)
    prompts = tiny.random_tokens(rng, 2, 3, 6)
    several = [tiny.random_tree(rng, 3, 4, MAX_PATH) for _ in range(2)]
    tree = jax.tree.map(lambda *leaves: jnp.stack(leaves), *several)
    path = jnp.array([[[0, -1], [0, -1], [-1, -1]]] * 2, jnp.int32)

    def run(prompt, tree, path):
        carry = model.init_carry(params, 3, 20)
        carry, _ = model.scan(params, carry, prompt, jnp.array([6, 2, 0]))
        carry, tape, hidden = model.scan_tree(params, carry, tree)
        carry = model.commit(carry, tape, path)
        return hidden, model.step(params, carry, prompt[:, 0])[1]

    mapped = jax.jit(jax.vmap(run))(prompts, tree, path)
    alone = jax.jit(run)
    for i in range(2):
        single = alone(prompts[i], several[i], path[i])
        for a, b in zip(mapped, single, strict=True):
            assert tiny.relative_error(a[i], b) < TOLERANCE


@rollbacks
def test_a_done_row_keeps_its_past(rollback):
    """Bit for bit in every state, tail and ring; caches beyond the text may change."""
    carry, _, _ = read_prompt("hybrid", rollback)
    tree = tiny.random_tree(np.random.default_rng(13), 3, NUM_NODES, MAX_PATH)
    after, _ = compiled_round("hybrid", rollback)(carry, tree, NO_PATH)
    pairs = zip(HYBRID, carry.blocks, after.blocks, strict=True)
    recurrent = [(a, b) for kind, a, b in pairs if kind in "Mm"]
    assert recurrent
    for before, now in recurrent:
        jax.tree.map(np.testing.assert_array_equal, before, now)
    np.testing.assert_array_equal(after.position, carry.position)


def round_on_hybrid(carry, tree):
    return compiled_round("hybrid")(carry, tree, NO_PATH)[1]


def test_rows_do_not_touch_each_other():
    tree = tiny.random_tree(np.random.default_rng(14), 3, NUM_NODES, MAX_PATH)
    carry, _, _ = read_prompt("hybrid")
    logits = round_on_hybrid(carry, tree)
    other = tree.replace(
        tokens=tree.tokens.at[1].add(1) % tiny.VOCAB,
        parents=tree.parents.at[1, 1:].set(-1),
    )
    changed = round_on_hybrid(carry, other)
    for row in (0, 2):
        np.testing.assert_array_equal(changed[row], logits[row])
    assert not np.allclose(changed[1, 0], logits[1, 0])


def test_siblings_share_no_state():
    """What a node sees does not depend on siblings that come before it."""
    carry, _, _ = read_prompt("hybrid")
    parents = jnp.array([[-1, 0, 0, 1, 2, -1, -1]] * 3)
    tokens = tiny.random_tokens(np.random.default_rng(15), 3, NUM_NODES)
    logits = round_on_hybrid(carry, TokenTree(tokens, parents))
    other = tokens.at[:, 1].add(1) % tiny.VOCAB
    changed = round_on_hybrid(carry, TokenTree(other, parents))
    for node in (0, 2, 4):
        np.testing.assert_array_equal(changed[:, node], logits[:, node])
    assert not np.allclose(changed[:, 3], logits[:, 3])


def test_rope_turns_by_depth_not_by_slot():
    """The same path gives the same logits wherever its nodes lie."""
    carry, _, _ = read_prompt("attention-window")
    tokens = tiny.random_tokens(np.random.default_rng(16), 3, NUM_NODES)
    early = jnp.array([[-1, 0, 1, 0, 0, 0, 0]] * 3)
    late = jnp.array([[-1, 0, 0, 0, 0, 0, 5]] * 3)
    moved = tokens.at[:, 5].set(tokens[:, 1]).at[:, 6].set(tokens[:, 2])
    round_ = compiled_round("attention-window")
    _, a = round_(carry, TokenTree(tokens, early), NO_PATH)
    _, b = round_(carry, TokenTree(moved, late), NO_PATH)
    np.testing.assert_allclose(a[:, 2], b[:, 6], rtol=1e-5, atol=1e-5)


def test_a_reused_cache_remembers_nothing():
    """A slot that served another text, garbage and all, serves the next as if new."""
    model, params = model_and_params("hybrid")
    fresh = model.init_carry(params, 3, 40)
    used, _, _ = read_prompt("hybrid", seed=1)
    stale = fresh._replace(
        blocks=tuple(
            old if kind == "*" else new
            for kind, old, new in zip(HYBRID, used.blocks, fresh.blocks, strict=True)
        )
    )
    garbage = [b for kind, b in zip(HYBRID, stale.blocks, strict=True) if kind == "*"]
    assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(garbage))
    tokens = tiny.random_tokens(np.random.default_rng(17), 3, max(LENGTHS))
    tree = tiny.random_tree(np.random.default_rng(18), 3, NUM_NODES, MAX_PATH)
    seen = []
    for carry in (fresh, stale):
        carry, _ = compiled_scan("hybrid")(carry, tokens, jnp.array([6, 3, 1]))
        seen.append(round_on_hybrid(carry, tree))
    np.testing.assert_array_equal(seen[0], seen[1])


def test_garbage_in_padding_stays_there():
    """An enormous embedding in padded nodes changes nothing that counts."""
    model, params = model_and_params("hybrid")
    carry, _, _ = read_prompt("hybrid")
    parents = jnp.array([[-1, 0, -1, 1, -1, -1, -1]] * 3)
    tokens = tiny.random_tokens(np.random.default_rng(19), 3, NUM_NODES) % 40
    padded = tokens.at[:, 2].set(45).at[:, 4].set(45)
    table = params["embed"]["embedding"].at[45].set(1e20)
    loud = params | {"embed": {"embedding": table}}
    path = jnp.array([[0, 1, 3, -1, -1]] * 3)
    round_ = compiled_round("hybrid").func
    quiet = round_(loud, carry, TokenTree(tokens, parents), path)
    noisy = round_(loud, carry, TokenTree(padded, parents), path)
    assert jnp.isfinite(noisy[1][..., :40]).all()
    jax.tree.map(np.testing.assert_array_equal, quiet[0], noisy[0])
    np.testing.assert_array_equal(
        quiet[1][:, jnp.array([0, 1, 3])], noisy[1][:, jnp.array([0, 1, 3])]
    )


def test_bfloat16_keeps_states_and_laws_in_float32():
    config = dataclasses.replace(tiny.CONFIGS["hybrid"], dtype="bfloat16")
    model = hybrid.language_model(config, rollback="lazy", max_path=MAX_PATH)
    carry = model.init_carry(None, 2, 20)
    tree = trees.chain(jnp.ones((2, 3), jnp.int32))
    carry, _, hidden = jax.jit(model.scan_tree)(tiny.params("hybrid"), carry, tree)
    assert hidden.dtype == jnp.bfloat16
    assert model.logits(tiny.params("hybrid"), hidden).dtype == jnp.float32
    state = carry.blocks[0][0]
    assert (state.state.dtype, state.ring.dt.dtype) == (jnp.float32, jnp.float32)
    assert state.ring.x.dtype == state.tail.dtype == jnp.bfloat16


def test_equal_configs_give_equal_records():
    config = tiny.CONFIGS["hybrid"]
    a, b = (hybrid.language_model(config, rollback="lazy") for _ in range(2))
    assert a == b and hash(a) == hash(b)
    assert a != hybrid.language_model(config, rollback="replay")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"rollback": "magic"}, "Unknown rollback 'magic'"),
        ({"max_path": 0}, "max_path must be positive"),
        ({"max_path": 4, "ring_size": 3}, "must hold a path of 4"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        hybrid.language_model(tiny.CONFIGS["mamba2"], **options)


def test_bad_arguments():
    model, params = tiny.model("mamba2", max_path=2), tiny.params("mamba2")
    tree = trees.chain(jnp.zeros((1, 3), jnp.int32))
    carry = model.init_carry(params, 1, 8)
    tape = model.init_tape(params, 1, 3)
    with pytest.raises(ValueError, match="0 <= start < stop <= 3"):
        model.extend_tree(params, carry, tape, tree, 2, 4)
    with pytest.raises(ValueError, match="raise `max_path`"):
        model.commit(carry, tape, jnp.array([[0, 1, 2]]))
    with pytest.raises(ValueError, match="batch_size must be positive"):
        model.init_carry(params, 0, 8)
