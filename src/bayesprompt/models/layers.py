"""What both networks share: the check of their sizes, and dense layers whose gradients a CPU computes at full speed."""

import functools
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from bayesprompt.checks import UserError

State = Any


def check_sizes(architecture: Any, but: tuple[str, ...] = ()) -> None:
    """Raise ValueError for a size below 1 (num_tokens: 2), other fields apart."""
    for name, value in vars(architecture).items():
        low = 2 if name == "num_tokens" else 1
        if name not in but and value < low:
            raise UserError(f"{name} = {value}: must be >= {low}")


@jax.custom_vjp
def product(x: Float[Array, "rows D"], kernel: Float[Array, "D E"]) -> Float[Array, "rows E"]:
    """Return x @ kernel, with gradients that a CPU computes at full speed."""
    return x @ kernel


def _product_gradient(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    # By default XLA transposes the wide dy (recomputing the activation's derivative as it goes) to form dy.T @ x.
    # Materialised first, dy is read once, and only the narrow operand turns.
    x, kernel = saved
    dy = jax.lax.optimization_barrier(dy)
    return dy @ kernel.T, x.T @ dy if kernel.shape[0] <= kernel.shape[1] else jax.lax.optimization_barrier(dy.T @ x).T


product.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), _product_gradient)


def dense_product(x: Array, kernel: Array, *_: Any, **__: Any) -> Array:
    """Apply `product` to the last axis of x: the dot_general of our dense layers."""
    return product(x.reshape(-1, x.shape[-1]), kernel).reshape(*x.shape[:-1], kernel.shape[-1])


Dense = functools.partial(nn.Dense, use_bias=False, dot_general=dense_product)
