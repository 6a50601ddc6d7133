"""Heads that predict a token further compute what transformers' layers compute."""

import dataclasses
import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch

import checkpoints_conv
import contexts
import heads
import jaxspec
import published
import tiny
import weights
from checkpoints_conv import conversion
from jaxspec import metrics
from jaxspec.core import Verdict
from jaxspec.drafting.static import static_tree

TOLERANCE = 1e-4
TREE = static_tree((2, 1, 2), "without_replacement")
TEXTS = [[5, 6, 7, 8, 9, 10, 11], [200, 9], [31]]
ROWS = range(len(TEXTS))
PATHS = [  # of three steps: leaves, inner nodes, the root, and rows that are done
    [[0, 2, 4, 7], [0], [0, 1]],
    [[0, 1], [0, 1, 3, 6], []],
    [[], [0, 2], [0, 2, 4]],
]
NEXT = [[3, 14, 15], [92, 65, 35], [89, 79, 32]]

families = pytest.mark.parametrize("name", heads.CLASSES)


@functools.cache
def load(name):
    path = heads.converted(name)
    target = jaxspec.load(path, max_path=4)
    head, own = jaxspec.load_mtp(target)
    return target.model, head, jaxspec.Params(target.params, own)


@functools.cache
def compiled(name):
    """The drafter's part of a loop, the target's hidden included."""
    model, head, _ = load(name)
    drafter = jaxspec.draft_head(head, TREE)

    @jax.jit
    def start(params, tokens, lengths):
        carry = model.init_carry(params.target, len(tokens), 32)
        carry, hidden = model.scan(params.target, carry, tokens, lengths - 1)
        state = drafter.init(params.drafter, len(tokens), 32)
        state = drafter.absorb(params.drafter, state, tokens, hidden, lengths - 1)
        return carry, state

    @jax.jit
    def turn(params, carry, state, root, path, next_token):
        keys = jax.random.split(jax.random.key(0), len(root))
        context = contexts.of_roots(root, keys)
        state, draft = drafter.propose(params.drafter, state, context)
        carry, tape, hidden = model.scan_tree(params.target, carry, draft.tree)
        verdict = Verdict(path, jnp.sum(path > 0, axis=1), next_token, None)
        outcome = contexts.outcome(draft.tree, verdict, hidden)
        state = drafter.observe(params.drafter, state, outcome)
        return model.commit(carry, tape, path), state, draft

    return start, turn


def check(name, text, draft, row):
    """Every law is that of the node's path, after a text that the target has read."""
    tree = jax.tree.map(np.asarray, draft.tree)
    for node in {*tree.parents[row].tolist()} - {-1}:
        drafts = tree.tokens[row, tiny.path_of(tree, row, node)[1:]].tolist()
        if len(text) > 1:
            expected = jax.nn.softmax(heads.logits(name, text, drafts))
        elif not drafts:  # nothing is known yet
            expected = np.full(published.VOCAB, 1 / published.VOCAB)
        else:
            continue
        found = jax.nn.softmax(draft.draft_logits[row, draft.logits_row[row, node]])
        assert tiny.relative_error(found, expected) < TOLERANCE


@families
def test_every_node_is_what_transformers_layers_make_of_its_path(name):
    """After prompts of many lengths, and after whatever was accepted of them."""
    start, turn = compiled(name)
    params = load(name)[2]
    tokens, lengths = jaxspec.pad_prompts(TEXTS, multiple=8)
    carry, state = start(params, tokens, lengths)
    texts = [list(text) for text in TEXTS]
    for paths, following in zip(PATHS, NEXT, strict=True):
        root = jnp.array([text[-1] for text in texts])
        path = jnp.array([tiny.pad_path(path, 4) for path in paths])
        args = root, path, jnp.array(following)
        carry, state, draft = turn(params, carry, state, *args)
        for row in ROWS:
            check(name, texts[row], draft, row)
            if paths[row]:
                drafts = np.asarray(draft.tree.tokens)[row, paths[row][1:]]
                texts[row] += [*drafts.tolist(), following[row]]
    assert turn._cache_size() == 1


# --- Names ---


