"""RASD: the builder's tree and the retrieved one, pruned and joined by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import contexts
import jaxspec
import texts
import tiny
from jaxspec import trees
from jaxspec.core import Draft
from jaxspec.drafting import datastore, rasd
from jaxspec.drafting.fusion import Pair, fuse
from jaxspec.drafting.model import draft_model
from jaxspec.drafting.ngram import ngram
from jaxspec.drafting.retrieval import retrieval
from jaxspec.drafting.static import chain, static_tree
from jaxspec.trees import TokenTree

NAME, MAX_PATH = "mamba2", 5
PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 7, 1, 8], [4, 1, 5]]
KEYS = jax.random.split(jax.random.key(0), len(PROMPTS))
SETTINGS = tiny.settings(len(PROMPTS), temperature=jnp.array([1.0, 0.8, 0.0, 0.7]))
RETRIEVED = 12  # slots of the retrieved tree
RETRIEVER = retrieval(RETRIEVED, 4, min_match=1)
IID = static_tree((3, 2), "iid")
ONCE = static_tree((3, 2), "without_replacement")
LIKELIEST = static_tree((3, 2))
SHARED = static_tree((3, 2), "without_replacement", noise="shared")
BUILDERS = {"iid": IID, "once": ONCE, "likeliest": LIKELIEST, "shared": SHARED}
builders = pytest.mark.parametrize("builder", BUILDERS.values(), ids=BUILDERS.keys())
orders = pytest.mark.parametrize("order", rasd.ORDERS)


def logits_after(row, path):
    return tiny.oracle_logits(NAME, [*PROMPTS[row], *path])[-1]


def likeliest(row, path, count=4):
    return np.argsort(-logits_after(row, path), kind="stable")[:count].tolist()


@functools.cache
def store():
    """After each prompt, what the model likes and what it does not, to some depth."""
    rng, documents = np.random.default_rng(0), []
    for row, prompt in enumerate(PROMPTS):
        for _ in range(5):
            path = []
            while len(path) < 3:
                path.append(int(rng.choice(likeliest(row, path, 6 if path else 3))))
            documents.append([*prompt, *path])
        documents.append([*prompt, *likeliest(row, [], 48)[40:43]])
    return datastore.build(documents)


def propose(drafter, params):
    tokens, lengths = jaxspec.pad_prompts(PROMPTS, multiple=8)
    context = contexts.of_texts(tokens, lengths, KEYS, SETTINGS)

    @jax.jit
    def run(params):
        state = drafter.init(params, len(tokens), 40)
        state = drafter.absorb(params, state, tokens, None, lengths - 1)
        return drafter.propose(params, state, context)

    return run(params)


@functools.cache
def fused(builder, order="draft first", **options):
    model = tiny.model(NAME, max_path=MAX_PATH)
    drafter = rasd.rasd(model, builder, RETRIEVER, order=order, keep=4, **options)
    state, draft = propose(drafter, Pair(tiny.params(NAME), store()))
    trees.check(draft.tree)
    return state.first.slots, draft


@functools.cache
def drafted(builder):
    model = tiny.model(NAME, max_path=MAX_PATH)
    return propose(draft_model(model, builder), tiny.params(NAME))[1]


@functools.cache
def retrieved():
    return propose(RETRIEVER, store())[1].tree


def strings(tree, row):
    """The tokens from below the root to every node, None at padding."""
    tokens, nodes = np.asarray(tree.tokens)[row], tiny.real_nodes(tree, row)
    paths = [tiny.path_of(tree, row, node) for node in range(tree.num_nodes)]
    each = [tuple(tokens[path[1:]].tolist()) for path in paths]
    return [path if node in nodes else None for node, path in enumerate(each)]


def pruned(row, keep=4, least=0.0):
    """What the draft model leaves of the retrieved tree, by definition."""
    kept = [()]
    for path in strings(retrieved(), row)[1:]:
        if path is None or path[:-1] not in kept:
            continue
        logits = logits_after(row, path[:-1])
        law = np.exp(logits - np.logaddexp.reduce(logits))
        likely = path[-1] in likeliest(row, path[:-1], keep)
        if likely and law[path[-1]] >= least:
            kept.append(path)
    return kept[1:]


def law_at(draft, row, node):
    logits = draft.draft_logits[row, int(draft.logits_row[row, node])]
    return np.asarray(jax.nn.softmax(logits))


# --- Pruning ---


def test_the_texts_are_a_test():
    """In every row but one something is pruned, below the root too, and much is left."""
    below = 0
    for row in (0, 2, 3):
        found = [path for path in strings(retrieved(), row)[1:] if path]
        kept = pruned(row)
        assert 3 < len(kept) < len(found)
        below += sum(path not in kept and path[:-1] in kept for path in found)
    assert below > 0


@pytest.mark.parametrize("least", [0.0, 0.04])
@builders
def test_draft_first_is_the_builders_tree_and_what_is_left_of_the_other(builder, least):
    _, draft = fused(builder, least=least)
    own = drafted(builder)
    size = own.tree.num_nodes
    assert draft.max_path == 4 and draft.coupled == own.coupled
    assert draft.tree.num_nodes == size + RETRIEVED - 1
    np.testing.assert_array_equal(draft.tree.tokens[:, :size], own.tree.tokens)
    np.testing.assert_array_equal(draft.tree.parents[:, :size], own.tree.parents)
    np.testing.assert_array_equal(draft.kind[:, :size], own.kind)
    np.testing.assert_array_equal(draft.logits_row[:, :size], own.logits_row)
    np.testing.assert_allclose(draft.draft_logits, own.draft_logits, atol=1e-5)
    assert (np.asarray(draft.kind)[:, size:] == Draft.DETERMINISTIC).all()
    for row in range(len(PROMPTS)):
        have = strings(own.tree, row)
        new = [path for path in pruned(row, least=least) if path not in have]
        found = [path for path in strings(draft.tree, row)[size:] if path]
        if builder is not IID:  # whose siblings repeat, each with children of its own
            assert found == new
        assert set(new) <= set(found)


@builders
def test_retrieval_first_leaves_the_builder_the_other_tokens(builder):
    _, draft = fused(builder, "retrieval first")
    assert draft.tree.num_nodes == RETRIEVED + builder.num_nodes - 1
    kind = np.asarray(draft.kind)
    assert (kind[:, 1:RETRIEVED] == Draft.DETERMINISTIC).all()
    np.testing.assert_array_equal(
        kind[:, RETRIEVED:], np.asarray(drafted(builder).kind)[:, 1:]
    )
    for row in range(len(PROMPTS)):
        found, kept = strings(draft.tree, row), pruned(row)
        assert found[1:RETRIEVED] == kept + [None] * (RETRIEVED - 1 - len(kept))
        first = [path[0] for path in kept if len(path) == 1]
        own = [path for path in found[RETRIEVED:] if path]
        assert len(own) == builder.num_nodes - 1
        assert not {path[0] for path in own} & set(first)
        if builder in (IID, ONCE):
            logits = np.array(logits_after(row, []))
            logits[first] = -np.inf
            temperature = float(SETTINGS.temperature[row]) or 1.0
            expected = np.exp(logits / temperature)
            expected /= expected.sum()
            np.testing.assert_allclose(law_at(draft, row, 0), expected, atol=1e-5)


@orders
def test_laws_are_those_at_each_node(order):
    """Below the root they are the draft model's, whatever was retrieved."""
    _, draft = fused(ONCE, order)
    first = 1 if order == "draft first" else RETRIEVED
    for row in range(len(PROMPTS)):
        paths = strings(draft.tree, row)
        for node in range(first, first + 3):  # the builder reads its first level
            logits = logits_after(row, paths[node])
            logits = logits / (float(SETTINGS.temperature[row]) or 1.0)
            expected = np.exp(logits - np.logaddexp.reduce(logits))
            np.testing.assert_allclose(law_at(draft, row, node), expected, atol=1e-5)


