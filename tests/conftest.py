"""Strict numerics everywhere, eight CPU devices for sharding, compiled programs kept.

Tests compile much and run little, so LLVM does not optimise.
"""

import gc
import os
import pathlib

QUICKLY = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # CUDA's wheels crash without a GPU
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICKLY}"

import jax  # noqa: E402 (reads the flags)

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

_CACHES = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
_CACHE = pathlib.Path(_CACHES) / "jaxspec-tests"  # of all checkouts
jax.config.update("jax_compilation_cache_dir", str(_CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)

gc.set_threshold(200_000, 20, 100)  # tracing makes many objects, and little garbage

LONG = ["test_notebooks", "test_sharding", "test_shipped", "test_recurrences"]
LONG += ["test_tree_delta", "test_tree_ssd", "bench/test_drafters", "tune/test_command"]

_MAPPINGS = pathlib.Path("/proc/self/maps")


def pytest_addoption(parser):
    parser.addoption(
        "--thorough",
        action="store_true",
        help="run all combinations, also those left out for the sake of time",
    )


def pytest_collection_modifyitems(config, items):
    """A file is one worker's: those that take minutes come first, so none is waited for."""
    if not config.getoption("--thorough"):
        left_out = [item for item in items if item.get_closest_marker("thorough")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    items.sort(key=lambda item: not any(name in item.nodeid for name in LONG))


def pytest_runtest_teardown():
    """Forgets programs in time: Linux gives a process 65530 mappings, and each has some."""
    if _MAPPINGS.exists() and _MAPPINGS.read_text().count("\n") > 30_000:
        jax.clear_caches()
