"""Timing that survives a noisy machine: warmed up, interleaved, medians."""

import datetime
import os
import platform
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_COPY = 1 << 30  # bytes of the array that is copied
_SMALL_COPY = 1 << 26  # where there is little memory


def seconds(call: Callable[[], Any]) -> tuple[Any, float]:
    """Runs a call to its end, and says how long it took."""
    started = time.perf_counter()
    result = jax.block_until_ready(call())
    return result, time.perf_counter() - started


def rounds(calls: dict[Any, Callable[[], Any]], repeats: int) -> dict[Any, np.ndarray]:
    """Times calls in turn, `repeats` times round after a warm-up; seconds `[repeats]`."""
    times: dict[Any, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        jax.block_until_ready(call())
    for _ in range(repeats):
        for name, call in calls.items():
            times[name].append(seconds(call)[1])
    return {name: np.array(values) for name, values in times.items()}


def medians(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """The medians of `rounds`; seconds."""
    times = rounds(calls, repeats)
    return {name: float(np.median(values)) for name, values in times.items()}


def copy_bandwidth(repeats: int) -> float:
    """Bytes per second, read and written, of copying an array on this device."""
    size = _SMALL_COPY if jax.devices()[0].platform == "cpu" else _COPY
    array = jnp.zeros((size // 4,), jnp.float32)
    copy = jax.jit(lambda a: jax.lax.fori_loop(0, 8, lambda _, a: a + 1.0, a))
    seconds = medians({"copy": lambda: copy(array)}, repeats)["copy"]
    return 8 * 2 * size / seconds


def environment() -> dict[str, Any]:
    """Where and when a figure was made."""
    device = jax.devices()[0]
    return {
        "date": datetime.date.today().isoformat(),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "device": device.device_kind,
        "processor": _processor(),
        "cores": os.cpu_count(),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            names = [line for line in lines if line.startswith("model name")]
        return names[0].split(":", 1)[1].strip()
    except (OSError, IndexError):
        return platform.processor() or platform.machine()
