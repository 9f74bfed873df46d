"""The Transformer: blocks of attention and MLP over embeddings plus positions (Section 4.1)."""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bayesprompt.checks import UserError
from bayesprompt.models.kernels import Dense
from bayesprompt.models.layers import Layer, Memory, State, attend, check_sizes, look_up, run_blocks


@dataclass(frozen=True)
class Transformer:
    """Sizes of the decoder-only Transformer (Section 4.1)."""

    num_tokens: int = 2
    embed_dim: int = 128
    num_heads: int = 4
    num_layers: int = 1
    mlp_dim: int = 512

    def __post_init__(self) -> None:
        """Raise UserError for sizes below 1, or heads that do not divide the width."""
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
        self.query, self.key, self.value, self.attention_output = (Dense(width, use_bias=False) for _ in range(4))
        self.query_norm, self.key_norm = nn.LayerNorm(use_bias=False), nn.LayerNorm(use_bias=False)
        self.mlp_norm = nn.LayerNorm()
        self.mlp_in = Dense(self.architecture.mlp_dim, use_bias=False)
        self.mlp_out = Dense(width, use_bias=False)
        self.output_norm = nn.LayerNorm()

    def project(self, x: Float[Array, "*rows D"]) -> tuple[Array, Array, Array]:
        """Return query (scaled by 1/sqrt(head size)), key and value of each row, split into heads."""
        heads = (self.architecture.num_heads, self.architecture.embed_dim // self.architecture.num_heads)
        x = self.attention_norm(x)
        query, key, value = self.query_norm(self.query(x)), self.key_norm(self.key(x)), self.value(x)
        query, key, value = (y.reshape(*y.shape[:-1], *heads) for y in (query, key, value))
        return query / jnp.sqrt(query.shape[-1]), key, value

    def attend(self, query: Array, key: Array, value: Array, memory: Memory | None = None) -> Float[Array, "B n D"]:
        """Return what the attention block adds to the residual stream: the heads' outputs, projected."""
        return self.attention_output(attend(query, key, value, memory))

    def finish(self, x: Float[Array, "*rows D"], added: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        """Add the attention block's output and the MLP's to the residual stream, then normalise."""
        x = x + added
        x = x + self.mlp_out(nn.gelu(self.mlp_in(self.mlp_norm(x))))
        return self.output_norm(x)


class TransformerTorso(nn.Module):
    """Blocks over embeddings plus sin/cos positions."""

    architecture: Transformer

    def setup(self) -> None:
        """Create the blocks."""
        self.blocks = [Block(self.architecture) for _ in range(self.architecture.num_layers)]

    def prompt(self, rows: Array, vocabulary: Array, layers: Array | None, length: int) -> State:
        """Keep each block's keys and values, the last row's output, and what each token brings into the first block."""
        start = len(rows)
        places = positions(start, length, rows, layers)
        found, x = run_blocks(self.blocks, (rows + places[:start])[None], slice(0, start), layers, 1)
        # A token has only K values: what it brings into the first block is computed once a position and value.
        choices = vocabulary[None] + places[start:, None]  # (N - 1, K, D)
        read = [layer.reading for layer in found if layer.reading is not None]
        return {
            "first": x[0, -1],
            "memory": [(reading.prefix_key[0], reading.prefix_value[0]) for reading in read],
            "choices": choices,
            "projected": self.blocks[0].project(choices),
        }

    def predict(self, state: State, tokens: Int[Array, "B n"]) -> tuple[Array, Array]:
        """Return the output of the prompt's last row (D,) and of the data rows (B, n, D)."""
        x, query, key, value = (look_up(table, tokens) for table in (state["choices"], *state["projected"]))
        for index, block in enumerate(self.blocks):
            if index:
                query, key, value = block.project(x)
            x = block.finish(x, block.attend(query, key, value, state["memory"][index]))
        return state["first"], x

    def inspect(
        self, rows: Float[Array, "B rows D"], start: int, layers: Array | None
    ) -> tuple[tuple[Layer, ...], Array]:
        """Return what each block did with explicit rows, `start` of them the prompt's, and the last one's output."""
        places = positions(start, rows.shape[1] - start + 1, rows, layers)
        return run_blocks(self.blocks, rows + places[None], slice(1, start), layers, 1)


def positions(start: int, length: int, like: Array, layers: Array | None) -> Float[Array, "rows D"]:
    """Return the positions of a prompt's rows and of `length` tokens but the last, as wide and as exact as `like`.

    Rows given layer by layer have none (and replace only what attention reads).
    """
    found = sinusoids(start + length - 1, like.shape[-1], jnp.promote_types(like.dtype, jnp.float32))
    return found if layers is None else found.at[1:start].set(0.0)


def sinusoids(length: int, width: int, dtype: Any = jnp.float32) -> Float[Array, "N D"]:
    """Return sin/cos positions: first half sin, second half cos, timescales up to 1e4 (Vaswani et al. 2017)."""
    scale = 1e4 ** (-jnp.arange(0, width, 2, dtype=dtype) / width)
    angle = jnp.arange(length, dtype=dtype)[:, None] * scale[None]
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
