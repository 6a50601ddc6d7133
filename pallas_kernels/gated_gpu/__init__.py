"""States with one decay a token on Hopper and Blackwell GPUs, as in `gated.py`.

What the kernels of Mamba-2 and of the delta rule share: `block` is what one block of the
grid works on, `chain` folds a ring into its states, `paths` has the decays of a tree and
what its nodes read of the states, `kernels` launches it all.
"""
