"""The Transformer: blocks of attention and MLP over embeddings plus positions (Section 4.1)."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bayesprompt.checks import UserError
from bayesprompt.devices import Cores
from bayesprompt.models.layers import Dense, State, check_sizes

# Largest number of (position, token) pairs for which first-layer attention is one product with a table (see below).
TABLE_PAIRS = 256


@dataclass(frozen=True)
class Transformer:
    """Sizes of the decoder-only Transformer (Section 4.1)."""

    num_tokens: int = 2
    embed_dim: int = 128
    num_heads: int = 4
    num_layers: int = 1
    mlp_dim: int = 512
    sequences_in_cache: ClassVar[int] = 64  # whose activations a CPU's cache holds, about
    cores: ClassVar[Cores] = "batch"

    def __post_init__(self) -> None:
        """Raise ValueError for sizes below 1, or heads that do not divide the width."""
        check_sizes(self)
        if self.embed_dim % self.num_heads or self.embed_dim % 2:
            raise UserError(
                f"embed_dim = {self.embed_dim}: must be even and a multiple of num_heads = {self.num_heads}"
            )

    def token_flops(self, length: int) -> int:
        """Return the nominal floating-point operations of one token's matrix products, forward, at this length."""
        block = 2 * self.embed_dim * (4 * self.embed_dim + 2 * self.mlp_dim) + 4 * length * self.embed_dim
        return self.num_layers * block


