"""Parts of the sorting experiments' model: sizes, dropout, blocks, embedding, unembedding (minGPT's family)."""

import functools
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bayesprompt.checks import UserError
from bayesprompt.models.kernels import Dense, dropout
from bayesprompt.models.layers import Memory, attend, check_sizes
from bayesprompt.sources.digits import NUM_TOKENS, SIZE

_WEIGHT_STD = 0.02
_draw = nn.initializers.normal(_WEIGHT_STD)
_norm = functools.partial(nn.LayerNorm, epsilon=1e-5)


@dataclass(frozen=True)
class GPT:
    """Sizes: pads, then the digits and their answer; `first_norm` False leaves out every block's first LayerNorm."""

    num_tokens: int = NUM_TOKENS
    embed_dim: int = 256
    num_heads: int = 4
    num_layers: int = 4
    pads: int = 10
    size: int = SIZE  # digits in an input, and in its answer
    first_norm: bool = True
    dropout: float = 0.1  # where a key is given

    def __post_init__(self) -> None:
        """Raise UserError for sizes below 1, heads that do not divide the width, or a dropout outside [0, 1)."""
        check_sizes(self, but=("first_norm", "dropout"))
        if self.embed_dim % self.num_heads:
            raise UserError(f"embed_dim = {self.embed_dim}: must be a multiple of num_heads = {self.num_heads}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout = {self.dropout}: must lie in [0, 1)")

    @property
    def rows(self) -> int:
        """Rows of content: the input, and the answer but for its last digit, which nothing reads."""
        return 2 * self.size - 1

    def token_flops(self, length: int) -> int:
        """Return the nominal floating-point operations of one token's matrix products, forward, at this length."""
        return self.num_layers * (24 * self.embed_dim**2 + 4 * (self.pads + length) * self.embed_dim)


class Dropout(nn.Module):
    """Dropout where a key is given."""

    rate: float

    def __call__(self, x: Array) -> Array:
        """Set a share of the entries to 0 and scale the others up."""
        return dropout(self.make_rng("dropout"), x, self.rate) if self.has_rng("dropout") else x


class Block(nn.Module):
    """Pre-LayerNorm Transformer block with biases."""

    architecture: GPT

    def setup(self) -> None:
        """Create the dense layers, the LayerNorms and the places of dropout."""
        sizes = self.architecture
        residual = nn.initializers.normal(_WEIGHT_STD / (2 * sizes.num_layers) ** 0.5)
        self.attention_norm = _norm() if sizes.first_norm else lambda x: x
        self.query, self.key, self.value = (Dense(sizes.embed_dim, kernel_init=_draw) for _ in range(3))
        self.attention_output = Dense(sizes.embed_dim, kernel_init=residual)
        self.mlp_norm = _norm()
        self.mlp_in = Dense(4 * sizes.embed_dim, kernel_init=_draw)
        self.mlp_out = Dense(sizes.embed_dim, kernel_init=residual)
        self.drop = Dropout(sizes.dropout)

    def project(self, x: Float[Array, "*rows D"], num_queries: int | None = None) -> tuple[Array, Array, Array]:
        """Return query (scaled by 1/sqrt(head size); of the last `num_queries` rows), key and value, by head."""
        x, heads = self.attention_norm(x), self.architecture.num_heads
        asking = x if num_queries is None else x[..., -num_queries:, :]
        rows = self.query(asking), self.key(x), self.value(x)
        query, key, value = (y.reshape(*y.shape[:-1], heads, y.shape[-1] // heads) for y in rows)
        return query / jnp.sqrt(query.shape[-1]), key, value

    def attend(
        self, query: Array, key: Array, value: Array, memory: Memory | None = None, place: Array | None = None
    ) -> Float[Array, "B n D"]:
        """Return the attention block's output (Eq. 3's A): the heads' outputs, projected."""
        return self.attention_output(attend(query, key, value, memory, self.drop, place))

    def finish(self, x: Float[Array, "*rows D"], added: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        """Add the attention block's output and the MLP's to the residual stream."""
        x = x + self.drop(added)
        return x + self.drop(self.mlp_out(nn.gelu(self.mlp_in(self.mlp_norm(x)))))


class Embedding(nn.Module):
    """Embeddings of tokens and of positions, both learned."""

    architecture: GPT

    @nn.compact
    def __call__(self) -> tuple[Array, Array]:
        """Return both tables."""
        sizes = self.architecture
        tokens = self.param("tokens", _draw, (sizes.num_tokens, sizes.embed_dim))
        return tokens, self.param("positions", _draw, (sizes.pads + sizes.rows, sizes.embed_dim))


class Torso(nn.Module):
    """The blocks."""

    architecture: GPT

    def setup(self) -> None:
        """Create the blocks."""
        self.blocks = [Block(self.architecture) for _ in range(self.architecture.num_layers)]


class Unembedding(nn.Module):
    """LayerNorm and head."""

    architecture: GPT

    @nn.compact
    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows K"]:
        """Return log-probabilities, nats."""
        head = nn.Dense(self.architecture.num_tokens, use_bias=False, kernel_init=_draw, name="head")
        return jax.nn.log_softmax(head(_norm(name="norm")(x)))
