"""Trees that a draft model grows, or a head of the target's own."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from jaxspec import pretrained
from jaxspec.drafters import shapes
from jaxspec.drafters.sources import Made, Make, Sources
from jaxspec.drafting import sequoia, survival_file, tree_file
from jaxspec.drafting.best_first import best_first
from jaxspec.drafting.builder import Builder
from jaxspec.drafting.dyspec import dyspec
from jaxspec.drafting.head import draft_head
from jaxspec.drafting.model import Trimmed, draft_model
from jaxspec.drafting.static import static_tree
from jaxspec.models import forms
from jaxspec.pretrained import Folder, Pretrained

CALLS = 8  # of the draft model, for one tree that grows


def by_draft(make_builder: Callable[[str], Builder]) -> Callable[[str], Make]:
    """What a builder grows by the draft model."""
    return lambda shape: functools.partial(_grow, make_builder(shape))


def _grow(builder: Builder, sources: Sources, target: Folder) -> Made:
    model, params = sources.load_draft(target, builder.max_path)
    return Made(draft_model(model, builder), params)


def by_head(shape: str) -> Make:
    """A static tree by the target's own head."""
    builder = static_tree(shapes.levels(shape))

    def make(sources: Sources, target: Folder) -> Made:
        keep = sources.kept_tokens(target)

        def join(target: Pretrained) -> Any:
            _, params = pretrained.load_mtp(target)
            if keep is None:
                return params
            return Trimmed(forms.trim_head(params, keep), jnp.asarray(keep))

        return Made(draft_head(pretrained.mtp_head(target), builder), None, join)

    return make


def levels(law: str, noise: str = "own") -> Callable[[str], Builder]:
    """Static trees, level by level."""
    return lambda shape: static_tree(shapes.levels(shape), law, noise)


def one_by_one(noise: str = "own") -> Callable[[str], Builder]:
    """Chains."""

    def make(shape: str) -> Builder:
        drafts = min(shapes.nodes(shape) - 1, shapes.LONGEST)
        return static_tree((1,) * drafts, "iid", noise)

    return make


def dyspec_of(noise: str = "own") -> Callable[[str], Builder]:
    """Trees that grow where the draft model is sure."""

    def make(shape: str) -> Builder:
        nodes = shapes.nodes(shape)
        return dyspec(nodes, -(-(nodes - 1) // CALLS), noise=noise)

    return make


def dyspec_as_measured(shape: str) -> Make:
    """Grown by what was accepted how often, where `dyspec_of` believes the draft model."""
    nodes = shapes.nodes(shape)

    def make(sources: Sources, target: Folder) -> Made:
        acceptance = survival_file.load_acceptance(sources.survival_file())
        builder = dyspec(nodes, -(-(nodes - 1) // CALLS), acceptance=acceptance)
        return _grow(builder, sources, target)

    return make


def best_first_of(shape: str) -> Builder:
    """The likeliest paths."""
    nodes = shapes.nodes(shape)
    width = math.isqrt(nodes - 1) + 1
    return best_first(nodes, width, min(width, shapes.LONGEST))


def sequoia_of(shape: str) -> Make:
    """Most tokens of a number of nodes; or `best`, what was the fastest."""
    nodes = None if shape == "best" else shapes.nodes(shape)

    def make(sources: Sources, target: Folder) -> Made:
        path = sources.tree_file()
        acceptance = tree_file.load_acceptance(path)
        if nodes is None:
            parents = tree_file.load_tree(path)
        else:
            parents = sequoia.optimal_tree(acceptance, nodes, shapes.LONGEST + 1)
        builder = static_tree(parents, "without_replacement", acceptance=acceptance)
        return _grow(builder, sources, target)

    return make
