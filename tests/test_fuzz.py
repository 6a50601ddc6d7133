"""Every reader of files meets damage: the same comes out, or one line that names the file.

What jaxspec wrote carries digests, so that nothing else can come out. What others wrote
(published folders, prompts) has none: there, other numbers are other numbers, and all else
is refused.
"""

import json
import resource
import shutil
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

import folder
import jaxspec
import mutations
import published
from checkpoints_conv import conversion, exporting
from jaxspec import checkpointing, digests
from jaxspec.bench import drafters as record_files
from jaxspec.drafting import datastore, tree_file, vocabulary
from jaxspec.measure import prompts
from jaxspec.train import loop
from weights import as_pickle, as_shards

STATE = {"x": jnp.arange(300.0), "y": (jnp.arange(5), jax.random.key(1))}
WORDS = tokenizers.Tokenizer(
    tokenizers.models.WordLevel({c: i for i, c in enumerate("abc")}, unk_token="a")
)


class Case(NamedTuple):
    """Something to read: `make` writes it into a folder, and `read` gives its value.

    `ours` is what carries digests, and `skip` are files that nobody reads.
    """

    make: object
    read: object
    ours: bool = True
    skip: tuple = ()


def leaves(*trees):
    """Arrays and whatever else, as what can be compared."""
    found = jax.tree.leaves(trees)
    return [
        (str(x.dtype), x.shape, np.asarray(x).tobytes())
        if isinstance(x, jax.Array | np.ndarray)
        else x
        for x in found
    ]


def load(path):
    found = jaxspec.load(path)
    return found.model, leaves(found.params), found.tokenizer.to_str(), found.stops


def plan_of_export(path):
    todo = exporting.plan(path)
    parts = [leaves(todo.read(part)) for part in todo.family.parts(todo.config)]
    return todo.config, todo.texts, parts


def plan_of_conversion(path):
    todo = conversion.plan(path)
    conversion.provenance(todo)
    return [todo.source.read(name).nbytes for name in todo.source.entries]


def restore(path):
    state = checkpointing.restore(path, STATE)
    return leaves(jax.tree.map(jax.random.key_data, state["y"][1]), state["x"])


def write_published(name, change=None):
    def make(path):
        shutil.copytree(published.source(name), path, dirs_exist_ok=True)
        (path / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
        if change:
            change(path)

    return Case(make, plan_of_conversion, ours=False)


def copy(source):
    return lambda path: shutil.copytree(source(), path, dirs_exist_ok=True)


def write_tree(path):
    trees = [{"num_nodes": n, "parents": [-1, *[0] * (n - 1)]} for n in (2, 4)]
    tree_file.save(path / "tree.json", trees, 4, acceptance=[0.5, 0.25])


def write_vocabulary(path):
    counts = np.arange(20)
    found = vocabulary.Vocabulary(vocabulary.select(counts, 8), counts, "abc")
    vocabulary.save(path / "vocabulary.json", found)


def read_vocabulary(path):
    found = vocabulary.load(path / "vocabulary.json")
    return leaves(found.keep, found.counts), found.tokenizer_hash


def write_datastore(path):
    store = datastore.build([[0, 1, 2, 1, 0], [2, 2, 1]])
    datastore.save(path / "store.safetensors", store, WORDS)


def write_record(path):
    record = {"format": record_files.FORMAT, "settings": {"a": [1, 2.5]}, "rows": []}
    (path / "record.json").write_text(digests.seal(record))


def write_lines(name, *records):
    lines = "".join(json.dumps(record) + "\n" for record in records)
    return lambda path: (path / name).write_text(lines)


ORBAX = ("commit_success.txt", "_CHECKPOINT_METADATA")
CASES = {
    "model": Case(copy(folder.make), load),
    "converted model": Case(copy(lambda: published.converted("mamba2")), load),
    "export": Case(copy(lambda: published.converted("llama")), plan_of_export),
    "saved state": Case(
        lambda path: checkpointing.save(path, 3, STATE), restore, skip=ORBAX
    ),
    "tree": Case(write_tree, lambda path: tree_file.load_tree(path / "tree.json")),
    "acceptance": Case(
        write_tree, lambda path: tree_file.load_acceptance(path / "tree.json")
    ),
    "vocabulary": Case(write_vocabulary, read_vocabulary),
    "datastore": Case(
        write_datastore,
        lambda path: leaves(datastore.load(path / "store.safetensors", WORDS)),
    ),
    "record": Case(
        write_record,
        lambda path: digests.unseal(path / "record.json", record_files.FORMAT),
    ),
    "prompts": Case(
        write_lines("prompts.jsonl", {"prompt": "a"}, {"turns": ["b", "c"]}),
        lambda path: prompts.read(path / "prompts.jsonl"),
        ours=False,
    ),
    "log": Case(
        write_lines("log.jsonl", {"step": 1, "loss": 2.5}, {"step": 2, "loss": 2.0}),
        lambda path: loop.read_log(path / "log.jsonl"),
        ours=False,
    ),
    "shards": write_published("mamba2", as_shards),
    "pickle": write_published("mamba2", as_pickle),
    **{name: write_published(name) for name in published.names()},
}
QUICKLY = [name for name in CASES if name not in published.names()]
QUICKLY += ["granite-experts", "qwen3_next", "mamba_in_llama", "zamba2"]


def damage(path, case, count, seed):
    """Reads a folder under `count` mutations, one after the other; returns refusals."""
    before = case.read(path)
    found = [own for own in path.rglob("*") if own.is_file()]
    targets = sorted(own for own in found if own.name not in case.skip)
    rng = mutations.generator(seed)
    refused = 0
    for number in range(count):
        target = targets[number % len(targets)]
        raw = target.read_bytes()
        target.write_bytes(mutations.draw(target.name, raw, rng))
        started = time.perf_counter()
        try:
            after = case.read(path)
            assert not case.ours or after == before, (target, number)
        except (ValueError, OSError) as error:
            refused += 1
            message = str(error)
            # Of weights without some tensor, nobody can tell which file lost it.
            misfit = case.read is plan_of_conversion and "does not fit its" in message
            weights = target.name.startswith(("model", "pytorch_model"))
            assert target.name in message or (misfit and weights), (number, message)
            assert "\n" not in message, (number, message)
        assert time.perf_counter() - started < 20, (target, number)
        target.write_bytes(raw)
    assert leaves(case.read(path)) == leaves(before)
    return refused


def peak():
    """Bytes that this process held at most."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize("name", QUICKLY)
def test_damage_is_refused_in_one_line_or_changes_nothing(tmp_path, name):
    case = CASES[name]
    case.make(tmp_path)
    held = peak()
    assert damage(tmp_path, case, 40, seed=0) > 5
    assert peak() - held < 2**30


@pytest.mark.thorough
@pytest.mark.parametrize("name", CASES)
def test_much_damage_is_refused_in_one_line_or_changes_nothing(tmp_path, name):
    case = CASES[name]
    case.make(tmp_path)
    held = peak()
    assert damage(tmp_path, case, 1000, seed=1) > 100
    assert peak() - held < 2**30


@pytest.mark.parametrize("name", ["model", "tree", "vocabulary"])
def test_contents_are_checked_where_digests_are_skipped(tmp_path, monkeypatch, name):
    monkeypatch.setenv(digests.SKIP, "1")
    case = CASES[name]._replace(ours=False)
    case.make(tmp_path)
    assert damage(tmp_path, case, 40, seed=2) > 5
