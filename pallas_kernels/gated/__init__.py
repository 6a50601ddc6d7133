"""States with one decay a token: what Mamba-2 and the gated delta rule share.

`reference` defines the recurrence, `xla` has it in matrix form, and `digits` is how sums of
log decays are kept.

On a TPU, `tpu_call` makes the calls and `tpu_step` is one grid step of them, on the heads
that `tpu_blocks` gives it, with the decays of `tpu_decays` and the products and layouts of
`tpu_lanes`.

On a GPU, `gpu_call` makes the calls and `gpu_block` is what one block of the grid works on,
with the products of `gpu_mma`; `gpu_chain` folds a ring into its states, `gpu_paths` has
the decays of a tree and what its nodes read of the states.
"""
