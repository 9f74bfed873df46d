"""The model of the sorting experiments, of minGPT's family, as a `Predictor`: it reads digits, and predicts the answer.

Everything before the answer's first prediction that is the same for all sequences (pads or prefix) is computed once a
batch, as in the core's networks; so is all that a token at a position brings into the first block. Only the rows that
predict pass through the last block. None of this changes what is computed, but for dropout: there, what is computed
once a batch has one mask a batch.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from bayesprompt.checks import UserError
from bayesprompt.measures.attention import Reading
from bayesprompt.models.blocks import GPT, Dropout, Embedding, Torso, Unembedding
from bayesprompt.models.layers import State
from bayesprompt.models.predictor import Params, Predictor
from bayesprompt.models.prefixes import NO_PREFIX, Prefix
from bayesprompt.models.transformer import pick


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
            raise UserError(f"length = {length}: must be {2 * sizes.size}, the digits and their answer")
        if prefix.length > sizes.pads:
            raise UserError(f"prefix = {prefix.length} rows: at most the {sizes.pads} pads of this network")
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
        # How many of the last rows are still needed as queries (0: all); in the last block, those that predict.
        last = [0] * (sizes.num_layers - 1) + [sizes.size]
        query, *others = state["projected"]
        x, query = (pick(choice[:, -last[0] :], y[-last[0] :]) for y in (state["choices"], query))
        rows = query, *(pick(choice, y) for y in others)
        for index, block in enumerate(blocks):
            if index:
                rows, x = block.project(x, last[index]), x[:, -last[index] :]
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
                kept = (y[index] for y in cache)
                x = block.finish(x, block.attend(query, *kept, state["memory"][index], place))
            said = network.unembedding(x)[:, 0].argmax(-1).astype(jnp.int32)
            return (cache, said), said

        carry = ((jnp.zeros(shape), jnp.zeros(shape)), jnp.zeros(len(inputs), jnp.int32))
        scan = nn.scan(read, variable_broadcast="params", split_rngs={"params": False})
        _, said = scan(self, carry, (jnp.arange(sizes.rows), given))
        return said[-sizes.size :].T


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