@families
def test_heads_come_back_bit_by_bit(name, tmp_path):
    checkpoints_conv.export(heads.converted(name), tmp_path / "back")
    found = safetensors.numpy.load_file(tmp_path / "back" / heads.FILE)
    plain = safetensors.numpy.load_file(published.source(name) / heads.FILE)
    own = {key: tensor.numpy() for key, tensor in heads.tensors(name).items()}
    expected = plain | own
    assert found.keys() == expected.keys() and own
    for key, array in expected.items():
        np.testing.assert_array_equal(found[key], array, err_msg=key)


def test_a_head_is_a_matter_of_the_checkpoint():
    name = "qwen3_5_moe_text"
    one, other = (
        jaxspec.load(path)
        for path in (heads.converted(name), published.converted(name))
    )
    assert one.config.mtp == "*E"
    assert other.config == dataclasses.replace(one.config, mtp="")
    assert jax.tree.structure(one.params) == jax.tree.structure(other.params)
    one = jaxspec.load(heads.converted(name), "bfloat16")
    _, own = jaxspec.load_mtp(one)
    assert own["embed"] is one.params["embed"]
    assert own["lm_head"] is one.params["lm_head"]
    assert own["pair"]["fc"]["kernel"].dtype == "bfloat16"
    assert own["pair"]["hidden_norm"]["scale"].dtype == "float32"


@pytest.mark.parametrize("name", ["qwen3_next", "qwen3_5_moe_text"])
@pytest.mark.parametrize("lost", ["mtp.norm.weight", "mtp.layers.0.self_attn.k_proj"])
def test_half_a_head_is_refused_by_name(name, lost, tmp_path):
    shutil.copytree(published.source(name), tmp_path / "source")
    arrays = heads.tensors(name, stacked=True)
    heads.add(
        tmp_path / "source",
        {key: array for key, array in arrays.items() if not key.startswith(lost)},
    )
    with pytest.raises(ValueError, match=f"missing {lost}.*, left over nothing"):
        conversion.plan(tmp_path / "source")


@pytest.mark.parametrize(
    "fields, more, message",
    [
        ({"mtp_num_hidden_layers": 2}, {}, "mtp_num_hidden_layers 2; it must be"),
        ({"mtp_use_dedicated_embeddings": True}, {}, "mtp_use_dedicated_embeddings"),
        (
            {},
            {"mtp.layers.1.mlp.down_proj.weight": torch.ones(1)},
            "left over mtp.layers",
        ),
    ],
)
def test_other_heads_are_refused(fields, more, message, tmp_path):
    name, path = "qwen3_5_text", tmp_path / "source"
    shutil.copytree(published.source(name), path)
    heads.add(path, heads.tensors(name) | more)
    weights.record(path, **fields)
    with pytest.raises(ValueError, match=message):
        conversion.plan(path)


def test_a_model_without_a_head_says_so():
    path = published.converted("qwen3_5_text")
    with pytest.raises(
        ValueError, match="no multi-token-prediction head.*no tensors mtp"
    ):
        jaxspec.load_mtp(jaxspec.load(path))


# --- Texts ---


def test_a_head_that_knows_is_believed():
    """Its weights have it repeat a token, which this model often does."""
    name, new = "qwen3_5_text", 48
    model, head, (params, own) = load(name)
    width = own["embed"]["embedding"].shape[1]
    blocks = jax.tree.map(jnp.zeros_like, own["layers"])
    pair = jax.tree.map(jnp.zeros_like, own["pair"])
    pair["fc"]["kernel"] = jnp.eye(2 * width, width)
    norm = jax.tree.map(jnp.zeros_like, own["final_norm"])
    knows = own | {"layers": blocks, "pair": pair, "final_norm": norm}
    both = jaxspec.Params(params, knows)
    tokens, lengths = jaxspec.pad_prompts(TEXTS, multiple=8)
    settings = {"target": model, "max_new_tokens": new}
    plain = jaxspec.init_state(both, tokens, lengths, **settings)
    plain = jaxspec.generate(both, plain, target=model)
    drafter = jaxspec.draft_head(head, (2, 1, 1))
    state = jaxspec.init_state(both, tokens, lengths, drafter=drafter, **settings)
    state, info = jaxspec.speculative_generate(
        both, state, target=model, drafter=drafter
    )
    for row in range(len(lengths)):
        found = metrics.compare(model, params, plain, state, row)
        assert found.identical or found.near_tie
    assert metrics.block_efficiency(info) > 2.0
