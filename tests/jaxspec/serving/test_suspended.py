"""A text that is set aside goes on elsewhere, whole or not at all."""

import numpy as np
import pytest

import engines
import traffic
from jaxspec import serving, tensor_files
from jaxspec.serving import Finish, Request

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9]


@pytest.mark.parametrize("kind", engines.KINDS)
def test_a_text_goes_on_in_another_process(kind, tmp_path):
    engine, path = engines.fresh(kind), tmp_path / "text"
    request = Request(PROMPT, 30, temperature=0.8, stops=[9], seed=5, client="me")
    expected = traffic.alone(engine, request)
    assert len(expected) > 8
    ticket = engines.begun(engine, request, 6)
    suspended = engine.suspend(ticket)
    engine.run()
    assert ticket.finish is Finish.ABORT
    serving.save(path, suspended)
    resumed = engine.resume(serving.load(path, engine))
    engine.run()
    assert resumed.tokens == expected and resumed.request == request


def test_a_disk_that_is_full_loses_nothing(tmp_path, monkeypatch):
    """The text goes on where it is, and what was saved before is still there."""
    engine, path = engines.fresh("look-up"), tmp_path / "text"
    ticket = engines.begun(engine, Request(prompt=PROMPT, max_new_tokens=20))
    serving.save(path, engine.take(ticket))
    before = path.read_bytes()
    next(engine.stream(ticket))

    def save_file(arrays, path, metadata):
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tensor_files.safetensors.numpy, "save_file", save_file)
        with pytest.raises(OSError, match="No space"):
            serving.save(path, engine.take(ticket))
    assert path.read_bytes() == before
    resumed = engine.resume(serving.load(path, engine))
    engine.run()
    assert resumed.tokens == ticket.tokens == traffic.alone(engine, ticket.request)


def test_a_damaged_text_is_refused(tmp_path):
    engine, path = engines.fresh("look-up"), tmp_path / "text"
    ticket = engines.begun(engine, Request(prompt=PROMPT, max_new_tokens=20))
    serving.save(path, engine.suspend(ticket))
    engine.run()
    whole = path.read_bytes()
    draw = np.random.default_rng(0)
    for place in [0, 9, 200, len(whole) - 1, *draw.integers(0, len(whole), 40)]:
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="text") as error:
            serving.load(path, engine)
        assert "\n" not in str(error.value)
        path.write_bytes(whole[:place])
        with pytest.raises(ValueError, match="text"):
            serving.load(path, engine)
    path.unlink()
    with pytest.raises(OSError, match="text"):
        serving.load(path, engine)


def test_a_value_of_another_engine_is_refused(tmp_path):
    engine = engines.fresh("look-up")
    ticket = engines.begun(engine, Request(prompt=PROMPT, max_new_tokens=30))
    suspended = engine.suspend(ticket)
    engine.run()
    other = engines.fresh("draft model")
    with pytest.raises(ValueError, match="another engine"):
        other.resume(suspended)
    serving.save(tmp_path / "text", suspended)
    with pytest.raises(ValueError, match="another engine"):
        serving.load(tmp_path / "text", other)
    with pytest.raises(ValueError, match="does not run"):
        engine.take(ticket)
