"""The model of the sorting experiments, of minGPT's family, as a `Predictor`: it reads digits, and predicts the answer.

Everything before the answer's first prediction that is the same for all sequences (pads or prefix) is computed once a
batch, as in the coin networks; so is all that a token at a position brings into the first block. Only the rows that
predict pass through the last block. None of this changes what is computed, but for dropout: there, what is computed
once a batch has one mask a batch.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from bayesprompt.checks import UserError, check_tokens
from bayesprompt.models.blocks import GPT, Dropout, Embedding, Torso, Unembedding
from bayesprompt.models.layers import State, Trace, behind, look_up, run_blocks
from bayesprompt.models.predictor import Params, Predictor
from bayesprompt.models.prefixes import NO_PREFIX, Prefix, check_prefix


@functools.lru_cache
def make_gpt(architecture: GPT) -> Predictor:
    """Return the predictor of this architecture, which predicts the answer's tokens only: (B, size, K).

    Its `prompt` and `predict` take a further argument, `key`: with it, dropout is on.
    """
    network = GPTNetwork(architecture)

    def call(method: str, params: Params, *args: Any, key: Array | None = None) -> Any:
        return network.apply({"params": params}, *args, method=method, rngs={} if key is None else {"dropout": key})

    return Predictor(
        init=lambda key: network.init(key, method="create")["params"],
        prompt=functools.partial(call, "prompt"),
        predict=functools.partial(call, "predict"),
        architecture=architecture,
        inspect=functools.partial(call, "inspect"),
        cores="repetitions",
    )


@functools.partial(jax.jit, static_argnums=0)
def _decode(architecture: GPT, params: Params, inputs: Array, prefix: Prefix) -> Any:
    return GPTNetwork(architecture).apply({"params": params}, prefix, inputs, method="decode")


def decode(
    architecture: GPT, params: Params, inputs: Int[Array | np.ndarray, "B size"], prefix: Prefix = NO_PREFIX
) -> Int[Array, "B size"]:
    """Return the answers that greedy decoding writes, keys and values cached.

    Raises UserError for inputs outside the alphabet, and for a prefix of another network.
    """
    return _decode(architecture, params, check_tokens(inputs, architecture.num_tokens), prefix)


class GPTNetwork(nn.Module):
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

    def rows(self, prefix: Prefix, length: int) -> Float[Array, "pads D"]:
        """Return the pads' rows with their positions; rows of input or embedding stand at the first pads' places."""
        sizes = self.architecture
        check_prefix(prefix, sizes)
        if length != 2 * sizes.size:
            raise UserError(f"length = {length}: must be {2 * sizes.size}, the digits and their answer")
        if prefix.length > sizes.pads:
            raise UserError(f"prefix = {prefix.length} rows: must be at most the {sizes.pads} pads of this network")
        tokens, positions = self.embedding()
        rows = jnp.broadcast_to(tokens[0], (sizes.pads, sizes.embed_dim))
        given = prefix.inputs @ tokens if prefix.inputs is not None else prefix.embeddings
        if given is not None:
            rows = jnp.concatenate([given, rows[len(given) :]])
        return self.drop(rows + positions[: sizes.pads])

    def prompt(self, prefix: Prefix, length: int) -> State:
        """Read the pads, or the prefix in their place: each block's keys and values, and the first block's choices.

        Rows given layer by layer replace what each block's attention reads at the pads (Section 5), without position;
        the residual stream there stays.
        """
        pads, rows = self.architecture.pads, self.rows(prefix, length)
        found, _ = run_blocks(self.torso.blocks, rows[None], slice(0, pads), prefix.layers)
        tokens, positions = self.embedding()
        choices = self.drop(tokens[None] + positions[pads:, None])  # (n, K, D): every token at every position
        read = [layer.reading for layer in found if layer.reading is not None]
        return {
            "memory": [(reading.prefix_key[0], reading.prefix_value[0]) for reading in read],
            "choices": choices,
            "projected": self.torso.blocks[0].project(choices),
        }

    def predict(self, state: State, tokens: Int[Array, "B N"]) -> Float[Array, "B size K"]:
        """Predict the answer's tokens from the state and the tokens before each."""
        sizes, read = self.architecture, tokens[:, :-1]
        query, key, value = state["projected"]
        # In the last block only the rows that predict ask.
        num_queries = [sizes.rows] * (sizes.num_layers - 1) + [sizes.size]
        x, query = (
            look_up(table[-num_queries[0] :], read[:, -num_queries[0] :]) for table in (state["choices"], query)
        )
        key, value = (look_up(table, read) for table in (key, value))
        for index, block in enumerate(self.torso.blocks):
            if index:
                (query, key, value), x = block.project(x, num_queries[index]), x[:, -num_queries[index] :]
            x = block.finish(x, block.attend(query, key, value, state["memory"][index]))
        return self.unembedding(x)

    def inspect(self, tokens: Int[Array, "B N"], prefix: Prefix) -> Trace:
        """Read the pads, or the prefix in their place, and the tokens row by row."""
        pads, rows = self.architecture.pads, self.rows(prefix, tokens.shape[1])
        table, positions = self.embedding()
        content = look_up(table[None] + positions[pads:, None], tokens[:, :-1])
        layers, x = run_blocks(self.torso.blocks, behind(rows, content), slice(0, pads), prefix.layers)
        return Trace(layers, self.unembedding(x[:, -self.architecture.size :]))

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

        nothing = jnp.zeros(shape, state["choices"].dtype)
        carry = ((nothing, nothing), jnp.zeros(len(inputs), jnp.int32))
        scan = nn.scan(read, variable_broadcast="params", split_rngs={"params": False})
        _, said = scan(self, carry, (jnp.arange(sizes.rows), given))
        return said[-sizes.size :].T
