"""The two networks of the paper: each reads a prompt once, and then predicts every next token of a batch.

Reading the prompt (`prompt`) is separate from predicting (`predict`): the start vector and the prefix are the same
for every sequence, so they are processed once a batch, not once a sequence. What they leave behind, the state, is
all that a prompt can change.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bayesprompt.prefixes import NO_PREFIX, Prefix

Params = dict[str, Any]
State = Any

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

    def __post_init__(self) -> None:
        """Raise ValueError for sizes below 1, or heads that do not divide the width."""
        _check_sizes(self)
        if self.embed_dim % self.num_heads or self.embed_dim % 2:
            raise ValueError(
                f"embed_dim = {self.embed_dim}: must be even and a multiple of num_heads = {self.num_heads}"
            )


@dataclass(frozen=True)
class LSTM:
    """Sizes of the LSTM (Section 4.1)."""

    num_tokens: int = 2
    embed_dim: int = 128
    hidden_dim: int = 128
    num_layers: int = 1
    sequences_in_cache: ClassVar[int] = 256

    def __post_init__(self) -> None:
        """Raise ValueError for sizes below 1."""
        _check_sizes(self)


Architecture = Transformer | LSTM


def _check_sizes(architecture: Architecture) -> None:
    for name, value in vars(architecture).items():
        low = 2 if name == "num_tokens" else 1
        if value < low:
            raise ValueError(f"{name} = {value}: must be >= {low}")


class Predictor(NamedTuple):
    """A sequential predictor pi_theta as pure functions; row n of its output predicts token n from x_<n.

    init(key) -> params: nested dict with "embedding", "torso" and "unembedding".
    prompt(params, prefix, length) -> state: the model after the start vector and the prefix, ready for `length` tokens.
    predict(params, state, tokens (B, N)) -> log-probabilities (B, N, K), nats.
    """

    init: Callable[[Array], Params]
    prompt: Callable[[Params, Prefix, int], State]
    predict: Callable[[Params, State, Array], Array]
    architecture: Architecture

    def apply(self, params: Params, tokens: Int[Array, "B N"], prefix: Prefix = NO_PREFIX) -> Float[Array, "B N K"]:
        """Return log pi(x_n = . | s_1:L, x_<n) in nats for n = 1..N (Eq. 7's summands)."""
        return self.predict(params, self.prompt(params, prefix, tokens.shape[1]), tokens)


@functools.lru_cache
def make_predictor(architecture: Architecture) -> Predictor:
    """Return the predictor of this architecture; the same object for equal sizes, so compiled programs are shared."""
    network = Network(architecture)
    return Predictor(
        init=lambda key: network.init(key, method="create")["params"],
        prompt=lambda params, prefix, length: network.apply({"params": params}, prefix, length, method="prompt"),
        predict=lambda params, state, tokens: network.apply({"params": params}, state, tokens, method="predict"),
        architecture=architecture,
    )


def log_loss(log_probs: Float[Array, "B N K"], tokens: Int[Array, "B N"]) -> Float[Array, "B N"]:
    """Return -log p(x_n), nats, differentiable (Eq. 3's summands)."""
    return -(log_probs * jax.nn.one_hot(tokens, log_probs.shape[-1])).sum(-1)


@jax.custom_vjp
def product(x: Float[Array, "rows D"], kernel: Float[Array, "D E"]) -> Float[Array, "rows E"]:
    """Return x @ kernel, with gradients that a CPU computes at full speed."""
    return x @ kernel


def _product_gradient(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    # By default XLA transposes the wide dy (recomputing the activation's derivative as it goes) to form dy.T @ x, and
    # reads the kernel column by column. Materialised first, dy is read once, and only the narrow operand turns.
    x, kernel = saved
    dy, transposed = jax.lax.optimization_barrier((dy, kernel.T))
    return dy @ transposed, x.T @ dy if kernel.shape[0] <= kernel.shape[1] else jax.lax.optimization_barrier(dy.T @ x).T


product.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), _product_gradient)


def dense_product(x: Array, kernel: Array, *_: Any, **__: Any) -> Array:
    """Apply `product` to the last axis of x: the dot_general of our dense layers."""
    return product(x.reshape(-1, x.shape[-1]), kernel).reshape(*x.shape[:-1], kernel.shape[-1])


Dense = functools.partial(nn.Dense, use_bias=False, dot_general=dense_product)


class Network(nn.Module):
    """Embedding -> torso -> unembedding."""

    architecture: Architecture

    def setup(self) -> None:
        """Create the three parts; their names are the top-level keys of the parameters."""
        self.embedding = nn.Dense(self.architecture.embed_dim)
        torso = TransformerTorso if isinstance(self.architecture, Transformer) else LSTMTorso
        self.torso = torso(self.architecture)
        self.unembedding = nn.Dense(self.architecture.num_tokens, dot_general=dense_product)

    def create(self) -> Float[Array, "1 2 K"]:
        """Run once on two tokens, so that every parameter exists."""
        return self.predict(self.prompt(NO_PREFIX, 2), jnp.zeros((1, 2), jnp.int32))

    def prompt(self, prefix: Prefix, length: int) -> State:
        """Read the start vector (zeros in token space) and the prefix, then prepare for `length` tokens."""
        rows = self.embedding(jnp.zeros((1, self.architecture.num_tokens)))
        if prefix.inputs is not None:
            rows = jnp.concatenate([rows, self.embedding(prefix.inputs)])
        elif prefix.embeddings is not None:
            rows = jnp.concatenate([rows, prefix.embeddings])
        elif prefix.layers is not None:
            rows = jnp.concatenate([rows, prefix.layers[0]])
        # A token has only K values: all that comes before positions mix is computed once a value, not once a token.
        vocabulary = self.embedding(jnp.eye(self.architecture.num_tokens))
        return self.torso.prompt(rows, vocabulary, prefix.layers, length)

    def predict(self, state: State, tokens: Int[Array, "B N"]) -> Float[Array, "B N K"]:
        """Predict every token from the state and the tokens before it; the last token is never read."""
        choice = jax.nn.one_hot(tokens[:, :-1], self.architecture.num_tokens)
        first, later = self.torso.predict(state, choice)
        outputs = jnp.concatenate([jnp.broadcast_to(first, (len(tokens), 1, first.shape[-1])), later], axis=1)
        return jax.nn.log_softmax(self.unembedding(outputs))


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


