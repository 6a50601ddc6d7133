"""Tables of digests: whole, as sha256sum reads them, and on everything that ships."""

import json
import pathlib

import pytest

from jaxspec import digests, files, pretrained

ASSETS = pathlib.Path(pretrained.__file__).parent / "assets"


@pytest.fixture
def path(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "a").write_text("one")
    (tmp_path / "below" / "b").write_text("two")
    digests.write(tmp_path)
    return tmp_path


def test_all_files_are_in_the_table_and_nothing_is_left_beside_it(path):
    lines = (path / digests.TABLE).read_text().splitlines()
    assert lines[0] == f"{files.digest(path / 'a')}  a"
    assert [line.split()[1] for line in lines] == ["a", "below/b"]
    assert sorted(own.name for own in path.iterdir()) == [digests.TABLE, "a", "below"]
    digests.check(path)
    digests.check(path, ["below/b"])


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("a", "onf", "a is damaged: its SHA-256 is .*, and SHA256SUMS says"),
        ("below/b", None, "below/b is missing, which SHA256SUMS names"),
        (digests.TABLE, None, "has no SHA256SUMS: .* convert, train or save it again"),
        (digests.TABLE, "", "SHA256SUMS is damaged: it is empty"),
        (digests.TABLE, "0" * 64 + " a\n", "SHA256SUMS is damaged: line 1"),
        (digests.TABLE, ("0" * 64 + "  a\n") * 2, "SHA256SUMS is damaged: line 2"),
    ],
)
def test_what_is_not_as_it_was_written_is_named(path, name, text, message):
    if text is None:
        (path / name).unlink()
    else:
        (path / name).write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        digests.check(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_a_file_that_is_not_in_the_table_cannot_be_asked_for(path):
    (path / "c").touch()
    with pytest.raises(ValueError, match="SHA256SUMS does not name c"):
        digests.check(path, ["c"])


def test_processes_share_the_files(path):
    (path / "below" / "b").write_text("owt")
    found = [digests.problem(path, share=slice(i, None, 2)) for i in range(2)]
    assert found[0] is None and "b is damaged" in found[1]


@pytest.mark.parametrize("name", pretrained.shipped())
def test_models_that_ship_carry_digests(name):
    digests.check(ASSETS / name)
    files = {"config.json", "source.json", "tokenizer.json"}
    table = (ASSETS / name / digests.TABLE).read_text().splitlines()
    named = {line.split()[1] for line in table}
    assert files < named
    parts = {f"params/{path.name}" for path in (ASSETS / name / "params").iterdir()}
    assert parts == named - files


RECORDS = sorted([*ASSETS.glob("tuned/*.json"), *ASSETS.glob("measured/*.json")])


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.name)
def test_records_that_ship_carry_digests(path, tmp_path):
    kind = json.loads(path.read_text())["format"]
    assert digests.unseal(path, kind)
    changed = tmp_path / path.name
    changed.write_text(path.read_text().replace("1", "2", 1))
    with pytest.raises(ValueError, match=f"{path.name} is damaged"):
        digests.unseal(changed, kind)