class Block(nn.Module):
    """Pre-LayerNorm Transformer block, with normalised queries and keys, and a LayerNorm after the block."""

    architecture: Transformer

    def setup(self) -> None:
        """Create the dense layers (no bias) and the LayerNorms."""
        width = self.architecture.embed_dim
        self.attention_norm = nn.LayerNorm()
        self.query, self.key, self.value, self.attention_output = (Dense(width) for _ in range(4))
        self.query_norm, self.key_norm = nn.LayerNorm(use_bias=False), nn.LayerNorm(use_bias=False)
        self.mlp_norm = nn.LayerNorm()
        self.mlp_in = Dense(self.architecture.mlp_dim)
        self.mlp_out = Dense(width)
        self.output_norm = nn.LayerNorm()

    def project(self, x: Float[Array, "*rows D"]) -> tuple[Array, Array, Array]:
        """Return query (scaled by 1/sqrt(head size)), key and value of each row, split into heads."""
        heads = (self.architecture.num_heads, self.architecture.embed_dim // self.architecture.num_heads)
        x = self.attention_norm(x)
        query, key, value = self.query_norm(self.query(x)), self.key_norm(self.key(x)), self.value(x)
        query, key, value = (y.reshape(*y.shape[:-1], *heads) for y in (query, key, value))
        return query / jnp.sqrt(query.shape[-1]), key, value

    def finish(self, x: Float[Array, "*rows D"], attended: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        """Add the attention's output and the MLP's to the residual stream, then normalise."""
        x = x + self.attention_output(attended)
        x = x + self.mlp_out(nn.gelu(self.mlp_in(self.mlp_norm(x))))
        return self.output_norm(x)


class TransformerTorso(nn.Module):
    """Blocks over embeddings plus sin/cos positions."""

    architecture: Transformer

    def setup(self) -> None:
        """Create the blocks."""
        self.blocks = [Block(self.architecture) for _ in range(self.architecture.num_layers)]

    def prompt(self, rows: Array, vocabulary: Array, layers: Array | None, length: int) -> State:
        """Keep each block's keys and values, the last row's output, and the first block's table."""
        start = len(rows)
        positions = sinusoids(start + length - 1, self.architecture.embed_dim)
        # Rows given layer by layer carry no position (and replace only what attention reads).
        x = rows + (positions[:start] if layers is None else positions[:start].at[1:].set(0.0))
        memory = []
        for index, block in enumerate(self.blocks):
            query, key, value = block.project(x if layers is None else x.at[1:].set(layers[index]))
            memory.append((key, value))
            attended = attend(query[None], key[None], value[None], (key[:0], value[:0]))[0]
            x = block.finish(x, attended)
        places = positions[start:, None]
        choices = vocabulary[None] + places  # (N - 1, K, D): every token at every position
        projected = self.blocks[0].project(choices)
        state = {"first": x[-1], "memory": memory, "choices": choices}
        if choices.shape[0] * choices.shape[1] <= TABLE_PAIRS:
            return state | {"table": attention_table(*projected, memory[0])}
        return state | {"projected": projected}

    def predict(self, state: State, choice: Float[Array, "B n K"]) -> tuple[Array, Array]:
        """Return the output of the prompt's last row (D,) and of the data rows (B, n, D)."""
        x = pick(choice, state["choices"])
        for index, block in enumerate(self.blocks):
            if index == 0 and "table" in state:
                attended = attend_by_table(choice, state["table"])
            else:
                rows = [pick(choice, y) for y in state["projected"]] if index == 0 else block.project(x)
                attended = attend(*rows, state["memory"][index])
            x = block.finish(x, attended)
        return state["first"], x


@jax.custom_vjp
def pick(choice: Float[Array, "B n K"], table: Float[Array, "n K *row"]) -> Float[Array, "B n *row"]:
    """Look up, for every position, the row of the token that stands there (as a product: its gradient is one too)."""
    rows = choice.swapaxes(0, 1) @ table.reshape(*table.shape[:2], math.prod(table.shape[2:]))
    return rows.swapaxes(0, 1).reshape(*choice.shape[:2], *table.shape[2:])


def _pick_gradient(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    # By default XLA would turn the wide dy for the table's gradient, instead of the narrow choice.
    choice, table = saved
    dy, rows = (y.reshape(*y.shape[:2], -1) for y in (dy.swapaxes(0, 1), table))
    return (dy @ rows.swapaxes(1, 2)).swapaxes(0, 1), (choice.transpose(1, 2, 0) @ dy).reshape(table.shape)


pick.defvjp(lambda choice, table: (pick(choice, table), (choice, table)), _pick_gradient)


def attend(
    query: Array,
    key: Array,
    value: Array,
    memory: tuple[Array, Array],
    drop: Callable[[Array], Array] = lambda x: x,
    place: Array | None = None,
) -> Float[Array, "B n D"]:
    """Causal softmax attention of n of (B, m, H, d) rows over those before them and over (S, H, d) shared rows.

    The n rows are the last ones, or those from `place` on. `drop` sees the attention weights (B, H, n, S + m) before
    they are used.
    """
    n, m, heads = query.shape[1], key.shape[1], query.shape[2]

    def behind(past, own):
        # Heads come first here, once for all products: each is then a plain product of matrices.
        past = jnp.broadcast_to(past.swapaxes(0, 1), (len(own), heads, *past.shape[::2]))
        return jnp.concatenate([past, own.swapaxes(1, 2)], axis=2)

    key, value = behind(memory[0], key), behind(memory[1], value)
    scores = query.swapaxes(1, 2) @ key.swapaxes(2, 3)
    last = len(memory[0]) + (m - n if place is None else place) + jnp.arange(n)  # that each row sees
    scores = jnp.where(jnp.arange(scores.shape[-1])[None] <= last[:, None], scores, -jnp.inf)
    mixed = (drop(jax.nn.softmax(scores)) @ value).swapaxes(1, 2)
    return mixed.reshape(*mixed.shape[:2], math.prod(mixed.shape[2:]))


def attention_table(
    query: Array, key: Array, value: Array, memory: tuple[Array, Array]
) -> Float[Array, "pairs pairs H size"]:
    """Tabulate first-layer attention, whose scores depend on two (position, token) pairs only.

    With n K pairs, row (j, c) and column (i, a) of the table hold what token c at position j adds to the softmax's
    numerator (per head and value coordinate) and denominator at position i if token a stands there. Attention over a
    whole batch is then one matrix product with the batch's one-hot tokens, instead of B * H small ones and B * H * n**2
    exponentials.
    """
    past_key, past_value = memory
    n, num_tokens = query.shape[:2]
    own = jnp.einsum("iahd,jchd->hiajc", query, key)
    past = jnp.einsum("iahd,shd->hias", query, past_key)
    own = jnp.where(jnp.tril(jnp.ones((n, n), bool))[None, :, None, :, None], own, -jnp.inf)
    # The shift cancels between numerator and denominator, whatever it is: it needs no gradient.
    largest = jax.lax.stop_gradient(jnp.maximum(own.max((-1, -2), initial=-jnp.inf), past.max(-1)))
    own, past = jnp.exp(own - largest[..., None, None]), jnp.exp(past - largest[..., None])
    with_count = functools.partial(jnp.pad, pad_width=[(0, 0), (0, 0), (0, 1)], constant_values=1.0)
    value = with_count(value.reshape(n * num_tokens, *value.shape[2:]))
    # Turn the weights first, not the product, which is (head size + 1) times larger; keep no broadcast copies either.
    own = own.reshape(len(own), n * num_tokens, n * num_tokens).transpose(2, 1, 0)
    table = jax.checkpoint(lambda own, value: own[..., None] * value[:, None])(own, value)
    # Some token always stands at the first position: its rows bring in what the prompt adds, at no cost a sequence.
    shared = jnp.einsum("hias,shd->iahd", past, with_count(past_value))
    return table.at[:num_tokens].add(shared.reshape(1, *table.shape[1:]))


def attend_by_table(choice: Float[Array, "B n K"], table: Float[Array, "pairs pairs H size"]) -> Float[Array, "B n D"]:
    """Causal softmax attention of the first layer, from the batch's tokens and `attention_table`."""
    sums = choice.reshape(len(choice), len(table)) @ table.reshape(len(table), math.prod(table.shape[1:]))
    sums = sums.reshape(*choice.shape, *table.shape[2:])
    sums = jnp.einsum("bik,bikhd->bihd", choice, sums)
    mixed = sums[..., :-1] / sums[..., -1:]
    return mixed.reshape(*mixed.shape[:2], math.prod(mixed.shape[2:]))


def sinusoids(length: int, width: int) -> Float[Array, "N D"]:
    """Return sin/cos positions: first half sin, second half cos, timescales up to 1e4 (Vaswani et al. 2017)."""
    angle = jnp.arange(length)[:, None] * 1e4 ** (-jnp.arange(0, width, 2) / width)[None]
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
