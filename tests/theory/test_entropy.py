"""Entropies against SciPy, enumeration of all sequences, exact rational arithmetic, and Bayes regret (E7)."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.integrate import quad

from bayesprompt.checks import UserError
from bayesprompt.measures.regret import exact_regret
from bayesprompt.sources.coins import Coin
from bayesprompt.theory.bernoulli import Prior
from bayesprompt.theory.entropy import (
    differential_entropy,
    discrete_entropy,
    entropy_along,
    expected_entropy,
    prompts,
)


def doubted_fair_coin(epsilon):
    """The paper's example: with probability epsilon the coin never shows heads, otherwise it is fair."""
    return Prior.points((0.0, 0.5), (epsilon, 1 - epsilon))


COINS = Prior.points((0.1, 0.5, 0.9, 0.5), (0.2, 0.3, 0.4, 0.1))
TWO_PEAKS = Prior.mixture([Prior.beta(2, 5), Prior.beta(6, 2)], (0.3, 0.7))
OVERLAP = Prior.mixture([Prior.uniform(0, 0.6), Prior.beta(2, 3, 0.4, 1)], (0.25, 0.75))
BELIEFS = {
    "coins": (COINS, discrete_entropy),
    "doubted": (doubted_fair_coin(0.01), discrete_entropy),
    "beta": (Prior.beta(2, 7), differential_entropy),
    "two peaks": (TWO_PEAKS, differential_entropy),
    "overlap": (OVERLAP, differential_entropy),
    "gap": (Prior.gap(1 / 3, 2 / 3), differential_entropy),
}
every_belief = pytest.mark.parametrize("prior, entropy", BELIEFS.values(), ids=BELIEFS)


