"""What a source of sequences is, and what exchangeable sources share.

A source draws a latent tau (a coin's bias, a die's faces), then tokens from it. It samples in JAX and states its exact
probabilities in NumPy float64, always as logs (nats). One's own source derives from nothing: it is a dataclass that JAX
knows as a pytree of arrays, one for each field, and has what `Source` names; to train on it, `Sampler` is enough.

    @jax.tree_util.register_dataclass
    @dataclass(frozen=True)
    class Die:
        faces: Float[Array, " K"]
        num_tokens = property(lambda self: self.faces.shape[-1])

        def sample(self, key, batch, length):
            return jax.random.categorical(key, jnp.log(self.faces), shape=(batch, length)), None

Letters in shapes: N length, K tokens in the alphabet. Token 0 is "heads".
"""

import abc
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray
from scipy.special import xlogy

from bayesprompt.checks import Counts, Tokens, UserError, check_integer, check_tokens

# Parameters as one may write them. The package's sources store (tuples of) floats; inside jit and vmap, arrays.
Number = float | int | np.number | Array
Vector = Sequence[Number] | np.ndarray | Array
Matrix = Sequence[Vector] | np.ndarray | Array
Evidence = Float[np.ndarray, "*batch"] | np.floating


@runtime_checkable
class Sampler(Protocol):
    """What a network can be trained on: sequences of the tokens 0..K-1 (`num_tokens`: K, or None if not known)."""

    num_tokens: int | None

    def sample(self, key: PRNGKeyArray, batch: int, length: int) -> tuple[Int[Array, "{batch} {length}"], Any]:
        """Draw sequences, and each one's latent: a tree of arrays or None. Traced, as under jit and vmap."""


@runtime_checkable
class Source(Sampler, Protocol):
    """A sampler that also states its exact probabilities, in float64 outside of JAX: what regrets are measured with."""

    def oracle_log_probs(self, tokens: Tokens, latent: Any) -> Float[np.ndarray, "*batch N K"]:
        """Return log P(x_n = . | tau, x_<n), n = 1..N: what a reader predicts who knows each sequence's `latent`."""

    def bayes_log_probs(self, tokens: Tokens) -> Float[np.ndarray, "*batch N K"]:
        """Return log xi(x_n = . | x_<n), n = 1..N (Eq. 2), of the Bayes predictor xi, who does not know tau."""


class Exchangeable(abc.ABC):
    """A source for which order does not matter: what it says of a sequence depends on the counts (K,) of its tokens."""

    @property
    @abc.abstractmethod
    def num_tokens(self) -> int:
        """Size of the alphabet."""

    @abc.abstractmethod
    def sample_latent(self, key: PRNGKeyArray, batch: int) -> Float[Array, "{batch} K"]:
        """Draw the token probabilities of each sequence."""

    @abc.abstractmethod
    def log_evidence(self, counts: Counts) -> Evidence:
        """Return log xi(one particular sequence with these `counts`) (Eq. 1), nats."""

    @abc.abstractmethod
    def predictive_log_probs(self, counts: Counts) -> Float[np.ndarray, "*batch K"]:
        """Return log xi(next token = . | `counts`) (Eq. 2), nats."""

    @abc.abstractmethod
    def mean_entropy(self) -> float:
        """Return E_tau[H(tau)], nats a token: the log-loss that remains to a reader who knows tau."""

    def sample(
        self, key: PRNGKeyArray, batch: int, length: int
    ) -> tuple[Int[Array, "{batch} {length}"], Float[Array, "{batch} K"]]:
        """Draw `batch` sequences of `length` tokens, and the latent: token probabilities that each was drawn from."""
        check_integer("batch", batch, 1)
        check_integer("length", length, 1)
        latent_key, token_key = jax.random.split(key)
        latent = self.sample_latent(latent_key, batch)
        return choose(jax.random.uniform(token_key, (batch, length), jnp.float32), latent[:, None, :]), latent

    def oracle_log_probs(
        self, tokens: Tokens, latent: Float[np.ndarray | Array, "*batch K"]
    ) -> Float[np.ndarray, "*batch N K"]:
        """Return log P(x_n = . | tau), n = 1..N: what a reader predicts who knows each sequence's `latent`."""
        tokens, probs = check_tokens(tokens, self.num_tokens), normalised(latent)
        if probs.shape != (*tokens.shape[:-1], self.num_tokens):
            wanted = (*tokens.shape[:-1], self.num_tokens)
            raise UserError(f"latent = array of shape {probs.shape}: must have shape {wanted}")
        return np.repeat(log(probs)[..., None, :], tokens.shape[-1], axis=-2)

    def bayes_log_probs(self, tokens: Tokens) -> Float[np.ndarray, "*batch N K"]:
        """Return log xi(x_n = . | x_<n), n = 1..N (Eq. 2); row n uses the tokens before n only."""
        one_hot = np.eye(self.num_tokens)[check_tokens(tokens, self.num_tokens)]
        return self.predictive_log_probs(np.cumsum(one_hot, axis=-2) - one_hot)


def choose(uniform: Float[Array, "*#rows"], probs: Float[Array, "*#rows K"]) -> Int[Array, "..."]:
    """Turn uniform numbers in [0, 1) into tokens of `probs`: how many cumulative sums each has passed."""
    upto = jnp.cumsum(probs, axis=-1)
    scaled = uniform[..., None] * upto[..., -1:]  # by what rounding made of 1: a last face of probability 0 never comes
    return (scaled >= upto[..., :-1]).sum(-1, dtype=jnp.int32)


def log(probs):
    """Return the logarithm, which is -inf at 0 without a warning."""
    return xlogy(1.0, probs)


def normalised(probs):
    """Make float64 distributions of what sums to 1 within float32's rounding or a source's tolerance."""
    probs = np.asarray(probs, np.float64)
    return probs / probs.sum(-1, keepdims=True)
