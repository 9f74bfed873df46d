"""Peaks and log-concavity against calculus, a fine grid, and the paper's examples (E2, E3)."""

import itertools
import math

import numpy as np
import pytest

from bayesprompt.measures.regret import best_hard_prompt, exact_regret
from bayesprompt.sources.coins import CoinMixture
from bayesprompt.theory.bernoulli import Prior
from bayesprompt.theory.shape import count_modes, is_log_concave, modes


def steps(edges, weights):
    """Uniform between neighbouring edges."""
    return Prior.mixture([Prior.uniform(*ends) for ends in itertools.pairwise(edges)], weights)


TENT = Prior.mixture([Prior.beta(2, 1, 0, 0.5), Prior.beta(1, 2, 0.5, 1)], (0.5, 0.5))
LOG_CONCAVE = {
    "uniform": Prior.uniform(),
    "beta": Prior.beta(2, 5),
    "line": Prior.beta(1, 2),
    "part": Prior.uniform(0.3, 0.9),
    "part of a beta": Prior.beta(3, 2, 0.1, 0.6),
    "tent": TENT,
    "two lines that add up to a flat one": Prior.mixture([Prior.beta(2, 1), Prior.beta(1, 2)], (0.5, 0.5)),
    "point": Prior.points((0.3,), (1.0,)),
}
NOT_LOG_CONCAVE = {
    "arcsine": Prior.beta(0.5, 0.5),
    "pole at 1": Prior.beta(2, 0.9),
    "gap": Prior.gap(1 / 3, 2 / 3),
    "two points": Prior.points((1 / 3, 2 / 3), (0.5, 0.5)),
    "point in a density": Prior.mixture([Prior.points((0.5,), (1.0,)), Prior.uniform()], (0.5, 0.5)),
    "two peaks": Prior.mixture([Prior.beta(4, 16), Prior.beta(16, 4)], (0.5, 0.5)),
    "one peak, one shoulder": Prior.mixture([Prior.beta(2, 9), Prior.uniform(0.5, 1)], (0.8, 0.2)),
    "steps down": steps((0, 0.5, 1), (0.75, 0.25)),
    "valley": Prior.mixture([Prior.beta(1, 2, 0, 0.5), Prior.beta(2, 1, 0.5, 1)], (0.5, 0.5)),
}


@pytest.mark.parametrize("prior", LOG_CONCAVE.values(), ids=LOG_CONCAVE)
def test_log_concave(prior):
    assert is_log_concave(prior) and len(modes(prior)) == 1
    for heads, tails in ((1, 0), (3, 7), (5000, 5000), (0, 30000)):
        assert is_log_concave(prior.posterior(heads, tails)), "log-concave times log-concave"


@pytest.mark.parametrize("prior", NOT_LOG_CONCAVE.values(), ids=NOT_LOG_CONCAVE)
def test_not_log_concave(prior):
    assert not is_log_concave(prior)


def test_modes_by_calculus():
    assert modes(Prior.beta(3, 5)) == pytest.approx([2 / 6], abs=1e-12)
    assert modes(Prior.beta().posterior(30_000, 70_000)) == pytest.approx([0.3], abs=1e-12)
    assert modes(Prior.beta(0.5, 0.5)).tolist() == [0, 1] and modes(Prior.beta(1, 2)).tolist() == [0]
    assert modes(Prior.beta(0.01, 3)).tolist() == [0]
    assert modes(Prior.uniform(0.2, 0.6)) == pytest.approx([0.4])
    assert modes(Prior.uniform(0.2, 0.6).posterior(1, 0)).tolist() == [0.6]
    assert modes(TENT).tolist() == [0.5] and modes(TENT.posterior(2, 0)) == pytest.approx([2 / 3], abs=1e-12)
    assert modes(steps((0, 0.1, 0.2, 0.3, 1), (0.1, 0.3, 0.1, 0.5))) == pytest.approx([0.15])
    # flat where lines add up, a single piece of lower density within higher ones
    assert modes(steps((0, 0.2, 0.4, 1), (0.2, 0.1, 0.7))) == pytest.approx([0.1, 0.7])


