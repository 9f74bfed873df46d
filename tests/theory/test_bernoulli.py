"""Beliefs about a coin against exact rational arithmetic, enumeration of all sequences, SciPy and the sources."""

import itertools
import math
from fractions import Fraction

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.integrate import quad

from bayesprompt.checks import UserError
from bayesprompt.measures.regret import best_hard_prompt, exact_regret
from bayesprompt.sources.coins import BetaCoins, Coin, CoinMixture
from bayesprompt.theory.bernoulli import Piece, Prior

THIRDS = Prior.points((1 / 3, 2 / 3), (0.5, 0.5))
GAP = Prior.gap(1 / 4, 3 / 4)
MIXED = Prior.mixture([Prior.points((0.0, 0.5), (0.25, 0.75)), Prior.beta(2, 5), GAP], (0.25, 0.25, 0.5))
TENT = Prior.mixture([Prior.beta(2, 1, 0, 0.5), Prior.beta(1, 2, 0.5, 1)], (0.5, 0.5))
STEPS = Prior.mixture([Prior.uniform(0, 0.25), Prior.uniform(0.25, 0.5), Prior.uniform(0.5, 1)], (0.125, 0.5, 0.375))
PRIORS = {"thirds": THIRDS, "gap": GAP, "mixed": MIXED, "tent": TENT, "steps": STEPS, "beta": Prior.beta(3, 2)}
every_prior = pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)


def integral(alpha, beta, low, high):
    """The integral of theta^(alpha - 1) (1 - theta)^(beta - 1), exactly, term by term."""
    terms = (
        math.comb(beta - 1, j) * (-1) ** j * (high ** (alpha + j) - low ** (alpha + j)) / (alpha + j)
        for j in range(beta)
    )
    return sum(terms, Fraction(0))


def evidence(prior, heads, tails, power=0):
    """E[theta^(heads + power) (1 - theta)^tails], exactly; exponents of pieces must be integers."""
    total = Fraction(0)
    for piece, weight in zip(prior.pieces, prior.weights, strict=True):
        low, high = (Fraction(x).limit_denominator(1000) for x in piece[:2])
        alpha, beta = map(int, piece[2:])
        weight = Fraction(weight).limit_denominator(1000)
        if low == high:
            total += weight * low ** (heads + power) * (1 - low) ** tails
        else:
            whole = integral(alpha, beta, low, high)
            total += weight * integral(alpha + heads + power, beta + tails, low, high) / whole
    return total


@every_prior
def test_evidence_prediction_and_moments_are_the_exact_rational_numbers(prior):
    for heads, tails in itertools.product((0, 1, 2, 7, 20), repeat=2):
        exact, counts = evidence(prior, heads, tails), (heads, tails)
        first, second = (evidence(prior, heads, tails, power) / exact for power in (1, 2))
        assert prior.log_evidence(counts) == pytest.approx(math.log(exact), rel=1e-13, abs=1e-12)
        assert np.exp(prior.predictive_log_probs(counts)) == pytest.approx([float(first), float(1 - first)], rel=1e-11)
        assert prior.mean(counts) == pytest.approx(float(first), rel=1e-11)
        assert prior.variance(counts) == pytest.approx(float(second - first**2), rel=1e-8)


@every_prior
def test_evidence_is_a_distribution_over_all_sequences(prior):
    sequences = np.array(list(itertools.product((0, 1), repeat=8)))
    counts = np.stack([(sequences == 0).sum(1), (sequences == 1).sum(1)], axis=-1)
    log_evidence = prior.log_evidence(counts)
    assert np.exp(log_evidence).sum() == pytest.approx(1, abs=1e-12)
    steps = np.take_along_axis(prior.bayes_log_probs(sequences), sequences[..., None], -1)[..., 0]
    possible = log_evidence > -np.inf  # of an impossible sequence the factors stop at the first 0
    np.testing.assert_allclose(steps[possible].sum(1), log_evidence[possible], rtol=1e-12)


