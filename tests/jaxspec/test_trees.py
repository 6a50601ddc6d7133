"""Token trees against walks by hand and a dictionary of paths."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from jaxspec import trees
from jaxspec.trees import TokenTree

PADDING = -1


def random_tree(rng, num_nodes, alphabet=3):
    """One tree, a third of whose slots are padding."""
    parents = np.full(num_nodes, PADDING, np.int32)
    nodes = [0]
    for i in range(1, num_nodes):
        if rng.random() < 0.67:
            parents[i] = rng.choice(nodes)
            nodes.append(i)
    return rng.integers(0, alphabet, num_nodes).astype(np.int32), parents


def random_trees(seed, batch, num_nodes, alphabet=3):
    rng = np.random.default_rng(seed)
    rows = [random_tree(rng, num_nodes, alphabet) for _ in range(batch)]
    tokens, parents = zip(*rows, strict=True)
    return TokenTree(jnp.array(np.stack(tokens)), jnp.array(np.stack(parents)))


def path(parents, node):
    """The slots from the root to `node`, found by walking up."""
    way = [node]
    while parents[way[0]] >= 0:
        way.insert(0, int(parents[way[0]]))
    return way


def strings(tree, row):
    """The tokens from below the root to every node, in the order of the slots.

    Padding is None.
    """
    tokens, parents = np.asarray(tree.tokens)[row], np.asarray(tree.parents)[row]
    nodes = [0, *np.flatnonzero(parents >= 0)]
    return [
        tuple(int(tokens[n]) for n in path(parents, i)[1:]) if i in nodes else None
        for i in range(len(parents))
    ]


def trie(sequences, num_nodes):
    """The same for a trie of sequences: a dictionary keeps the first of equal keys."""
    prefixes = [tuple(s[:n]) for s in sequences for n in range(1, len(s) + 1)]
    kept = list(dict.fromkeys([(), *prefixes]))[:num_nodes]
    return kept + [None] * (num_nodes - len(kept))


# --- Reading a tree ---


@pytest.mark.parametrize("num_nodes", [1, 2, 7, 16])
def test_ancestors_and_depth_are_what_a_walk_finds(num_nodes):
    tree = random_trees(num_nodes, 5, num_nodes)
    mask, depth = np.asarray(trees.ancestor_mask(tree)), np.asarray(trees.depth(tree))
    for row, parents in enumerate(np.asarray(tree.parents)):
        for node in range(num_nodes):
            way = path(parents, node)
            assert np.flatnonzero(mask[row, node]).tolist() == way
            assert depth[row, node] == len(way) - 1


@pytest.mark.parametrize("max_path", [1, 3, 9])
def test_path_to_is_the_walk_cut_and_padded(max_path):
    tree = random_trees(0, 4, 9)
    find = jax.jit(trees.path_to, static_argnames="max_path")
    for node in range(9):
        found = np.asarray(find(tree, jnp.full(4, node), max_path=max_path))
        for row, parents in enumerate(np.asarray(tree.parents)):
            way = (path(parents, node) + [PADDING] * max_path)[:max_path]
            assert found[row].tolist() == way


def test_path_to_takes_another_node_in_every_row():
    tree = trees.chain(jnp.zeros((3, 4), jnp.int32))
    found = trees.path_to(tree, jnp.array([0, 3, 1]), 4)
    assert found.tolist() == [[0, -1, -1, -1], [0, 1, 2, 3], [0, 1, -1, -1]]


def test_the_root_and_what_hangs_from_it_are_nodes():
    tree = TokenTree(jnp.zeros((1, 4), jnp.int32), jnp.array([[-1, -1, 0, 2]]))
    assert tree.is_node.tolist() == [[True, False, True, True]]
    assert trees.has_draft(tree)
    assert not trees.has_draft(tree.replace(parents=jnp.full((1, 4), -1)))


# --- Checking a tree ---


@pytest.mark.parametrize("seed", range(3))
def test_check_returns_a_good_tree(seed):
    tree = random_trees(seed, 3, 7)
    assert trees.check(tree) is tree


@pytest.mark.parametrize(
    "parents, message",
    [
        ([[-1, 0, 0], [-1, 2, 0]], "row 1 node 1 has parent 2"),  # follows its child
        ([[-1, 1, 0], [-1, 0, 0]], "row 0 node 1 has parent 1"),  # its own parent
        ([[-1, 0, -2], [-1, 0, 0]], "row 0 node 2 has parent -2"),
        ([[-1, 0, 0], [-1, -1, 1]], "row 1 node 2 has parent 1"),  # which is padding
        ([[-1, 0, 0], [0, 0, 0]], r"Slot 0 is the root.*\[-1  0\]"),
    ],
)
def test_check_names_what_is_wrong(parents, message):
    tree = TokenTree(jnp.zeros((2, 3), jnp.int32), jnp.array(parents))
    with pytest.raises(ValueError, match=message):
        trees.check(tree)


@pytest.mark.parametrize(
    "tokens, parents", [((2, 3), (2, 4)), ((2, 3), (1, 3)), ((3,), (3,))]
)
@pytest.mark.parametrize("traced", [False, True])
def test_check_refuses_shapes_that_differ(tokens, parents, traced):
    tree = TokenTree(jnp.zeros(tokens, jnp.int32), jnp.full(parents, -1))
    check = jax.jit(trees.check) if traced else trees.check
    with pytest.raises(ValueError, match=r"one shape \[B, N\]; got \("):
        check(tree)


def test_check_passes_parents_that_are_traced():
    tree = TokenTree(jnp.zeros((1, 2), jnp.int32), jnp.array([[-1, 1]]))
    assert jax.jit(trees.check)(tree).parents.tolist() == [[-1, 1]]


def test_a_model_refuses_a_tree_whose_child_comes_first():
    model, params = tiny.model("mamba2"), tiny.params("mamba2")
    carry = model.init_carry(params, 1, 8)
    tree = TokenTree(jnp.array([[1, 2, 3]]), jnp.array([[-1, 2, 0]]))
    with pytest.raises(ValueError, match="row 0 node 1 has parent 2"):
        model.scan_tree(params, carry, tree)


# --- Making a tree ---


def test_a_chain_hangs_every_token_from_the_one_before():
    tree = trees.chain(jnp.array([[4, 5, 6], [7, 8, 9]]))
    assert tree.parents.tolist() == [[-1, 0, 1], [-1, 0, 1]]
    assert tree.tokens.tolist() == [[4, 5, 6], [7, 8, 9]]


@pytest.mark.parametrize(
    "branching, parents",
    [
        ((), [-1]),
        ((1, 1, 1), [-1, 0, 1, 2]),
        ((3,), [-1, 0, 0, 0]),
        ((2, 2, 1), [-1, 0, 0, 1, 1, 2, 2, 3, 4, 5, 6]),
    ],
)
def test_branching_goes_level_by_level(branching, parents):
    assert trees.from_branching(branching).tolist() == parents


@pytest.mark.parametrize("branching", [(0,), (2, -1)])
def test_branching_refuses_a_factor_below_one(branching):
    with pytest.raises(ValueError, match="at least 1, got"):
        trees.from_branching(branching)


def random_paths(seed, batch=24, count=4, length=3):
    """Sequences of three tokens, so that most of them collide, and ragged lengths."""
    rng = np.random.default_rng(seed)
    root = rng.integers(0, 3, batch).astype(np.int32)
    paths = rng.integers(0, 3, (batch, count, length)).astype(np.int32)
    lengths = rng.integers(0, length + 1, (batch, count)).astype(np.int32)
    return jnp.array(root), jnp.array(paths), jnp.array(lengths)


@functools.partial(jax.jit, static_argnames="num_nodes")
def from_paths(*paths, num_nodes):
    return trees.from_paths(*paths, num_nodes)[0]


def expected_of_paths(paths, lengths, row, num_nodes):
    pairs = zip(paths[row].tolist(), lengths[row].tolist(), strict=True)
    return trie([p[:n] for p, n in pairs], num_nodes)


@pytest.mark.parametrize("num_nodes", [1, 4, 9, 13, 20])
def test_paths_make_a_trie(num_nodes):
    """The paths have 13 slots: fewer cut the trie at its end, more are padding."""
    root, paths, lengths = random_paths(num_nodes)
    tree = trees.check(from_paths(root, paths, lengths, num_nodes=num_nodes))
    assert tree.tokens[:, 0].tolist() == root.tolist()
    for row in range(len(root)):
        expected = expected_of_paths(paths, lengths, row, num_nodes)
        assert strings(tree, row) == expected


def test_the_path_to_prefer_is_kept_where_slots_are_few():
    paths = jnp.array([[[5, 6, 7], [5, 8, 9], [4, 4, 4]]])
    tree = from_paths(jnp.array([1]), paths, jnp.array([[3, 3, 3]]), num_nodes=5)
    assert strings(tree, 0) == [(), (5,), (5, 6), (5, 6, 7), (5, 8)]


def test_paths_of_no_tokens_leave_the_root():
    root, paths, lengths = random_paths(0)
    tree = from_paths(root, paths, jnp.zeros_like(lengths), num_nodes=9)
    assert tree.tokens[:, 0].tolist() == root.tolist()
    assert (np.asarray(tree.parents) == PADDING).all()


def test_paths_under_vmap_equal_paths_alone():
    """Three batches of roots and paths, and lengths that they share."""
    root, paths, lengths = random_paths(1)
    root, paths, lengths = root.reshape(3, 8), paths.reshape(3, 8, 4, 3), lengths[:8]
    make = jax.vmap(lambda r, p, n: from_paths(r, p, n, num_nodes=9), (0, 0, None))
    together = make(root, paths, lengths)
    for i in range(3):
        alone = from_paths(root[i], paths[i], lengths, num_nodes=9)
        np.testing.assert_array_equal(together.tokens[i], alone.tokens)
        np.testing.assert_array_equal(together.parents[i], alone.parents)


@functools.partial(jax.jit, static_argnames=("num_nodes", "max_path"))
def deduplicate(tree, num_nodes, max_path):
    return trees.deduplicate(tree, num_nodes, max_path)[0]


def test_deduplicated_nodes_name_those_they_stand_for():
    tree = random_trees(3, 24, 11, alphabet=2)
    found, members = trees.deduplicate(tree, 9, 4)
    assert members.shape == (24, 9, 11)
    for row in range(24):
        before, after = strings(tree, row), strings(found, row)
        for own, named in zip(after, members[row], strict=True):
            same = [own is not None and own == string for string in before]
            assert named.tolist() == same


@pytest.mark.parametrize("num_nodes, max_path", [(4, 7), (11, 11), (11, 3), (15, 11)])
def test_deduplicated_trees_are_tries(num_nodes, max_path):
    tree = random_trees(3, 24, 11, alphabet=2)
    found = deduplicate(tree, num_nodes=num_nodes, max_path=max_path)
    trees.check(found)
    np.testing.assert_array_equal(found.tokens[:, 0], tree.tokens[:, 0])
    for row in range(24):
        nodes = [s for s in strings(tree, row) if s is not None and len(s) < max_path]
        assert strings(found, row) == trie(nodes, num_nodes)


def test_deduplicating_twice_changes_nothing():
    tree = random_trees(4, 24, 11, alphabet=2)
    once = deduplicate(tree, num_nodes=11, max_path=11)
    twice = deduplicate(once, num_nodes=11, max_path=11)
    np.testing.assert_array_equal(once.tokens, twice.tokens)
    np.testing.assert_array_equal(once.parents, twice.parents)


@pytest.mark.parametrize("num_nodes", [1, 6, 12, 18])
def test_merged_trees_are_the_trie_of_both(num_nodes):
    """The two have 12 slots together, the shared root counted once."""
    first = random_trees(5, 24, 6, alphabet=2)
    second = random_trees(6, 24, 7, alphabet=2)
    merge = jax.jit(trees.merge, static_argnames=("num_nodes", "max_path"))
    found = trees.check(merge(first, second, num_nodes=num_nodes, max_path=7)[0])
    np.testing.assert_array_equal(found.tokens[:, 0], first.tokens[:, 0])
    for row in range(24):
        nodes = [*strings(first, row), *strings(second, row)]
        nodes = [s for s in nodes if s is not None]
        assert strings(found, row) == trie(nodes, num_nodes)


# --- Grafting a tree on another ---


def grafted(first, second, row, num_nodes, max_path):
    """`second` walked into a trie that starts as `first`: tokens, parents, and places."""
    tokens, parents = (
        np.asarray(a)[row].tolist() for a in (first.tokens, first.parents)
    )
    children, depth = {}, {0: 1}
    for slot in np.flatnonzero(np.asarray(parents) >= 0).tolist():
        children.setdefault((parents[slot], tokens[slot]), slot)
        depth[slot] = depth[parents[slot]] + 1
    places = [0] + [-1] * (second.num_nodes - 1)
    for node in range(1, second.num_nodes):
        token, above = (int(a[row, node]) for a in (second.tokens, second.parents))
        above = -1 if above < 0 else places[above]
        if above < 0 or depth[above] == max_path:
            continue
        if (above, token) not in children and len(tokens) < num_nodes:
            children[above, token] = len(tokens)
            depth[len(tokens)] = depth[above] + 1
            tokens.append(token)
            parents.append(above)
        places[node] = children.get((above, token), -1)
    free = num_nodes - len(tokens)
    return tokens + [0] * free, parents + [PADDING] * free, places


@pytest.mark.parametrize("num_nodes, max_path", [(7, 7), (10, 7), (14, 7), (16, 3)])
def test_grafted_trees_are_the_first_and_what_the_second_has_beyond(
    num_nodes, max_path
):
    first = random_trees(7, 24, 7, alphabet=2)  # siblings repeat
    second = random_trees(8, 24, 8, alphabet=2)
    graft = jax.jit(trees.graft, static_argnames=("num_nodes", "max_path"))
    tree, places = graft(first, second, num_nodes=num_nodes, max_path=max_path)
    trees.check(tree)
    for row in range(24):
        expected = grafted(first, second, row, num_nodes, max_path)
        assert tree.tokens[row].tolist() == expected[0]
        assert tree.parents[row].tolist() == expected[1]
        assert places[row].tolist() == expected[2]


def test_repeated_siblings_stay_apart_and_the_first_is_grafted_to():
    first = TokenTree(jnp.array([[9, 1, 1, 2]]), jnp.array([[-1, 0, 0, 2]]))
    second = trees.chain(jnp.array([[9, 1, 2, 3]]))
    tree, places = trees.graft(first, second, 6, 4)
    assert strings(tree, 0) == [(), (1,), (1,), (1, 2), (1, 2), (1, 2, 3)]
    assert tree.parents.tolist() == [[-1, 0, 0, 2, 1, 4]]
    assert places.tolist() == [[0, 1, 4, 5]]


def test_a_graft_needs_room_for_the_first_tree():
    tree = trees.chain(jnp.zeros((1, 4), jnp.int32))
    with pytest.raises(ValueError, match="4 slots does not fit into 3"):
        trees.graft(tree, tree, 3, 4)
