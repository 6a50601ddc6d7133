"""States with one decay a token: what Mamba-2 and the gated delta rule share.

`reference` defines the recurrence, `xla` has it in matrix form, and `digits` is how sums of
log decays are kept. On a TPU, `tpu_call` makes the calls, `tpu_step` is one grid step of
them, `tpu_lanes` its products and layouts, `tpu_decays` its decays. On a GPU, `gpu_call`
makes the calls, `gpu_block` is what one block of the grid works on, `gpu_mma` its products,
`gpu_chain` folds a ring into its states, `gpu_paths` has the decays of a tree and what its
nodes read of the states.
"""