@orders
@pytest.mark.parametrize("room", [0, 2, 5, 20])
def test_no_drawn_node_gives_way_to_a_retrieved_one(order, room):
    """What does not fit is dropped from the end, and slots that are left are padding."""
    size = ONCE.num_nodes
    _, draft = fused(ONCE, order, num_nodes=size + room)
    _, whole = fused(ONCE, order)
    assert draft.tree.num_nodes == size + room
    at = size if order == "draft first" else 1
    for row in range(len(PROMPTS)):
        found, everything = strings(draft.tree, row), strings(whole.tree, row)
        behind = [path for path in everything[at : at + RETRIEVED - 1] if path]
        expected = behind[:room] + [None] * (room - len(behind[:room]))
        assert found[at : at + room] == expected
        others = found[:at] + found[at + room :]
        assert None not in others
        if order == "draft first":
            assert others == everything[:size]


@orders
def test_nodes_are_found_on_the_tape(order):
    """All that was retrieved was read, and the builder's nodes where it reads them."""
    slots, draft = fused(ONCE, order)
    for row in range(len(PROMPTS)):
        on_tape, source = [], strings(retrieved(), row)
        for node, path in enumerate(strings(draft.tree, row)):
            if path is None:
                continue
            slot = int(slots[row, node])
            if path in source:
                assert source[slot] == path
            else:
                assert (slot >= 0) == (len(path) < 2) or path[:1] in source
            on_tape += [slot] if slot >= 0 else []
        assert len(set(on_tape)) == len(on_tape)


