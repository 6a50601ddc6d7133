"""The kinds of drafters that have a name."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxspec import pretrained
from jaxspec.core import Drafter
from jaxspec.drafters import shapes
from jaxspec.drafters.sources import Made, Sources
from jaxspec.drafting import sequoia, survival_file, tree_file
from jaxspec.drafting.beam import stochastic_beam
from jaxspec.drafting.best_first import best_first
from jaxspec.drafting.builder import Builder
from jaxspec.drafting.dyspec import dyspec
from jaxspec.drafting.fusion import Pair, fuse
from jaxspec.drafting.head import draft_head
from jaxspec.drafting.model import Trimmed, draft_model
from jaxspec.drafting.ngram import ngram
from jaxspec.drafting.rasd import rasd
from jaxspec.drafting.recycling import ACCEPTANCE, recycling
from jaxspec.drafting.retrieval import retrieval
from jaxspec.drafting.silent import silent
from jaxspec.drafting.static import static_tree
from jaxspec.drafting.suffix import SuffixDecoder
from jaxspec.host_decoding import generate_from_host
from jaxspec.models import hybrid
from jaxspec.pretrained import Folder, Pretrained

CALLS = 8  # of the draft model, for one tree that grows
LOOKUP_PATH = 8  # nodes on a path that is looked up


Make = Callable[[Sources, Folder], Made]
"""What a shape that was read stands for: sources, target's folder -> the drafter."""


class Kind(NamedTuple):
    """A kind of drafter.

    Attributes:
        plan: shape -> what makes the drafter; raises `NoShape`.
        shapes: what it takes besides a number of nodes.
        summary: one line.
        draws: whether its tokens are drawn, so that verifiers that use laws gain.
        needs: fields of `Sources` that must be given.
    """

    plan: Callable[[str], Make]
    shapes: str
    summary: str
    draws: bool = False
    needs: tuple[str, ...] = ()


def _grown(make_builder: Callable[[str], Builder]) -> Callable[[str], Make]:
    """What a builder grows by the draft model."""
    return lambda shape: functools.partial(_grow, make_builder(shape))


def _grow(builder: Builder, sources: Sources, target: Folder) -> Made:
    model, params = sources.load_draft(target, builder.max_path)
    return Made(draft_model(model, builder), params)


def _mtp(shape: str) -> Make:
    """A static tree by the target's own head."""
    builder = static_tree(shapes.levels(shape))

    def make(sources: Sources, target: Folder) -> Made:
        keep = sources.kept_tokens(target)

        def join(target: Pretrained) -> Any:
            _, params = pretrained.load_mtp(target)
            if keep is None:
                return params
            return Trimmed(hybrid.trim_head(params, keep), jnp.asarray(keep))

        return Made(draft_head(pretrained.mtp_head(target), builder), None, join)

    return make


def _static(law: str, noise: str = "own") -> Callable[[str], Builder]:
    return lambda shape: static_tree(shapes.levels(shape), law, noise)


def _chain(noise: str = "own") -> Callable[[str], Builder]:
    def make(shape: str) -> Builder:
        drafts = min(shapes.nodes(shape) - 1, shapes.LONGEST)
        return static_tree((1,) * drafts, "iid", noise)

    return make


