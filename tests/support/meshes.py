"""The loop on a mesh and on one device, and a run of it in one of several processes.

As a script, `python meshes.py ADDRESS PROCESSES INDEX FOLDER` is one of the processes: it
decodes its own prompts on a mesh of all, is saved in mid-sentence, goes on from there,
and compares its rows with what one of its devices writes.
"""

import functools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

import jaxspec
import tiny
from jaxspec import checkpointing, metrics, sharding
from jaxspec.models import forms
from jaxspec.models.config import AttentionConfig, DeltaConfig, Mamba2Config, MLPConfig

MAX_PATH = 4
HEADS = {  # all that four devices can share evenly
    "mamba2": Mamba2Config(nheads=8, headdim=4, d_state=8, chunk_size=8),
    "attention": AttentionConfig(num_heads=4, num_kv_heads=4, head_dim=8),
}
GROUPS = Mamba2Config(
    nheads=8, headdim=4, d_state=8, ngroups=4, D_per_channel=True, norm="before"
)
CONFIGS = {
    "one-group": tiny.config("M*-M", **HEADS),
    "groups": tiny.config("M*-", **HEADS | {"mamba2": GROUPS}, tie_embeddings=False),
    "mamba1": tiny.config("mm"),
    "delta": tiny.config(
        "G*-",
        delta=DeltaConfig(8, 4, 4, 8, chunk_size=8),
        attention=AttentionConfig(8, 4, head_dim=8, qk_norm=True, output_gate=True),
    ),
    "draft": tiny.config("M", mamba2=HEADS["mamba2"]),
    "falcon-h1": tiny.CONFIGS["falcon-h1"],  # two groups for four devices
    "shared": tiny.config(
        "SS",
        mamba2=HEADS["mamba2"],
        attention=AttentionConfig(4, 4, head_dim=8, adapter_rank=3),
        mlp=MLPConfig(24, "geglu", adapter_rank=2),
    ),
    "experts": tiny.config("ME", mamba2=HEADS["mamba2"]),
}
PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [7], [2, 7, 1, 8], [1, 6, 1, 8, 0, 3]]
PROMPTS += [[1, 4, 1, 4, 2, 1], [5, 7, 7, 2], [6, 9, 3, 1], [9, 9]]
SETTINGS = {"max_length": 24, "max_new_tokens": 12}


@functools.cache
def make_params(name):
    """Random params; nothing is compiled for them."""
    init = jaxspec.language_model(CONFIGS[name]).init
    shapes = jax.eval_shape(lambda: init(jax.random.key(0)))
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        centre = 1.0 if getattr(path[-1], "key", "") in ("scale", "D") else 0.0
        values = centre + 0.3 * rng.standard_normal(leaf.shape)
        return jnp.asarray(values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


class Setup:
    """A target and a drafter, how they roll back and how their layers are stored."""

    def __init__(self, name, drafter="ngram", rollback="replay", scanned=False):
        self.config, self.draft_config = CONFIGS[name], None
        options = {"rollback": rollback, "max_path": MAX_PATH, "scan_layers": scanned}
        self.target = jaxspec.language_model(self.config, **options)
        target, draft = make_params(name), None
        if drafter == "ngram":
            self.drafter = jaxspec.ngram(4, MAX_PATH, min_match=1)
        else:
            self.draft_config = CONFIGS["draft"]
            model = jaxspec.language_model(self.draft_config, max_path=MAX_PATH)
            self.drafter, draft = (
                jaxspec.draft_model(model, (2, 1)),
                make_params("draft"),
            )
        if scanned:
            target = forms.stack(self.config, target)
        self.params = jaxspec.Params(target, draft)

    def shard(self, mesh):
        """The params on a mesh."""
        target = sharding.shard_params(self.config, self.params.target, mesh)
        if self.draft_config is None:
            return jaxspec.Params(target)
        draft = sharding.shard_params(self.draft_config, self.params.drafter, mesh)
        return jaxspec.Params(target, draft)

    def start(self, params, prompts=None, **settings):
        """A state, wherever the params are."""
        tokens, lengths = prompts or jaxspec.pad_prompts(PROMPTS, multiple=8)
        records = {"target": self.target, "drafter": self.drafter}
        settings = SETTINGS | settings
        return jaxspec.init_state(params, tokens, lengths, **records, **settings)

    def shardings(self, state, mesh):
        return sharding.state_shardings(self.config, state, mesh, self.draft_config)

    def shard_state(self, state, mesh):
        return sharding.shard_state(self.config, state, mesh, self.draft_config)

    def decode(self, params, state, **options):
        records = {"target": self.target, "drafter": self.drafter}
        state, _ = jaxspec.speculative_generate(params, state, **records, **options)
        return state

    def check_text(self, state, expected):
        """The same tokens, but for near ties."""
        model, params = self.target, self.params.target
        both = texts(state), texts(expected)
        state, expected = jax.device_put(both, jax.devices()[0])
        for row in range(len(PROMPTS)):
            found = metrics.compare(model, params, state, expected, row)
            assert found.identical or found.near_tie, (row, found)


def texts(state):
    """What `metrics.compare` looks at."""
    return state.replace(carry=None, drafter=None)


def check_damage(folder, state, index):
    """One file is damaged, which one process reads, and every process refuses."""
    file = folder / "3" / "default" / "manifest.ocdbt"
    whole = file.read_bytes()
    multihost_utils.sync_global_devices("read")
    if index == 0:
        file.write_bytes(whole[:-1] + b"?")
    multihost_utils.sync_global_devices("damaged")
    try:
        checkpointing.restore(folder, state)
    except ValueError as error:
        met = "manifest.ocdbt is damaged" in str(error)
        assert met or "another process met" in str(error), error
    else:
        raise AssertionError("a damaged checkpoint was restored")
    multihost_utils.sync_global_devices("refused")
    if index == 0:
        file.write_bytes(whole)
    multihost_utils.sync_global_devices("mended")


def main(address, processes, index, folder):
    """One of several processes."""
    jax.distributed.initialize(address, int(processes), int(index))
    setup = Setup("one-group", rollback="lazy")
    tokens, lengths = jaxspec.pad_prompts(PROMPTS, multiple=8)
    expected = setup.decode(setup.params, setup.start(setup.params))
    with sharding.mesh(data=2, tensor=4) as mesh:
        by_rows = NamedSharding(mesh, PartitionSpec("data"))
        first = len(PROMPTS) // int(processes) * int(index)
        mine = slice(first, first + len(PROMPTS) // int(processes))
        prompts = [  # a process knows its own prompts only
            jax.make_array_from_process_local_data(by_rows, np.asarray(array[mine]))
            for array in (tokens, lengths)
        ]
        params = setup.shard(mesh)
        state = setup.shard_state(setup.start(params, prompts), mesh)
        state = setup.decode(params, state, max_steps=3, check_every=2)
        checkpointing.save(pathlib.Path(folder), 3, state)
        state = checkpointing.restore(pathlib.Path(folder), state)
        check_damage(pathlib.Path(folder), state, int(index))
        state = setup.decode(params, state, check_every=4)
        shards = {}
        for name in ("tokens", "lengths"):
            array = getattr(state, name)
            pieces = {s.index[0].start or 0: s.data for s in array.addressable_shards}
            assert list(pieces) == [first]
            shards[name] = np.asarray(pieces[first])
    np.testing.assert_array_equal(shards["lengths"], expected.lengths[mine])
    np.testing.assert_array_equal(shards["tokens"], expected.tokens[mine])
    print(f"process {index}: {shards['lengths'].sum()} tokens as on one device")


if __name__ == "__main__":
    main(*sys.argv[1:])
