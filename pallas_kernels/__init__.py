"""Tree-structured ops of state-space and hybrid models: arrays in, arrays out.

One package an op: `tree_ssd` (Mamba-2), `tree_scan` (Mamba-1), `tree_delta` (the gated
delta rule), `tree_conv`, `tree_attention`, and `tree_path`, which keeps what was accepted.
In each, `__init__` is the contract, `reference.py` the plain loop that defines it, and
every other file a faster implementation of the same functions. `gated` is no op: it holds
the recurrence that `tree_ssd` and `tree_delta` share.

What a model keeps per layer (states, rings, caches) may be handed over stacked, with the
layer's index: a kernel then reads and writes it in place, and no program slices it.
"""

from pallas_kernels._dispatch import PLATFORMS as PLATFORMS
from pallas_kernels._dispatch import Implementation as Implementation
from pallas_kernels.inputs import DeltaInputs as DeltaInputs
from pallas_kernels.inputs import Inputs as Inputs
from pallas_kernels.inputs import Ring as Ring
from pallas_kernels.topology import Topology as Topology
