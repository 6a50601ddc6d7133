"""Every way to draft for a target that is a table; params are made of another table."""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxspec as js
import kinds
import mixed
from jaxspec.drafting import datastore
from jaxspec.drafting.fusion import Pair
from jaxspec.drafting.model import Trimmed
from jaxspec.models import mtp

KEEP = (0, 2, 3)  # what a trimmed head has


class Entry(NamedTuple):
    """A drafter, and what makes its params."""

    drafter: js.Drafter
    params: Callable[[Any], Any]


BUILDERS = {
    "chain (2)": js.chain(2),
    "SpecInfer (2, 1)": js.static_tree((2, 1), "iid"),
    "RSD-C (2, 1)": js.static_tree((2, 1), "without_replacement"),
    "RSD-C (3, 1)": js.static_tree((3, 1), "without_replacement"),
    "Sequoia, 5 nodes": js.static_tree((-1, 0, 0, 1, 3), "without_replacement"),
    "RSD-S 2 x 2": js.stochastic_beam(2, 2),
    "DySpec, 4 nodes": js.dyspec(4),
    "DySpec, 5 nodes, two per call": js.dyspec(5, 2, threshold=0.1, max_path=4),
    "EAGLE-2, 4 nodes": js.best_first(4, 2, 1),
    "likeliest (2, 1)": js.static_tree((2, 1)),
}
SAMPLED = ("chain (2)", "RSD-C (2, 1)", "RSD-S 2 x 2", "DySpec, 4 nodes")
ORDERS = "draft first", "retrieval first"
RETRIEVAL = js.retrieval(5, 3, num_matches=4, min_match=1)
LOOKUP = js.ngram(5, 3, min_match=1)


@functools.cache
def store() -> datastore.Datastore:
    documents = np.random.default_rng(2).integers(0, mixed.VOCAB, (4, 20))
    return datastore.build(documents.tolist())


def whole(table) -> Any:
    return jnp.asarray(table)


def trimmed(table) -> Any:
    return Trimmed(jnp.asarray(table[:, KEEP]), jnp.array(KEEP, jnp.int32))


def with_store(make: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda table: Pair(make(table), store())


def _rasd(builder: str, order: str) -> js.Drafter:
    return js.rasd(mixed.model(), BUILDERS[builder], RETRIEVAL, keep=2, order=order)


def _entries() -> dict[str, Entry]:
    model, head = mixed.model(), mixed.head()
    found = {
        name: Entry(js.draft_model(model, builder), whole)
        for name, builder in BUILDERS.items()
    }
    for name in SAMPLED:
        builder = BUILDERS[name]
        found[f"{name}, trimmed"] = Entry(js.draft_model(model, builder), trimmed)
        found[f"{name}, a head"] = Entry(js.draft_head(head, builder), whole)
        for order in ORDERS:
            params = with_store(whole)
            found[f"RASD, {name}, {order}"] = Entry(_rasd(name, order), params)
    some = BUILDERS["RSD-C (2, 1)"]
    for order in ORDERS:
        entry = Entry(_rasd("RSD-C (2, 1)", order), with_store(trimmed))
        found[f"RASD, trimmed, {order}"] = entry
    found["a trimmed head"] = Entry(js.draft_head(head, some), trimmed)
    for temperature in (0.5, 2.0):
        drafter = js.draft_model(model, some, temperature=temperature)
        found[f"RSD-C (2, 1) at {temperature}"] = Entry(drafter, whole)
    found["n-grams"] = Entry(LOOKUP, lambda table: None)
    found["retrieval"] = Entry(RETRIEVAL, lambda table: store())
    both = js.fuse(LOOKUP, RETRIEVAL, 6)
    found["n-grams and retrieval"] = Entry(both, lambda table: Pair(None, store()))
    recycling = js.recycling(mixed.VOCAB, (2, 1), successors=2)
    found["recycling"] = Entry(recycling, lambda table: None)
    return found


def _shared() -> dict[str, Entry]:
    builders = {
        "chain": js.chain(2, "iid", "shared"),
        "RSD-C": js.static_tree((2, 1), "without_replacement", "shared"),
        "DySpec": js.dyspec(4, noise="shared"),
    }
    return {
        f"{name}, shared noise": Entry(js.draft_model(mixed.model(), builder), whole)
        for name, builder in builders.items()
    }


ENTRIES = _entries()
SHARED = _shared()
"""Those that draw with the noise of the emission, for `sample_and_match` alone."""

HYBRID = js.ModelConfig(
    mixed.VOCAB,
    8,
    "M*",
    mamba2=js.Mamba2Config(nheads=2, headdim=8, d_state=8, chunk_size=8),
    attention=js.AttentionConfig(num_heads=2, num_kv_heads=1, head_dim=8),
    mlp=js.MLPConfig(d_ff=16),
    mtp="*-",
)


@functools.cache
def hybrid_params() -> js.Params:
    """Of a small hybrid, and of its multi-token-prediction head."""
    model = js.language_model(HYBRID, max_path=mixed.MAX_PATH)
    target = jax.jit(model.init)(jax.random.key(0, impl="threefry2x32"))
    own = jax.jit(js.mtp_head(HYBRID).init)(jax.random.key(1, impl="threefry2x32"))
    return js.Params(target, mtp.share(own, target))


@functools.cache
def hybrid_laws() -> dict[str, np.ndarray]:
    """The law of each kind under the hybrid, by one plain pass over all texts."""
    texts = [
        (*kind.prompt, *rest)
        for kind in kinds.KINDS.values()
        for size in range(kind.budget)
        for rest in itertools.product(range(mixed.VOCAB), repeat=size)
    ]
    model = js.language_model(HYBRID, max_path=mixed.MAX_PATH)

    @jax.jit
    def read(params, tokens, lengths):
        carry = model.init_carry(params, *tokens.shape)
        _, hidden = model.scan(params, carry, tokens, lengths)
        return model.logits(params, hidden)

    tokens, lengths = js.pad_prompts(texts, multiple=1)
    logits = np.asarray(read(hybrid_params().target, tokens, lengths))
    last = logits[np.arange(len(texts)), np.asarray(lengths) - 1]
    return mixed.laws_of(dict(zip(texts, last, strict=True)).__getitem__)
