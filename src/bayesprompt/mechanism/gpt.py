"""The model of the sorting experiments, of minGPT's family, as a `Predictor`: it reads digits, and predicts the answer.

Everything before the answer's first prediction that is the same for all sequences (pads or prefix) is computed once a
batch, as in the core's networks; so is all that a token at a position brings into the first block. Only the rows that
predict pass through the last block. None of this changes what is computed, but for dropout: there, what is computed
once a batch has one mask a batch.
"""

import functools
import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt

from bayesprompt.layers import Dense, State, check_sizes
from bayesprompt.mechanism.attention import Reading
from bayesprompt.mechanism.digits import NUM_TOKENS, SIZE, mixed
from bayesprompt.predictors import Params, Predictor
from bayesprompt.prefixes import NO_PREFIX, Prefix
from bayesprompt.transformer import attend, pick

_WEIGHT_STD = 0.02


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
    sequences_in_cache: ClassVar[int] = 32

    def __post_init__(self) -> None:
        """Raise ValueError for sizes below 1, heads that do not divide the width, or a dropout outside [0, 1)."""
        check_sizes(self, but=("first_norm", "dropout"))
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim = {self.embed_dim}: must be a multiple of num_heads = {self.num_heads}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout = {self.dropout}: must lie in [0, 1)")

    @property
    def rows(self) -> int:
        """Rows of content: the input, and the answer but for its last digit, which nothing reads."""
        return 2 * self.size - 1

    def token_flops(self, length: int) -> int:
        """Return the nominal floating-point operations of one token's matrix products, forward, at this length."""
        return self.num_layers * (24 * self.embed_dim**2 + 4 * (self.pads + length) * self.embed_dim)


@functools.lru_cache
def make_gpt(architecture: GPT) -> Predictor:
    """Return the predictor of this architecture, which predicts the answer's tokens only: (B, size, K).

    Its `prompt` and `predict` take a further argument, `key`: with it, dropout is on.
    """
    network = Network(architecture)

    def call(method, params, *args, key=None):
        return network.apply({"params": params}, *args, method=method, rngs={} if key is None else {"dropout": key})

    return Predictor(
        init=lambda key: network.init(key, method="create")["params"],
        prompt=functools.partial(call, "prompt"),
        predict=functools.partial(call, "predict"),
        architecture=architecture,
    )


class Dropout(nn.Module):
    """Dropout where a key is given."""

    rate: float

    def __call__(self, x: Array) -> Array:
        """Set a share of the entries to 0 and scale the others up."""
        if not self.has_rng("dropout"):
            return x
        kept = _hashed_bits(self.make_rng("dropout"), x.shape) >= jnp.uint32(round(self.rate * 2**32))
        return jnp.where(kept, x / (1 - self.rate), 0.0)


def _hashed_bits(key: Array, shape: tuple[int, ...]) -> UInt[Array, "*shape"]:
    """Return 32 random bits an entry, by a hash of its index: a tenth of Threefry's time, and fused with their use."""
    step, start = jax.random.bits(key, (2,))
    return mixed(start + (step | 1) * jnp.arange(math.prod(shape), dtype=jnp.uint32)).reshape(shape)


