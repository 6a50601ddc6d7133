"""The pair that ships: what its cards promise, and that its texts agree."""

import functools
import json
import re

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import jaxspec
from jaxspec import metrics, pretrained, tokenizer_files
from jaxspec.measure import prompts
from jaxspec.models import config as configs
from jaxspec.models import forms

TARGET, DRAFT = "stdlib-8m", "stdlib-draft"
TREES = [("ngram-tree", "replay"), ("ngram-chain", "replay"), ("model-chain", "replay")]
TREES += [("model-tree", "replay"), ("model-tree", "lazy")]


def config(name):
    return configs.from_json((pretrained.find(name) / "config.json").read_text())


def test_the_target_is_a_hybrid_of_at_most_8_million_parameters():
    layers = config(TARGET).layers
    assert 2 * layers.count("M") > len(layers) and {"*", "-"} <= set(layers)
    assert forms.count(config(TARGET)) <= 8_000_000
    assert 2048 <= config(TARGET).vocab_size <= 8192


def test_the_draft_is_a_mamba_of_at_most_a_tenth():
    assert set(config(DRAFT).layers) == {"M"}
    sizes = [forms.count(config(name)) for name in (DRAFT, TARGET)]
    assert 10 * sizes[0] <= sizes[1]
    assert config(DRAFT).vocab_size == config(TARGET).vocab_size


def test_they_share_a_tokenizer_that_ends_texts_with_token_0():
    target, draft = (pretrained.load(name) for name in (TARGET, DRAFT))
    tokenizer_files.check_same_tokenizer(target.tokenizer, draft.tokenizer)
    assert target.stops == draft.stops == (0,)


@pytest.mark.parametrize("name", [TARGET, DRAFT])
def test_weights_are_bfloat16_on_disk_and_float32_in_use(name):
    for path in (pretrained.find(name) / "params").iterdir():
        arrays = safetensors.numpy.load_file(path)
        assert {str(array.dtype) for array in arrays.values()} == {"bfloat16"}
    assert pretrained.load(name).params["embed"]["embedding"].dtype == jnp.float32


@pytest.mark.parametrize("name", [TARGET, DRAFT])
def test_the_card_says_what_was_read_and_how_good_it_is(name):
    folder = pretrained.find(name)
    card = (folder / "card.md").read_text()
    held_out, gzip = map(float, re.findall(r"([\d.]+) bits per byte", card))
    assert 0 < held_out <= (0.85 if name == TARGET else 1.0) * gzip
    assert "PSF-2.0" in card and (folder / "curve.png").stat().st_size > 5000
    modules = json.loads((folder / "manifest.json").read_text())["modules"]
    assert all(re.fullmatch("[0-9a-f]{64}", m["sha256"]) for m in modules.values())
    assert not [m for m in modules if m.startswith(("test.", "idlelib.", "lib2to3."))]


def drafter(name):
    if name == "ngram-tree":
        return jaxspec.ngram(8, 5)
    if name == "ngram-chain":
        return jaxspec.ngram(5, 5, num_matches=1)
    branching = (1, 1, 1) if name == "model-chain" else (2, 2, 1)
    return jaxspec.draft_model(jaxspec.load(DRAFT, max_path=5).model, branching)


@functools.cache
def written(name=None, rollback="replay"):
    """Two texts greedily and two at T = 0.8, with and without speculation."""
    model, params, tokenizer = jaxspec.load(TARGET, rollback=rollback, max_path=5)
    weights = jaxspec.Params(params, jaxspec.load(DRAFT).params)
    own = prompts.read()
    ids = [tokenizer.encode(own[i]).ids for i in (0, 24, 0, 36)]
    tokens, lengths = jaxspec.pad_prompts(ids, multiple=256)
    start = functools.partial(
        jaxspec.init_state,
        weights,
        tokens[:, :256],
        jnp.minimum(lengths, 256),
        target=model,
        max_new_tokens=40,
        temperature=[0.0, 0.0, 0.8, 0.8],
        stops=[0],
    )
    if name is None:
        return jaxspec.generate(weights, start(), target=model), None
    return jaxspec.speculative_generate(
        weights, start(drafter=drafter(name)), target=model, drafter=drafter(name)
    )


@pytest.mark.parametrize("name, rollback", TREES)
def test_texts_agree_with_every_drafter_tree_and_rollback(name, rollback):
    model, params, _ = jaxspec.load(TARGET)
    expected, _ = written()
    state, info = written(name, rollback)
    for row in range(4):
        found = metrics.compare(model, params, expected, state, row)
        assert found.identical or found.near_tie
    assert metrics.block_efficiency(info) > 1.1


def test_log_probabilities_are_those_of_a_fresh_run():
    model, params, _ = jaxspec.load(TARGET)
    state, _ = written("model-tree")
    carry = model.init_carry(params, 4, state.tokens.shape[1], False)
    _, hidden = model.scan(params, carry, state.tokens, state.lengths)
    logits = np.asarray(model.logits(params, hidden), np.float64)
    logits -= np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    for row in range(4):
        new = np.arange(int(state.prompt_lengths[row]), int(state.lengths[row]))
        expected = logits[row, new - 1, np.asarray(state.tokens)[row, new]]
        np.testing.assert_allclose(state.logprobs[row, new], expected, atol=2e-4)
