"""Compiler options are those this XLA knows, and `jit` is `jax.jit`."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec import compilation


@pytest.fixture
def candidates(monkeypatch):
    """Sets the candidates of the default backend, and asks anew."""

    def replace(options):
        table = {jax.default_backend(): options}
        monkeypatch.setattr(compilation, "_CANDIDATES", table)
        compilation.compiler_options.cache_clear()

    yield replace
    compilation.compiler_options.cache_clear()


def test_the_options_are_accepted():
    options = compilation.compiler_options()
    assert jax.jit(lambda x: x + 1, compiler_options=options)(1) == 2


def test_an_option_that_xla_does_not_know_is_left_out(candidates):
    candidates({"xla_no_such_option": "1", "xla_cpu_enable_fast_math": False})
    with pytest.raises(jax.errors.JaxRuntimeError):
        jax.jit(lambda: 0, compiler_options={"xla_no_such_option": "1"})()
    assert compilation.compiler_options() == {"xla_cpu_enable_fast_math": False}


def test_a_platform_without_candidates_has_no_options(candidates):
    candidates({"xla_cpu_enable_fast_math": False})
    assert compilation.compiler_options("another") == {}


def test_the_options_are_asked_for_at_the_first_call(candidates):
    candidates({"xla_no_such_option": "1"})
    call = compilation.jit(lambda x: x + 1)
    assert compilation.compiler_options.cache_info().misses == 0
    assert call(1) == 2
    assert compilation.compiler_options.cache_info().misses == 1


def test_jit_hands_the_options_to_xla(monkeypatch):
    options = {"xla_no_such_option": "1"}
    monkeypatch.setattr(compilation, "compiler_options", lambda: options)
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_option"):
        compilation.jit(lambda x: x + 1)(1)


def power(x, exponent, *, times):
    """Needs static arguments: both are used by Python."""
    for _ in range(times):
        x = jnp.prod(jnp.stack([x] * exponent), axis=0)
    return x


@pytest.mark.parametrize("exponent, times", [(2, 1), (3, 2), (2, 0)])
def test_jit_gives_what_jax_jit_gives(exponent, times):
    static = ("exponent", "times")
    x = jnp.array([0.5, -1.5, 2.0])
    ours = compilation.jit(power, static_argnames=static)
    theirs = jax.jit(power, static_argnames=static)
    expected = theirs(x, exponent, times=times)
    np.testing.assert_allclose(ours(x, exponent, times=times), expected, rtol=1e-6)


def test_jit_traces_once_for_equal_static_arguments():
    traced = []

    def f(x, n):
        traced.append(n)
        return x * n

    call = compilation.jit(f, static_argnames="n")
    assert [int(call(jnp.int32(3), n=n)) for n in (2, 2, 5, 2)] == [6, 6, 15, 6]
    assert traced == [2, 5]


def test_jit_keeps_name_and_docstring():
    call = compilation.jit(power)
    assert (call.__name__, call.__doc__) == (power.__name__, power.__doc__)


def run(code, **variables):
    """Runs a program in a process of its own."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu"} | variables
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_jaxspec_starts_no_backend():
    run(
        "import jaxspec\n"
        "from jax._src import xla_bridge\n"  # there is no public way to ask
        "assert not xla_bridge.backends_are_initialized()\n"
        "import jax; jax.devices()\n"
        "assert xla_bridge.backends_are_initialized()\n"
    )


@pytest.mark.parametrize("name", [None, "another"])
def test_programs_are_kept_once_asked_for(name, tmp_path):
    """In a process that has compiled before, or has kept some elsewhere."""
    named = None if name is None else str(tmp_path / name)
    first = (
        "" if name is None else f"jaxspec.keep_programs({str(tmp_path / 'first')!r})"
    )
    code = (
        "import jax, jaxspec\n"
        "assert jax.config.jax_compilation_cache_dir is None\n"
        "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)\n"
        "def compile(): jax.clear_caches(); jax.jit(lambda x: x + 1)(1)\n"
        f"{first}\n"
        "compile()\n"
        f"print(jaxspec.keep_programs({named!r}))\n"
        "compile()\n"
        "print(jaxspec.keep_programs())\n"
    )
    expected = tmp_path / (name or "jaxspec")
    assert run(code, XDG_CACHE_HOME=str(tmp_path)).split() == [str(expected)] * 2
    assert any("lambda" in path.name for path in expected.iterdir())
