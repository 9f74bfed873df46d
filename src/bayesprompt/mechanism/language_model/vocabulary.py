"""What tokens of a large vocabulary cost, without holding a whole batch's probabilities over it."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

_ROWS = 64  # whose logits are held at a time, at most


def _loss(rows: Float[Array, "K D"], x: Float[Array, " D"], token: Int[Array, ""]) -> Float[Array, ""]:
    logits = rows @ x
    return jnp.where(token < 0, 0, jax.nn.logsumexp(logits) - logits[jnp.maximum(token, 0)])


def _few_at_a_time(function: Callable, rows: Array, x: Array, tokens: Array) -> Any:
    n = len(tokens)
    size = -(-n // -(-n // _ROWS))  # evenly divided: what is left over would be a computation of its own
    x, tokens = jnp.pad(x, ((0, -n % size), (0, 0))), jnp.pad(tokens, (0, -n % size))
    found = jax.lax.map(lambda xs: function(rows, *xs), (x, tokens), batch_size=size)
    return jax.tree.map(lambda y: y[:n], found)


@jax.custom_vjp
def token_losses(rows: Float[Array, "K D"], x: Float[Array, "n D"], tokens: Int[Array, " n"]) -> Float[Array, " n"]:
    """Return -log softmax(rows x)_token, nats, differentiable; a token of -1 costs nothing (Eq. 3's summands).

    Each loss comes with its slope in x, so that no logits are kept for the gradient.
    """
    return _few_at_a_time(_loss, rows, x, tokens)


def _with_slopes(rows, x, tokens):
    losses, slopes = _few_at_a_time(jax.value_and_grad(_loss, argnums=1), rows, x, tokens)
    return losses, (rows, x, tokens, slopes)


def _pull_back(kept, cotangent):
    rows, x, tokens, slopes = kept
    # The compiler leaves this out where the rows are frozen; it computes the logits once more.
    of_rows = jax.vjp(functools.partial(_few_at_a_time, _loss, x=x, tokens=tokens), rows)[1](cotangent)[0]
    return of_rows, cotangent[:, None] * slopes, None


token_losses.defvjp(_with_slopes, _pull_back)
