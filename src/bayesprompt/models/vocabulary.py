"""What tokens of a large vocabulary cost, without holding a batch's probabilities over it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# The vocabulary is read in blocks: this many of its rows at most (a CPU's cache holds them while they are used twice),
# and so few that no more than this many logits exist at a time.
_BLOCK, _LOGITS = 4096, 2**21


class _Sums(NamedTuple):
    """What is known of n softmaxes after some blocks: a shift, and sums of exp(logits - shift)."""

    largest: Float[Array, " n"]
    total: Float[Array, " n"]
    mixed: Float[Array, "n D"]  # of the vocabulary's rows, weighted by it


def _division(num_tokens: int, n: int) -> tuple[int, int]:
    """Return the number of blocks and their size, for n rows of x."""
    blocks = -(-num_tokens // max(1, min(_BLOCK, _LOGITS // n)))
    return blocks, -(-num_tokens // blocks)


def _look(rows: Array, x: Array, index: Array, size: int) -> tuple[Array, Array, Array]:
    """Return where a block starts, its rows, and the logits of those that no block before it had (else -inf)."""
    start = jnp.minimum(index * size, len(rows) - size)  # the last block may reach back
    block = jax.lax.dynamic_slice_in_dim(rows, start, size)
    new = start + jnp.arange(size) >= index * size
    return start, block, jnp.where(new, x @ block.T, -jnp.inf)


@jax.custom_vjp
def token_losses(rows: Float[Array, "K D"], x: Float[Array, "n D"], tokens: Int[Array, " n"]) -> Float[Array, " n"]:
    """Return -log softmax(rows x)_token, nats, differentiable; a token of -1 costs nothing (Eq. 3's summands).

    Each loss comes with its slope in x, from one reading of the rows (an online softmax, Milakov & Gimelshein 2018).
    """
    return _with_slopes(rows, x, tokens)[0]


def _with_slopes(rows, x, tokens):
    blocks, size = _division(len(rows), len(x))

    def add(sums, index):
        _, block, logits = _look(rows, x, index, size)
        largest = jnp.maximum(sums.largest, logits.max(axis=1))
        weights, kept = jnp.exp(logits - largest[:, None]), jnp.exp(sums.largest - largest)
        total = kept * sums.total + weights.sum(axis=1)
        return _Sums(largest, total, kept[:, None] * sums.mixed + weights @ block), None

    nothing = _Sums(jnp.full(len(x), -jnp.inf), jnp.zeros(len(x)), jnp.zeros_like(x))
    sums = jax.lax.scan(add, nothing, jnp.arange(blocks))[0]
    shift, wanted = sums.largest + jnp.log(sums.total), rows[jnp.maximum(tokens, 0)]
    costs = tokens >= 0
    losses = jnp.where(costs, shift - (wanted * x).sum(axis=1), 0.0)
    slopes = jnp.where(costs[:, None], sums.mixed / sums.total[:, None] - wanted, 0.0)
    return losses, (rows, x, tokens, shift, slopes)


def _pull_back(kept, cotangent):
    rows, x, tokens, shift, slopes = kept
    blocks, size = _division(len(rows), len(x))
    scaled = jnp.where(tokens < 0, 0.0, cotangent)[:, None] * x

    def add(total, index):
        start, _, logits = _look(rows, x, index, size)
        more = jnp.exp(logits - shift[:, None]).T @ scaled
        before = jax.lax.dynamic_slice_in_dim(total, start, size)
        return jax.lax.dynamic_update_slice_in_dim(total, before + more, start, axis=0), None

    # The compiler leaves this out where the rows are frozen.
    of_rows = jax.lax.scan(add, jnp.zeros_like(rows), jnp.arange(blocks))[0].at[jnp.maximum(tokens, 0)].add(-scaled)
    return of_rows, cotangent[:, None] * slopes, None


token_losses.defvjp(_with_slopes, _pull_back)
