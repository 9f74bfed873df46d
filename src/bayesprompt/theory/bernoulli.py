"""Any belief about a coin's bias, made of point masses and pieces of Beta densities, and what flips make of it.

The likelihood of flips is theta^heads (1 - theta)^tails, so a piece theta^(alpha - 1) (1 - theta)^(beta - 1) on an
interval stays one, with other exponents, and a posterior is again a `Prior`: Genewein et al. (2025), Appendix E,
"Bernoulli mixtures". All is in float64 and log-space, and holds for a hundred thousand flips as for none. Token 0 is
heads and plays the part of the paper's 1. Letters in shapes: C pieces, G grid points.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray
from scipy.special import xlog1py, xlogy

from bayesprompt.checks import Counts, UserError, check_counts
from bayesprompt.sources.base import Evidence, Exchangeable, Number, Vector, log
from bayesprompt.sources.coins import BetaCoins, CoinMixture
from bayesprompt.theory.truncated_beta import moments, quantile

NOTHING = (0, 0)


class Piece(NamedTuple):
    """A density proportional to theta^(alpha - 1) (1 - theta)^(beta - 1) on [low, high], or a point if low == high."""

    low: float = 0.0
    high: float = 1.0
    alpha: float = 1.0
    beta: float = 1.0


@dataclass(frozen=True)
class Prior(Exchangeable):
    """A belief about P(heads), `pieces` with `log_weights`; `points`, `beta`, `uniform`, `gap` and `mixture` make it.

    It is a source as well, and so works wherever coins do, as in `exact_regret`. Its statistics take `counts` (*batch,
    2) of heads and tails read so far, by default none, and raise ValueError for counts that have probability 0.
    """

    pieces: tuple[Piece, ...]
    log_weights: tuple[float, ...]
    num_tokens = 2

    def __post_init__(self):
        """Store floats; ValueError unless every piece is a density or a point and the weights sum to 1."""
        pieces = tuple(Piece(*map(float, piece)) for piece in self.pieces)
        for piece in pieces:
            if not 0 <= piece.low <= piece.high <= 1:
                raise UserError(f"low, high = {piece.low}, {piece.high}: must satisfy 0 <= low <= high <= 1")
            BetaCoins(piece.alpha, piece.beta)  # refuses what is not positive
        check_weights(np.exp(self.log_weights).tolist(), len(pieces))
        log_weights = np.asarray(self.log_weights, np.float64) - np.logaddexp.reduce(self.log_weights)
        object.__setattr__(self, "pieces", pieces)
        object.__setattr__(self, "log_weights", tuple(log_weights.tolist()))

    @classmethod
    def points(cls, biases: Vector, weights: Vector) -> "Prior":
        """Believe in coins of known `biases` (C,), each with probability `weights` (C,)."""
        coins = CoinMixture(biases, weights)
        return cls(tuple(Piece(bias, bias) for bias in coins.biases), tuple(log(coins.weights).tolist()))

    @classmethod
    def beta(cls, alpha: Number = 1.0, beta: Number = 1.0, low: Number = 0.0, high: Number = 1.0) -> "Prior":
        """Believe in Beta(`alpha`, `beta`), restricted to [`low`, `high`]."""
        return cls((Piece(low, high, alpha, beta),), (0.0,))

    @classmethod
    def uniform(cls, low: Number = 0.0, high: Number = 1.0) -> "Prior":
        """Believe in all biases from `low` to `high` alike."""
        return cls.beta(1.0, 1.0, low, high)

    @classmethod
    def gap(cls, low: Number, high: Number) -> "Prior":
        """Believe in all biases alike, but in none between `low` and `high`; the paper's example is 1/3 and 2/3."""
        if not 0 < low <= high < 1:
            raise UserError(f"low, high = {low}, {high}: must satisfy 0 < low <= high < 1")
        outside = low + 1 - high
        return cls.mixture([cls.uniform(0, low), cls.uniform(high, 1)], (low / outside, (1 - high) / outside))

    @classmethod
    def mixture(cls, priors: "Sequence[Prior]", weights: Vector) -> "Prior":
        """Believe in each of `priors` (C,) with probability `weights` (C,)."""
        log_weights = log(check_weights(weights, len(priors)))
        parts = [own + np.asarray(prior.log_weights) for own, prior in zip(log_weights, priors, strict=True)]
        return cls(tuple(piece for prior in priors for piece in prior.pieces), tuple(np.concatenate(parts).tolist()))

    @cached_property
    def _columns(self):
        return np.asarray(self.pieces, np.float64).T  # low, high, alpha, beta, each (C,)

    @cached_property
    def _log_mass(self):
        low, high, alpha, beta = self._columns
        return np.where(low < high, moments(alpha, beta, low, high).log_mass, 0.0)

    @property
    def weights(self) -> Float[np.ndarray, " C"]:
        """The probability of each piece."""
        return np.exp(self.log_weights)

    @property
    def is_discrete(self) -> bool:
        """Whether all pieces that have weight are point masses."""
        return all(piece.low == piece.high for piece in self._alive())

    @property
    def is_density(self) -> bool:
        """Whether no piece that has weight is a point mass."""
        return all(piece.low < piece.high for piece in self._alive())

    def _alive(self):
        return [piece for piece, log_weight in zip(self.pieces, self.log_weights, strict=True) if log_weight > -np.inf]

    def posterior(self, heads: Number, tails: Number) -> "Prior":
        """Return the belief after `heads` and `tails`: the same pieces in order, with other exponents and weights."""
        log_weights, _ = self._read(np.array([heads, tails], np.float64))
        pieces = [p if p.low == p.high else p._replace(alpha=p.alpha + heads, beta=p.beta + tails) for p in self.pieces]
        return Prior(tuple(pieces), tuple(log_weights.tolist()))

    def _joint(self, counts: Counts):
        """Return log(weight x likelihood of a sequence with these counts) and moments after it, of each piece."""
        counts = check_counts(counts, 2)
        heads, tails = counts[..., :1], counts[..., 1:]
        low, high, alpha, beta = self._columns
        after = moments(alpha + heads, beta + tails, low, high)
        likelihood = np.where(low < high, after.log_mass - self._log_mass, xlogy(heads, low) + xlog1py(tails, -low))
        return likelihood + self.log_weights, after

    def _read(self, counts: Counts):
        """Return log posterior weights and moments of the pieces (*batch, C); ValueError where there are none."""
        joint, after = self._joint(counts)
        evidence = np.logaddexp.reduce(joint, axis=-1, keepdims=True)
        if np.isneginf(evidence).any():
            wrong = check_counts(counts, 2)[np.isneginf(evidence[..., 0])].reshape(-1, 2)[0]
            raise UserError(f"counts = {wrong.tolist()}: must be heads and tails that the prior does not rule out")
        return joint - evidence, after

    def log_evidence(self, counts: Counts) -> Evidence:
        """Return log zeta_w(one particular sequence with these `counts`), nats; it is -inf if no piece admits it."""
        return np.logaddexp.reduce(self._joint(counts)[0], axis=-1)

    def predictive_log_probs(self, counts: Counts) -> Float[np.ndarray, "*batch 2"]:
        """Return log zeta_w(next token = . | `counts`), nats; both are -inf after counts of probability 0."""
        joint, after = self._joint(counts)
        evidence = np.logaddexp.reduce(joint, axis=-1, keepdims=True)
        log_weights = joint - np.where(np.isneginf(evidence), 0, evidence)  # -inf - -inf would be NaN
        both = [np.logaddexp.reduce(log_weights + log(p), axis=-1) for p in (after.mean, after.rest)]
        return np.stack(both, axis=-1)

    def log_weights_after(self, counts: Counts) -> Float[np.ndarray, "*batch C"]:
        """Return the log posterior probability of each piece, -inf if it is ruled out."""
        return self._read(counts)[0]

    def mean(self, counts: Counts = NOTHING) -> Evidence:
        """Return E[theta | `counts`], the probability that the next flip is heads."""
        log_weights, after = self._read(counts)
        return (np.exp(log_weights) * after.mean).sum(-1)

    def variance(self, counts: Counts = NOTHING) -> Evidence:
        """Return Var[theta | `counts`]."""
        log_weights, after = self._read(counts)
        weights = np.exp(log_weights)
        mean = (weights * after.mean).sum(-1, keepdims=True)
        return (weights * (after.variance + (after.mean - mean) ** 2)).sum(-1)

    def probability(self, low: Number, high: Number, counts: Counts = NOTHING) -> Evidence:
        """Return P(`low` <= theta <= `high` | `counts`)."""
        lows, highs, alpha, beta = self._columns
        log_weights, after = self._read(counts)
        counts = check_counts(counts, 2)
        start, stop = np.maximum(low, lows), np.minimum(high, highs)
        part = moments(alpha + counts[..., :1], beta + counts[..., 1:], start, np.maximum(start, stop)).log_mass
        inside = np.exp(np.where(start < stop, part, -np.inf) - np.where(lows < highs, after.log_mass, 0.0))
        return (np.exp(log_weights) * np.where(lows < highs, inside, start <= stop)).sum(-1)

    def mean_entropy(self) -> float:
        """Return E_theta[H(theta)], nats per flip: the log-loss that remains if the coin is known."""
        return float(self.weights @ self._read(NOTHING)[1].coin_entropy)

    def log_density(self, bias: Float[np.ndarray, " G"]) -> Float[np.ndarray, " G"]:
        """Return log w(theta) at each `bias` without point masses; it is -inf where there is no density."""
        low, high, _, _ = self._columns
        theta = np.asarray(bias, np.float64)[:, None]
        inside = (low <= theta) & ((theta < high) | ((theta == high) & (high == 1))) & (low < high)
        log_pieces = self.log_pieces(log(theta[:, 0]), xlog1py(1.0, -theta[:, 0]))
        return np.logaddexp.reduce(np.where(inside, log_pieces, -np.inf), axis=-1)

    def log_pieces(
        self, log_bias: Float[np.ndarray, " G"], log_rest: Float[np.ndarray, " G"]
    ) -> Float[np.ndarray, "G C"]:
        """Return log(weight x density) of each piece, given log theta and log(1 - theta), also outside its interval."""
        low, high, alpha, beta = self._columns
        log_density = _times(alpha - 1, log_bias[:, None]) + _times(beta - 1, log_rest[:, None]) - self._log_mass
        return self.log_weights + np.where((low < high) & np.isfinite(self.log_weights), log_density, -np.inf)

    def sample_latent(self, key: PRNGKeyArray, batch: int) -> Float[Array, "{batch} 2"]:
        """Draw biases, and return the probabilities of heads and tails that each stands for."""
        uniforms = np.asarray(jax.random.uniform(key, (2, batch), np.float32), np.float64)
        chosen = (np.cumsum(self.weights)[:-1] <= uniforms[0][:, None]).sum(-1)
        low, high, alpha, beta = self._columns[:, chosen]
        bias = quantile(uniforms[1], alpha, beta, low, high)
        return jax.numpy.asarray(np.stack([bias, 1 - bias], axis=-1), jax.numpy.float32)


def check_weights(weights: Vector, count: int) -> tuple[float, ...]:
    """Return `weights` as floats; raises ValueError unless they are a distribution over `count` alternatives."""
    values = np.asarray(weights, np.float64)
    if values.shape != (count,) or not ((values >= 0).all() and abs(values.sum() - 1) <= 1e-6):
        raise UserError(f"weights = {values.tolist()}: must be {count} numbers in [0, 1], summing to 1")
    return tuple(values.tolist())


def _times(factor, logs):
    return factor * np.where(factor == 0, 0, logs)  # 0, not NaN, times -inf
