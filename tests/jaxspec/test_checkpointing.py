"""A text in the making is saved between any two steps, and goes on in another process."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxspec
import tiny
from jaxspec import checkpointing, digests
from jaxspec.drafting.model import draft_model
from jaxspec.models.rollback import ROLLBACKS

SUPPORT = pathlib.Path(tiny.__file__).parent
SETTINGS = {"max_length": 32, "max_new_tokens": 20, "temperature": 0.8}


def start(rollback):
    """Everything that a process needs to decode, made from nothing."""
    target = tiny.model("small-hybrid", rollback=rollback, max_path=4)
    drafter = draft_model(tiny.model("mamba2", max_path=4), (2, 1))
    params = jaxspec.Params(tiny.params("small-hybrid"), tiny.params("mamba2"))
    tokens, lengths = jaxspec.pad_prompts([[3, 1, 4], [1, 5, 9, 2]], multiple=8)
    state = jaxspec.init_state(
        params, tokens, lengths, target=target, drafter=drafter, **SETTINGS
    )
    return params, state, {"target": target, "drafter": drafter}


def decode(params, state, records, steps=1000):
    state, _ = jaxspec.speculative_generate(params, state, **records, max_steps=steps)
    return state


def run_python(code, *arguments):
    environment = os.environ | {
        "PYTHONPATH": str(SUPPORT),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


CONTINUE = """
    import json, sys
    sys.path.append({here!r})
    import jaxspec
    from jaxspec import checkpointing
    import test_checkpointing as test
    params, state, records = test.start({rollback!r})
    state = checkpointing.restore(sys.argv[1], state)
    state = test.decode(params, state, records)
    print(json.dumps([state.tokens.tolist(), state.logprobs.tolist()]))
"""


def test_another_process_goes_on_identically(tmp_path):
    params, state, records = start("lazy")
    state = decode(params, state, records, steps=3)
    checkpointing.save(tmp_path, 3, state)
    expected = decode(params, state, records)
    code = CONTINUE.format(here=str(pathlib.Path(__file__).parent), rollback="lazy")
    child = run_python(code, tmp_path)
    try:
        out, err = child.communicate(timeout=300)
    finally:
        child.kill()
    assert child.returncode == 0, err
    tokens, logprobs = json.loads(out.splitlines()[-1])
    np.testing.assert_array_equal(tokens, expected.tokens)
    np.testing.assert_allclose(logprobs, expected.logprobs, rtol=1e-6)


@pytest.mark.parametrize(
    "rollback, stride", [("lazy", 1), *((r, 5) for r in ROLLBACKS if r != "lazy")]
)
def test_every_step_boundary_can_be_restored(tmp_path, rollback, stride):
    """All that there are of one rollback, every fifth of the others."""
    params, state, records = start(rollback)
    expected = decode(params, state, records)
    boundaries = []
    while not state.done.all():
        state = decode(params, state, records, steps=stride)
        boundaries.append(len(boundaries) + 1)
        checkpointing.save(tmp_path, boundaries[-1], state, keep=None)
    like = jax.eval_shape(lambda: state)
    for step in boundaries:
        restored = checkpointing.restore(tmp_path, like, step)
        final = decode(params, restored, records)
        np.testing.assert_array_equal(final.tokens, expected.tokens)
    assert len(boundaries) > 3
    assert checkpointing.steps(tmp_path) == boundaries


SAVE_FOREVER = """
    import sys
    import jax.numpy as jnp
    from jaxspec import checkpointing
    for step in range(1, 10**6):
        print(step, flush=True)
        state = {f"part{i}": jnp.full((400, 1000), 1.0 * step) for i in range(12)}
        checkpointing.save(sys.argv[1], step, state)
"""


def stop_in_the_middle_of_a_save(child, folder):
    """Stops a process while there is a folder that it has not renamed yet."""
    for line in child.stdout:
        if int(line) == 3:
            break
    while True:
        child.send_signal(signal.SIGSTOP)
        _, status = os.waitpid(child.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), child.stderr.read()
        if list(folder.glob("*tmp*")):
            return
        child.send_signal(signal.SIGCONT)
        time.sleep(1e-3)


def test_a_kill_in_the_middle_of_a_save_leaves_the_last_one(tmp_path):
    child = run_python(SAVE_FOREVER, tmp_path)
    try:
        stop_in_the_middle_of_a_save(child, tmp_path)
    finally:
        child.kill()
        child.communicate()
    assert list(tmp_path.glob("*tmp*"))
    newest = checkpointing.steps(tmp_path)[-1]
    assert newest >= 2
    like = {f"part{i}": jnp.zeros((400, 1000)) for i in range(12)}
    state = checkpointing.restore(tmp_path, like)
    assert all((leaf == newest).all() for leaf in state.values())
    checkpointing.save(tmp_path, newest + 1, state)
    assert checkpointing.steps(tmp_path)[-1] == newest + 1


def test_only_the_newest_are_kept(tmp_path):
    for step in range(1, 5):
        checkpointing.save(tmp_path, step, {"x": jnp.full((3,), step)}, keep=2)
    assert checkpointing.steps(tmp_path) == [3, 4]
    restored = checkpointing.restore(tmp_path, {"x": jnp.zeros((3,), jnp.int32)})
    np.testing.assert_array_equal(restored["x"], 4)


def test_a_missing_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no whole checkpoint; found none"):
        checkpointing.restore(tmp_path / "nowhere", {"x": jnp.zeros(3)})
    checkpointing.save(tmp_path, 1, {"x": jnp.zeros(3)})
    with pytest.raises(ValueError, match=r"checkpoint 7; found \[1\]"):
        checkpointing.restore(tmp_path, {"x": jnp.zeros(3)}, step=7)


def test_a_checkpoint_of_another_shape_is_refused(tmp_path):
    checkpointing.save(tmp_path, 1, {"x": jnp.zeros(3)})
    with pytest.raises(ValueError, match=r"x is \(3,\), expected none"):
        checkpointing.restore(tmp_path, {"y": jnp.zeros(3)})
    with pytest.raises(ValueError, match=r"x is \(3,\), expected \(4,\)"):
        checkpointing.restore(tmp_path, {"x": jnp.zeros(4)})


RESTORE = """
    import gc, sys
    import jax.numpy as jnp
    from jaxspec import checkpointing
    for size in map(int, sys.argv[2:]):
        try:
            checkpointing.restore(sys.argv[1], {"x": jnp.zeros(size), "y": jnp.zeros(3)})
        except ValueError as error:
            print(error)
        gc.collect()
