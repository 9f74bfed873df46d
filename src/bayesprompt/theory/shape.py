"""What a belief about a coin looks like: where it peaks, and whether it is log-concave, which allows one peak only."""

import itertools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import brentq
from scipy.special import expit, logit

from bayesprompt.checks import check_integer
from bayesprompt.theory.bernoulli import Prior
from bayesprompt.theory.truncated_beta import logs, quadrature

_FLAT = 1e-12  # a slope that small, relative to its terms, is rounding
_EQUAL = 1e-9  # so is a jump of that many nats
_FARTHEST = 600  # |log(theta / (1 - theta))| beyond which theta or 1 - theta is hardly a number


class _Cell(NamedTuple):
    """A density between two neighbouring edges of its pieces, where it is smooth."""

    low: float
    high: float
    here: np.ndarray  # indices of the pieces that it consists of; none in a gap
    grid: np.ndarray  # log(theta / (1 - theta)), ascending
    slope: np.ndarray  # theta (1 - theta) d log w / d theta on the grid
    start: float  # log density at both ends, seen from inside; -inf in a gap
    stop: float


def modes(prior: Prior) -> Float[np.ndarray, " M"]:
    """Return the biases where a belief peaks, ascending: every point mass, and every local maximum of the density.

    A flat top counts once, by its middle. Peaks are told apart on the grid of the pieces' own quadrature.
    """
    alive = [piece for piece, weight in zip(prior.pieces, prior.log_weights, strict=True) if weight > -np.inf]
    points = {piece.low for piece in alive if piece.low == piece.high}
    return np.array(sorted([*points, *_peaks(prior)]), np.float64)


def is_log_concave(prior: Prior) -> bool:
    """Return whether a belief is log-concave: one point, or a density on an interval whose log-slope never rises.

    The slope is judged on the grid of the pieces' own quadrature.
    """
    if not prior.is_density:
        return prior.is_discrete and len(modes(prior)) == 1
    cells = _cells(prior)
    joined = all(abs(cell.stop - after.start) <= _EQUAL for cell, after in itertools.pairwise(cells))
    slopes = np.concatenate([cell.slope / np.exp(sum(logs(cell.grid))) for cell in cells])
    return bool(joined and (np.diff(slopes) <= _EQUAL * np.abs(slopes[1:])).all())


def count_modes(prior: Prior, length: int) -> Int[np.ndarray, "S S"]:
    """Count the peaks of a belief after h heads and t tails, at [h, t], for all prefixes of up to `length` tokens.

    S = length + 1. The count is 0 where the prior rules the prefix out, and -1 where h + t > length.
    """
    check_integer("length", length, 0)
    found = np.full((length + 1, length + 1), -1)
    for heads, tails in [(h, t) for h in range(length + 1) for t in range(length + 1 - h)]:
        possible = prior.log_evidence((heads, tails)) > -np.inf
        found[heads, tails] = len(modes(prior.posterior(heads, tails))) if possible else 0
    return found


def _cells(prior) -> list[_Cell]:
    low, high, alpha, beta = np.asarray(prior.pieces).T
    dense = (low < high) & (np.asarray(prior.log_weights) > -np.inf)
    cells = []
    for start, stop in itertools.pairwise(np.unique([low[dense], high[dense]])):
        here = np.flatnonzero(dense & (low <= start) & (high >= stop))
        rule = quadrature(alpha[here], beta[here], np.full(len(here), start), np.full(len(here), stop))
        grid = np.unique(rule.log_bias - rule.log_rest)
        grid = grid[np.abs(grid) < _FARTHEST]
        ends = np.logaddexp.reduce(prior.log_pieces(*logs(logit([start, stop])))[:, here], axis=-1)
        cells.append(_Cell(start, stop, here, grid, _slope(grid, prior, here), *ends.tolist()))
    return cells


def _slope(grid, prior, here):
    """Return theta (1 - theta) d log w / d theta of the pieces `here`, 0 where it is rounding."""
    log_bias, log_rest = logs(np.atleast_1d(grid))
    log_pieces = prior.log_pieces(log_bias, log_rest)[:, here]
    share = np.exp(log_pieces - np.logaddexp.reduce(log_pieces, axis=-1, keepdims=True))
    alpha, beta = np.asarray(prior.pieces)[here, 2:].T
    rising, falling = (alpha - 1) * np.exp(log_rest[:, None]), (beta - 1) * np.exp(log_bias[:, None])
    slope = (share * (rising - falling)).sum(-1)
    terms = (share * (np.abs(rising) + np.abs(falling))).sum(-1)
    return np.where(np.abs(slope) <= _FLAT * terms, 0, slope)


def _peaks(prior):
    """Yield where the density stops rising, by the signs of its jumps at edges and of its slope in between."""
    marks, before = [], -np.inf  # (sign, bias, what to refine it by; None at an edge)
    for cell in _cells(prior):
        jump = 0 if cell.start == before or abs(cell.start - before) <= _EQUAL else cell.start - before
        marks.append((np.sign(jump), cell.low, None))
        marks += [(np.sign(slope), expit(u), (u, cell.here)) for u, slope in zip(cell.grid, cell.slope, strict=True)]
        before = cell.stop
        last = (-1, cell.high, None)
    if marks:
        marks.append(last)
    turns = [index for index, (sign, _, _) in enumerate(marks) if sign != 0]
    for up, down in itertools.pairwise(turns):
        if not marks[up][0] > 0 > marks[down][0]:
            continue
        left, right = marks[up][2], marks[down][2]
        if down > up + 1:  # a flat top, or two pieces that meet in a tip
            yield (marks[up + (left is not None)][1] + marks[down - (right is not None)][1]) / 2
        elif left is None or right is None:
            yield marks[up if left is None else down][1]
        else:
            yield expit(brentq(lambda u, here=left[1]: _slope(u, prior, here)[0], left[0], right[0], xtol=1e-14))