@pytest.mark.parametrize("heads, tails", [(0, 0), (2, 2), (6, 1), (15, 15), (40, 40), (100, 30)])
def test_modes_on_a_fine_grid(heads, tails):
    prior = Prior.mixture([Prior.beta(4, 16), Prior.beta(16, 4), Prior.beta(30, 30)], (0.4, 0.4, 0.2))
    posterior, grid = prior.posterior(heads, tails), np.linspace(0, 1, 200_001)
    density = posterior.log_density(grid)
    peaks = grid[1:-1][(density[1:-1] > density[:-2]) & (density[1:-1] > density[2:])]
    assert modes(posterior) == pytest.approx(peaks, abs=1e-5)


def test_modes_of_points_and_densities():
    prior = Prior.mixture([Prior.points((0.0, 0.5), (0.5, 0.5)), Prior.uniform(0.6, 0.8)], (0.5, 0.5))
    assert modes(prior) == pytest.approx([0, 0.5, 0.7])
    assert modes(prior.posterior(1, 0)) == pytest.approx([0.5, 0.8]), "heads rule out the coin that has none"
    assert modes(Prior.points((0.2, 0.2, 0.7), (0.2, 0.3, 0.5))).tolist() == [0.2, 0.7]


def test_count_modes_is_a_table_over_prefixes():
    prior = Prior.points((0.0, 0.5), (0.5, 0.5))
    assert count_modes(prior, 2).tolist() == [[2, 2, 2], [1, 1, -1], [1, -1, -1]]
    assert count_modes(Prior.points((0.0,), (1.0,)), 1).tolist() == [[1, 1], [0, -1]]
    with pytest.raises(ValueError, match="^length = -1: "):
        count_modes(prior, -1)


def test_e2_the_arcsine_prior_has_two_modes_before_any_data_only():
    table = count_modes(Prior.beta(0.5, 0.5), 20)
    assert table[0, 0] == 2 and (table == 2).sum() == 1


def test_e2_the_best_hard_prompt_of_a_prior_is_the_best_of_all_sequences():
    gap, mixture = Prior.gap(0.2, 0.8), CoinMixture((0.2, 0.8), (0.5, 0.5))
    best = best_hard_prompt(gap, mixture, 4, 10)
    sequences = itertools.product((0, 1), repeat=4)
    regrets = [exact_regret(gap.posterior(x.count(0), x.count(1)), mixture, 10)[-1] for x in sequences]
    assert best.regret[-1] == pytest.approx(min(regrets), abs=1e-10)
    assert best.counts == (2, 2)


@pytest.mark.parametrize("n", [0, 2, 20, 1000, 100_000])
def test_e3_two_points_and_a_gap_keep_two_modes_at_as_many_heads_as_tails(n):
    points, gap = Prior.points((1 / 3, 2 / 3), (0.5, 0.5)), Prior.gap(1 / 3, 2 / 3)
    assert points.posterior(n // 2, n // 2).weights == pytest.approx([0.5, 0.5], abs=1e-10), "the prior itself"
    posterior = gap.posterior(n // 2, n // 2)
    assert modes(posterior) == pytest.approx([1 / 3, 2 / 3] if n else [1 / 6, 5 / 6])
    assert posterior.probability(0, 1 / 3) == pytest.approx(0.5, abs=1e-10)
    assert posterior.probability(2 / 3, 1) == pytest.approx(0.5, abs=1e-10)
    assert posterior.mean() == pytest.approx(0.5, abs=1e-10)
    assert posterior.variance() >= 1 / 36 - 1e-10, "half a gap away from the mean"


def test_e3_the_gap_tends_to_the_two_coins_at_its_edges():
    gap, coins = Prior.gap(1 / 3, 2 / 3), CoinMixture((1 / 3, 2 / 3), (0.5, 0.5))
    own = exact_regret(coins, coins, 20)
    excess = [(exact_regret(gap, coins, 20, (n, n)) - own)[-1] for n in (0, 10, 100, 1000)]
    assert excess == sorted(excess, reverse=True) and 0 < excess[-1] < 1e-4
    shift = math.log(2)  # one head more doubles the odds of the right edge
    odds = np.diff(gap.log_weights) - np.diff(Prior.gap(1 / 3, 2 / 3).posterior(10_001, 10_000).log_weights)
    assert odds == pytest.approx(-shift, rel=1e-3)