def test_a_trimmed_head_prunes_and_masks_by_its_own_tokens():
    vocab_ids = jnp.array([2, 5, 6, 9])
    logits = jnp.array([[[0.0, 1.0, 2.0, 3.0], [9.0, 0.0, 0.0, 1.0]]])
    tokens = jnp.array([[7, 9, 6, 2, 3, 2]])
    tree = TokenTree(tokens, jnp.array([[-1, 0, 0, 0, 0, 1]]))
    logits = jnp.concatenate([logits, jnp.zeros((1, 4, 4))], axis=1)
    kept = rasd._prune(tree, logits, vocab_ids, keep=2, least=0.0)
    assert kept.parents.tolist() == [[-1, 0, 0, -1, -1, 1]]
    kept = rasd._prune(tree, logits, vocab_ids, keep=2, least=0.5)
    assert kept.parents.tolist() == [[-1, 0, -1, -1, -1, 1]]
    left = rasd._without(logits[:, 0], kept, vocab_ids)
    assert left.tolist() == [[0.0, 1.0, 2.0, -np.inf]]
    with pytest.raises(ValueError, match="below the 4 tokens of the head, got 4"):
        rasd._prune(tree, logits, vocab_ids, keep=4, least=0.0)


# --- In the loop ---


def retriever():
    return fuse(ngram(6, 4, min_match=1), retrieval(8, 4, min_match=1), 10)


@functools.cache
def known_texts():
    """A datastore of what will be written, every seventh token another."""
    known = []
    for state in map(texts.baseline, texts.SETTINGS):
        for text, length in zip(np.asarray(state.tokens), state.lengths, strict=True):
            text = np.where(np.arange(len(text)) % 7 == 6, 0, text)
            known.append(text[: int(length)].tolist())
    return datastore.build(known)


def decode(setting, builder, order, rollback="replay", **options):
    model = tiny.model(texts.DRAFT, rollback=rollback, max_path=MAX_PATH)
    drafter = rasd.rasd(model, builder, retriever(), order=order, keep=20)
    params = Pair(tiny.params(texts.DRAFT), Pair(None, known_texts()))
    return (
        drafter,
        params,
        *texts.speculative(drafter, params, **texts.SETTINGS[setting], **options),
    )


@pytest.mark.parametrize("setting", ["sampled"])
@pytest.mark.parametrize(
    "builder, order",
    [(ONCE, "draft first"), (SHARED, "retrieval first")],
    ids=rasd.ORDERS,
)
def test_text_is_the_same(builder, order, setting):
    _, _, state, info = decode(setting, builder, order)
    texts.check_same(state, texts.baseline(setting))
    assert 5 * info.target_calls.sum() < 4 * info.kept.sum()


@pytest.mark.parametrize("i, rollback", [(0, "replay"), (1, "lazy")])
def test_the_draft_models_past_follows_the_text(i, rollback):
    """After some steps it proposes what it would after reading the text so far."""
    order = rasd.ORDERS[i % 2]
    drafter, params, state, info = decode("sampled", IID, order, rollback, steps=6)
    assert (info.kept[:, 1:].sum(axis=1) > 0).any()

    @jax.jit
    def read(params, context):
        past = drafter.init(params, len(context.tokens), texts.MAX_LENGTH)
        tokens = context.tokens[:, : texts.MAX_LENGTH]
        return drafter.absorb(params, past, tokens, None, context.lengths - 1)

    again = read(params, state.context)
    run = jax.jit(drafter.propose)
    drafts = [run(params, past, state.context)[1] for past in (state.drafter, again)]
    for name in ("tokens", "parents"):
        first, second = (np.asarray(getattr(draft.tree, name)) for draft in drafts)
        np.testing.assert_array_equal(first, second)
    laws = [jax.nn.softmax(draft.draft_logits) for draft in drafts]
    np.testing.assert_allclose(*laws, atol=1e-4)


# --- Settings ---


@pytest.mark.parametrize(
    "options, message",
    [
        ({"order": "both"}, "Expected an order of"),
        ({"keep": 0}, "keep >= 1"),
        ({"least": 1.5}, "0 <= least <= 1"),
        ({"num_nodes": 9}, "fills 10 slots, and there are 9"),
    ],
)
def test_bad_settings_are_refused(options, message):
    model = tiny.model(NAME, max_path=MAX_PATH)
    with pytest.raises(ValueError, match=message):
        rasd.rasd(model, ONCE, RETRIEVER, **options)


def test_longer_paths_than_the_model_keeps_are_refused():
    model = tiny.model(NAME, max_path=MAX_PATH)
    with pytest.raises(ValueError, match="keeps paths of 5 nodes.*paths of 8"):
        rasd.rasd(model, chain(2), retrieval())


def test_a_retriever_that_draws_is_refused():
    model = tiny.model(NAME, max_path=MAX_PATH)
    drafter = rasd.rasd(model, chain(2), draft_model(model, chain(2)))
    params = Pair(tiny.params(NAME), tiny.params(NAME))
    with pytest.raises(ValueError, match="without chance.*2 laws"):
        propose(drafter, params)


def test_equal_settings_give_equal_drafters():
    model = tiny.model(NAME, max_path=MAX_PATH)
    first = rasd.rasd(model, ONCE, RETRIEVER, keep=5)
    assert first == rasd.rasd(model, ONCE, retrieval(12, 4, min_match=1), keep=5)
    assert first != rasd.rasd(model, ONCE, RETRIEVER, keep=6)
