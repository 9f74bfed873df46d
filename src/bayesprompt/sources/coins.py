"""The package's seven sources: known, mixed and random coins and dice, and chains.

Each is a frozen dataclass of floats and tuples of floats, which compare, hash and print by value; and a pytree with one
array for each field, so that a compiled function serves all their values. Letters in shapes: C components of a mixture.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray
from scipy.special import digamma, entr, gammaln, xlogy

from bayesprompt.checks import Counts, Tokens, UserError, check_counts, check_integer, check_tokens
from bayesprompt.sources.base import Evidence, Exchangeable, Matrix, Number, Vector, choose, log, normalised

_PROBABILITY = "in [0, 1]", lambda v: ((v >= 0) & (v <= 1)).all()
_POSITIVE = "finite and > 0", lambda v: ((v > 0) & (v < np.inf)).all()
_DISTRIBUTION = "in [0, 1], summing to 1", lambda v: (v >= 0).all() and (abs(v.sum(-1) - 1) <= 1e-6).all()


class _Parameters:
    """Fields by the rules of a subclass: for each its shape, in letters, and what its numbers must be, with a test."""

    def __init_subclass__(cls):
        jax.tree_util.register_pytree_with_keys(cls, cls._flatten, cls._unflatten)

    def __post_init__(self):
        """Store every parameter as (tuples of) floats; raises ValueError unless it has its shape and its range."""
        sizes = {}
        for name, (shape, allowed, test) in self._rules.items():
            given, letters = getattr(self, name), shape.split()
            if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(given)):
                continue
            try:
                values = np.asarray(given)
            except ValueError:  # rows of different lengths
                values = np.asarray(None)
            fits = values.dtype.kind in "fiu" and values.size > 0 and values.ndim == len(letters)
            for letter, size in zip(letters, values.shape, strict=True) if fits else ():
                fits &= sizes.setdefault(letter, size) == size
            if not fits or not test(values):
                numbers = " x ".join(str(sizes.get(letter, letter)) for letter in letters) + " numbers"
                shown = given if values.dtype == object else values.tolist()  # on one line
                raise UserError(f"{name} = {shown}: must be {numbers if letters else 'a number'} {allowed}")
            object.__setattr__(self, name, _tuples(values.astype(np.float64).tolist()))

    def _flatten(self):
        return [(jax.tree_util.GetAttrKey(name), _array(getattr(self, name))) for name in self._rules], None

    @classmethod
    def _unflatten(cls, _, values):  # not through __init__: JAX also puts tracers and placeholders here, not to check
        source = object.__new__(cls)
        vars(source).update(zip(cls._rules, values, strict=True))
        return source


def _tuples(values):
    return tuple(map(_tuples, values)) if isinstance(values, list) else values


def _array(value):
    """Return a field as one array: in float64, or as JAX's own where jit or vmap put tracers into it."""
    if not isinstance(value, float | tuple):  # an array already, or a placeholder
        return value
    traced = any(isinstance(number, jax.Array) for number in jax.tree.leaves(value))
    return jnp.asarray(value) if traced else np.asarray(value)


class _Mixture(_Parameters, Exchangeable):
    """Finitely many known dice: reads `components` (C, K) and `weights` (C,)."""

    num_tokens = property(lambda self: len(self.components[0]))

    def sample_latent(self: Any, key: PRNGKeyArray, batch: int) -> Array:
        uniform, weights = jax.random.uniform(key, (batch,), jnp.float32), jnp.asarray(self.weights, jnp.float32)
        return jnp.asarray(self.components, jnp.float32)[choose(uniform, weights[None])]

    def _log_joint(self: Any, counts: Counts) -> Float[np.ndarray, "*batch C"]:
        """log(weight x likelihood of one sequence with these counts), per component."""
        counts = check_counts(counts, self.num_tokens)[..., None, :]
        return xlogy(counts, normalised(self.components)).sum(-1) + log(normalised(self.weights))

    def log_evidence(self, counts: Counts) -> Evidence:
        """Return log xi(one particular sequence with these `counts`) (Eq. 1), nats; -inf if no component admits it."""
        return np.logaddexp.reduce(self._log_joint(counts), axis=-1)

    def predictive_log_probs(self: Any, counts: Counts) -> Float[np.ndarray, "*batch K"]:
        """Return log xi(next token = . | `counts`) (Eq. 2), nats; -inf for all after evidence of probability 0."""
        log_joint = self._log_joint(counts)
        log_evidence = np.logaddexp.reduce(log_joint, axis=-1, keepdims=True)
        log_posterior = log_joint - np.where(np.isneginf(log_evidence), 0, log_evidence)  # -inf - -inf would be NaN
        return np.logaddexp.reduce(log_posterior[..., None] + log(normalised(self.components)), axis=-2)

    def mean_entropy(self: Any) -> float:
        return float(normalised(self.weights) @ entr(normalised(self.components)).sum(-1))