"""


def test_a_refusal_is_one_line_and_nothing_else_is_printed(tmp_path):
    """Neither on standard error, where what Orbax leaves running would complain."""
    checkpointing.save(tmp_path, 1, {"x": jnp.arange(1000.0), "y": jnp.ones(3)})
    child = run_python(RESTORE, tmp_path, 4, 1000, 2000)
    out, err = child.communicate(timeout=120)
    assert (child.returncode, err) == (0, "")
    assert [
        line.count("of another shape: x is (1000,)") for line in out.splitlines()
    ] == [
        1,
        1,
    ]
    for file in (tmp_path / "1" / "default").rglob("*"):
        if file.is_file() and file.name not in (digests.TABLE, "commit_success.txt"):
            file.write_bytes(b"")
    child = run_python(RESTORE, tmp_path, 1000)
    out, err = child.communicate(timeout=120)
    assert (child.returncode, err) == (0, "")
    assert re.fullmatch(r"Checkpoint 1 of .* is damaged: its SHA-256 is .*\n", out)


def saved_files(folder):
    """The files of checkpoint 1 that are read, all of them small."""
    found = (folder / "1" / "default").rglob("*")
    return [f for f in found if f.is_file() and f.name != "commit_success.txt"]


def test_a_damaged_checkpoint_is_refused(tmp_path):
    state = {"x": jnp.arange(1000.0), "y": (jnp.arange(7), jax.random.key(3))}
    checkpointing.save(tmp_path, 1, state)
    checkpointing.restore(tmp_path, state)
    rng = np.random.default_rng(0)
    for file in saved_files(tmp_path):
        raw = file.read_bytes()
        at, bit = rng.integers(len(raw)), 1 << int(rng.integers(8))
        flipped = raw[:at] + bytes([raw[at] ^ bit]) + raw[at + 1 :]
        for damaged in (flipped, raw[: len(raw) // 2], b""):
            file.write_bytes(damaged)
            with pytest.raises(ValueError, match="Checkpoint 1 of .*default") as error:
                checkpointing.restore(tmp_path, state)
            assert "\n" not in str(error.value)
        file.write_bytes(raw)
    checkpointing.restore(tmp_path, state)


def test_a_checkpoint_without_digests_is_refused_unless_they_are_skipped(
    tmp_path, monkeypatch
):
    checkpointing.save(tmp_path, 1, {"x": jnp.arange(3)})
    (tmp_path / "1" / "default" / digests.TABLE).unlink()
    like = {"x": jnp.zeros(3, jnp.int32)}
    with pytest.raises(ValueError, match="default has no SHA256SUMS.* save it again"):
        checkpointing.restore(tmp_path, like)
    monkeypatch.setenv(digests.SKIP, "1")
    np.testing.assert_array_equal(checkpointing.restore(tmp_path, like)["x"], [0, 1, 2])


@pytest.mark.parametrize("step", [64, 1, 0, -1])
def test_a_step_that_is_not_later_than_all_is_refused(tmp_path, step):
    """Rather than dropped: what is reported as saved is what is restored."""
    checkpointing.save(tmp_path, 32, {"x": jnp.array([1])})
    checkpointing.save(tmp_path, 64, {"x": jnp.array([2])})
    with pytest.raises(ValueError, match=f"got (step )?{step}"):
        checkpointing.save(tmp_path, step, {"x": jnp.array([3])})
    restored = checkpointing.restore(tmp_path, {"x": jnp.array([0])})
    assert restored["x"].tolist() == [2] and checkpointing.steps(tmp_path) == [32, 64]


def test_as_many_are_kept_as_is_asked_for(tmp_path):
    with pytest.raises(ValueError, match="keep must be positive, got 0"):
        checkpointing.save(tmp_path, 1, {"x": jnp.zeros(3)}, keep=0)
