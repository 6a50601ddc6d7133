"""Machines have names, and what is missing to compile for them is said."""

import importlib.util
import shutil

import pytest

from jaxspec.aot import compilers

MACHINES = [*compilers.TPU, *compilers.GPU]


def test_an_unknown_machine_is_refused():
    with pytest.raises(ValueError, match="Unknown machine 'v99'"):
        compilers.missing("v99")


@pytest.mark.parametrize("name", MACHINES)
def test_a_missing_wheel_is_named(monkeypatch, name):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    extra = "tpu-aot" if name in compilers.TPU else "gpu-aot"
    assert f"'jaxspec[{extra}]'" in compilers.missing(name)
    compilers.devices.cache_clear()
    with pytest.raises(ValueError, match=extra):
        compilers.devices(name)


def test_an_assembler_is_needed_as_well(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda *args, **kwargs: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    assert compilers.ptxas() is None