def pick(choice: Float[Array, "B n K"], table: Float[Array, "n K *row"]) -> Float[Array, "B n *row"]:
    """Look up, for every position, the row of the token that stands there (as a product: its gradient is one too)."""
    flat = jnp.einsum("bnk,nkd->bnd", choice, table.reshape(*table.shape[:2], math.prod(table.shape[2:])))
    return flat.reshape(*choice.shape[:2], *table.shape[2:])


def attend(query: Array, key: Array, value: Array, memory: tuple[Array, Array]) -> Float[Array, "B n D"]:
    """Causal softmax attention of (B, n, H, d) rows over themselves and over (S, H, d) shared rows before them."""
    past_key, past_value = memory
    size = query.shape[1]
    own = jnp.einsum("bihd,bjhd->bhij", query, key)
    own = jnp.where(jnp.tril(jnp.ones((size, size), bool)), own, -jnp.inf)
    weights = jax.nn.softmax(jnp.concatenate([jnp.einsum("bihd,shd->bhis", query, past_key), own], axis=-1))
    past, own = jnp.split(weights, [len(past_key)], axis=-1)
    mixed = jnp.einsum("bhis,shd->bihd", past, past_value) + jnp.einsum("bhij,bjhd->bihd", own, value)
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


class LSTMTorso(nn.Module):
    """LSTM layers; their parameters are those of flax's OptimizedLSTMCell."""

    architecture: LSTM

    def setup(self) -> None:
        """Create the cells."""
        self.cells = [nn.OptimizedLSTMCell(self.architecture.hidden_dim) for _ in range(self.architecture.num_layers)]

    def prompt(self, rows: Array, vocabulary: Array, layers: Array | None, length: int) -> State:
        """Keep every layer's cell and hidden state, and the first layer's input gates of every token."""
        if layers is not None:
            raise ValueError("prefix = layers: a prefix in every layer needs a Transformer, whose attention reads it")
        zeros = jnp.zeros((1, self.architecture.hidden_dim))
        if self.is_initializing():  # flax creates a cell's parameters when it is first called
            for index, cell in enumerate(self.cells):
                cell((zeros, zeros), zeros if index else rows[:1])
        states, x = [], rows[:, None]
        for cell in self.cells:
            kernel, recurrent, bias = gate_weights(cell)
            carry = (zeros, zeros)
            carry, x = jax.lax.scan(lambda c, g, r=recurrent: lstm_step(c, g, r), carry, x @ kernel + bias[None, None])
            states.append(carry)
        kernel, _, bias = gate_weights(self.cells[0])
        return {"first": x[-1, 0], "states": states, "gates": vocabulary @ kernel + bias[None]}

    def predict(self, state: State, choice: Float[Array, "B n K"]) -> tuple[Array, Array]:
        """Return the output of the prompt's last row (D,) and of the data rows (B, n, D)."""
        x = choice.swapaxes(0, 1)
        for index, (cell, start) in enumerate(zip(self.cells, state["states"], strict=True)):
            kernel, recurrent, bias = gate_weights(cell)
            # First layer: a token's input gates are looked up inside the step; later layers project the layer below.
            look_up, project = (lambda row: row @ state["gates"]), (lambda row, k=kernel, b=bias: row @ k + b[None])
            gates = project if index else look_up
            carry = jax.tree.map(lambda y: jnp.broadcast_to(y, (choice.shape[0], y.shape[-1])), start)
            _, x = jax.lax.scan(lambda c, row, g=gates, r=recurrent: lstm_step(c, g(row), r), carry, x)
        return state["first"], x.swapaxes(0, 1)


def gate_weights(cell: nn.OptimizedLSTMCell) -> tuple[Array, Array, Array]:
    """Return a cell's input kernel (D, 4H), recurrent kernel (H, 4H) and bias (4H,), gates in the order i, f, g, o."""
    params = cell.variables["params"]
    kernel, recurrent = (jnp.concatenate([params[s + g]["kernel"] for g in "ifgo"], axis=1) for s in "ih")
    return kernel, recurrent, jnp.concatenate([params["h" + g]["bias"] for g in "ifgo"])


def lstm_step(carry: tuple[Array, Array], gates: Array, recurrent: Array) -> tuple[tuple[Array, Array], Array]:
    """Advance cell and hidden state by one token, given its input gates (Hochreiter & Schmidhuber 1997)."""
    cell, hidden = carry
    i, f, g, o = jnp.split(gates + hidden @ recurrent, 4, axis=-1)
    cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
    hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
    return (cell, hidden), hidden
