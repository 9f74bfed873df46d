"""What the networks share: a check of their sizes, attention, and a pass over explicit rows that keeps what it did."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from bayesprompt.checks import UserError
from bayesprompt.measures.attention import Reading

State = Any
MOST_LOGITS = 2**24  # of a large vocabulary at a time
# Keys and values of S rows that every sequence of a batch has before it, by head.
Memory = tuple[Float[Array, "H S d"], Float[Array, "H S d"]]


class Layer(NamedTuple):
    """What one layer did with all rows of B sequences: those of the prompt, then every token but the last.

    - input: (B, rows, D) what the layer reads: its part of the residual stream, or the rows of a prefix given layer by
      layer in their place.
    - states: (B, rows, S) internal states (Section 4.1): an LSTM's cell state, or what attention adds to the residual
      stream.
    - reading: queries, keys and values with leading axes (B, H), prefix and content apart; None without attention.
    """

    input: Float[Array, "B rows D"]
    states: Float[Array, "B rows S"]
    reading: Reading | None


class Trace(NamedTuple):
    """What a network did with a batch: every layer, and the log-probabilities (B, n, K), nats, that it gives."""

    layers: tuple[Layer, ...]
    log_probs: Float[Array, "B n K"]


def check_sizes(architecture: Any, but: tuple[str, ...] = ()) -> None:
    """Raise UserError for a size below 1 (num_tokens: 2), other fields apart."""
    for name, value in vars(architecture).items():
        low = 2 if name == "num_tokens" else 1
        if name not in but and (not isinstance(value, int) or value < low):
            raise UserError(f"{name} = {value}: must be >= {low}")


def one_hot(tokens: Int[Array, "*batch N"], num_tokens: int) -> Float[Array, "*batch N K"]:
    """Return tokens as one-hot rows; outside the alphabet as NaN, so that a wrong token never passes for none."""
    known = (tokens >= 0) & (tokens < num_tokens)
    return jnp.where(known[..., None], jax.nn.one_hot(tokens, num_tokens, dtype=jnp.float32), jnp.nan)


def token_losses(rows: Float[Array, "K D"], x: Float[Array, "B n D"], tokens: Int[Array, "B n"]) -> Float[Array, "B n"]:
    """Return -log softmax(rows x)_token, nats, differentiable, holding no more than 64 MiB of logits.

    A token of -1 costs nothing; any other one outside the vocabulary costs NaN.
    """

    @jax.checkpoint
    def cost(given):
        x, token = given
        loss = optax.losses.softmax_cross_entropy_with_integer_labels(x @ rows.T, jnp.maximum(token, 0))
        return jnp.where(token == -1, 0.0, jnp.where(token < 0, jnp.nan, loss))

    at_once = min(tokens.size, max(1, MOST_LOGITS // len(rows)))
    each = x.reshape(-1, x.shape[-1]), tokens.reshape(-1)
    return jax.lax.map(cost, each, batch_size=at_once).reshape(tokens.shape)


def look_up(table: Float[Array, "n K *row"], tokens: Int[Array, "B n"]) -> Float[Array, "B n *row"]:
    """Return the row of the token that stands at each of n places; NaN for a token outside the alphabet."""
    tokens = jnp.where(tokens < 0, table.shape[1], tokens)
    return table.at[jnp.arange(len(table))[None], tokens].get(mode="fill", fill_value=jnp.nan)


def behind(rows: Float[Array, "*rows d"], x: Float[Array, "B *own d"], axis: int = 1) -> Array:
    """Return x with the same rows before each of its B sequences, joined along an axis of x."""
    return jnp.concatenate([jnp.broadcast_to(rows, (len(x), *rows.shape)), x], axis=axis)


def attend(
    query: Float[Array, "B n H d"],
    key: Float[Array, "B m H d"],
    value: Float[Array, "B m H d"],
    memory: Memory | None = None,
    drop: Callable[[Array], Array] = lambda x: x,
    place: Array | None = None,
) -> Float[Array, "B n D"]:
    """Return causal softmax attention of n of m rows over those before them, themselves, and the shared rows.

    The n rows are the last ones, or those from `place` on. `drop` sees the attention weights (B, H, n, S + m) before
    they are used.
    """
    n, m = query.shape[1], key.shape[1]
    # Heads come first here, once for all products: each is then a plain product of matrices.
    query, key, value = (y.swapaxes(1, 2) for y in (query, key, value))
    if memory is not None:
        key, value = (behind(past, own, axis=2) for past, own in zip(memory, (key, value), strict=True))
    scores = query @ key.swapaxes(2, 3)
    last = scores.shape[-1] - m + (m - n if place is None else place) + jnp.arange(n)  # that each row sees
    scores = jnp.where(jnp.arange(scores.shape[-1])[None] <= last[:, None], scores, -jnp.inf)
    mixed = (drop(jax.nn.softmax(scores)) @ value).swapaxes(1, 2)
    return mixed.reshape(*mixed.shape[:2], math.prod(mixed.shape[2:]))


def rotate(
    x: Float[Array, "*batch n H d"], places: Int[Array, " n"], base: float, factors: tuple[float, ...]
) -> Float[Array, "*batch n H d"]:
    """Turn pairs of coordinates (i, i + d/2) by angles proportional to the position (Su et al. 2021).

    The angles of each pair are divided by its one of `factors`, if there are any.
    """
    half = x.shape[-1] // 2
    each = base ** (-jnp.arange(half, dtype=jnp.promote_types(x.dtype, jnp.float32)) / half)
    if factors:
        each = each / jnp.array(factors, each.dtype)
    angle = places[:, None] * each[None]
    cos, sin = (jnp.expand_dims(y[:, None], tuple(range(x.ndim - 3))) for y in (jnp.cos(angle), jnp.sin(angle)))
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def cut(
    query: Float[Array, "B rows H d"], key: Float[Array, "B rows H d"], value: Float[Array, "B rows H d"], prefix: slice
) -> Reading:
    """Divide rows into those of a prefix and those of the content; the content behind the prefix asks."""
    query, key, value = (y.swapaxes(1, 2) for y in (query, key, value))
    keys, values = (jnp.concatenate([y[:, :, : prefix.start], y[:, :, prefix.stop :]], axis=2) for y in (key, value))
    return Reading(query[:, :, prefix.stop :], keys, values, key[:, :, prefix], value[:, :, prefix])


def run_blocks(
    blocks: Sequence[Any],
    x: Float[Array, "B rows D"],
    prefix: slice,
    layers: Float[Array, "layers L D"] | None = None,
    place: int = 0,
) -> tuple[tuple[Layer, ...], Float[Array, "B rows D"]]:
    """Run blocks of attention over explicit rows; return what each did, and the last one's output.

    `prefix` says which rows count as the prefix in the readings. Rows given layer by layer replace what attention reads
    from row `place` on.
    """
    found = []
    for index, block in enumerate(blocks):
        seen = x if layers is None else x.at[:, place : place + layers.shape[1]].set(layers[index][None])
        query, key, value = block.project(seen)
        added = block.attend(query, key, value)
        found.append(Layer(seen, added, cut(query, key, value, prefix)))
        x = block.finish(x, added)
    return tuple(found), x
