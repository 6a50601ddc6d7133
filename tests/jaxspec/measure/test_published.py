"""The published shapes have the published numbers of parameters."""

import collections
import dataclasses
import math

import jax
import pytest

from jaxspec.measure import steps
from jaxspec.measure.published import MODELS
from jaxspec.models import forms, hybrid

BILLIONS = {
    "mamba2-130m": 0.129,
    "mamba2-1.3b": 1.344,
    "mamba2-2.7b": 2.703,
    "mamba-2.8b": 2.768,
    "mamba2-hybrid-8b": 8.66,
    "nemotron-h-8b": 8.10,
    "falcon-h1-7b": 7.59,
    "granite-4-h-350m": 0.340,
    "granite-4-h-small": 32.2,
    "nemotron-3-nano": 31.6,
}


def num_params(config, layers):
    model = hybrid.language_model(dataclasses.replace(config, layers=layers))
    params = jax.eval_shape(model.init, jax.random.key(0))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("name", BILLIONS)
def test_parameters_are_as_many_as_published(name):
    config = MODELS[name]
    kinds = collections.Counter(config.layers)
    one = {kind: num_params(config, kind) for kind in kinds}
    two = {kind: num_params(config, 2 * kind) for kind in kinds}
    outside = [2 * one[kind] - two[kind] for kind in kinds]  # the same for all kinds
    count = outside[0] + sum(n * (two[k] - one[k]) for k, n in kinds.items())
    assert len(set(outside)) == 1
    assert count / 1e9 == pytest.approx(BILLIONS[name], rel=2e-3)


@pytest.mark.parametrize(
    "name, active", [("granite-4-h-small", 8.8), ("nemotron-3-nano", 3.6)]
)
def test_one_row_reads_the_active_parameters(name, active):
    config = dataclasses.replace(MODELS[name], layers="E")
    model = hybrid.language_model(config, scan_layers=True)
    params = jax.eval_shape(model.init, jax.random.key(0))
    one, two, many = (steps.read_weights(config, params, n) / 4 for n in (1, 2, 9999))
    idle = MODELS[name].layers.count("E") * (many - one)  # four bytes each
    assert BILLIONS[name] - idle / 1e9 == pytest.approx(active, rel=0.02)
    assert one < two < many
    table = 0 if config.tie_embeddings else config.vocab_size * config.d_model
    assert many == pytest.approx(forms.count(config) - table)


def test_hybrids_have_the_published_layers():
    layers = MODELS["mamba2-hybrid-8b"].layers
    assert [layers.count(kind) for kind in "M*-"] == [24, 4, 28]
    layers = MODELS["nemotron-h-8b"].layers
    assert [layers.count(kind) for kind in "M*-"] == [24, 4, 24]
    layers = MODELS["granite-4-h-small"].layers
    assert [layers.count(kind) for kind in "M*E"] == [36, 4, 40]
    layers = MODELS["nemotron-3-nano"].layers
    assert [layers.count(kind) for kind in "M*E"] == [23, 6, 23]