def _dyspec(noise: str = "own") -> Callable[[str], Builder]:
    def make(shape: str) -> Builder:
        nodes = shapes.nodes(shape)
        return dyspec(nodes, -(-(nodes - 1) // CALLS), noise=noise)

    return make


def _dyspec_measured(shape: str) -> Make:
    """Grown by what was accepted how often, where `_dyspec` believes the draft model."""
    nodes = shapes.nodes(shape)

    def make(sources: Sources, target: Folder) -> Made:
        acceptance = survival_file.load_acceptance(sources.survival_file())
        builder = dyspec(nodes, -(-(nodes - 1) // CALLS), acceptance=acceptance)
        return _grow(builder, sources, target)

    return make


def _best_first(shape: str) -> Builder:
    nodes = shapes.nodes(shape)
    width = math.isqrt(nodes - 1) + 1
    return best_first(nodes, width, min(width, shapes.LONGEST))


def _sequoia(shape: str) -> Make:
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


def _ngram_drafter(shape: str) -> Drafter:
    if shape.startswith("chain:"):
        size = shapes.nodes(shape.removeprefix("chain:"), 1) + 1
        return ngram(size, size, num_matches=1)
    nodes = shapes.nodes(shape)
    path = min(nodes, LOOKUP_PATH)
    matches = max(4, -(-(nodes - 1) // (path - 1)))
    return ngram(nodes, path, num_matches=matches)


def _ngram(shape: str) -> Make:
    drafter = _ngram_drafter(shape)
    return lambda sources, target: Made(drafter, None)


def _retriever(nodes: int) -> Drafter:
    return retrieval(nodes, min(nodes, LOOKUP_PATH), num_matches=max(16, nodes))


def _retrieval(shape: str) -> Make:
    drafter = _retriever(shapes.nodes(shape))
    return lambda sources, target: Made(drafter, sources.load_datastore(target))


def _lookups(shape: str) -> Make:
    nodes = shapes.nodes(shape)
    drafter = fuse(_ngram_drafter(shape), _retriever(nodes), nodes)
    return lambda sources, target: Made(
        drafter, Pair(None, sources.load_datastore(target))
    )


def _rasd(order: str) -> Callable[[str], Make]:
    def plan(shape: str) -> Make:
        nodes = shapes.nodes(shape, 4)
        builder = stochastic_beam(*shapes.beam(str(nodes // 2 + 1)))
        retriever = _retriever(nodes - builder.num_nodes + 1)
        longest = max(builder.max_path, retriever.max_path)

        def make(sources: Sources, target: Folder) -> Made:
            model, params = sources.load_draft(target, longest)
            drafter = rasd(model, builder, retriever, nodes, order=order)
            return Made(drafter, Pair(params, sources.load_datastore(target)))

        return make

    return plan


def _recycling(shape: str) -> Make:
    topology = sequoia.optimal_tree(ACCEPTANCE, shapes.nodes(shape), LOOKUP_PATH)
    return lambda sources, target: Made(
        recycling(target.config.vocab_size, topology), None
    )


def _suffix(shape: str) -> Make:
    nodes = shapes.nodes(shape)
    longest = max(min(nodes, LOOKUP_PATH), 2)

    def generate(params, state, *, drafter, **settings):
        del drafter  # which keeps room for the paths
        return generate_from_host(
            params,
            state,
            host=SuffixDecoder(),
            num_nodes=nodes,
            max_path=longest,
            **settings,
        )

    return lambda sources, target: Made(silent(longest), None, generate=generate)


LEVELS = "children level by level (3,2,1) or chain:K"
DRAFT, STORE = ("draft",), ("datastore",)


def _of_draft(
    make_builder: Callable[[str], Builder], shapes: str, summary: str, draws: bool
) -> Kind:
    return Kind(_grown(make_builder), shapes, summary, draws, DRAFT)


KINDS = {
    "ngram": Kind(_ngram, "chain:K", "looks the last tokens up in the text so far"),
    "retrieval": Kind(
        _retrieval, "", "looks the last tokens up in a datastore (REST)", needs=STORE
    ),
    "lookups": Kind(
        _lookups,
        "",
        "looks the last tokens up in the text so far and in a datastore",
        needs=STORE,
    ),
    "suffix": Kind(
        _suffix, "", "counts what followed the last tokens, in a tree on the host"
    ),
    "recycling": Kind(
        _recycling,
        "",
        "proposes the successors that the target last ranked highest for each token",
    ),
    "model": _of_draft(
        _static("top_k"), LEVELS, "a draft model's likeliest, in a static tree", False
    ),
    "mtp": Kind(
        _mtp, LEVELS, "the likeliest of the target's own head, in a static tree"
    ),
    "best-first": _of_draft(
        _best_first, "", "a draft model's likeliest paths (EAGLE-2)", False
    ),
    "chain": _of_draft(_chain(), "", "a draft model's draws, one by one", True),
    "specinfer": _of_draft(
        _static("iid"), LEVELS, "a static tree, drawn with replacement", True
    ),
    "rsd-c": _of_draft(
        _static("without_replacement"),
        LEVELS,
        "a static tree, drawn without replacement",
        True,
    ),
    "sequoia": Kind(
        _sequoia,
        "best, the fastest",
        "the static tree of most tokens, as measured",
        True,
        DRAFT,
    ),
    "rsd-s": _of_draft(
        lambda shape: stochastic_beam(*shapes.beam(shape)),
        "WIDTHxLENGTH",
        "a stochastic beam",
        True,
    ),
    "dyspec": _of_draft(
        _dyspec(), "", "a tree that grows where drafts are likely", True
    ),
    "dyspec-measured": Kind(
        _dyspec_measured,
        "",
        "a tree that grows where drafts were kept before",
        True,
        DRAFT,
    ),
    "chain-shared": _of_draft(
        _chain("shared"), "", "a chain, drawn with the noise that emits tokens", False
    ),
    "rsd-c-shared": _of_draft(
        _static("without_replacement", "shared"),
        LEVELS,
        "a static tree, drawn with the noise that emits tokens",
        False,
    ),
    "dyspec-shared": _of_draft(
        _dyspec("shared"),
        "",
        "a tree that grows where drafts are likely, by the noise that emits tokens",
        False,
    ),
    "rasd": Kind(
        _rasd("draft first"),
        "",
        "a stochastic beam, and retrieved paths beside it",
        True,
        DRAFT + STORE,
    ),
    "rasd-first": Kind(
        _rasd("retrieval first"),
        "",
        "retrieved paths, and a stochastic beam beside them",
        True,
        DRAFT + STORE,
    ),
}
"""All kinds, by name."""
