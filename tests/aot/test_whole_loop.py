"""A whole speculative loop of a published model, compiled for machines that are not here.

One process a case, as a compiler that fails may take its process with it.
"""

import json
import subprocess
import sys

import pytest

from jaxspec.aot import compilers

CASES = {
    "2.7B on four v5e": "--target v5e --slice 2x2 --tensor 4",
    "2.7B on four v5e, replay": "--target v5e --slice 2x2 --tensor 4 --rollback replay",
    "2.7B on a pod of v5e": "--target v5e --slice 16x16 --tensor 8 --batch 256",
    "2.7B on a v6e, large batch": "--target v6e --batch 64 --nodes 64 --layers 32",
    "Mamba-1 on a v5e": "--model mamba-2.8b --target v5e --nodes 24",
    "a hybrid on four v5p": (
        "--model nemotron-h-8b --target v5p --slice 2x2x1 --tensor 4 --layers 12"
    ),
    "heads side by side on a v7x": "--model falcon-h1-7b --target v7x --layers 6",
    "2.7B on an H200": "--target h200 --batch 64 --layers 8",
    "a hybrid on a B200": "--model nemotron-h-8b --target b200 --layers 12",
}


def compile_loop(options):
    target = options.split("--target ")[1].split()[0]
    if reason := compilers.missing(target):
        pytest.skip(reason)
    command = [sys.executable, "-m", "jaxspec", "bench", "compile", "--json"]
    run = subprocess.run([*command, *options.split()], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_the_loop_compiles_and_moves_no_state(options):
    record = compile_loop(options)
    assert record["moves"] == []
    sizes, states = record["bytes_per_device"], record["state_bytes"]
    assert sizes["written in place"] > states  # and with them rings, tails and caches
    assert sizes["temporary"] < sizes["arguments"]
    assert sizes["arguments"] + sizes["temporary"] < 80e9


def test_a_pod_exchanges_what_a_layer_and_a_vocabulary_must():
    exchanged = compile_loop(CASES["2.7B on four v5e"])["collectives"]
    # Out of every layer, and out of the embedding, one sum of the residual stream; one of
    # the norm's squares; what a row's best token is.
    largest = max(exchanged, key=lambda c: c["num_bytes"])
    assert (largest["kind"], largest["shape"]) == ("all-reduce", "bf16[8,16,2560]")
    others = sum(c["num_bytes"] for c in exchanged if c != largest)
    assert others < 0.05 * largest["num_bytes"]
