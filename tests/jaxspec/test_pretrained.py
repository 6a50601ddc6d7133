"""Model folders: what is saved is loaded, and what is damaged is refused."""

import dataclasses
import json
import re
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import folder
from jaxspec import digests, pretrained, tokenizer_files, weights
from jaxspec.models import config as configs
from jaxspec.models import hybrid


@pytest.fixture
def copy(tmp_path):
    return pathlib_copy(folder.make(), tmp_path / "model")


def pathlib_copy(source, destination):
    shutil.copytree(source, destination)
    return destination


def test_a_folder_is_loaded(copy):
    model, params, tokenizer = pretrained.load(copy, rollback="lazy", max_path=4)
    expected = hybrid.language_model(folder.config(), rollback="lazy", max_path=4)
    assert model == expected
    assert tokenizer.decode(tokenizer.encode(folder.TEXT).ids) == folder.TEXT
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    head, table = params["lm_head"]["kernel"], params["embed"]["embedding"]
    np.testing.assert_array_equal(head, table.T)  # the copy that a CPU multiplies with


def test_params_can_be_loaded_for_scanned_layers(copy):
    plain, scanned = (
        pretrained.load(copy, scan_layers=scanned) for scanned in (False, True)
    )
    tokens = jnp.array([[5, 6, 7]])
    seen = []
    for model, params, _ in (plain, scanned):
        carry = model.init_carry(params, 1, 8)
        _, hidden = jax.jit(model.scan)(params, carry, tokens, jnp.array([3]))
        seen.append(model.logits(params, hidden))
    np.testing.assert_allclose(*seen, rtol=1e-4, atol=1e-5)


def damage(name, change):
    def apply(path):
        file = path / name
        file.write_bytes(change(file.read_bytes()))

    return apply


EMBED = "params/embed.safetensors"


def other_version(raw):
    return json.dumps(json.loads(raw) | {"format_version": 1}).encode()


def wider(raw):
    return json.dumps(json.loads(raw) | {"d_model": 24}).encode()


def fewer_tokens(raw):
    return json.dumps(json.loads(raw) | {"vocab_size": 100}).encode()


@pytest.mark.parametrize(
    "harm, message",
    [
        (damage("config.json", other_version), "format version 1, .*convert or train"),
        (damage("config.json", lambda raw: raw[:-9]), "not JSON"),
        (damage("config.json", wider), "has shape .*, expected"),
        (damage("config.json", fewer_tokens), "has shape|280 tokens"),
        (
            damage(EMBED, lambda raw: raw[:-9]),
            "not a whole safetensors",
        ),
        (
            damage(EMBED, lambda raw: b""),
            "not a whole safetensors",
        ),
        (damage("tokenizer.json", lambda raw: raw[:99]), "is not a tokenizer"),
        (lambda path: (path / "tokenizer.json").unlink(), "not name tokenizer.json"),
        (lambda path: (path / "config.json").unlink(), "neither a folder"),
    ],
)
def test_damage_is_refused_in_one_line(copy, harm, message):
    """Also where the digests are those of what is there: then the contents say it."""
    harm(copy)
    with pytest.raises(ValueError, match=re.escape(str(copy))) as error:
        pretrained.load(copy)
    assert "\n" not in str(error.value)
    digests.write(copy)
    with pytest.raises(ValueError, match=message) as error:
        pretrained.load(copy)
    assert "\n" not in str(error.value)


PARTS = ["embed", "final_norm", "layers.0", "layers.1", "layers.2"]
FILES = ["config.json", *(f"params/{part}.safetensors" for part in PARTS)]
FILES += ["source.json", "tokenizer.json"]


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_refused(copy, name):
    raw = (copy / name).read_bytes()
    for at in np.linspace(0, len(raw) - 1, 9).astype(int):
        (copy / name).write_bytes(raw[:at] + bytes([raw[at] ^ 4]) + raw[at + 1 :])
        with pytest.raises(ValueError, match=name) as error:
            pretrained.load(copy)
        assert "\n" not in str(error.value)


def test_a_flipped_bit_of_the_weights_passes_where_digests_are_skipped(
    copy, monkeypatch
):
    path = copy / EMBED
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    monkeypatch.setenv(digests.SKIP, "1")
    pretrained.load(copy)


def test_a_folder_without_digests_is_refused(copy):
    (copy / digests.TABLE).unlink()
    with pytest.raises(ValueError, match="has no SHA256SUMS.*train or save it again"):
        pretrained.load(copy)


def test_the_table_of_digests_is_that_of_coreutils(copy):
    done = subprocess.run(["sha256sum", "--check", "--strict", digests.TABLE], cwd=copy)
    assert done.returncode == 0
    lines = (copy / digests.TABLE).read_text().splitlines()
    assert [line.split()[1] for line in lines] == FILES


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="neither a folder .* nor one of the shipped"):
        pretrained.load("no-such-model")


def test_tokenizers_must_agree():
    ours, theirs = folder.tokenizer(), folder.tokenizer("while True: pass\n" * 9)
    tokenizer_files.check_same_tokenizer(ours, ours)
    with pytest.raises(ValueError, match="for the target and .* for the draft"):
        tokenizer_files.check_same_tokenizer(ours, theirs)


def test_what_is_loaded_can_be_saved_and_loaded_again(tmp_path):
    first = pretrained.load(folder.make())
    config = configs.from_json(
        (pretrained.find(folder.make()) / "config.json").read_text()
    )
    pretrained.save(tmp_path, config, first.params, first.tokenizer)
    again = pretrained.load(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, first.params, again.params)


def test_other_options_keep_the_params_and_each_other():
    loaded = pretrained.load(folder.make(), rollback="lazy", max_path=3)
    other = loaded.having(max_path=5)
    assert other.params is loaded.params
    expected = pretrained.load(folder.make(), rollback="lazy", max_path=5)
    assert other.model == expected.model and other.options == expected.options
    with pytest.raises(ValueError, match="another scan_layers; give it to `load`"):
        loaded.having(scan_layers=True)


def test_what_was_loaded_knows_what_else_is_in_its_folder():
    loaded = pretrained.load(folder.make(), "bfloat16")
    config = pretrained.read_config(folder.make())
    assert loaded.folder.path == folder.make()
    assert loaded.config == dataclasses.replace(config, dtype="bfloat16")
    end = loaded.tokenizer.token_to_id(weights.END_OF_TEXT)
    assert loaded.stops == (end,) and end in loaded.folder.special_tokens


def test_a_tokenizer_beyond_the_table_is_not_saved(tmp_path):
    loaded = pretrained.load(folder.make())
    size = loaded.tokenizer.get_vocab_size()
    config = dataclasses.replace(loaded.config, vocab_size=size - 1)
    message = f"tokenizer has {size} tokens and the model {size - 1}"
    with pytest.raises(ValueError, match=message):
        pretrained.save(tmp_path / "model", config, loaded.params, loaded.tokenizer)
    assert not (tmp_path / "model").exists()


def test_a_folder_of_before_is_to_be_made_again(copy):
    (copy / "source.json").unlink()
    with pytest.raises(
        ValueError, match="no source.json.*earlier format.*train or save"
    ):
        pretrained.load(copy)
