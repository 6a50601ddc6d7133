"""A folder that a test may change."""

import shutil

import pytest

import published
import weights


@pytest.fixture
def source(tmp_path):
    shutil.copytree(published.source(weights.NAME), tmp_path / "source")
    return tmp_path / "source"
