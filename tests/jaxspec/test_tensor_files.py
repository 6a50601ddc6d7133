"""Arrays on disk: as they were, whole or refused, and never half written."""

import os

import ml_dtypes
import numpy as np
import pytest

from jaxspec import tensor_files

RNG = np.random.default_rng(0)
ARRAYS = {
    "embedding": RNG.normal(size=(5, 4)).astype(np.float32),
    "layers.0.D": RNG.normal(size=3).astype(ml_dtypes.bfloat16),
    "layers.1.kernel": RNG.normal(size=(4, 2)).astype(np.float16),
}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "some.safetensors"
    tensor_files.write(path, ARRAYS, {"made": "here"})
    return path


def test_what_is_read_is_what_was_written(file):
    arrays, metadata = tensor_files.read(file)
    assert metadata == {"made": "here"} and arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(arrays[name], array)


def test_a_second_trip_changes_nothing(file, tmp_path):
    tensor_files.write(tmp_path / "again", *tensor_files.read(file))
    assert (tmp_path / "again").read_bytes() == file.read_bytes()


def test_a_transposed_array_is_saved_as_it_reads(tmp_path):
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3).T
    tensor_files.write(tmp_path / "m", {"w": matrix})
    arrays, metadata = tensor_files.read(tmp_path / "m")
    np.testing.assert_array_equal(arrays["w"], matrix)
    assert metadata == {}


# --- Files that are refused ---


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
def test_a_truncated_file_is_refused(file, share):
    raw = file.read_bytes()
    file.write_bytes(raw[: int(share * len(raw))])
    with pytest.raises(ValueError, match="is not a whole datastore") as caught:
        tensor_files.read(file, "datastore")
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_no_file_is_not_a_damaged_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        tensor_files.read(tmp_path / "nothing")


# --- Writing ---


def test_nothing_but_the_file_is_left(file):
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]


def test_saving_replaces_the_old_file(file):
    tensor_files.write(file, {"w": np.ones(2)})
    arrays, _ = tensor_files.read(file)
    assert {name: a.tolist() for name, a in arrays.items()} == {"w": [1.0, 1.0]}


def test_an_interrupted_save_leaves_the_old_file(file, monkeypatch):
    before = file.read_bytes()

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        tensor_files.write(file, {name: 0 * a for name, a in ARRAYS.items()})
    assert file.read_bytes() == before