class Block(nn.Module):
    """Pre-LayerNorm Transformer block with biases."""

    architecture: GPT

    def setup(self) -> None:
        """Create the dense layers, the LayerNorms and the places of dropout."""
        sizes = self.architecture

        def dense(width, std=_WEIGHT_STD):
            return Dense(width, use_bias=True, kernel_init=nn.initializers.normal(std))

        residual = _WEIGHT_STD / (2 * sizes.num_layers) ** 0.5
        norm = functools.partial(nn.LayerNorm, epsilon=1e-5)
        self.attention_norm = norm() if sizes.first_norm else lambda x: x
        self.query, self.key, self.value = (dense(sizes.embed_dim) for _ in range(3))
        self.attention_output = dense(sizes.embed_dim, residual)
        self.mlp_norm = norm()
        self.mlp_in, self.mlp_out = dense(4 * sizes.embed_dim), dense(sizes.embed_dim, residual)
        self.drop = Dropout(sizes.dropout)

    def project(self, x: Float[Array, "*rows D"], last: int = 0) -> tuple[Array, Array, Array]:
        """Return query (scaled by 1/sqrt(head size); `last`: of these last rows), key and value, split into heads."""
        x = self.attention_norm(x)
        return self.ask(x[..., -last:, :]), *self._heads(self.key(x), self.value(x))

    def ask(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows H d"]:
        """Return the queries of normalised rows."""
        (query,) = self._heads(self.query(x))
        return query / jnp.sqrt(query.shape[-1])

    def _heads(self, *rows: Array) -> tuple[Array, ...]:
        heads = self.architecture.num_heads
        return tuple(y.reshape(*y.shape[:-1], heads, y.shape[-1] // heads) for y in rows)

    def attend(self, query: Array, key: Array, value: Array, memory: tuple[Array, Array]) -> Float[Array, "B n D"]:
        """Return the attention block's output (Eq. 3's A): the heads' outputs, projected."""
        return self.attention_output(attend(query, key, value, memory, self.drop))

    def finish(self, x: Float[Array, "*rows D"], attended: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        """Add the attention block's output and the MLP's to the residual stream."""
        x = x + self.drop(attended)
        return x + self.drop(self.mlp_out(nn.gelu(self.mlp_in(self.mlp_norm(x)))))


class Embedding(nn.Module):
    """Embeddings of tokens and of positions, both learned."""

    architecture: GPT

    def setup(self) -> None:
        """Create both tables."""
        sizes, draw = self.architecture, nn.initializers.normal(_WEIGHT_STD)
        self.tokens = self.param("tokens", draw, (sizes.num_tokens, sizes.embed_dim))
        self.positions = self.param("positions", draw, (sizes.pads + sizes.rows, sizes.embed_dim))

    def __call__(self) -> tuple[Array, Array]:
        """Return both tables."""
        return self.tokens, self.positions


class Torso(nn.Module):
    """The blocks."""

    architecture: GPT

    def setup(self) -> None:
        """Create the blocks."""
        self.blocks = [Block(self.architecture) for _ in range(self.architecture.num_layers)]


class Unembedding(nn.Module):
    """LayerNorm and head."""

    architecture: GPT

    def setup(self) -> None:
        """Create both."""
        self.norm = nn.LayerNorm(epsilon=1e-5)
        self.head = Dense(self.architecture.num_tokens, kernel_init=nn.initializers.normal(_WEIGHT_STD))

    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows K"]:
        """Return log-probabilities, nats."""
        return jax.nn.log_softmax(self.head(self.norm(x)))


class Layer(NamedTuple):
    """What one block did with a batch: what its attention read, its attention block's output, and its output."""

    reading: Reading  # (B, H, n, d) and so on, n content rows
    attended: Float[Array, "B n D"]
    output: Float[Array, "B n D"]


class Network(nn.Module):
    """Embedding -> blocks -> unembedding."""

    architecture: GPT

    def setup(self) -> None:
        """Create the three parts; their names are the top-level keys of the parameters."""
        self.embedding = Embedding(self.architecture)
        self.torso = Torso(self.architecture)
        self.unembedding = Unembedding(self.architecture)
        self.drop = Dropout(self.architecture.dropout)

    def create(self) -> Array:
        """Run once, so that every parameter exists."""
        length = 2 * self.architecture.size
        return self.predict(self.prompt(NO_PREFIX, length), jnp.zeros((1, length), jnp.int32))

    def prompt(self, prefix: Prefix, length: int) -> State:
        """Read the pads, or the prefix in their place: each block's keys and values, and the first block's choices.

        Rows of input or embedding stand at the first pads' places. Rows given layer by layer replace what each block's
        attention reads there (Section 5), without position; the residual stream there stays.
        """
        sizes = self.architecture
        if length != 2 * sizes.size:
            raise ValueError(f"length = {length}: must be {2 * sizes.size}, the digits and their answer")
        if prefix.length > sizes.pads:
            raise ValueError(f"prefix = {prefix.length} rows: at most the {sizes.pads} pads of this network")
        tokens, positions = self.embedding()
        rows = jnp.broadcast_to(tokens[0], (sizes.pads, sizes.embed_dim))
        given = prefix.inputs @ tokens if prefix.inputs is not None else prefix.embeddings
        if given is not None:
            rows = jnp.concatenate([given, rows[len(given) :]])
        x, memory = self.drop(rows + positions[: sizes.pads]), []
        for index, block in enumerate(self.torso.blocks):
            seen = x
            if prefix.layers is not None:
                seen = jnp.concatenate([prefix.layers[index], x[prefix.length :]])
            query, key, value = block.project(seen)
            memory.append((key, value))
            x = block.finish(x, block.attend(query[None], key[None], value[None], (key[:0], value[:0]))[0])
        places = positions[sizes.pads :, None]
        choices = self.drop(tokens[None] + places)  # (n, K, D): every token at every position
        return {"memory": memory, "choices": choices, "projected": self.torso.blocks[0].project(choices)}

    def predict(self, state: State, tokens: Int[Array, "B N"]) -> Float[Array, "B size K"]:
        """Predict the answer's tokens from the state and the tokens before each."""
        sizes, blocks = self.architecture, self.torso.blocks
        choice = jax.nn.one_hot(tokens[:, :-1], sizes.num_tokens)
        x, rows = pick(choice, state["choices"]), [pick(choice, y) for y in state["projected"]]
        for index, block in enumerate(blocks):
            last = sizes.size if index == len(blocks) - 1 else 0  # there, only what predicts is still needed
            if index:
                rows = block.project(x, last)
            x, rows = x[:, -last:], (rows[0][:, -last:], *rows[1:])
            x = block.finish(x, block.attend(*rows, state["memory"][index]))
        return self.unembedding(x)

    def inspect(self, prefix: Prefix, tokens: Int[Array, "B N"]) -> list[Layer]:
        """Return what every block reads, writes and hands on, for all rows of content."""
        state, found = self.prompt(prefix, tokens.shape[1]), []
        x = pick(jax.nn.one_hot(tokens[:, :-1], self.architecture.num_tokens), state["choices"])
        for block, memory in zip(self.torso.blocks, state["memory"], strict=True):
            rows = block.project(x)
            attended = block.attend(*rows, memory)
            x = block.finish(x, attended)
            query, key, value = (y.swapaxes(1, 2) for y in rows)
            past = (jnp.broadcast_to(y.swapaxes(0, 1), (len(tokens), *y.swapaxes(0, 1).shape)) for y in memory)
            found.append(Layer(Reading(query, key, value, *past), attended, x))
        return found

    def decode(self, prefix: Prefix, inputs: Int[Array, "B size"]) -> Int[Array, "B size"]:
        """Write answers by greedy decoding, one row at a time, with the keys and values of those before."""
        sizes, state = self.architecture, self.prompt(prefix, 2 * self.architecture.size)
        shape = (sizes.num_layers, len(inputs), sizes.rows, sizes.num_heads, sizes.embed_dim // sizes.num_heads)
        given = jnp.pad(inputs.T, ((0, sizes.size - 1), (0, 0)))

        def read(network, carry, step):
            cache, said = carry
            place, token = step
            token = jnp.where(place < sizes.size, token, said)
            x = state["choices"][place][token][:, None]
            for index, block in enumerate(network.torso.blocks):
                query, *new = block.project(x)
                cache = tuple(
                    jax.lax.dynamic_update_slice(old, y[None], (index, 0, place, 0, 0))
                    for old, y in zip(cache, new, strict=True)
                )
                x = block.finish(x, block.attention_output(_attend_up_to(place, query, cache, state["memory"], index)))
            said = network.unembedding(x)[:, 0].argmax(-1).astype(jnp.int32)
            return (cache, said), said

        carry = ((jnp.zeros(shape), jnp.zeros(shape)), jnp.zeros(len(inputs), jnp.int32))
        scan = nn.scan(read, variable_broadcast="params", split_rngs={"params": False})
        _, said = scan(self, carry, (jnp.arange(sizes.rows), given))
        return said[-sizes.size :].T


def _attend_up_to(place: Array, query: Array, cache: tuple, memory: list, index: int) -> Float[Array, "B 1 D"]:
    """Attention of one row over the pads' and over the cached rows up to its own place."""
    (keys, values), (past_key, past_value) = (y[index] for y in cache), memory[index]
    own = jnp.einsum("bihd,bjhd->bhij", query, keys)
    own = jnp.where(jnp.arange(keys.shape[1]) <= place, own, -jnp.inf)
    weights = jax.nn.softmax(jnp.concatenate([jnp.einsum("bihd,shd->bhis", query, past_key), own], axis=-1))
    past, own = jnp.split(weights, [len(past_key)], axis=-1)
    mixed = jnp.einsum("bhis,shd->bihd", past, past_value) + jnp.einsum("bhij,bjhd->bihd", own, values)
    return mixed.reshape(*mixed.shape[:2], -1)


@functools.partial(jax.jit, static_argnums=0)
def inspect(
    architecture: GPT, params: Params, tokens: Int[Array | np.ndarray, "B N"], prefix: Prefix = NO_PREFIX
) -> list[Layer]:
    """Return every block's reading, attention block output and output; products at the highest precision."""
    with jax.default_matmul_precision("highest"):
        return Network(architecture).apply({"params": params}, prefix, tokens, method="inspect")


@functools.partial(jax.jit, static_argnums=0)
def decode(
    architecture: GPT, params: Params, inputs: Int[Array | np.ndarray, "B size"], prefix: Prefix = NO_PREFIX
) -> Array:
    """Return the answers (B, size) that greedy decoding writes, keys and values cached."""
    return Network(architecture).apply({"params": params}, prefix, inputs, method="decode")
