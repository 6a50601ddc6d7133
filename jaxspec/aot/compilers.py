"""Compiles for machines that are not here, with the compilers that would be there.

The wheels of libtpu and of JAX's CUDA plugin compile without a TPU or a GPU, down to the
machine's code. What comes back cannot be run; it says whether a program compiles, what
memory it takes and, with `bundles`, what it costs in instructions.
"""

import functools
import importlib.util
import os
import shutil
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

TPU = {"v4": "v4", "v5e": "v5e", "v5p": "v5p", "v6e": "v6e", "v7x": "tpu7x"}
"""Names of TPU generations, and what their topologies are called."""

_PLANAR = ("v5e", "v6e")  # chips in a torus of two dimensions, the others of three


class Chip(NamedTuple):
    """What the CUDA compiler asks of a GPU: the vendor's public figures.

    Attributes:
        name: of the product.
        cores: streaming multiprocessors.
        memory: bytes.
        bandwidth: bytes per second.
        cache: bytes of the L2 cache.
        clock: GHz.
        capability: compute capability.
        shared: bytes of shared memory in a multiprocessor; a block may have 1024 less.
    """

    name: str
    cores: int
    memory: int
    bandwidth: int
    cache: int
    clock: float
    capability: tuple[int, int]
    shared: int = 228 * 1024


GPU = {
    "h100": Chip("NVIDIA H100", 132, 80 * 10**9, 3_350 * 10**9, 50 << 20, 1.98, (9, 0)),
    "h200": Chip(
        "NVIDIA H200", 132, 141 * 10**9, 4_800 * 10**9, 50 << 20, 1.98, (9, 0)
    ),
    "b200": Chip(
        "NVIDIA B200", 148, 180 * 10**9, 7_700 * 10**9, 126 << 20, 1.965, (10, 0)
    ),
}
"""GPUs by name, as in NVIDIA's data sheets and CUDA programming guide."""


def missing(name: str) -> str | None:
    """Why a machine cannot be compiled for here, or None if it can.

    Raises:
        ValueError: if there is no such machine.
    """
    if name in TPU:
        if importlib.util.find_spec("libtpu") is None:
            return f"{name} needs libtpu: pip install 'jaxspec[tpu-aot]'"
    elif name in GPU:
        if importlib.util.find_spec("jax_cuda13_plugin") is None:
            return f"{name} needs jax-cuda13-plugin: pip install 'jaxspec[gpu-aot]'"
        if ptxas() is None:
            return f"{name} needs ptxas: pip install 'jaxspec[gpu-aot]'"
    else:
        raise ValueError(f"Unknown machine {name!r}; expected one of {[*TPU, *GPU]}.")
    return None


def ptxas() -> str | None:
    """The assembler that CUDA programs are finished with: a toolkit's, or a wheel's."""
    places = [os.environ.get("PATH", os.defpath), "/usr/local/cuda/bin"]
    if spec := importlib.util.find_spec("nvidia"):
        places += [f"{folder}/cu13/bin" for folder in spec.submodule_search_locations]
    return shutil.which("ptxas", path=os.pathsep.join(places))


@functools.cache
def devices(name: str, shape: str | None = None) -> tuple[jax.Device, ...]:
    """Devices that can be compiled for, and nothing else.

    Args:
        name: a machine of `TPU` or `GPU`.
        shape: chips along each axis of a TPU slice, as `"2x2"` or, where the torus has
            three dimensions, `"2x2x1"`; hosts and GPUs in each, as `"2x8"`. None is one
            chip.

    Raises:
        ValueError: if that machine cannot be compiled for here.
    """
    if reason := missing(name):
        raise ValueError(reason)
    if name in GPU:
        return tuple(
            topologies.get_topology_desc(
                platform="cuda",
                topology_name="",
                topology=f"1x{shape or '1x1'}",
                target_config=_target_config(GPU[name]),
            ).devices
        )
    # libtpu reads these when it is first loaded: it must not look for a TPU, and other
    # processes may be compiling too.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    one = "1x1" if name in _PLANAR else "1x1x1"
    alone = {} if shape else {"chips_per_host_bounds": [1, 1, 1]}
    return tuple(
        topologies.get_topology_desc(
            f"{TPU[name]}:{shape or one}", platform="tpu", **alone
        ).devices
    )


def compile(
    f: Callable[..., Any], *args: Any, target: str, donate_argnums: Any = ()
) -> jax.stages.Compiled:
    """Compiles a function of arrays for one chip.

    Args:
        f: what to compile.
        *args: arrays, or their shapes.
        target: a machine of `TPU` or `GPU`.
        donate_argnums: arguments whose memory the results may take.
    """
    device = devices(target)[0]
    sharding = jax.sharding.SingleDeviceSharding(device)
    args = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), args
    )
    with described(target):
        lowered = jax.jit(f, donate_argnums=donate_argnums).lower(*args)
    return lowered.compile()


def described(target: str) -> Any:
    """A context in which kernels that ask what they run on are told of that machine.

    Pallas asks the default device, which is a CPU here, unless a mesh says otherwise.
    """
    device = devices(target)[0]
    platform, cores = ("gpu", None) if target in GPU else ("tpu", device.num_cores)
    device = jax.sharding.AbstractDevice(device.device_kind, cores, platform)
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
    return jax.sharding.use_abstract_mesh(mesh)


def _target_config(chip: Chip) -> str:
    """A `stream_executor.GpuTargetConfigProto` as text."""
    major, minor = chip.capability
    return f"""
gpu_device_info {{
  name: "{chip.name}"
  cuda_compute_capability {{
    major: {major} minor: {minor} feature_extension: ACCELERATED_FEATURES
  }}
  core_count: {chip.cores}
  fpus_per_core: 128
  clock_rate_ghz: {chip.clock}
  device_memory_size: {chip.memory}
  memory_bandwidth: {chip.bandwidth}
  l2_cache_size: {chip.cache}
  shared_memory_per_core: {chip.shared}
  shared_memory_per_block_optin: {chip.shared - 1024}
  shared_memory_per_block: 49152
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  driver_version: "13.0.0"
  runtime_version: "13.0.0"
  compile_time_toolkit_version: "13.0.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
runtime_version {{ major: 13 minor: 0 patch: 0 }}
device_description_str: "{chip.name}"
"""