SOURCES = {
    Coin(0.2): Prior.points((0.2,), (1.0,)),
    CoinMixture((0.2, 0.8, 1.0), (0.5, 0.3, 0.2)): Prior.points((0.2, 0.8, 1.0), (0.5, 0.3, 0.2)),
    BetaCoins(0.5, 3.0): Prior.beta(0.5, 3.0),
}


@pytest.mark.parametrize("source, prior", SOURCES.items(), ids=map(str, SOURCES))
def test_priors_like_sources_are_those_sources(source, prior):
    counts = np.indices((12, 12)).reshape(2, -1).T
    np.testing.assert_allclose(prior.log_evidence(counts), source.log_evidence(counts), rtol=1e-12, atol=1e-12)
    log_probs = source.predictive_log_probs(counts)
    np.testing.assert_allclose(prior.predictive_log_probs(counts), log_probs, rtol=1e-10, atol=1e-12)
    assert prior.mean_entropy() == pytest.approx(source.mean_entropy(), abs=1e-12)
    target = CoinMixture((0.1, 0.7), (0.5, 0.5))
    np.testing.assert_allclose(exact_regret(prior, target, 20), exact_regret(source, target, 20), atol=1e-10)
    np.testing.assert_allclose(exact_regret(target, prior, 20), exact_regret(target, source, 20), atol=1e-10)


def test_uniform_pieces_side_by_side_are_one():
    counts = np.indices((15, 15)).reshape(2, -1).T
    parts = [Prior.uniform(0, 0.2), Prior.uniform(0.2, 0.55), Prior.uniform(0.55, 1)]
    together, laplace = Prior.mixture(parts, (0.2, 0.35, 0.45)), BetaCoins()
    np.testing.assert_allclose(together.log_evidence(counts), laplace.log_evidence(counts), rtol=1e-12, atol=1e-12)
    assert together.variance((3, 4)) == pytest.approx(stats.beta(4, 5).var(), rel=1e-12)
    assert together.mean_entropy() == pytest.approx(0.5, abs=1e-13)


@every_prior
def test_a_posterior_is_a_prior_and_reads_on(prior):
    later = prior.posterior(2, 3).posterior(4, 1)
    at_once = prior.posterior(6, 4)
    np.testing.assert_allclose(later.weights, at_once.weights, rtol=1e-11)
    assert [p[:2] for p in later.pieces] == [p[:2] for p in prior.pieces]
    np.testing.assert_allclose(later.pieces, at_once.pieces)
    for posterior in (later, at_once):
        assert posterior.mean() == pytest.approx(float(prior.mean((6, 4))), rel=1e-12)
        assert posterior.variance() == pytest.approx(float(prior.variance((6, 4))), rel=1e-9)
        ratio = prior.log_evidence((9, 9)) - prior.log_evidence((6, 4))
        assert posterior.log_evidence((3, 5)) == pytest.approx(ratio, rel=1e-11)


def test_what_was_all_but_ruled_out_comes_back():
    after = THIRDS.posterior(50000, 0)
    assert after.weights.tolist() == [0, 1], "1/3 weighs exp(-34657), less than a float can hold"
    np.testing.assert_allclose(after.posterior(0, 50000).weights, [0.5, 0.5], atol=1e-10)


@pytest.mark.parametrize("prior", [TENT, STEPS, GAP, Prior.beta(2, 5), Prior.beta(0.5, 0.5, 0.1, 1)], ids=str)
def test_densities_integrate_to_one_and_to_probabilities(prior):
    posterior = prior.posterior(2, 1)
    edges = sorted({edge for piece in prior.pieces for edge in piece[:2]} | {0.0, 1.0})
    density = lambda p: float(np.exp(posterior.log_density(np.array([p])))[0])  # noqa: E731
    for low, high in itertools.pairwise(edges):
        mass = quad(density, low, high, epsabs=1e-11, limit=200)[0]
        assert posterior.probability(low, high) == pytest.approx(mass, abs=1e-6)
        assert prior.probability(low, high, (2, 1)) == pytest.approx(float(posterior.probability(low, high)), abs=1e-12)
    assert posterior.probability(0, 1) == pytest.approx(1, abs=1e-12)