def test_discrete_entropy_after_three_flips_by_hand():
    weights = [0.2 * 0.1**2 * 0.9, 0.4 * 0.5**3, 0.4 * 0.9**2 * 0.1]  # equal biases are one coin
    weights = np.array(weights) / sum(weights)
    assert discrete_entropy(COINS, (2, 1)) == pytest.approx(-(weights * np.log(weights)).sum(), rel=1e-12)
    assert discrete_entropy(COINS, np.array([(2, 1), (0, 0)]))[1] == pytest.approx(stats.entropy([0.2, 0.4, 0.4]))
    assert discrete_entropy(COINS, (90_000, 10_000)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("heads, tails", [(0, 0), (3, 4), (0, 50), (60_000, 40_000)])
def test_differential_entropy_of_a_beta_is_scipys(heads, tails):
    for alpha, beta in ((1, 1), (2, 5), (0.5, 0.5)):
        expected = stats.beta(alpha + heads, beta + tails).entropy()
        assert differential_entropy(Prior.beta(alpha, beta), (heads, tails)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("prior", [TWO_PEAKS, OVERLAP, Prior.gap(1 / 3, 2 / 3), Prior.beta(2, 3, 0.1, 0.7)], ids=str)
def test_differential_entropy_is_the_integral(prior):
    counts = np.array([(0, 0), (2, 5), (9, 1)])
    edges = sorted({edge for piece in prior.pieces for edge in piece[:2]})
    for found, (heads, tails) in zip(differential_entropy(prior, counts), counts.tolist(), strict=True):
        posterior = prior.posterior(heads, tails)

        def integrand(p, posterior=posterior):
            log = posterior.log_density(np.array([p]))[0]
            return -np.exp(log) * log if log > -np.inf else 0.0

        total = sum(quad(integrand, *ends, epsabs=1e-12)[0] for ends in itertools.pairwise(edges))
        assert found == pytest.approx(total, abs=1e-9)
    assert differential_entropy(Prior.uniform(0.25, 0.5)) == pytest.approx(-math.log(4), abs=1e-12)


def test_differential_entropy_survives_pieces_of_no_weight():
    gap = Prior.gap(1 / 3, 2 / 3)
    left = differential_entropy(Prior.uniform(0, 1 / 3), (25_000, 75_000))
    assert differential_entropy(gap, (25_000, 75_000)) == pytest.approx(left, abs=1e-9)
    dead = Prior.mixture([Prior.beta(2, 5), Prior.uniform(0.5, 0.9)], (1.0, 0.0))
    assert differential_entropy(dead, (1, 2)) == pytest.approx(stats.beta(3, 7).entropy(), abs=1e-9)


def test_entropy_along_a_prompt_reads_it_token_by_token():
    along = entropy_along(TWO_PEAKS, np.array([0, 0, 1, 0]), differential_entropy)
    expected = [differential_entropy(TWO_PEAKS, counts) for counts in [(0, 0), (1, 0), (2, 0), (2, 1), (3, 1)]]
    np.testing.assert_allclose(along, expected, atol=1e-10)
    with pytest.raises(ValueError, match="^tokens = 2: "):
        entropy_along(TWO_PEAKS, np.array([0, 2]), differential_entropy)


def test_prompts_are_all_sequences_grouped_by_counts():
    counts, probs = prompts(doubted_fair_coin(0.25), 3)
    sequences = {(x.count(0), x.count(1)): 0.0 for x in itertools.product((0, 1), repeat=3)}
    for x in itertools.product((0, 1), repeat=3):
        sequences[x.count(0), x.count(1)] += 0.75 / 8 + 0.25 * (x == (1, 1, 1))
    assert dict(zip(map(tuple, counts.tolist()), probs.tolist(), strict=True)) == pytest.approx(sequences)
    counts, probs = prompts(Coin(1.0), 4)
    assert counts.tolist() == [[4, 0]] and probs.tolist() == [1]


FLIPS = np.array([(x.count(0), x.count(1)) for x in itertools.product((0, 1), repeat=4)])


def future_entropy(prior, counts):
    """H(next four flips | counts), summed over all 16 sequences."""
    log_probs = prior.log_evidence(counts[:, None] + FLIPS) - prior.log_evidence(counts)[:, None]
    return -(np.exp(log_probs) * np.where(log_probs > -np.inf, log_probs, 0)).sum(-1)


@every_belief
def test_the_entropy_of_the_next_flips_is_a_sum_over_prompts_of_the_posterior(prior, entropy):
    posterior = prior.posterior(0, 2)
    counts, probs = prompts(posterior, 4)
    expected = future_entropy(prior, np.array([(0, 2)]))[0]
    assert -probs @ posterior.log_evidence(counts) == pytest.approx(expected, rel=1e-12)


@every_belief
def test_e7_on_average_prompts_narrow(prior, entropy):
    expected = np.array([expected_entropy(prior, n, entropy) for n in range(25)])
    assert (np.diff(expected) < 1e-12).all()
    futures = [expected_entropy(prior, n, future_entropy) for n in range(15)]
    assert (np.diff(futures) < 1e-12).all()


@every_belief
def test_e7_what_is_narrowed_on_average_is_the_bayes_regret(prior, entropy):
    """I(theta; X_1..X_n), by way of code that knows nothing of entropies."""
    narrowed = [entropy(prior, np.zeros(2)) - expected_entropy(prior, n, entropy) for n in range(1, 21)]
    np.testing.assert_allclose(narrowed, exact_regret(prior, prior, 20), atol=1e-10)


def test_e7_an_expectation_over_counts_is_one_over_sequences():
    total = 0.0
    for x in itertools.product((0, 1), repeat=7):
        probability = math.exp(COINS.log_evidence((x.count(0), x.count(1))))
        total += probability * discrete_entropy(COINS.posterior(x.count(0), x.count(1)))
    assert expected_entropy(COINS, 7, discrete_entropy) == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize("epsilon", [1 / (1 + 2**m) for m in (1, 4, 9, 20)])
def test_e7_tails_widen_the_doubt_until_both_coins_are_equally_probable(epsilon):
    peak = math.log2((1 - epsilon) / epsilon)
    entropy = entropy_along(doubted_fair_coin(epsilon), np.ones(45, int), discrete_entropy)
    assert entropy.argmax() == round(peak) and peak == pytest.approx(round(peak), abs=1e-12)
    assert entropy.max() == pytest.approx(math.log(2), rel=1e-12)
    assert (np.diff(entropy[: round(peak) + 1]) > 0).all() and (np.diff(entropy[round(peak) :]) < 0).all()
    after = [epsilon / (epsilon + (1 - epsilon) * 0.5**m) for m in range(46)]  # Bayes' rule
    np.testing.assert_allclose(entropy, [stats.entropy([p, 1 - p]) for p in after], rtol=1e-9, atol=1e-12)
    assert discrete_entropy(doubted_fair_coin(epsilon), (1, 5)) == 0, "one head rules the other coin out"


@pytest.mark.parametrize("epsilon", [0.3, 0.05, 0.001])
def test_e7_between_whole_numbers_the_peak_is_next_to_the_formula(epsilon):
    entropy = entropy_along(doubted_fair_coin(epsilon), np.ones(40, int), discrete_entropy)
    assert abs(entropy.argmax() - math.log2((1 - epsilon) / epsilon)) < 1


def chance_to_widen(prior, length, entropy):
    counts, probs = prompts(prior, length)
    return probs[entropy(prior, counts) > entropy(prior) + 1e-12].sum()


def test_e7_only_atypical_prompts_widen():
    prior = doubted_fair_coin(0.01)
    for length in (1, 5, 13):  # up to twice the peak, 2 * 6.6, all tails leave more doubt than there was
        assert chance_to_widen(prior, length, discrete_entropy) == pytest.approx(0.01 + 0.99 * 0.5**length)
    assert chance_to_widen(prior, 14, discrete_entropy) == 0
    wider = [h for h in range(11) if stats.beta(1 + h, 19 - h).entropy() > stats.beta(1, 9).entropy()]
    chance = sum(stats.betabinom(10, 1, 9).pmf(h) for h in wider)
    assert chance_to_widen(Prior.beta(1, 9), 10, differential_entropy) == pytest.approx(chance) and 0 < chance < 0.5


@pytest.mark.parametrize("prior", [COINS, doubted_fair_coin(0.01), doubted_fair_coin(0.3)], ids=str)
def test_e7_a_discrete_entropy_above_t_has_at_most_probability_h_over_t(prior):
    """Markov's inequality. For densities there is none: two in five prompts of six flips widen Beta(1, 9)."""
    for length in (1, 4, 12):
        counts, probs = prompts(prior, length)
        values = discrete_entropy(prior, counts)
        for t in values[values > 0]:
            assert probs[values >= t].sum() <= discrete_entropy(prior) / t + 1e-12
    assert chance_to_widen(Prior.beta(1, 9), 6, differential_entropy) == pytest.approx(0.4, abs=1e-3)


def test_e7_discrete_entropy_tends_to_zero_and_differential_without_end():
    discrete = [expected_entropy(COINS, n, discrete_entropy) for n in (10, 100, 1000)]
    assert discrete == sorted(discrete, reverse=True) and 0 <= discrete[-1] < 1e-12
    beta = [expected_entropy(Prior.beta(), n, differential_entropy) for n in (100, 1000, 10_000)]
    assert np.diff(beta) == pytest.approx([-math.log(10) / 2] * 2, abs=0.02), "half a log n"


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.01, 1)), min_size=1, max_size=5), st.integers(0, 12))
def test_e7_any_coins(weighted, length):
    biases, weights = zip(*weighted, strict=True)
    prior = Prior.points(biases, tuple(w / sum(weights) for w in weights))
    now = expected_entropy(prior, length, discrete_entropy)
    later = expected_entropy(prior, length + 1, discrete_entropy)
    assert -1e-12 <= later <= now + 1e-12 <= discrete_entropy(prior) + 2e-12


# What `checks` and `sources` say is tested there, and here only that it names the argument and its value.
MESSAGES = {
    "prior = a belief with a density: must have point masses only": lambda: discrete_entropy(OVERLAP),
    "prior = a belief with a point mass: must have a density only": lambda: differential_entropy(COINS),
    "length = -1: ": lambda: expected_entropy(COINS, -1, discrete_entropy),
    "counts = [1.0, 0.0]: must be heads and tails that the prior does not rule out": lambda: discrete_entropy(
        Prior.points((0.0,), (1.0,)), (1, 0)
    ),
}


@pytest.mark.parametrize("message", MESSAGES)
def test_bad_input_raises_one_line(message):
    with pytest.raises(UserError) as told:
        MESSAGES[message]()
    assert str(told.value).startswith(message) and "\n" not in str(told.value)
