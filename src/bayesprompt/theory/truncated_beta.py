"""Beta(alpha, beta) restricted to an interval: integrals, moments and quantiles that hold far out in the tails.

Where an incomplete beta function underflows, a piece of a prior still has a posterior: if a prior leaves out the biases
between 1/3 and 2/3, then ten thousand balanced flips leave mass only 589 nats below the peak that the prior cut out.
All functions take arrays of parameters. Letters in shapes: M parameter sets, Q quadrature nodes.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import betaincinv, betaln, digamma, entr, logit, xlog1py, xlogy

Values = Float[np.ndarray, "*#batch"]
Column = Float[np.ndarray, " M"]

# Gauss-Legendre on panels that halve towards an integrand's peak, out to where it is below exp(-40) of the peak.
_DROP, _PANELS, _ORDER = 40.0, 5, 16
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(_ORDER)
_ENDS = np.concatenate([[0.0], 0.5 ** np.arange(_PANELS)[::-1]])
_PLACES = (_ENDS[:-1, None] + np.diff(_ENDS)[:, None] * (_NODES + 1) / 2).ravel()  # from the peak, 0, to the end, 1
_SHARES = (np.diff(_ENDS)[:, None] * _WEIGHTS / 2).ravel()
_BLOCK = 4096  # parameter sets at a time: bounds memory


class Moments(NamedTuple):
    """Moments of Beta(alpha, beta) on [low, high], or of the point low == high; arrays of the parameters' shape."""

    log_mass: np.ndarray  # log of the integral of theta^(alpha - 1) (1 - theta)^(beta - 1); of a point: of its value
    mean: np.ndarray  # E[theta]
    rest: np.ndarray  # E[1 - theta], without cancellation
    variance: np.ndarray
    coin_entropy: np.ndarray  # E[H(theta)], nats


def moments(alpha: Values, beta: Values, low: Values, high: Values) -> Moments:
    """Return the moments of Beta(`alpha`, `beta`) on [`low`, `high`], in closed form on [0, 1] and for points."""
    alpha, beta, low, high = np.broadcast_arrays(alpha, beta, low, high)
    total = alpha + beta
    mean, rest = alpha / total, beta / total
    coin_entropy = digamma(total + 1) - mean * digamma(alpha + 1) - rest * digamma(beta + 1)
    whole = Moments(betaln(alpha, beta), mean, rest, mean * rest / (total + 1), coin_entropy)
    value = xlogy(alpha - 1, low) + xlog1py(beta - 1, -low)
    point = Moments(value, low, 1 - low, 0 * low, entr(low) + entr(1 - low))
    found = Moments(*(np.where(low == high, *both) for both in zip(point, whole, strict=True)))
    parts = np.flatnonzero((low < high) & ((low > 0) | (high < 1)))
    for start in range(0, len(parts), _BLOCK):
        block = parts[start : start + _BLOCK]
        part = _by_quadrature(*(x.flat[block] for x in (alpha, beta, low, high)))
        for values, into in zip(part, found, strict=True):
            into.flat[block] = values
    return found


def _by_quadrature(alpha, beta, low, high) -> Moments:
    rule = quadrature(alpha, beta, low, high)
    bias, rest = np.exp(rule.log_bias), np.exp(rule.log_rest)
    mean = (rule.weights * bias).sum(-1)
    variance = (rule.weights * (bias - mean[:, None]) ** 2).sum(-1)
    coin_entropy = -(rule.weights * (bias * rule.log_bias + rest * rule.log_rest)).sum(-1)
    return Moments(rule.log_mass, mean, (rule.weights * rest).sum(-1), variance, coin_entropy)


class Rule(NamedTuple):
    """Nodes and weights for means under M densities on intervals."""

    log_bias: Float[np.ndarray, "M Q"]  # log theta at the nodes
    log_rest: Float[np.ndarray, "M Q"]  # log(1 - theta)
    weights: Float[np.ndarray, "M Q"]  # sum to 1
    log_mass: Float[np.ndarray, " M"]  # as in `Moments`


def quadrature(alpha: Column, beta: Column, low: Column, high: Column) -> Rule:
    """Make a rule for means under Beta(`alpha`, `beta`) on [`low`, `high`], low < high, exact up to rounding.

    With u = log(theta / (1 - theta)) the integrand is theta^alpha (1 - theta)^beta du: smooth, and log-concave for all
    alpha, beta > 0. (Below 1/2 it turns within a small part of its width, and errors grow, to 1e-7 at 0.05.)
    """
    left, right = logit(low), logit(high)
    top = np.clip(np.log(alpha / beta), left, right)
    log_bias, log_rest = logs(top)
    log_top = alpha * log_bias + beta * log_rest
    goal = log_top - _DROP
    # The log integrand is below alpha * u and below -beta * u, so out here it is below the goal.
    ends = np.stack([goal / alpha, -goal / beta])
    for _ in range(15):  # Newton's method on a concave function: every step comes closer, none goes past
        log_bias, log_rest = logs(ends)
        excess = alpha * log_bias + beta * log_rest - goal
        ends = ends - excess / (alpha * np.exp(log_rest) - beta * np.exp(log_bias))
    spans = np.stack([np.maximum(ends[0], left), np.minimum(ends[1], right)], axis=-1) - top[:, None]
    nodes = (top[:, None, None] + spans[..., None] * _PLACES).reshape(len(top), 2 * len(_PLACES))
    log_bias, log_rest = logs(nodes)
    heights = np.exp(alpha[:, None] * log_bias + beta[:, None] * log_rest - log_top[:, None])
    weights = heights * (np.abs(spans)[..., None] * _SHARES).reshape(nodes.shape)
    total = weights.sum(-1, keepdims=True)
    return Rule(log_bias, log_rest, weights / total, log_top + np.log(total[:, 0]))


def logs(u: Values) -> tuple[Values, Values]:
    """Return log theta and log(1 - theta) for `u` = log(theta / (1 - theta)), each with full relative precision."""
    log_larger = -np.log1p(np.exp(-np.abs(u)))
    return log_larger + np.minimum(u, 0), log_larger - np.maximum(u, 0)


def quantile(probability: Values, alpha: Values, beta: Values, low: Values, high: Values) -> Values:
    """Return the bias below which Beta(`alpha`, `beta`) on [`low`, `high`] has this probability."""
    arrays = np.broadcast_arrays(probability, alpha, beta, low, high)
    probability, alpha, beta, low, high = arrays
    found = np.where((low == 0) & (high == 1), betaincinv(alpha, beta, probability), low + probability * (high - low))
    hard = ((alpha != 1) | (beta != 1)) & (low < high) & ((low > 0) | (high < 1))
    probability, alpha, beta, low, high = (x[hard] for x in arrays)
    log_mass, below, above = moments(alpha, beta, low, high).log_mass, low, high
    for _ in range(32 if hard.any() else 0):  # bisection, to the precision of a float32
        middle = (below + above) / 2
        less = np.exp(moments(alpha, beta, low, middle).log_mass - log_mass) < probability
        below, above = np.where(less, middle, below), np.where(less, above, middle)
    found[hard] = (below + above) / 2
    return found