def test_probabilities_of_points_and_of_parts():
    assert MIXED.probability(0, 0) == pytest.approx(1 / 16)
    assert MIXED.probability(0.5, 0.5) == pytest.approx(3 / 16)
    assert MIXED.probability(0.3, 0.7) == pytest.approx(3 / 16 + np.diff(stats.beta(2, 5).cdf([0.3, 0.7]))[0] / 4)
    assert MIXED.probability(0, 0, (1, 0)) == 0 and MIXED.probability(0.7, 0.3) == 0
    assert Prior.beta(2, 5).probability(0.1, 0.2, np.array([(3, 4), (0, 9)])) == pytest.approx(
        [np.diff(stats.beta(a, b).cdf([0.1, 0.2]))[0] for a, b in ((5, 9), (2, 14))]
    )


def test_log_density_has_edges_and_no_points():
    grid = np.array([0.0, 0.2, 0.25, 0.5, 0.75, 1.0])
    assert np.exp(GAP.log_density(grid)) == pytest.approx([2, 2, 0, 0, 2, 2])
    assert np.exp(TENT.log_density(grid)) == pytest.approx([0, 0.8, 1, 2, 1, 0])
    assert np.exp(THIRDS.log_density(grid)).tolist() == [0] * 6
    assert Prior.beta(0.5, 2).log_density(grid)[0] == np.inf
    gone = Prior.mixture([Prior.beta(0.5, 2), Prior.uniform()], (0.0, 1.0))
    assert gone.log_density(grid).tolist() == [0] * 6
    np.testing.assert_allclose(Prior.beta(3, 7).log_density(grid[1:5]), stats.beta(3, 7).logpdf(grid[1:5]))


