"""Runs a script in several processes at once, each with four devices."""

import os
import pathlib
import socket
import subprocess
import sys

import jax

COUNT = 2


def free_address():
    """An address that nobody listens at."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def run(script, *arguments):
    """Runs `script ADDRESS PROCESSES INDEX *arguments`; all outputs.

    Each must end well, and say its name.
    """
    script, address = pathlib.Path(script), free_address()
    environment = os.environ | {
        "PYTHONPATH": f"{script.parents[2]}{os.pathsep}{script.parent}",
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "4",
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }
    children = [
        subprocess.Popen(
            [sys.executable, script, address, str(COUNT), str(index)]
            + [str(argument) for argument in arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(COUNT)
    ]
    try:
        outputs = [child.communicate(timeout=400)[0] for child in children]
    finally:
        for child in children:
            child.kill()
    for index, (child, output) in enumerate(zip(children, outputs, strict=True)):
        assert child.returncode == 0, output
        assert f"process {index}: " in output
    return outputs
