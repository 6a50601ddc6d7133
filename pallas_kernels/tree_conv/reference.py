"""The definition of `convolve`: every node looks up its own ancestors.

    y_i = bias + sum_k weight_k u[k-th of the last K tokens on the path to i]

where the path is continued above the root by the tail. Computes in the tail's dtype.
"""

import jax
import jax.numpy as jnp


def convolve(window, inputs, tail, weight, bias):
    def row(window, inputs, tail):
        tokens = jnp.concatenate([tail, inputs])
        outputs = []
        for i in range(window.shape[0]):
            output = bias
            for k in range(weight.shape[0]):
                output = output + weight[k] * tokens[window[i, k]]
            outputs.append(output)
        return jnp.stack(outputs)

    return jax.vmap(row)(window, inputs, tail)