def test_a_hundred_thousand_flips():
    n, gap = 100_000, Prior.gap(1 / 3, 2 / 3)
    for prior in (Prior.beta(), gap, THIRDS, MIXED, TENT):
        for heads in (1, n // 4, n // 2, n):
            log_probs = prior.predictive_log_probs((heads, n - heads))
            assert np.isfinite(prior.log_evidence((heads, n - heads)))
            assert np.logaddexp.reduce(log_probs) == pytest.approx(0, abs=1e-10)
            one_more = prior.log_evidence((heads + 1, n - heads)) - prior.log_evidence((heads, n - heads))
            assert one_more == pytest.approx(float(log_probs[0]), abs=1e-9)
    assert np.exp(Prior.beta().predictive_log_probs((n, 0))) == pytest.approx([(n + 1) / (n + 2), 1 / (n + 2)])
    assert gap.mean((n // 2, n // 2)) == pytest.approx(0.5, abs=1e-10)
    # The density that the gap left falls off like an exponential of rate n (1/2 - 1/3) / (1/3 * 2/3) below 1/3.
    left = Prior.uniform(0, 1 / 3)
    assert 1 / 3 - left.mean((n // 2, n // 2)) == pytest.approx(1 / (0.75 * n), rel=1e-3)


def test_samples_come_from_the_belief():
    for prior, parts in {
        MIXED: ((0.0, 0.0), (0.5, 0.5), (0.0, 0.25), (0.75, 1.0), (0.1, 0.6)),
        GAP.posterior(5, 5): ((0.0, 0.15), (0.0, 0.25), (0.2500001, 0.7499999), (0.8, 1.0)),
    }.items():
        tokens, latent = prior.sample(jax.random.key(0), 1500, 4)  # one compilation for both
        bias = np.asarray(latent)[:, 0]
        for low, high in parts:
            share = ((bias >= low) & (bias <= high)).mean()
            expected = float(prior.probability(low, high))
            assert share == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / 1500))
        spread = math.sqrt((prior.variance() + prior.mean() * (1 - prior.mean()) / 4) / 1500)
        assert tokens.shape == (1500, 4)
        assert (np.asarray(tokens) == 0).mean() == pytest.approx(float(prior.mean()), abs=4 * spread)


edge, exponent = st.floats(0.0, 1.0), st.floats(0.5, 6.0)
interval = st.tuples(edge, edge).filter(lambda x: abs(x[0] - x[1]) > 0.01).map(sorted)
parts = st.one_of(
    edge.map(lambda bias: (bias, bias)),
    interval,
    st.tuples(st.just(0), st.just(1), exponent, exponent),
    st.tuples(interval, exponent, exponent).map(lambda x: (*x[0], *x[1:])),
)
any_pieces = st.lists(st.tuples(parts, st.floats(0.01, 1.0)), min_size=1, max_size=4)
sequences = st.lists(st.integers(0, 1), max_size=40)


@given(any_pieces, sequences)
def test_any_belief_after_any_sequence(weighted, tokens):
    pieces, weights = zip(*weighted, strict=True)
    prior = Prior(tuple(Piece(*piece) for piece in pieces), tuple(math.log(w / sum(weights)) for w in weights))
    heads, tails = tokens.count(0), tokens.count(1)
    before, heads_next, tails_next = prior.log_evidence(
        np.array([(heads, tails), (heads + 1, tails), (heads, tails + 1)])
    )
    assert np.logaddexp(heads_next, tails_next) == pytest.approx(before, abs=1e-9), "evidence is a martingale"
    if before == -np.inf:
        with pytest.raises(ValueError, match="rule out"):
            prior.posterior(heads, tails)
        return
    log_probs = prior.predictive_log_probs((heads, tails))
    np.testing.assert_allclose(log_probs, [heads_next - before, tails_next - before], rtol=1e-8, atol=1e-8)
    posterior = prior.posterior(heads, tails)
    assert posterior.weights.sum() == pytest.approx(1, abs=1e-12)
    assert posterior.probability(0, 1) == pytest.approx(1, abs=1e-9)
    assert posterior.mean() == pytest.approx(float(np.exp(log_probs[0])), abs=1e-12)
    assert -1e-15 <= posterior.variance() <= 0.25
    # The mean is a martingale, and the variance of the mean is what variance is lost on average.
    probs, counts = np.exp(log_probs), np.array([(heads + 1, tails), (heads, tails + 1)])[np.isfinite(log_probs)]
    probs = probs[np.isfinite(log_probs)]
    means, mean = prior.mean(counts), posterior.mean()
    assert probs @ means == pytest.approx(mean, abs=1e-9)
    lost = probs @ (means - mean) ** 2
    assert probs @ prior.variance(counts) == pytest.approx(posterior.variance() - lost, abs=1e-9)


@pytest.mark.parametrize("alpha, beta", [(1, 1), (0.5, 0.5), (10, 1), (2, 30)])
def test_e1_the_variance_of_a_beta_posterior(alpha, beta):
    prior = Prior.beta(alpha, beta)
    for n in (1, 2, 10, 100):
        heads = np.arange(n + 1)
        variance = prior.variance(np.stack([heads, n - heads], axis=-1))
        np.testing.assert_allclose(variance, stats.beta(alpha + heads, beta + n - heads).var(), rtol=1e-12)
        mean = (heads + alpha) / (n + alpha + beta)
        np.testing.assert_allclose(variance, mean * (1 - mean) / (n + alpha + beta + 1), rtol=1e-12)
        assert (variance <= 1 / (4 * n)).all()


def test_e1_the_printed_bound_fails_for_a_third_of_all_counts_and_the_conclusion_stands():
    for n in (50, 500, 5000):
        heads = np.arange(n + 1)
        variance = Prior.beta().variance(np.stack([heads, n - heads], axis=-1))
        exceeds = variance > heads * (n - heads) / n**3
        assert exceeds[0] and exceeds[-1] and not exceeds[n // 2]
        # exactly where (k + 1) (n - k + 1) n^3 > k (n - k) (n + 2)^2 (n + 3), in integers
        exact = [(k + 1) * (n - k + 1) * n**3 > k * (n - k) * (n + 2) ** 2 * (n + 3) for k in range(n + 1)]
        assert exceeds.tolist() == exact
        assert exceeds.mean() == pytest.approx(1 - math.sqrt(3 / 7), abs=2 / n), "k (n - k) < n^2 / 7"
        assert (variance < 1 / (4 * n)).all()


def test_e1_the_variance_vanishes_for_a_frequency_that_never_settles():
    n = 100_000
    steps = np.arange(1, n + 1)
    swinging = np.cumsum(np.sin(np.log(steps)) > 0)  # heads for a while, then tails for longer, and so on
    assert np.ptp((swinging / steps)[n // 100 :]) > 0.3
    for heads_so_far in (swinging, 0 * steps, steps):
        variance = Prior.beta().variance(np.stack([heads_so_far, steps - heads_so_far], axis=-1))
        assert (variance <= 1 / (4 * steps)).all()


def test_e1_a_frequency_in_the_support_is_enough_and_not_needed():
    gap, n = Prior.gap(1 / 3, 2 / 3), 99_999
    assert gap.variance((n // 4, n - n // 4)) < 1 / (4 * n), "1/4 lies in the support"
    assert gap.variance((n // 2, n // 2)) == pytest.approx(1 / 36, rel=1e-3), "1/2 does not, and two coins remain"
    aside = gap.posterior(45_000, 55_000)
    assert aside.variance() < 1e-9 and aside.mean() == pytest.approx(1 / 3, abs=1e-4), "0.45 does not: the nearer edge"


def test_e1_a_frequency_that_tends_to_a_coin_in_the_support_may_leave_another():
    """After one head the coin that never shows heads is out, though the frequency tends to its bias, 0."""
    after = Prior.points((0.0, 0.5), (0.5, 0.5)).posterior(1, 99_999)
    assert after.weights.tolist() == [0, 1] and after.variance() == 0


def test_e2_only_a_gap_in_the_prior_lets_a_prompt_make_two_coins():
    target = CoinMixture((0.2, 0.8), (0.5, 0.5))
    own = exact_regret(target, target, 30)[-1]
    excess = {
        name: [best_hard_prompt(prior, target, length, 30).regret[-1] - own for length in (0, 2, 6, 20)]
        for name, prior in {"none": Prior.uniform(), "gap": Prior.gap(0.2, 0.8)}.items()
    }
    assert excess["none"] == sorted(excess["none"]) and excess["none"][0] > 0.5
    assert excess["gap"] == sorted(excess["gap"], reverse=True) and excess["gap"][-1] < 0.1


TWO = "must be 2 numbers in [0, 1], summing to 1"
# What `checks` and `sources` say is tested there, and here only that it names the argument and its value.
MESSAGES = {
    "weights = [0.5, 0.4]: ": lambda: Prior.points((0.2, 0.8), (0.5, 0.4)),
    f"weights = [1.5, -0.5]: {TWO}": lambda: Prior.mixture([GAP, TENT], (1.5, -0.5)),
    f"weights = [1.0]: {TWO}": lambda: Prior.mixture([GAP, TENT], (1.0,)),
    f"weights = [0.25, 0.25]: {TWO}": lambda: Prior((Piece(), Piece()), (math.log(0.25),) * 2),
    "biases = [0.2, 1.5]: ": lambda: Prior.points((0.2, 1.5), (0.5, 0.5)),
    "low, high = 0.2, 1.5: must satisfy 0 <= low <= high <= 1": lambda: Prior.uniform(0.2, 1.5),
    "low, high = 0.7, 0.5: must satisfy 0 <= low <= high <= 1": lambda: Prior.beta(1, 1, 0.7, 0.5),
    "low, high = 0.7, 0.3: must satisfy 0 < low <= high < 1": lambda: Prior.gap(0.7, 0.3),
    "alpha = 0.0: ": lambda: Prior.beta(0.0, 1.0),
    "tokens = -1: ": lambda: GAP.bayes_log_probs(np.array([0, -1])),
    "counts = -1.0: ": lambda: GAP.posterior(2, -1),
    "counts = [1.0, 0.0]: must be heads and tails that the prior does not rule out": lambda: Prior.points(
        (0.0,), (1.0,)
    ).variance(np.array([(0, 3), (1, 0)])),
}


@pytest.mark.parametrize("message", MESSAGES)
def test_bad_input_raises_one_line(message):
    with pytest.raises(UserError) as told:
        MESSAGES[message]()
    assert str(told.value).startswith(message) and "\n" not in str(told.value)
