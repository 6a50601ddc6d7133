"""Text and JSON are read, or refused in one line that names the file."""

import math

import pytest

from jaxspec import files

REFUSED = {
    "": "Expecting value",
    "[" * 200_000: "nested too deeply",
    "[" * 120 + "]" * 120: "nested too deeply",
    '{"a": NaN}': "it has a NaN",
    '{"a": 1e999}': "1e999 is beyond float64",
    '{"a": -1e999}': "-1e999 is beyond float64",
    '{"a": ' + "9" * 5000 + "}": "Exceeds the limit",
    '{"a": {"b": 1, "b": 2}}': "an object names 'b' twice",
    "[1]": "must hold an object, got list",
    "null": "must hold an object, got NoneType",
}


@pytest.mark.parametrize("text, message", REFUSED.items(), ids=REFUSED.values())
def test_malformed_json_is_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "some.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"some.json .*{message}") as error:
        files.read_json(path)
    assert "\n" not in str(error.value)


def test_text_that_is_not_utf8_is_refused(tmp_path):
    path = tmp_path / "some.json"
    path.write_bytes(b'{"a": "\xff"}')
    for read in (files.read_text, files.read_json):
        with pytest.raises(ValueError, match="some.json is not UTF-8 .* at byte 7"):
            read(path)


def test_what_published_configs_hold_is_read(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(
        '{"limit": [0.0, Infinity], "length": 1000000000000000019884624838656}'
    )
    record = files.read_json(path)
    assert record == {
        "limit": [0.0, math.inf],
        "length": 1000000000000000019884624838656,
    }
