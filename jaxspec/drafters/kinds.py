"""The kinds of drafters that have a name."""

from collections.abc import Callable
from typing import NamedTuple

from jaxspec.drafters import grown, lookups, shapes
from jaxspec.drafters.sources import Make
from jaxspec.drafting.beam import stochastic_beam
from jaxspec.drafting.builder import Builder


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


LEVELS = "children level by level (3,2,1) or chain:K"
DRAFT, STORE = ("draft",), ("datastore",)


def _of_draft(
    make_builder: Callable[[str], Builder], shapes: str, summary: str, draws: bool
) -> Kind:
    return Kind(grown.by_draft(make_builder), shapes, summary, draws, DRAFT)


KINDS = {
    "ngram": Kind(
        lookups.of_text, "chain:K", "looks the last tokens up in the text so far"
    ),
    "retrieval": Kind(
        lookups.of_datastore,
        "",
        "looks the last tokens up in a datastore (REST)",
        needs=STORE,
    ),
    "lookups": Kind(
        lookups.of_both,
        "",
        "looks the last tokens up in the text so far and in a datastore",
        needs=STORE,
    ),
    "suffix": Kind(
        lookups.on_the_host,
        "",
        "counts what followed the last tokens, in a tree on the host",
    ),
    "recycling": Kind(
        lookups.of_rankings,
        "",
        "proposes the successors that the target last ranked highest for each token",
    ),
    "model": _of_draft(
        grown.levels("top_k"),
        LEVELS,
        "a draft model's likeliest, in a static tree",
        False,
    ),
    "mtp": Kind(
        grown.by_head,
        LEVELS,
        "the likeliest of the target's own head, in a static tree",
    ),
    "best-first": _of_draft(
        grown.best_first_of, "", "a draft model's likeliest paths (EAGLE-2)", False
    ),
    "chain": _of_draft(
        grown.one_by_one(), "", "a draft model's draws, one by one", True
    ),
    "specinfer": _of_draft(
        grown.levels("iid"), LEVELS, "a static tree, drawn with replacement", True
    ),
    "rsd-c": _of_draft(
        grown.levels("without_replacement"),
        LEVELS,
        "a static tree, drawn without replacement",
        True,
    ),
    "sequoia": Kind(
        grown.sequoia_of,
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
        grown.dyspec_of(), "", "a tree that grows where drafts are likely", True
    ),
    "dyspec-measured": Kind(
        grown.dyspec_as_measured,
        "",
        "a tree that grows where drafts were kept before",
        True,
        DRAFT,
    ),
    "chain-shared": _of_draft(
        grown.one_by_one("shared"),
        "",
        "a chain, drawn with the noise that emits tokens",
        False,
    ),
    "rsd-c-shared": _of_draft(
        grown.levels("without_replacement", "shared"),
        LEVELS,
        "a static tree, drawn with the noise that emits tokens",
        False,
    ),
    "dyspec-shared": _of_draft(
        grown.dyspec_of("shared"),
        "",
        "a tree that grows where drafts are likely, by the noise that emits tokens",
        False,
    ),
    "rasd": Kind(
        lookups.beside_a_beam("draft first"),
        "",
        "a stochastic beam, and retrieved paths beside it",
        True,
        DRAFT + STORE,
    ),
    "rasd-first": Kind(
        lookups.beside_a_beam("retrieval first"),
        "",
        "retrieved paths, and a stochastic beam beside them",
        True,
        DRAFT + STORE,
    ),
}
"""All kinds, by name."""
