"""Drafters by name: `KIND:SHAPE`, as in `ngram:8`, `rsd-s:3x4` or `dyspec:16`.

    setup = jaxspec.drafter("rsd-s:16", jaxspec.load("stdlib-8m"), draft="stdlib-draft")
    machinery = {"target": setup.target.model, "drafter": setup.drafter}
    state = jaxspec.init_state(setup.params, tokens, lengths, **machinery)
    state, info = setup.generate(setup.params, state, **machinery)

Every kind takes a number of nodes: the slots of the tree in the target's pass, the root
included, so that kinds can be compared at equal cost of that pass. Some take a shape of
their own besides: `chain:4` four drafts in a row, `rsd-c:3,2,1` children level by level,
`rsd-s:3x4` a beam of three and four levels. `KINDS` and `jaxspec info` list them.
"""

import functools
import pathlib
from collections.abc import Callable

from jaxspec.drafters import shapes
from jaxspec.drafters.kinds import KINDS
from jaxspec.drafters.sources import Made, Setup, Sources
from jaxspec.pretrained import Folder, Pretrained


def drafter(
    spec: str,
    target: Pretrained,
    *,
    draft: Pretrained | str | pathlib.Path | None = None,
    datastore: str | pathlib.Path | None = None,
    trees: str | pathlib.Path | None = None,
    vocabulary: str | pathlib.Path | None = None,
    survival: str | pathlib.Path | None = None,
) -> Setup:
    """Makes the drafter that `KIND:SHAPE` names, for a target that was loaded.

    Args:
        spec: a kind and its shape; eight nodes by default.
        target: the model to draft for.
        draft: the draft model of kinds that have one: what `load` gave, or takes.
        datastore: text to retrieve from, made by `jaxspec tune datastore`.
        trees: topologies for `sequoia`, made by `jaxspec tune tree`.
        vocabulary: tokens that the head of the draft model keeps, or of MTP, made by
            `jaxspec tune vocabulary`.
        survival: measured acceptance for `dyspec-measured`, made by `jaxspec tune
            survival`.

    Returns:
        The drafter beside its target, which has the room that the drafter needs: their
        params, and the loop that runs them.

    Raises:
        ValueError: if there is no such kind, it has no such shape, what it is made from is
            missing, or the draft model reads tokens otherwise.
    """
    sources = Sources(
        draft=draft,
        datastore=datastore,
        trees=trees,
        vocabulary=vocabulary,
        survival=survival,
    )
    return plan(spec, sources)(target.folder).beside(target)


def plan(spec: str, sources: Sources) -> Callable[[Folder], Made]:
    """Reads `KIND:SHAPE` before a model is loaded.

    Returns:
        The target's folder -> the drafter; `Made.beside` puts it beside its target.

    Raises:
        TypeError: if it is no text.
        ValueError: if there is no such kind, it has no such shape, or a source that it
            needs is not given.
    """
    if not isinstance(spec, str):
        raise TypeError(f"Expected KIND:SHAPE, as 'ngram:8', got {spec!r}.")
    name, _, shape = spec.partition(":")
    if name not in KINDS:
        raise ValueError(f"Unknown drafter {spec!r}; expected one of {tuple(KINDS)}.")
    kind = KINDS[name]
    try:
        make = kind.plan(shape or "8")
    except shapes.NoShape:
        more = f", or {kind.shapes}" if kind.shapes else ""
        raise ValueError(
            f"{shape!r} is no shape of {name}; expected a number of nodes up to "
            f"{shapes.MOST}, the root included{more}."
        ) from None
    for need in kind.needs:
        if getattr(sources, need) is None:
            raise ValueError(_MISSING[need].format(name=name))
    return functools.partial(make, sources)


_MISSING = {
    "draft": "{name} needs a draft model: its name or folder (--draft-model).",
    "datastore": "{name} needs a datastore: the file that `jaxspec tune datastore` makes "
    "(--datastore FILE).",
}
