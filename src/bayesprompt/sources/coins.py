"""Where sequences come from: a source draws a latent tau (a coin's bias, a die's faces), then tokens from it.

Every source samples in JAX and states its exact probabilities in NumPy float64, always as logs (nats):
`oracle_log_probs` for a reader who knows tau, `bayes_log_probs` for the Bayes predictor xi, who does not (Eq. 1-2).
Letters in shapes: N length, K tokens in the alphabet, C components of a mixture. Token 0 is "heads".
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray
from scipy.special import digamma, entr, gammaln, xlogy

from bayesprompt.checks import Counts, Tokens, UserError, check_counts, check_integer, check_tokens

# Parameters as one may write them. A source stores floats and tuples of floats (inside jit and vmap: tracers).
Number = float | int | np.number | Array
Vector = Sequence[Number] | np.ndarray | Array
Matrix = Sequence[Vector] | np.ndarray | Array
Evidence = Float[np.ndarray, "*batch"] | np.floating

_PROBABILITY = "in [0, 1]", lambda v: ((v >= 0) & (v <= 1)).all()
_POSITIVE = "finite and > 0", lambda v: ((v > 0) & (v < np.inf)).all()
_DISTRIBUTION = "in [0, 1], summing to 1", lambda v: (v >= 0).all() and (abs(v.sum(-1) - 1) <= 1e-6).all()


class Source:
    """Has `num_tokens` (K), `sample`, `oracle_log_probs`, `bayes_log_probs`."""

    def __post_init__(self):
        """Store every parameter as (tuples of) floats; ValueError unless it has its shape and lies in its range."""
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
                raise UserError(f"{name} = {shown}: {numbers if letters else 'a number'} {allowed}")
            object.__setattr__(self, name, _tuples(values.astype(np.float64).tolist()))


class Exchangeable(Source):
    """A source for which order does not matter: also has `predictive_log_probs`, `log_evidence`, `mean_entropy`."""

    def sample(
        self, key: PRNGKeyArray, batch: int, length: int
    ) -> tuple[Int[Array, "{batch} {length}"], Float[Array, "{batch} K"]]:
        """Draw `batch` sequences of `length` tokens, and the latent: token probabilities that each was drawn from."""
        check_integer("batch", batch, 1)
        check_integer("length", length, 1)
        latent_key, token_key = jax.random.split(key)
        latent = self._sample_latent(latent_key, batch)
        return _choose(jax.random.uniform(token_key, (batch, length)), latent[:, None, :]), latent

    def oracle_log_probs(
        self, tokens: Tokens, latent: Float[np.ndarray | Array, "*batch K"]
    ) -> Float[np.ndarray, "*batch N K"]:
        """log P(x_n = . | tau), n = 1..N: what one predicts who knows each sequence's `latent`."""
        tokens, probs = check_tokens(tokens, self.num_tokens), _normalised(latent)
        if probs.shape != (*tokens.shape[:-1], self.num_tokens):
            raise UserError(f"latent = array of shape {probs.shape}: {(*tokens.shape[:-1], self.num_tokens)}")
        return np.repeat(_log(probs)[..., None, :], tokens.shape[-1], axis=-2)

    def bayes_log_probs(self, tokens: Tokens) -> Float[np.ndarray, "*batch N K"]:
        """log xi(x_n = . | x_<n), n = 1..N (Eq. 2); row n uses the tokens before n only."""
        one_hot = np.eye(self.num_tokens)[check_tokens(tokens, self.num_tokens)]
        return self.predictive_log_probs(np.cumsum(one_hot, axis=-2) - one_hot)


class _Mixture(Exchangeable):
    """Finitely many known dice: reads `components` (C, K) and `weights` (C,)."""

    num_tokens = property(lambda self: len(self.components[0]))

    def _sample_latent(self, key, batch):
        uniform, weights = jax.random.uniform(key, (batch,)), jnp.asarray(self.weights, jnp.float32)
        return jnp.asarray(self.components, jnp.float32)[_choose(uniform, weights[None])]

    def _log_joint(self, counts: Counts) -> Float[np.ndarray, "*batch C"]:
        """log(weight x likelihood of one sequence with these counts), per component."""
        counts = check_counts(counts, self.num_tokens)[..., None, :]
        return xlogy(counts, _normalised(self.components)).sum(-1) + _log(_normalised(self.weights))

    def log_evidence(self, counts: Counts) -> Evidence:
        """log xi(one particular sequence with these `counts`) (Eq. 1), nats; -inf if no component admits it."""
        return np.logaddexp.reduce(self._log_joint(counts), axis=-1)

    def predictive_log_probs(self, counts: Counts) -> Float[np.ndarray, "*batch K"]:
        """log xi(next token = . | `counts`) (Eq. 2), nats; -inf for every token after evidence of probability 0."""
        log_joint = self._log_joint(counts)
        log_evidence = np.logaddexp.reduce(log_joint, axis=-1, keepdims=True)
        log_posterior = log_joint - np.where(np.isneginf(log_evidence), 0, log_evidence)  # -inf - -inf would be NaN
        return np.logaddexp.reduce(log_posterior[..., None] + _log(_normalised(self.components)), axis=-2)

    def mean_entropy(self) -> float:
        """E_tau[H(tau)], nats per token: the log-loss that remains to one who knows tau."""
        return float(_normalised(self.weights) @ entr(_normalised(self.components)).sum(-1))


