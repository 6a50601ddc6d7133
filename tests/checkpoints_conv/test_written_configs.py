"""Every field that is read of a published config is given back, spelled as it was.

Verbatim where a checkpoint was converted; from a `ModelConfig` alone by a family's `write`,
which is all that there is of a model that jaxspec trained.
"""

import json
import shutil

import pytest
import transformers

import checkpoints_conv
import configs
import published
from checkpoints_conv import families
from checkpoints_conv.fields import Fields
from jaxspec import digests, weights
from weights import record

RECORDS = {
    name: value for name, value in vars(configs).items() if isinstance(value, dict)
}
PUBLISHED = [name for name, value in RECORDS.items() if "model_type" in value]
UNREAD = {"FALCON_MAMBA_7B": {"expand"}}  # 16, where intermediate_size is twice as wide


@pytest.fixture
def names(monkeypatch):
    """Of the fields that have been read."""
    found, take = set(), Fields.take

    def noted(self, name, *default):
        found.add(name)
        return take(self, name, *default)

    monkeypatch.setattr(Fields, "take", noted)
    return found


def differences(read, written, names, at=""):
    """Fields that were read, and are not there again; null is as good as nothing."""
    for name, value in read.items():
        again = written.get(name)
        if isinstance(value, dict) and isinstance(again, dict):
            yield from differences(value, again, names, f"{at}{name}.")
        elif name in names and value is not None and again != value:
            yield f"{at}{name}: {value!r} became {again!r}"


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_family_gives_back_every_field_that_it_reads(name, names):
    read, written = RECORDS[name], describe(RECORDS[name])
    assert not list(differences(read, written, names - UNREAD.get(name, set())))


def describe(fields):
    family = families.find(fields)
    config = family.with_head(family.read(fields), ["mtp.fc.weight"])
    return family.describe(config)


@pytest.mark.parametrize("name", PUBLISHED)
def test_transformers_reads_the_same_model_in_what_is_written(name, names):
    read, written = RECORDS[name], describe(RECORDS[name])
    kind = transformers.CONFIG_MAPPING[read["model_type"]]
    theirs, ours = (kind.from_dict(one).to_dict() for one in (read, written))
    names |= {"layer_types", "layers_block_type", "rope_parameters"}
    assert not list(differences(theirs, ours, names - UNREAD.get(name, set())))


def test_granite_is_written_as_its_folders_are():
    """Other programs look for these very words, and go on without them."""
    written = describe(configs.GRANITE)
    assert written["layer_types"] == ["mamba", "mamba", "attention", "mamba"]
    assert written["intermediate_size"] == written["shared_intermediate_size"] == 512
    assert describe(configs.GRANITE_SMALL)["intermediate_size"] == 768


@pytest.mark.parametrize("name", [*published.FAMILIES, *published.LLAMA])
def test_configs_come_back_byte_by_byte(name, tmp_path):
    """In whatever way they are written; transformers does not write so."""
    source, dest, back = (tmp_path / at for at in ("source", "dest", "back"))
    shutil.copytree(published.source(name), source)
    for file in source.glob("*config.json"):
        text = json.dumps(json.loads(file.read_text()), indent=3, sort_keys=True)
        text = text.replace("\n", "\r\n").replace("1e-05", "0.00001")
        text = text.replace("{", '{ "_name_or_path": "caf\u00e9 \\u0041",\t', 1)
        file.write_bytes(text.encode() + b" \n\n")
    checkpoints_conv.convert(source, dest)
    checkpoints_conv.export(dest, back)
    files = sorted(path.name for path in source.glob("*.json"))
    assert files == sorted(path.name for path in back.glob("*.json"))
    for file in files:
        assert (back / file).read_bytes() == (source / file).read_bytes(), file


@pytest.mark.parametrize(
    "texts", [{}, {"../config.json": "{}"}, {"config.json": 1}, "config.json"]
)
def test_what_would_be_written_elsewhere_is_refused(texts, tmp_path):
    shutil.copytree(published.converted("mamba2"), tmp_path / "dest")
    record(tmp_path / "dest", weights.SOURCE, published=texts)
    digests.write(tmp_path / "dest")
    with pytest.raises(ValueError, match="published must be the texts of config.json"):
        checkpoints_conv.export(tmp_path / "dest", tmp_path / "back")
    assert not (tmp_path / "back").exists()