class _Dirichlet(_Parameters, Exchangeable):
    """A die whose faces are Dirichlet-distributed: reads `concentration` (K,)."""

    num_tokens = property(lambda self: len(self.concentration))

    def sample_latent(self: Any, key: PRNGKeyArray, batch: int) -> Array:
        return jax.random.dirichlet(key, jnp.asarray(self.concentration, jnp.float32), (batch,), jnp.float32)

    def log_evidence(self: Any, counts: Counts) -> Evidence:
        """Return log xi(one particular sequence with these `counts`) (Eq. 1), nats: a ratio of Beta functions."""
        prior = np.asarray(self.concentration, np.float64)
        return _log_beta(prior + check_counts(counts, self.num_tokens)) - _log_beta(prior)

    def predictive_log_probs(self: Any, counts: Counts) -> Float[np.ndarray, "*batch K"]:
        """Return log xi(next token = . | `counts`) (Eq. 2), nats; fractional counts too. All ones: Laplace's rule."""
        return log(normalised(check_counts(counts, self.num_tokens) + np.asarray(self.concentration, np.float64)))

    def mean_entropy(self: Any) -> float:
        prior = np.asarray(self.concentration, np.float64)
        return float(digamma(prior.sum() + 1) - normalised(prior) @ digamma(prior + 1))


@dataclass(frozen=True)
class Categorical(_Mixture):
    """A known die: `probs` (K,)."""

    probs: Vector
    _rules = {"probs": ("K", *_DISTRIBUTION)}
    components = property(lambda self: (self.probs,))
    weights = (1.0,)


@dataclass(frozen=True)
class CategoricalMixture(_Mixture):
    """One of C known dice: `components` (C, K), chosen with probability `weights` (C,)."""

    components: Matrix
    weights: Vector
    _rules = {"components": ("C K", *_DISTRIBUTION), "weights": ("C", *_DISTRIBUTION)}


@dataclass(frozen=True)
class DirichletCategorical(_Dirichlet):
    """A random die: faces ~ Dirichlet(`concentration` (K,))."""

    concentration: Vector
    _rules = {"concentration": ("K", *_POSITIVE)}


@dataclass(frozen=True)
class Coin(_Mixture):
    """A known coin: P(token 0) = `bias`."""

    bias: Number
    _rules = {"bias": ("", *_PROBABILITY)}
    components = property(lambda self: ((self.bias, 1 - self.bias),))
    weights = (1.0,)


@dataclass(frozen=True)
class CoinMixture(_Mixture):
    """One of C known coins: P(token 0) = `biases` (C,), chosen with probability `weights` (C,)."""

    biases: Vector
    weights: Vector
    _rules = {"biases": ("C", *_PROBABILITY), "weights": ("C", *_DISTRIBUTION)}
    components = property(lambda self: tuple((bias, 1 - bias) for bias in self.biases))


@dataclass(frozen=True)
class BetaCoins(_Dirichlet):
    """A random coin: P(token 0) ~ Beta(`alpha`, `beta`); Beta(1, 1) is uniform, its Bayes predictor Laplace's rule."""

    alpha: Number = 1.0
    beta: Number = 1.0
    _rules = {"alpha": ("", *_POSITIVE), "beta": ("", *_POSITIVE)}
    concentration = property(lambda self: (self.alpha, self.beta))


@dataclass(frozen=True)
class Markov(_Parameters):
    """A known chain, where order matters: `initial` (K,), `transition` (K, K) from the row's to the column's token."""

    initial: Vector
    transition: Matrix
    _rules = {"initial": ("K", *_DISTRIBUTION), "transition": ("K K", *_DISTRIBUTION)}
    num_tokens = property(lambda self: len(self.initial))

    def sample(self, key: PRNGKeyArray, batch: int, length: int) -> tuple[Int[Array, "{batch} {length}"], None]:
        """Draw `batch` sequences of `length` tokens. The latent is None: the chain is known."""
        check_integer("batch", batch, 1)
        check_integer("length", length, 1)
        initial, transition = (jnp.asarray(probs, jnp.float32) for probs in (self.initial, self.transition))

        def step(probs, uniform):
            token = choose(uniform, probs)
            return transition[token], token

        uniforms = jax.random.uniform(key, (length, batch), jnp.float32)
        return jax.lax.scan(step, jnp.tile(initial, (batch, 1)), uniforms)[1].T, None

    def bayes_log_probs(self, tokens: Tokens) -> Float[np.ndarray, "*batch N K"]:
        """Return log P(x_n = . | x_(n-1)), n = 1..N."""
        before = np.insert(check_tokens(tokens, self.num_tokens), 0, -1, axis=-1)[..., :-1]
        return log(normalised((*self.transition, self.initial)))[before]  # -1, the last row, predicts the first token

    def oracle_log_probs(self, tokens: Tokens, latent: None = None) -> Float[np.ndarray, "*batch N K"]:
        """Return the same: nothing about the chain is hidden."""
        return self.bayes_log_probs(tokens)


def to_config(source: Any) -> dict:
    """Describe a source in JSON's types: `Coin(0.2)` is `{"type": "Coin", "bias": 0.2}`."""
    values = {field.name: np.asarray(getattr(source, field.name)).tolist() for field in dataclasses.fields(source)}
    return {"type": type(source).__name__, **values}


def _log_beta(concentration):
    return gammaln(concentration).sum(-1) - gammaln(concentration.sum(-1))
