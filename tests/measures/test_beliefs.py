"""Beliefs behind predictions: recovered where there is one; the best Beta against every Beta on a grid."""

import numpy as np
import pytest
from scipy import special

from bayesprompt import catalog
from bayesprompt.measures.beliefs import best_beta, fit_beta, fitted_beliefs, one_hump_bound
from bayesprompt.measures.regret import best_hard_prompt, exact_regret
from bayesprompt.sources.coins import BetaCoins, Coin, CoinMixture, DirichletCategorical

SINGLE = Coin(0.2)
MIXTURE = CoinMixture((0.2, 0.8), (0.5, 0.5))


@pytest.mark.parametrize("source, alpha, beta", [(BetaCoins(1.0, 1.0), 1, 1), (BetaCoins(2.5, 7.0), 2.5, 7)], ids=str)
def test_fit_beta_finds_the_belief_behind_a_table_of_predictions(source, alpha, beta):
    seen, heads = np.indices((30, 30))
    counts = np.stack([heads, np.maximum(seen - heads, 0)], axis=-1)
    prediction = np.exp(source.predictive_log_probs(counts)[..., 0])
    prediction[heads > np.minimum(seen, 12)] = np.nan  # never visited
    found = fit_beta(prediction, SINGLE)
    assert found.alpha == pytest.approx(alpha, rel=1e-2) and found.beta == pytest.approx(beta, rel=1e-2)
    assert 0 <= found.misfit < 1e-6


def test_fit_beta_takes_a_constant_prediction_for_a_known_coin_and_states_what_it_cannot_explain():
    constant = fit_beta(np.full((20, 20), 0.2), SINGLE)
    assert constant.alpha / (constant.alpha + constant.beta) == pytest.approx(0.2, abs=1e-3)
    assert constant.alpha + constant.beta > 1e4 and constant.misfit < 1e-4
    seen, _ = np.indices((20, 20))
    assert fit_beta(np.where(seen % 2, 0.2, 0.6), SINGLE).misfit > 1.0, "no belief alternates"


def test_fit_beta_refuses_an_empty_table():
    with pytest.raises(ValueError, match="prediction = NaN"):
        fit_beta(np.full((5, 5), np.nan), SINGLE)


@pytest.mark.parametrize("target", [SINGLE, MIXTURE, CoinMixture((0.1, 0.6), (0.3, 0.7))], ids=str)
def test_no_beta_on_a_grid_is_better_than_the_best(target):
    best = best_beta(target, 20)
    for a in 1 + np.geomspace(0.01, 1e4, 25):
        for b in 1 + np.geomspace(0.01, 1e4, 25):
            assert exact_regret(BetaCoins(a, b), target, 20)[-1] >= best.regret[-1] - 1e-9
    np.testing.assert_allclose(exact_regret(BetaCoins(best.alpha, best.beta), target, 20), best.regret, atol=1e-9)


def test_the_best_beta_of_one_coin_is_that_coin_and_of_two_is_nearly_flat():
    """At infinite counts the regret on a single coin is 0; on the mixture no belief of one hump comes close."""
    one, two = best_beta(SINGLE, 50), best_beta(MIXTURE, 50)
    assert one.regret[-1] < 1e-7 and one.alpha / (one.alpha + one.beta) == pytest.approx(0.2, abs=1e-3)
    assert two.alpha == pytest.approx(two.beta, rel=1e-3)
    assert two.regret[-1] - exact_regret(MIXTURE, MIXTURE, 50)[-1] > 0.7


@pytest.mark.parametrize("target", [SINGLE, MIXTURE], ids=str)
@pytest.mark.parametrize("strength", [0, 1, 6, 25])
def test_divisible_tokens_do_at_least_as_well_as_tokens(target, strength):
    best, hard = best_beta(target, 50, strength), best_hard_prompt(BetaCoins(1.0, 1.0), target, strength, 50)
    assert best.regret[-1] <= hard.regret[-1] + 1e-12
    assert best.alpha + best.beta == pytest.approx(2 + strength) and min(best.alpha, best.beta) >= 1
    for heads in np.linspace(0, strength, 101):
        at = exact_regret(BetaCoins(1 + heads, 1 + strength - heads), target, 50)[-1]
        assert at >= best.regret[-1] - 1e-9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((SINGLE, 50, -1), "strength = -1: must be finite and >= 0"),
        ((SINGLE, 0), "length = 0: must be an integer >= 1"),
        ((DirichletCategorical((1, 1, 1)), 5), "target = .*: must be an exchangeable source of 2 tokens"),
    ],
)
def test_what_has_no_best_beta(arguments, message):
    with pytest.raises(ValueError, match=message):
        best_beta(*arguments)


def test_beliefs_of_stored_results():
    """The known coin is read as a known coin, Laplace's rule as Beta(1, 1)."""
    group = catalog.stored("lstm")
    fits = fitted_beliefs(group, SINGLE)
    assert fits.keys() == {method for method, dataset in group.items() if dataset is not None}
    assert fits["PreBayes"][:2] == pytest.approx((1, 1), rel=1e-3)
    assert fits["TargetBayes"].alpha + fits["TargetBayes"].beta > 1e5
    assert fits["SoftPT"] == fit_beta(group["SoftPT"].prediction.values, SINGLE)


@pytest.mark.parametrize(
    "target", [CoinMixture((0.2, 0.8), (0.5, 0.5)), CoinMixture((0.1, 0.6), (0.3, 0.7)), Coin(0.3)]
)
def test_no_hump_is_below_the_bound(target):
    """Random humps: mixtures of uniform beliefs that share a place, the peak; and the best Beta belief."""
    bound, k, rng = one_hump_bound(target, 12), np.arange(13), np.random.default_rng(0)
    counts = np.stack([k, 12 - k], axis=-1)
    chance = special.comb(12, k) * np.exp(target.log_evidence(counts))
    grid = (np.arange(4000) + 0.5) / 4000
    found = []
    for peak in rng.random(40):
        ends = np.concatenate([rng.random(4), peak + rng.normal(size=4) * 0.01]).clip(0, 1)
        low, high = np.minimum(peak, ends)[:, None], np.maximum(peak, ends)[:, None]
        layers = ((grid[None] >= low) & (grid[None] <= high)).astype(float) + 1e-300
        density = rng.dirichlet(np.full(8, 0.3)) @ (layers / layers.sum(1, keepdims=True))
        evidence = (density[:, None] * grid[:, None] ** k[None] * (1 - grid[:, None]) ** (12 - k)[None]).sum(0)
        found.append(-chance @ np.log(evidence) - 12 * target.mean_entropy())
    assert bound < min(found) + 1e-6
    assert bound <= best_beta(target, 12).regret[-1] + 1e-6
    if len(target.components) == 1:
        assert bound == pytest.approx(0, abs=5e-3), "a known coin is a hump"


def test_the_bound_refuses_what_is_no_coin():
    with pytest.raises(ValueError, match="^length = 0: must"):
        one_hump_bound(Coin(0.2), 0)
    with pytest.raises(ValueError, match="^target = "):
        one_hump_bound(DirichletCategorical((1.0, 1.0, 1.0)), 5)
