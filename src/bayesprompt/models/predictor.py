"""The two networks of the paper: each reads a prompt once, and then predicts every next token of a batch.

Reading the prompt (`prompt`) is separate from predicting (`predict`): the start vector and the prefix are the same
for every sequence, so they are processed once a batch, not once a sequence. What they leave behind, the state, is
all that a prompt can change.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bayesprompt.devices import Cores
from bayesprompt.models.layers import State, dense_product
from bayesprompt.models.lstm import LSTM, LSTMTorso
from bayesprompt.models.prefixes import NO_PREFIX, Prefix
from bayesprompt.models.transformer import Transformer, TransformerTorso

Params = dict[str, Any]


@runtime_checkable
class Architecture(Protocol):
    """Sizes of a network, as the loop and the tuners read them."""

    num_tokens: int
    embed_dim: int
    num_layers: int
    sequences_in_cache: int
    cores: Cores

    def token_flops(self, length: int) -> int:
        """Return the nominal floating-point operations of one token's matrix products, forward, at this length."""
        ...


class Predictor(NamedTuple):
    """A sequential predictor pi_theta as pure functions; each row of its output predicts a token from those before it.

    init(key) -> params: nested dict with "embedding", "torso" and "unembedding".
    prompt(params, prefix, length) -> state: the model after the start vector and the prefix, ready for `length` tokens.
    predict(params, state, tokens (B, N)) -> log-probabilities (B, N, K), nats; or of the last n tokens (B, n, K).
    losses(params, state, tokens) -> what these tokens cost (B, n), nats; without it, they are read off `predict`.
    """

    init: Callable[[Array], Params]
    prompt: Callable[[Params, Prefix, int], State]
    predict: Callable[[Params, State, Array], Array]
    architecture: Architecture
    losses: Callable[[Params, State, Array], Array] | None = None

    def token_losses(
        self, params: Params, state: State, tokens: Int[Array, "B N"], **mask: Array
    ) -> Float[Array, "B n"]:
        """Return -log p(x_n) of all tokens, or of the last ones, in nats, differentiable (Eq. 3's summands)."""
        if self.losses is not None:
            return self.losses(params, state, tokens, **mask)
        log_probs = self.predict(params, state, tokens, **mask)
        return log_loss(log_probs, tokens[:, -log_probs.shape[1] :])

    def apply(self, params: Params, tokens: Int[Array, "B N"], prefix: Prefix = NO_PREFIX) -> Float[Array, "B n K"]:
        """Return log pi(x_n = . | s_1:L, x_<n) in nats for n = 1..N, or the last ones (Eq. 7's summands)."""
        return self.predict(params, self.prompt(params, prefix, tokens.shape[1]), tokens)


@functools.lru_cache
def make_predictor(architecture: Transformer | LSTM) -> Predictor:
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


class Network(nn.Module):
    """Embedding -> torso -> unembedding."""

    architecture: Transformer | LSTM

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
