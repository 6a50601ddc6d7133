"""`jax.jit` with the compiler options that a platform is better off with.

On a CPU, XLA hands small matrix products to the YNNPACK library by default (jax 0.10 and
later). With 4 to 32 rows, which is what verification has, that is twice as slow as
without; with one row it makes no difference. Where there is AVX-512, LLVM must be told to
use its full width. `jaxspec bench rollback --xla-defaults` measures what both are worth
(README, Measured). Options that this XLA does not know are left out.

`keep_programs` keeps what was compiled for the next process.
"""

import functools
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

_CANDIDATES = {
    "cpu": {
        "xla_cpu_experimental_ynn_fusion_type": "",
        "xla_cpu_prefer_vector_width": "512",
    }
}


@functools.cache
def compiler_options(platform: str | None = None) -> dict[str, str]:
    """The options for a platform, the default backend's if None.

    Pass them to `jax.jit(f, compiler_options=...)` around your own loop.
    """
    known = {}
    for name, value in _CANDIDATES.get(platform or jax.default_backend(), {}).items():
        try:
            jax.jit(lambda: 0, compiler_options={name: value})()
        except jax.errors.JaxRuntimeError:  # this XLA has no such option
            continue
        known[name] = value
    return known


def keep_programs(folder: str | os.PathLike | None = None) -> str:
    """Keeps compiled programs on disk, where the next process finds them.

    This is JAX's persistent compilation cache, for all that the process compiles from now
    on. Programs that compile in less than a second are not kept
    (`jax_persistent_cache_min_compile_time_secs`). Importing jaxspec does not call it; the
    command line does.

    Args:
        folder: made if needed. By default the one that JAX was told of
            (`JAX_COMPILATION_CACHE_DIR`), else `jaxspec` in `$XDG_CACHE_HOME`, or in
            `~/.cache`. Whoever can write there can run code here.

    Returns:
        The folder.
    """
    caches = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    known = jax.config.jax_compilation_cache_dir
    folder = os.fspath(folder or known or pathlib.Path(caches, "jaxspec"))
    compilation_cache.set_cache_dir(folder)
    compilation_cache.reset_cache()  # one in use stays, else
    return folder


def is_tracing(*args: Any) -> bool:
    """Whether the caller is being traced, or was given values that are."""
    one = jax.numpy.add(np.int32(0), np.int32(1))  # traced where nothing is known
    return any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((one, args)))


def jit(f: Callable[..., Any], **kwargs: Any) -> Callable[..., Any]:
    """`jax.jit(f, **kwargs)` with `compiler_options`, asked for at the first call.

    Importing jaxspec must not start a backend, and asking does. Within another `jit` it
    is just `f`: options are those of the outermost.
    """

    @functools.cache
    def compiled():
        return jax.jit(f, compiler_options=compiler_options(), **kwargs)

    @functools.wraps(f)
    def call(*args: Any, **kwargs: Any) -> Any:
        if is_tracing(args, kwargs):
            return f(*args, **kwargs)
        return compiled()(*args, **kwargs)

    return call
