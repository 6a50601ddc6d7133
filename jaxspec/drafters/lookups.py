"""Drafts that are looked up: in the text, a datastore, or what the target ranked before."""

from collections.abc import Callable

from jaxspec.core import Drafter
from jaxspec.drafters import shapes
from jaxspec.drafters.sources import Made, Make, Sources
from jaxspec.drafting import sequoia
from jaxspec.drafting.beam import stochastic_beam
from jaxspec.drafting.fusion import Pair, fuse
from jaxspec.drafting.ngram import ngram
from jaxspec.drafting.rasd import rasd
from jaxspec.drafting.recycling import ACCEPTANCE, recycling
from jaxspec.drafting.retrieval import retrieval
from jaxspec.drafting.silent import silent
from jaxspec.drafting.suffix import SuffixDecoder
from jaxspec.host_decoding import generate_from_host
from jaxspec.pretrained import Folder

LOOKUP_PATH = 8  # nodes on a path that is looked up


def _ngram_drafter(shape: str) -> Drafter:
    if shape.startswith("chain:"):
        size = shapes.nodes(shape.removeprefix("chain:"), 1) + 1
        return ngram(size, size, num_matches=1)
    nodes = shapes.nodes(shape)
    path = min(nodes, LOOKUP_PATH)
    matches = max(4, -(-(nodes - 1) // (path - 1)))
    return ngram(nodes, path, num_matches=matches)


def of_text(shape: str) -> Make:
    """Looks up in the text so far."""
    drafter = _ngram_drafter(shape)
    return lambda sources, target: Made(drafter, None)


def _retriever(nodes: int) -> Drafter:
    return retrieval(nodes, min(nodes, LOOKUP_PATH), num_matches=max(16, nodes))


def of_datastore(shape: str) -> Make:
    """Looks up in a datastore."""
    drafter = _retriever(shapes.nodes(shape))
    return lambda sources, target: Made(drafter, sources.load_datastore(target))


def of_both(shape: str) -> Make:
    """Looks up in the text so far and in a datastore."""
    nodes = shapes.nodes(shape)
    drafter = fuse(_ngram_drafter(shape), _retriever(nodes), nodes)
    return lambda sources, target: Made(
        drafter, Pair(None, sources.load_datastore(target))
    )


def of_rankings(shape: str) -> Make:
    """Proposes what the target ranked highest after each token."""
    topology = sequoia.optimal_tree(ACCEPTANCE, shapes.nodes(shape), LOOKUP_PATH)
    return lambda sources, target: Made(
        recycling(target.config.vocab_size, topology), None
    )


def on_the_host(shape: str) -> Make:
    """Counts what followed, in a tree on the host."""
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


def beside_a_beam(order: str) -> Callable[[str], Make]:
    """Looks up in a datastore, beside a beam of the draft model."""

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
