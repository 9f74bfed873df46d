"""A sequential predictor as pure functions, and the two networks of Genewein et al. as such predictors.

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
import numpy as np
from jaxtyping import Array, Float, Int

from bayesprompt.checks import UserError, check_tokens
from bayesprompt.devices import Cores, part_size
from bayesprompt.models.layers import State, Trace, behind, one_hot
from bayesprompt.models.lstm import LSTM, LSTMTorso
from bayesprompt.models.prefixes import NO_PREFIX, Prefix, check_prefix
from bayesprompt.models.transformer import Transformer, TransformerTorso

Params = Any  # a pytree of float arrays; ours: a nested dict with "embedding", "torso" and "unembedding"


@runtime_checkable
class Architecture(Protocol):
    """Sizes of a network, as the tuners read them; hashable, so that equal sizes share compiled programs."""

    @property
    def num_tokens(self) -> int:
        """Size of the alphabet K."""

    @property
    def embed_dim(self) -> int:
        """Embedding width D."""

    @property
    def num_layers(self) -> int:
        """Number of layers whose attention a prefix can reach."""


class Predictor(NamedTuple):
    """A sequential predictor pi_theta; each row of its output predicts a token from the prefix and those before it.

    All functions are pure and traceable: they run under jit, vmap, grad and shard_map, and keep nothing between calls.
    A network of one's own needs the first four fields.

    - init(key) -> params: random weights, a pytree of float arrays.
    - prompt(params, prefix, length) -> state: the model after its prefix, ready for `length` tokens; any pytree of
      float arrays, differentiable in params and prefix. A model with nothing to compute beforehand returns the prefix.
    - predict(params, state, tokens (B, N)) -> log-probabilities (B, N, K), nats; or of the last n tokens (B, n, K).
      The last token is never read.
    - architecture: its sizes.
    - losses(params, state, tokens) -> what these tokens cost (B, n), nats; without it, they are read off `predict`.
    - inspect(params, tokens, prefix) -> Trace: what each layer does; `bayesprompt.models.trace` calls it.
    - sequences_in_cache: so many sequences are computed at a time on a CPU, whose cache holds their activations.
    - cores: what a CPU's cores share out among them (`bayesprompt.devices.Cores`).

    Where training draws dropout masks, prompt, predict and losses take a further argument, key.
    """

    init: Callable[[Array], Params]
    prompt: Callable[[Params, Prefix, int], State]
    predict: Callable[[Params, State, Array], Array]
    architecture: Any  # an Architecture
    losses: Callable[[Params, State, Array], Array] | None = None
    inspect: Callable[[Params, Array, Prefix], Trace] | None = None
    sequences_in_cache: int = 64
    cores: Cores = "batch"

    def token_losses(
        self, params: Params, state: State, tokens: Int[Array, "B N"], **mask: Array
    ) -> Float[Array, "B n"]:
        """Return -log p(x_n) of all tokens, or of the last ones, in nats, differentiable (Eq. 3's summands).

        A token outside the alphabet costs NaN.
        """
        if self.losses is not None:
            return self.losses(params, state, tokens, **mask)
        log_probs = self.predict(params, state, tokens, **mask)
        return nll(log_probs, tokens[:, -log_probs.shape[1] :])

    def apply(
        self, params: Params, tokens: Int[Array | np.ndarray, "B N"], prefix: Prefix = NO_PREFIX
    ) -> Float[Array, "B n K"]:
        """Return log pi(x_n = . | s_1:L, x_<n) in nats for n = 1..N, or the last ones (Eq. 7's summands).

        Raises UserError for tokens outside the alphabet (inside jit, where they are not known: NaN), and for a prefix
        of another network.
        """
        check_input(self.architecture, tokens, prefix)
        return self.predict(params, self.prompt(params, prefix, tokens.shape[1]), jnp.asarray(tokens))


def check_input(architecture: Architecture, tokens: Array | np.ndarray, prefix: Prefix) -> None:
    """Raise UserError for tokens not (B, N) or, where known, outside the alphabet, and for another network's prefix."""
    if np.ndim(tokens) != 2:
        raise UserError(f"tokens = array of shape {np.shape(tokens)}: must be (B, N)")
    if not isinstance(tokens, jax.core.Tracer):
        check_tokens(tokens, architecture.num_tokens)
    check_prefix(prefix, architecture)


def nll(log_probs: Float[Array, "B N K"], tokens: Int[Array, "B N"]) -> Float[Array, "B N"]:
    """Return -log p(x_n), nats, differentiable (Eq. 3's summands); NaN for a token outside the alphabet."""
    return -(log_probs * one_hot(tokens, log_probs.shape[-1])).sum(-1)


def predict_all(
    predictor: Predictor, params: Params, prefix: Prefix, tokens: Int[Array | np.ndarray, "B N"]
) -> Float[np.ndarray, "B n K"]:
    """Return log-probabilities, nats, in float64 storage, for many sequences, a part of them at a time.

    Raises UserError as `Predictor.apply` does.
    """
    check_input(predictor.architecture, tokens, prefix)
    parts = _predict_parts(predictor, params, prefix, in_parts(predictor, tokens))
    return np.asarray(parts, np.float64).reshape(len(tokens), *parts.shape[2:])


def in_parts(predictor: Predictor, tokens: Int[Array | np.ndarray, "B N"]) -> Int[Array, "P S N"]:
    """Return sequences in parts of as many as are computed at a time."""
    size = part_size(len(tokens), predictor.sequences_in_cache)
    return jnp.asarray(tokens).reshape(-1, size, tokens.shape[1])


@functools.partial(jax.jit, static_argnums=0)
def _predict_parts(predictor: Predictor, params: Params, prefix: Prefix, parts: Array) -> Array:
    state = predictor.prompt(params, prefix, parts.shape[-1])
    return jax.lax.map(lambda part: predictor.predict(params, state, part), parts)


@functools.lru_cache
def make_predictor(architecture: Transformer | LSTM) -> Predictor:
    """Return the predictor of this architecture; the same object for equal sizes, so compiled programs are shared."""
    network = Network(architecture)

    def call(method: str, params: Params, *args: Any) -> Any:
        return network.apply({"params": params}, *args, method=method)

    return Predictor(
        init=lambda key: network.init(key, method="create")["params"],
        prompt=functools.partial(call, "prompt"),
        predict=functools.partial(call, "predict"),
        architecture=architecture,
        inspect=functools.partial(call, "inspect"),
        sequences_in_cache=64 if isinstance(architecture, Transformer) else 256,
    )


class Network(nn.Module):
    """Embedding -> torso -> unembedding."""

    architecture: Any  # Transformer or LSTM

    def setup(self) -> None:
        """Create the three parts; their names are the top-level keys of the parameters."""
        self.embedding = nn.Dense(self.architecture.embed_dim)
        attends = isinstance(self.architecture, Transformer)
        self.torso = TransformerTorso(self.architecture) if attends else LSTMTorso(self.architecture)
        self.unembedding = nn.Dense(self.architecture.num_tokens)

    def create(self) -> Float[Array, "1 2 K"]:
        """Run once on two tokens, so that every parameter exists."""
        return self.predict(self.prompt(NO_PREFIX, 2), jnp.zeros((1, 2), jnp.int32))

    def rows(self, prefix: Prefix) -> Float[Array, "rows D"]:
        """Return the start vector (zeros in token space) and L prefix rows as embeddings (1 + L, D)."""
        check_prefix(prefix, self.architecture)
        start = self.embedding(jnp.zeros((1, self.architecture.num_tokens), jnp.float32))
        given = prefix.embeddings if prefix.layers is None else prefix.layers[0]
        if prefix.inputs is not None:
            given = self.embedding(prefix.inputs)
        return start if given is None else jnp.concatenate([start, given])

    def prompt(self, prefix: Prefix, length: int) -> State:
        """Read the start vector and the prefix, then prepare for `length` tokens."""
        vocabulary = self.embedding(jnp.eye(self.architecture.num_tokens, dtype=jnp.float32))
        return self.torso.prompt(self.rows(prefix), vocabulary, prefix.layers, length)

    def predict(self, state: State, tokens: Int[Array, "B N"]) -> Float[Array, "B N K"]:
        """Predict every token from the state and the tokens before it; the last token is never read."""
        first, later = self.torso.predict(state, tokens[:, :-1])
        return jax.nn.log_softmax(self.unembedding(behind(first[None], later)))

    def inspect(self, tokens: Int[Array, "B N"], prefix: Prefix) -> Trace:
        """Read start vector, prefix and tokens row by row."""
        rows = self.rows(prefix)
        data = self.embedding(one_hot(tokens[:, :-1], self.architecture.num_tokens))
        layers, x = self.torso.inspect(behind(rows, data), len(rows), prefix.layers)
        return Trace(layers, jax.nn.log_softmax(self.unembedding(x[:, len(rows) - 1 :])))