class _Dirichlet(Exchangeable):
    """A die whose faces are Dirichlet-distributed: reads `concentration` (K,)."""

    num_tokens = property(lambda self: len(self.concentration))

    def _sample_latent(self, key, batch):
        return jax.random.dirichlet(key, jnp.asarray(self.concentration, jnp.float32), (batch,))

    def log_evidence(self, counts: Counts) -> Evidence:
        """log xi(one particular sequence with these `counts`) (Eq. 1), nats: a ratio of Beta functions."""
        prior = np.asarray(self.concentration, np.float64)
        return _log_beta(prior + check_counts(counts, self.num_tokens)) - _log_beta(prior)

    def predictive_log_probs(self, counts: Counts) -> Float[np.ndarray, "*batch K"]:
        """log xi(next token = . | `counts`) (Eq. 2), nats; fractional counts too. All ones: Laplace's rule."""
        return _log(_normalised(check_counts(counts, self.num_tokens) + np.asarray(self.concentration, np.float64)))

    def mean_entropy(self) -> float:
        """E_tau[H(tau)], nats per token: the log-loss that remains to one who knows tau."""
        prior = np.asarray(self.concentration, np.float64)
        return float(digamma(prior.sum() + 1) - _normalised(prior) @ digamma(prior + 1))


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
class Markov(Source):
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
            token = _choose(uniform, probs)
            return transition[token], token

        uniforms = jax.random.uniform(key, (length, batch))
        return jax.lax.scan(step, jnp.tile(initial, (batch, 1)), uniforms)[1].T, None

    def bayes_log_probs(self, tokens: Tokens) -> Float[np.ndarray, "*batch N K"]:
        """log P(x_n = . | x_(n-1)), n = 1..N."""
        before = np.insert(check_tokens(tokens, self.num_tokens), 0, -1, axis=-1)[..., :-1]
        return _log(_normalised((*self.transition, self.initial)))[before]  # -1, the last row, predicts the first token

    def oracle_log_probs(self, tokens: Tokens, latent: None = None) -> Float[np.ndarray, "*batch N K"]:
        """The same: nothing about the chain is hidden."""
        return self.bayes_log_probs(tokens)


SOURCES = (Coin, CoinMixture, BetaCoins, Categorical, CategoricalMixture, DirichletCategorical, Markov)


def _register(cls: type) -> None:
    """Make a source a pytree whose leaves are its parameters: a jitted function compiles once for all their values."""
    names = [field.name for field in dataclasses.fields(cls)]

    def unflatten(_, values):  # not through __init__: JAX also puts tracers and placeholders here, nothing to check
        source = object.__new__(cls)
        vars(source).update(zip(names, values, strict=True))
        return source

    jax.tree_util.register_pytree_node(cls, lambda source: ([getattr(source, name) for name in names], None), unflatten)


for _cls in SOURCES:
    _register(_cls)


def to_config(source: Source) -> dict:
    """Describe a source in JSON's types: `Coin(0.2)` is `{"type": "Coin", "bias": 0.2}`."""
    values = {field.name: np.asarray(getattr(source, field.name)).tolist() for field in dataclasses.fields(source)}
    return {"type": type(source).__name__, **values}


def from_config(config: dict) -> Source:
    """Make the source that `to_config` described; ValueError for an unknown type or parameter."""
    types = {cls.__name__: cls for cls in SOURCES}
    if config.get("type") not in types:
        raise UserError(f"type = {config.get('type')}: one of {', '.join(types)}")
    cls, values = types[config["type"]], {name: value for name, value in config.items() if name != "type"}
    names = [field.name for field in dataclasses.fields(cls)]
    if set(values) != set(names):
        raise UserError(f"config = {config}: parameters of {cls.__name__} are {', '.join(names)}")
    return cls(**values)


def _tuples(values):
    return tuple(map(_tuples, values)) if isinstance(values, list) else values


def _choose(uniform, probs):
    """Turn uniform numbers (*,) in [0, 1) into tokens of `probs` (*, K): how many cumulative sums each has passed."""
    upto = jnp.cumsum(probs, axis=-1)
    scaled = uniform[..., None] * upto[..., -1:]  # by what rounding made of 1: a last face of probability 0 never comes
    return (scaled >= upto[..., :-1]).sum(-1, dtype=jnp.int32)


def _log(probs):
    return xlogy(1.0, probs)  # -inf at 0 without a warning


def _normalised(probs):
    """Make float64 distributions of what sums to 1 within float32's rounding or a source's tolerance."""
    probs = np.asarray(probs, np.float64)
    return probs / probs.sum(-1, keepdims=True)


def _log_beta(concentration):
    return gammaln(concentration).sum(-1) - gammaln(concentration.sum(-1))
