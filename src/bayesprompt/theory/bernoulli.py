"""Any belief about a coin's bias, made of point masses and pieces of Beta densities, and what flips make of it.

The likelihood of flips is theta^heads (1 - theta)^tails, so a piece theta^(alpha - 1) (1 - theta)^(beta - 1) on an
interval stays one, with other exponents, and a posterior is again a `Prior` (Appendix E, "Bernoulli mixtures"). All in
float64 and log-space, for a hundred thousand flips as for none. "Heads" is token 0; it plays the part of the paper's 1.
Letters in shapes: C pieces, G grid points.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray
from scipy.special import xlog1py, xlogy

from bayesprompt.checks import Counts, Tokens, UserError, check_counts, check_integer, check_tokens
from bayesprompt.sources.coins import (
    BetaCoins,
    Coin,
    CoinMixture,
    Evidence,
    Exchangeable,
    Number,
    Vector,
)
from bayesprompt.theory.truncated_beta import moments, quantile

NOTHING = (0, 0)


class Piece(NamedTuple):
    """Density proportional to theta^(alpha - 1) (1 - theta)^(beta - 1) on [low, high]; a point mass if low == high."""

    low: float = 0.0
    high: float = 1.0
    alpha: float = 1.0
    beta: float = 1.0


@dataclass(frozen=True)
class Prior(Exchangeable):
    """A belief about P(heads): `pieces` with `log_weights`. Made by `points`, `beta`, `uniform`, `gap`, `mixture`, ...

    It is also a source, and so works wherever coins do: `sample`, `exact_regret`, `best_hard_prompt`. Statistics take
    `counts` (*batch, 2) of heads and tails read so far, by default none; ValueError where these have probability 0.
    """

    pieces: tuple[Piece, ...]
    log_weights: tuple[float, ...]
    num_tokens = 2

    def __post_init__(self):
        """Store floats; ValueError unless every piece is one and the weights sum to 1."""
        pieces = tuple(Piece(*map(float, piece)) for piece in self.pieces)
        for piece in pieces:
            if not 0 <= piece.low <= piece.high <= 1:
                raise UserError(f"low, high = {piece.low}, {piece.high}: 0 <= low <= high <= 1")
            BetaCoins(piece.alpha, piece.beta)  # refuses other than positive numbers
        _check_weights(np.exp(self.log_weights).tolist(), len(pieces))
        log_weights = np.asarray(self.log_weights, np.float64) - np.logaddexp.reduce(self.log_weights)
        object.__setattr__(self, "pieces", pieces)
        object.__setattr__(self, "log_weights", tuple(log_weights.tolist()))

    @classmethod
    def points(cls, biases: Vector, weights: Vector) -> "Prior":
        """Point masses: coins of known `biases` (C,), one chosen with probability `weights` (C,)."""
        return cls.from_source(CoinMixture(biases, weights))

    @classmethod
    def beta(cls, alpha: Number = 1.0, beta: Number = 1.0, low: Number = 0.0, high: Number = 1.0) -> "Prior":
        """Beta(`alpha`, `beta`), if wanted restricted to [`low`, `high`]."""
        return cls((Piece(low, high, alpha, beta),), (0.0,))

    @classmethod
    def uniform(cls, low: Number = 0.0, high: Number = 1.0) -> "Prior":
        """All biases in [`low`, `high`] alike."""
        return cls.beta(1.0, 1.0, low, high)

    @classmethod
    def piecewise(cls, edges: Vector, weights: Vector) -> "Prior":
        """Uniform between neighbouring `edges` (C + 1,), with probability `weights` (C,) for each interval."""
        return cls.mixture([cls.uniform(low, high) for low, high in itertools.pairwise(edges)], weights)

    @classmethod
    def gap(cls, low: Number, high: Number) -> "Prior":
        """All biases alike, but none between `low` and `high`; the paper's example is 1/3 and 2/3."""
        if not 0 < low <= high < 1:
            raise UserError(f"low, high = {low}, {high}: 0 < low <= high < 1")
        outside = low + 1 - high
        return cls.mixture([cls.uniform(0, low), cls.uniform(high, 1)], (low / outside, (1 - high) / outside))

    @classmethod
    def mixture(cls, priors: "Sequence[Prior]", weights: Vector) -> "Prior":
        """One of `priors` (C,), chosen with probability `weights` (C,)."""
        log_weights = _log(_check_weights(weights, len(priors)))
        parts = [log + np.asarray(prior.log_weights) for log, prior in zip(log_weights, priors, strict=True)]
        return cls(tuple(piece for prior in priors for piece in prior.pieces), tuple(np.concatenate(parts).tolist()))

    @classmethod
    def from_source(cls, source: Exchangeable) -> "Prior":
        """The belief of one who knows what coins a source deals in: a `Coin`, `CoinMixture` or `BetaCoins`."""
        if isinstance(source, BetaCoins):
            return cls.beta(source.alpha, source.beta)
        if isinstance(source, Coin):
            return cls((Piece(source.bias, source.bias),), (0.0,))
        if isinstance(source, CoinMixture):
            return cls(tuple(Piece(bias, bias) for bias in source.biases), tuple(_log(source.weights).tolist()))
        raise UserError(f"source = {source}: a Coin, CoinMixture or BetaCoins")

    @cached_property
    def _columns(self):
        return np.asarray(self.pieces, np.float64).T  # low, high, alpha, beta, each (C,)

    @cached_property
    def _log_mass(self):
        low, high, alpha, beta = self._columns
        return np.where(low < high, moments(alpha, beta, low, high).log_mass, 0.0)

    @property
    def weights(self) -> Float[np.ndarray, " C"]:
        """Probability of each piece."""
        return np.exp(self.log_weights)

    @property
    def is_discrete(self) -> bool:
        """Whether there are point masses only (as far as pieces have weight)."""
        return all(piece.low == piece.high for piece in self._alive())

    @property
    def is_density(self) -> bool:
        """Whether there is no point mass (as far as pieces have weight)."""
        return all(piece.low < piece.high for piece in self._alive())

    def _alive(self):
        return [piece for piece, log_weight in zip(self.pieces, self.log_weights, strict=True) if log_weight > -np.inf]

    def posterior(self, heads: Number, tails: Number) -> "Prior":
        """The belief after `heads` and `tails`: the same pieces in the same order, with other exponents and weights."""
        log_weights, _ = self._read(np.array([heads, tails], np.float64))
        pieces = [p if p.low == p.high else p._replace(alpha=p.alpha + heads, beta=p.beta + tails) for p in self.pieces]
        return Prior(tuple(pieces), tuple(log_weights.tolist()))

    def read(self, tokens: Tokens) -> "Prior":
        """The belief after a sequence of `tokens` (N,), 0 for heads and 1 for tails; ValueError for any other."""
        tokens = check_tokens(tokens, 2)
        return self.posterior(int((tokens == 0).sum()), int((tokens == 1).sum()))

    def _joint(self, counts: Counts):
        """log(weight x likelihood of one sequence with these counts), and moments after it, per piece (*batch, C)."""
        counts = check_counts(counts, 2)
        heads, tails = counts[..., :1], counts[..., 1:]
        low, high, alpha, beta = self._columns
        after = moments(alpha + heads, beta + tails, low, high)
        likelihood = np.where(low < high, after.log_mass - self._log_mass, xlogy(heads, low) + xlog1py(tails, -low))
        return likelihood + self.log_weights, after

    def _read(self, counts: Counts):
        """log posterior weights and moments of the pieces (*batch, C); ValueError where they do not exist."""
        joint, after = self._joint(counts)
        evidence = np.logaddexp.reduce(joint, axis=-1, keepdims=True)
        if np.isneginf(evidence).any():
            wrong = check_counts(counts, 2)[np.isneginf(evidence[..., 0])].reshape(-1, 2)[0]
            raise UserError(f"counts = {wrong.tolist()}: heads and tails that the prior does not rule out")
        return joint - evidence, after

    def log_evidence(self, counts: Counts) -> Evidence:
        """log zeta_w(one particular sequence with these `counts`), nats; -inf if no piece admits it."""
        return np.logaddexp.reduce(self._joint(counts)[0], axis=-1)

    def predictive_log_probs(self, counts: Counts) -> Float[np.ndarray, "*batch 2"]:
        """log zeta_w(next token = . | `counts`), nats; -inf for both tokens after evidence of probability 0."""
        joint, after = self._joint(counts)
        evidence = np.logaddexp.reduce(joint, axis=-1, keepdims=True)
        log_weights = joint - np.where(np.isneginf(evidence), 0, evidence)  # -inf - -inf would be NaN
        both = [np.logaddexp.reduce(log_weights + _log(p), axis=-1) for p in (after.mean, after.rest)]
        return np.stack(both, axis=-1)

    def log_weights_after(self, counts: Counts) -> Float[np.ndarray, "*batch C"]:
        """Log posterior probability of each piece, -inf if ruled out."""
        return self._read(counts)[0]

    def mean(self, counts: Counts = NOTHING) -> Evidence:
        """E[theta | `counts`], the probability that the next flip is heads."""
        log_weights, after = self._read(counts)
        return (np.exp(log_weights) * after.mean).sum(-1)

    def variance(self, counts: Counts = NOTHING) -> Evidence:
        """Var[theta | `counts`]."""
        log_weights, after = self._read(counts)
        weights = np.exp(log_weights)
        mean = (weights * after.mean).sum(-1, keepdims=True)
        return (weights * (after.variance + (after.mean - mean) ** 2)).sum(-1)

    def probability(self, low: Number, high: Number, counts: Counts = NOTHING) -> Evidence:
        """P(`low` <= theta <= `high` | `counts`)."""
        lows, highs, alpha, beta = self._columns
        log_weights, after = self._read(counts)
        counts = check_counts(counts, 2)
        start, stop = np.maximum(low, lows), np.minimum(high, highs)
        part = moments(alpha + counts[..., :1], beta + counts[..., 1:], start, np.maximum(start, stop)).log_mass
        inside = np.exp(np.where(start < stop, part, -np.inf) - np.where(lows < highs, after.log_mass, 0.0))
        return (np.exp(log_weights) * np.where(lows < highs, inside, start <= stop)).sum(-1)

    def mean_entropy(self) -> float:
        """E_theta[H(theta)], nats per flip: the log-loss that remains to one who knows the coin."""
        return float(self.weights @ self._read(NOTHING)[1].coin_entropy)

    def log_density(self, bias: Float[np.ndarray, " G"]) -> Float[np.ndarray, " G"]:
        """log w(theta) at each `bias`, leaving out point masses; -inf where there is no density."""
        low, high, _, _ = self._columns
        theta = np.asarray(bias, np.float64)[:, None]
        inside = (low <= theta) & ((theta < high) | ((theta == high) & (high == 1))) & (low < high)
        log_pieces = self.log_pieces(_log(theta[:, 0]), xlog1py(1.0, -theta[:, 0]))
        return np.logaddexp.reduce(np.where(inside, log_pieces, -np.inf), axis=-1)

    def log_pieces(
        self, log_bias: Float[np.ndarray, " G"], log_rest: Float[np.ndarray, " G"]
    ) -> Float[np.ndarray, "G C"]:
        """log(weight x density) of each piece, given log theta and log(1 - theta); also outside its interval."""
        low, high, alpha, beta = self._columns
        log_density = _times(alpha - 1, log_bias[:, None]) + _times(beta - 1, log_rest[:, None]) - self._log_mass
        return self.log_weights + np.where((low < high) & np.isfinite(self.log_weights), log_density, -np.inf)

    def sample_latent(self, key: PRNGKeyArray, batch: int) -> Float[Array, "{batch} 2"]:
        """Draw biases, and return the probabilities of heads and tails that each stands for."""
        uniforms = np.asarray(jax.random.uniform(key, (2, batch)), np.float64)
        chosen = (np.cumsum(self.weights)[:-1] <= uniforms[0][:, None]).sum(-1)
        low, high, alpha, beta = self._columns[:, chosen]
        bias = quantile(uniforms[1], alpha, beta, low, high)
        return jax.numpy.asarray(np.stack([bias, 1 - bias], axis=-1), jax.numpy.float32)


def oscillating_flips(length: int, low: Number, high: Number) -> Int[np.ndarray, " N"]:
    """Tokens whose frequency of heads never settles: heads until it is at `high`, tails until at `low`, and so on."""
    check_integer("length", length, 1)
    if not 0 < low < high < 1:
        raise UserError(f"low, high = {low}, {high}: 0 < low < high < 1")
    tokens, heads, token = np.zeros(length, np.int64), 0, 0
    for step in range(length):
        tokens[step] = token
        heads += token == 0
        if (token == 0 and heads >= high * (step + 1)) or (token == 1 and heads <= low * (step + 1)):
            token = 1 - token
    return tokens


def _check_weights(weights, count):
    return CoinMixture((0.5,) * count, weights).weights  # refuses what is no distribution over so many


def _log(probs):
    return xlogy(1.0, probs)  # -inf at 0 without a warning


def _times(factor, log):
    return factor * np.where(factor == 0, 0, log)  # 0, not NaN, times -inf
