"""The belief that predictions imitate: the closest Beta prior, and what the best of all Beta priors could do."""

import itertools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import xarray as xr
from jaxtyping import Float
from scipy.optimize import minimize, minimize_scalar
from scipy.special import beta, betainc, comb, expit, logit, rel_entr

from bayesprompt.checks import UserError, check_integer
from bayesprompt.measures.regret import check_coins, outcomes, regret_after
from bayesprompt.sources.coins import BetaCoins, Exchangeable

# Where a + b is this large, a predictor is as good as a known coin: searches stop here.
STRONGEST = 1e6


class BetaFit(NamedTuple):
    """The coin prior whose Bayes predictor predicts most like a given predictor."""

    alpha: float  # pseudo-heads
    beta: float  # pseudo-tails
    misfit: float  # what its predictions leave unexplained: expected KL over all tabulated steps, nats


class BestBeta(NamedTuple):
    """The Beta prior, a and b >= 1, whose Bayes predictor has the least exact regret on a target."""

    alpha: float  # 1 + pseudo-heads
    beta: float  # 1 + pseudo-tails
    regret: Float[np.ndarray, " N"]  # exact R(n), n = 1..N


def fit_beta(prediction: Float[np.ndarray, "seen heads"], target: Exchangeable) -> BetaFit:
    """Fit Beta(a, b) to a table of P(next = heads) after `seen` tokens, `heads` of them heads (NaN: never visited).

    Minimises the sum over steps of E_target[KL(prediction || (a + heads) / (a + b + seen))] by exact sums over counts;
    a + b is searched up to 1e6, where the predictor is as good as a known coin. Raises UserError for other than coins
    and for a table with nothing in it.
    """
    check_coins(target=target)
    prediction = np.asarray(prediction, np.float64)
    steps, counts, probs = outcomes(target, len(prediction))
    p, weight = prediction[steps, counts[:, 0]], probs.sum(1)
    there = np.isfinite(p) & (weight > 0)
    if not there.any():
        raise UserError("prediction = NaN wherever the target leads: at least one prediction")
    p, weight, steps, heads = p[there], weight[there], steps[there], counts[there, 0]
    weight = weight / np.bincount(steps, weights=weight)[steps]  # within each step: what was visited

    def misfit(x):  # x: logit of the mean a / (a + b), log of the strength a + b
        strength = np.exp(x[1])
        q = (strength * expit(x[0]) + heads) / (strength + steps)
        return float(weight @ (rel_entr(p, q) + rel_entr(1 - p, 1 - q)))

    middle = logit(np.clip(weight @ p / weight.sum(), 1e-5, 1 - 1e-5))
    box = [(-12.0, 12.0), (np.log(1e-3), np.log(STRONGEST))]
    found = [minimize(misfit, (middle, np.log(strength)), bounds=box) for strength in (2.0, 30.0, 1000.0)]
    best = min(found, key=lambda result: result.fun)
    mean, strength = expit(best.x[0]), np.exp(best.x[1])
    return BetaFit(float(strength * mean), float(strength * (1 - mean)), float(best.fun))


def best_beta(target: Exchangeable, length: int, strength: float | int | None = None) -> BestBeta:
    """Minimise the exact R(length) over Beta(a, b), a and b >= 1: uniform coins conditioned on any pseudo-counts.

    With `strength`, over (a - 1) + (b - 1) = strength only: what a prompt of so many tokens could do if tokens could be
    divided. Without, up to a + b = 1e6: for a single coin the infimum, 0, lies at infinite counts. Raises
    UserError for other than coins, length < 1 or strength < 0.
    """
    check_coins(target=target)
    check_integer("length", length, 1)
    given = (*outcomes(target, length), target.mean_entropy())

    def curve(a, b):
        return regret_after(BetaCoins(a, b), np.zeros(2), *given)

    if strength is not None:
        if not 0 <= strength < np.inf:
            raise UserError(f"strength = {strength}: must be finite and >= 0")

        def loss_at(heads):
            return curve(1 + heads, 1 + strength - heads)[-1]

        # R(length) may have several minima: polish the lowest of a grid (which has the ends, where a or b is 1).
        grid = np.linspace(0, strength, 33)
        heads = min(grid, key=loss_at)
        near = np.clip([heads - strength / 32, heads + strength / 32], 0, strength)
        polished = minimize_scalar(loss_at, bounds=near, method="bounded", options={"xatol": 1e-9})
        heads = float(min(heads, polished.x, key=loss_at))
        return BestBeta(1 + heads, 1 + strength - heads, curve(1 + heads, 1 + strength - heads))

    def loss(x):  # x: logarithms of the pseudo-counts + 1
        return curve(*np.exp(x))[-1]

    box = [(0.0, np.log(STRONGEST))] * 2
    starts = [(a, b) for a in (0.0, 1.0, 4.0) for b in (0.0, 1.0, 4.0)]
    best = min((minimize(loss, start, bounds=box) for start in starts), key=lambda result: result.fun)
    a, b = np.exp(best.x)
    return BestBeta(float(a), float(b), curve(a, b))


def one_hump_bound(target: Exchangeable, length: int, peak: tuple[float, float] | None = None) -> float:
    """Return a lower bound, nats, on the exact R(length) of every belief about the bias that has one hump.

    A hump with its peak in an interval is a mixture of uniform beliefs with one end there. If f is the evidence of one
    such mixture and g that of another, Jensen's inequality gives R_f - R_g <= log E[g / f], and E[g / f] is at most the
    largest one of a single uniform belief, up to the grids of both ends (the other one's is 1/800 apart). Without an
    interval for the `peak` the bound is the least over twenty. Raises UserError for other than coins, and length < 1.
    """
    check_coins(target=target)
    check_integer("length", length, 1)
    k = np.arange(length + 1)
    chance = comb(length, k) * np.exp(target.log_evidence(np.stack([k, length - k], axis=-1)))

    def flat(peaks, ends):
        """Evidence (layers, k) of uniform beliefs from a peak to an end, and of the known coins at the peaks."""
        width = np.abs(peaks[:, None] - ends)
        apart = width > 1e-9
        below = [betainc(k + 1, length - k + 1, x[:, None]) for x in (peaks, ends)]
        inside = np.abs(below[0][:, None] - below[1])[apart]
        spikes = [p**k * (1 - p) ** (length - k) for p in peaks]
        return np.concatenate([inside * beta(k + 1, length - k + 1) / width[apart][:, None], spikes])

    def least(low, high):
        layers = flat(np.linspace(low, high, 3), np.linspace(0, 1, 201))
        weights = np.full(len(layers), 1 / len(layers))
        for _ in range(400):  # never increases the regret of the mixture
            weights *= layers @ (chance / (weights @ layers))
        mixed = weights @ layers
        slack = np.log((flat(np.linspace(low, high, 9), np.linspace(0, 1, 801)) @ (chance / mixed)).max())
        return -chance @ np.log(mixed) - length * target.mean_entropy() - slack

    intervals = [peak] if peak else itertools.pairwise(np.linspace(0, 1, 21))
    return float(min(least(low, high) for low, high in intervals))


def fitted_beliefs(datasets: Mapping[str, xr.Dataset | None], target: Exchangeable) -> dict[str, BetaFit]:
    """Fit the closest Beta belief to each method's stored predictions; methods without results are left out."""
    return {m: fit_beta(d.prediction.values, target) for m, d in datasets.items() if d is not None}
