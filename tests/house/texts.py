"""The sha256 of texts of every drafter, verifier, temperature and rollback.

    python tests/house/texts.py            compares with texts.json
    python tests/house/texts.py --write    writes it

What a structural change may not change: a small hybrid continues eight prompts, each at
temperatures 0 and 0.8.
"""

import argparse
import functools
import hashlib
import importlib.metadata
import json
import os
import pathlib
import sys

FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = FLAGS  # texts depend on how sums are rounded
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

import jaxspec as js  # noqa: E402
from jaxspec.drafting import datastore  # noqa: E402
from jaxspec.drafting.fusion import Pair  # noqa: E402

FOLDER = pathlib.Path(__file__).parent
PROMPTS = FOLDER.parents[1] / "jaxspec/assets/prompts.jsonl"
ROLLBACKS = ("snapshot", "joint", "replay", "lazy")
VOCAB, MAX_PATH, ROWS, NEW = 96, 6, 8, 24
CONFIG = js.ModelConfig(
    VOCAB,
    16,
    "M*",
    mamba2=js.Mamba2Config(nheads=4, headdim=8, d_state=8, chunk_size=8),
    attention=js.AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=8),
    mlp=js.MLPConfig(24),
    mtp="-",
)
DRAFT = js.ModelConfig(
    VOCAB, 16, "M", mamba2=js.Mamba2Config(nheads=4, headdim=8, d_state=8, chunk_size=8)
)


def prompts() -> list[list[int]]:
    """Eight prompts, a token per character."""
    lines = PROMPTS.read_text().splitlines()[:ROWS]
    texts = [json.loads(line)["prompt"] for line in lines]
    sizes = 40, 9, 24, 33, 1, 17, 38, 29
    cut = [text[:n] for text, n in zip(texts, sizes, strict=True)]
    return [[min(ord(c), 127) - 32 if ord(c) >= 32 else 95 for c in t] for t in cut]


def key(seed: int) -> jax.Array:
    """A threefry key."""
    return jax.random.key(seed, impl="threefry2x32")


@functools.cache
def own_params():
    """Of the target, of a model that is like it, and of a small one."""
    target = jax.jit(js.language_model(CONFIG).init)(key(0))
    leaves, tree = jax.tree.flatten(target)
    near = [
        leaf + 0.05 * jax.random.normal(key(i + 9), leaf.shape, leaf.dtype)
        for i, leaf in enumerate(leaves)
    ]
    small = jax.jit(js.language_model(DRAFT).init)(key(1))
    return target, jax.tree.unflatten(tree, near), small


@functools.cache
def drafters():
    """By name: a drafter, its params, and whether it wants `sample_and_match`."""
    from jaxspec.models import mtp

    target, near, small = own_params()
    like = js.language_model(CONFIG, max_path=MAX_PATH)
    little = js.language_model(DRAFT, max_path=MAX_PATH)
    head = js.mtp_head(CONFIG)
    head_params = mtp.share(jax.jit(head.init)(key(2)), target)
    texts = [prompts()[0], prompts()[6], np.arange(90).tolist()]
    store = datastore.build(texts)
    lookup, retrieval = js.ngram(6, 4, min_match=1), js.retrieval(6, 4, min_match=1)
    builders = {
        "chain": js.chain(3),
        "specinfer": js.static_tree((2, 2), "iid"),
        "rsd-c": js.static_tree((3, 1), "without_replacement"),
        "sequoia": js.static_tree((-1, 0, 0, 1, 1, 3), "without_replacement"),
        "rsd-s": js.stochastic_beam(2, 3),
        "dyspec": js.dyspec(6),
        "best-first": js.best_first(6, 3, 2),
        "top-k": js.static_tree((2, 1, 1)),
    }
    shared = {
        "chain-shared": js.chain(3, "iid", "shared"),
        "rsd-c-shared": js.static_tree((2, 1), "without_replacement", "shared"),
        "dyspec-shared": js.dyspec(6, noise="shared"),
    }
    found = {
        name: (js.draft_model(like, builder), near, False)
        for name, builder in builders.items()
    }
    found |= {
        name: (js.draft_model(like, builder), near, True)
        for name, builder in shared.items()
    }
    found["small"] = js.draft_model(little, (2, 1)), small, False
    found["ngram"] = lookup, None, False
    found["retrieval"] = retrieval, store, False
    found["lookups"] = js.fuse(lookup, retrieval, 8), Pair(None, store), False
    found["recycling"] = js.recycling(VOCAB, (3, 1)), None, False
    found["mtp"] = js.draft_head(head, builders["rsd-c"]), head_params, False
    for order in ("draft first", "retrieval first"):
        drafter = js.rasd(
            like, js.stochastic_beam(2, 2), retrieval, keep=9, order=order
        )
        found[f"rasd, {order}"] = drafter, Pair(near, store), False
    found["suffix"] = js.silent(4), None, False
    return found


VERIFIERS = {
    "match": js.sample_and_match(),
    "recursive": js.recursive_rejection(),
    "traversal": js.traversal(),
}


def texts_of(name: str, verifier: str, rollback: str) -> dict[str, str]:
    """The hashes at both temperatures."""
    drafter, own, _ = drafters()[name]
    target = js.language_model(CONFIG, rollback=rollback, max_path=MAX_PATH)
    params = js.Params(own_params()[0], own)
    tokens, lengths = js.pad_prompts(prompts() * 2)
    state = js.init_state(
        params,
        tokens,
        lengths,
        target=target,
        drafter=drafter,
        max_length=72,
        max_new_tokens=NEW,
        temperature=jnp.repeat(jnp.array([0.0, 0.8]), ROWS),
        stops=[3],
        keys=key(7),
    )
    loop = functools.partial(js.speculative_generate, drafter=drafter)
    if name == "suffix":
        loop = functools.partial(
            js.generate_from_host, host=js.SuffixDecoder(), num_nodes=6, max_path=4
        )
    state, _ = loop(params, state, target=target, verifier=VERIFIERS[verifier])
    written, ends = np.asarray(state.tokens), np.asarray(state.lengths)
    rows = [written[r, :n].astype("<i4").tobytes() for r, n in enumerate(ends)]
    halves = {"0": rows[:ROWS], "0.8": rows[ROWS:]}
    return {
        temperature: hashlib.sha256(b"|".join(half)).hexdigest()
        for temperature, half in halves.items()
    }


def main() -> None:
    """Compares, or writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--only", default="", help="a part of a name")
    args = parser.parse_args()
    js.keep_programs(pathlib.Path.home() / ".cache/jaxspec-texts")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    path = FOLDER / "texts.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    found, differ = {}, []
    cases = [
        (name, verifier, rollback)
        for name, (_, _, coupled) in drafters().items()
        for verifier in (["match"] if coupled else VERIFIERS)
        for rollback in ROLLBACKS
    ]
    cases.sort(key=lambda case: (case[2] != "replay") * (1 + (case[1] != "match")))
    for name, verifier, rollback in cases:
        which = f"{name} | {verifier} | {rollback}"
        if args.only not in which:
            continue
        if args.write and which in known:
            continue
        found[which] = texts_of(name, verifier, rollback)
        jax.clear_caches()  # a process has room for so many programs
        if args.write:
            path.write_text(json.dumps(known | found, indent=1) + "\n")
        if not args.write and found[which] != known.get(which):
            differ.append(which)
        print(which, "differs" if which in differ else "", flush=True)
    print(f"{len(found)} texts, {len(differ)} differ: {differ}")
    sys.exit(bool(differ))


if __name__ == "__main__":
    main()
