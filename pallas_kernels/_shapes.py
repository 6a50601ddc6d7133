"""Shape checks of the public functions."""

import jax


def check_shapes(**arrays: tuple[jax.Array, tuple[int, ...]]) -> None:
    """Compares arrays with the shapes that they should have, `name=(array, shape)`.

    Raises:
        ValueError: naming the first array of another shape.
    """
    for name, (array, expected) in arrays.items():
        if array.shape != expected:
            raise ValueError(f"{name} has shape {array.shape}, expected {expected}.")
