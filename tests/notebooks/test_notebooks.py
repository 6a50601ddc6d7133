"""Every notebook runs from top to bottom, and keeps what it showed its author."""

import pathlib

import jax
import nbclient
import nbformat
import pytest

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def outputs(notebook):
    return [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]


def test_there_are_notebooks():
    assert NOTEBOOKS


@notebooks
def test_it_is_short_and_keeps_its_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    assert len(notebook.cells) < 30
    assert all(output.output_type != "error" for output in outputs(notebook))
    assert all(output.get("name") != "stderr" for output in outputs(notebook))
    assert any("image/png" in output.get("data", {}) for output in outputs(notebook))
    assert path.stat().st_size < 300_000


@notebooks
def test_it_runs(path, monkeypatch):
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    cache = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", cache)
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3")
    client.execute(cwd=path.parent)
    assert any("image/png" in output.get("data", {}) for output in outputs(notebook))
