"""Regret against closed forms (sums over counts written out here), full enumeration, and the papers' numbers."""

import functools
import itertools
import re
from math import inf, lgamma, log

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bayesprompt.measures.regret import (
    best_hard_prompt,
    cumulative_regret,
    exact_regret,
    exact_stderr,
    excess_log_loss,
    log_loss,
    quantiles,
)
from bayesprompt.sources.coins import BetaCoins, Categorical, Coin, CoinMixture, DirichletCategorical, Markov

LAPLACE = BetaCoins(1.0, 1.0)
SINGLE = Coin(0.2)
MIXTURE = CoinMixture((0.2, 0.8), (0.5, 0.5))


def entropy(p):
    return -p * log(p) - (1 - p) * log(1 - p)


def log_choose(n, k):
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)


def log_sequence(target, heads, n):
    """log P of one sequence of n tokens, for the three targets, from their textbook formulas."""
    if target is LAPLACE:
        return -log(n + 1) - log_choose(n, heads)  # all head counts alike
    single = heads * log(0.2) + (n - heads) * log(0.8)
    other = heads * log(0.8) + (n - heads) * log(0.2)
    return single if target is SINGLE else np.logaddexp(single, other) + log(0.5)


def closed_form(predictor, target, n):
    """E[-log q(x_1..x_n)] - n E[H(tau)] as one sum over the heads among n tokens: no step-by-step predictions."""
    mean_entropy = 0.5 if target is LAPLACE else entropy(0.2)
    terms = (
        np.exp(log_choose(n, heads) + log_sequence(target, heads, n)) * -log_sequence(predictor, heads, n)
        for heads in range(n + 1)
    )
    return sum(terms) - n * mean_entropy


PAIRS = list(itertools.product([LAPLACE, SINGLE, MIXTURE], repeat=2))


@pytest.mark.parametrize("predictor, target", PAIRS, ids=str)
def test_exact_regret_is_the_closed_form(predictor, target):
    regret = exact_regret(predictor, target, 200)
    for n in (1, 2, 7, 50, 200):
        assert regret[n - 1] == pytest.approx(closed_form(predictor, target, n), rel=1e-10, abs=1e-10)


@functools.cache
def samples(target):
    return [np.asarray(drawn) for drawn in jax.jit(lambda: target.sample(jax.random.key(7), 2048, 200))()]


def closed_form_stderr(predictor, target, n, num_sequences):
    """Standard error of R(n) by the same kind of sum, over tau too.

    The sample's own is no error bar where nearly all sequences lose alike: on the mixture, R(50) = ln 2 - 3.3e-6, of
    which 2048 sequences typically see neither the 3.3e-6 nor its spread, all of it in sequences too rare to be there.
    """
    taus = [0.2] if target is SINGLE else [0.2, 0.8]
    heads = np.arange(n + 1)
    log_bayes = np.array([log_sequence(predictor, h, n) for h in heads])
    orders = np.array([log_choose(n, h) for h in heads])
    excess = np.array([heads * log(tau) + (n - heads) * log(1 - tau) - log_bayes for tau in taus])
    probs = np.exp(excess + log_bayes + orders) / len(taus)
    mean = (probs * excess).sum()
    assert mean == pytest.approx(closed_form(predictor, target, n), abs=1e-10)
    return np.sqrt((probs * (excess - mean) ** 2).sum() / num_sequences)


@pytest.mark.parametrize("predictor, target", [pair for pair in PAIRS if pair[0] is not SINGLE], ids=str)
def test_sampled_regret_is_within_standard_errors_of_the_closed_form(predictor, target):
    tokens, latent = samples(target)
    regret = cumulative_regret(predictor.bayes_log_probs(tokens), tokens, target.oracle_log_probs(tokens, latent))
    assert regret.mean.shape == regret.stderr.shape == (200,)
    for n in (1, 10, 50, 200):
        stderr = regret.stderr[n - 1] if target is LAPLACE else closed_form_stderr(predictor, target, n, len(tokens))
        assert abs(regret.mean[n - 1] - closed_form(predictor, target, n)) <= 3.5 * stderr + 1e-8
        if predictor is LAPLACE:  # whose losses are spread out, so the reported standard error is a good one
            assert regret.stderr[n - 1] == pytest.approx(stderr, rel=0.15, abs=1e-8)


def test_sampled_bayes_regret_is_the_difference_of_closed_forms():
    tokens, _ = samples(MIXTURE)
    own = MIXTURE.bayes_log_probs(tokens)
    regret = excess_log_loss(LAPLACE.bayes_log_probs(tokens), tokens, own)
    for n in (1, 20, 200):
        expected = closed_form(LAPLACE, MIXTURE, n) - closed_form(MIXTURE, MIXTURE, n)
        assert abs(regret.mean[n - 1] - expected) <= 3.5 * regret.stderr[n - 1] + 1e-8
    same = excess_log_loss(own, tokens, own)
    assert not same.mean.any() and not same.stderr.any()


ENUMERATED = {
    "Laplace on the mixture": (LAPLACE, MIXTURE, (0, 0)),
    "Laplace prompted, single coin": (LAPLACE, SINGLE, (1, 3)),
    "mixture prompted, mixture": (MIXTURE, MIXTURE, (2, 1)),
    "Beta(1/2, 3), three coins": (BetaCoins(0.5, 3.0), CoinMixture((0.0, 0.4, 1.0), (0.2, 0.5, 0.3)), (1, 0)),
    "constant on the mixture": (Coin(0.5), MIXTURE, (0, 2)),
}


@pytest.mark.parametrize("name", ENUMERATED)
def test_exact_regret_is_the_sum_over_all_sequences(name):
    predictor, target, (heads, tails) = ENUMERATED[name]
    biases, weights = (target.biases, target.weights) if target is not SINGLE else ((0.2,), (1.0,))
    length = 7
    sequences = np.array(list(itertools.product((0, 1), repeat=length)))
    prompted = np.hstack([np.tile([0] * heads + [1] * tails, (len(sequences), 1)).astype(int), sequences])
    loss = log_loss(predictor.bayes_log_probs(prompted), prompted)[:, heads + tails :]
    regret = np.zeros(length)
    for bias, weight in zip(biases, weights, strict=True):
        prob_of_token = np.where(sequences == 0, bias, 1 - bias)
        prob = weight * prob_of_token.prod(axis=1)
        happens = prob > 0
        excess = loss[happens] + np.log(prob_of_token[happens])
        regret += prob[happens] @ np.cumsum(excess, axis=1)
    np.testing.assert_allclose(exact_regret(predictor, target, length, (heads, tails)), regret, rtol=0, atol=1e-12)


def test_target_bayes_on_the_mixture_pays_one_bit_for_which_coin():
    regret = exact_regret(MIXTURE, MIXTURE, 200)
    assert regret[-1] == pytest.approx(log(2), abs=1e-3)
    assert (np.diff(regret) > -1e-12).all()


@pytest.mark.parametrize(
    "prefix_length, counts, regret", [(0, (0, 0), 1.477), (6, (1, 5), 0.571), (50, (10, 40), 0.096)]
)
def test_best_hard_prompt_on_the_single_coin(prefix_length, counts, regret):
    best = best_hard_prompt(LAPLACE, SINGLE, prefix_length, 50)
    assert best.counts == counts and best.regret.shape == (50,)
    assert best.regret[-1] == pytest.approx(regret, abs=5e-4)


@pytest.mark.parametrize("prefix_length, counts, regret", [(0, (0, 0), 1.48), (6, (3, 3), 1.96), (50, (25, 25), 5.28)])
def test_best_hard_prompt_on_the_mixture(prefix_length, counts, regret):
    best = best_hard_prompt(LAPLACE, MIXTURE, prefix_length, 50)
    assert best.counts == counts and best.regret[-1] == pytest.approx(regret, abs=5e-3)


def test_best_constant_predictor_on_the_mixture():
    regrets = {
        bias: exact_regret(Coin(bias), MIXTURE, 50)[-1] for bias in np.linspace(0.05, 0.95, 19).round(2).tolist()
    }
    assert min(regrets, key=regrets.get) == 0.5
    assert regrets[0.5] == pytest.approx(50 * (log(2) - entropy(0.2))) and round(regrets[0.5], 2) == 9.64


@pytest.mark.parametrize("target", [SINGLE, MIXTURE, BetaCoins(3.0, 1.0)], ids=str)
def test_best_hard_prompt_is_the_best_of_all_prompts(target):
    best = best_hard_prompt(LAPLACE, target, 5, 20)
    regrets = [
        exact_regret(LAPLACE, target, 20, (prompt.count(0), prompt.count(1)))[-1]
        for prompt in itertools.product((0, 1), repeat=5)
    ]
    assert best.regret[-1] == pytest.approx(min(regrets), abs=1e-12)
    assert sum(best.counts) == 5


def test_of_tied_prompts_the_one_with_fewest_heads():
    assert best_hard_prompt(LAPLACE, MIXTURE, 1, 50).counts == (0, 1)


def test_ruling_out_what_happens_costs_infinitely_much():
    np.testing.assert_array_equal(exact_regret(Coin(1.0), SINGLE, 3), [inf, inf, inf])
    np.testing.assert_array_equal(exact_regret(Coin(1.0), Coin(1.0), 3), [0, 0, 0])
    np.testing.assert_allclose(exact_regret(Coin(0.5), Coin(1.0), 3), np.arange(1, 4) * log(2))
    coins = CoinMixture((0.0, 0.2), (0.5, 0.5))  # a tail first would leave both; heads rule one out
    assert best_hard_prompt(coins, SINGLE, 1, 10).counts == (1, 0)
    assert best_hard_prompt(Coin(0.0), SINGLE, 2, 10).regret[-1] == inf


coins = st.one_of(
    st.builds(lambda bias: (Coin, bias), st.floats(0.01, 0.99)),
    st.builds(lambda *biases: (CoinMixture, biases, (0.3, 0.7)), st.floats(0.01, 0.99), st.floats(0.01, 0.99)),
    st.builds(lambda *ab: (BetaCoins, *ab), st.floats(0.1, 10), st.floats(0.1, 10)),
)


@given(coins, coins, st.tuples(st.integers(0, 9), st.integers(0, 9)))
def test_no_predictor_beats_the_targets_own(predictor, target, prompt):
    predictor, target = (cls(*parameters) for cls, *parameters in (predictor, target))
    regret = exact_regret(predictor, target, 30, prompt)
    own = exact_regret(target, target, 30)
    assert (own > -1e-10).all() and (regret > own - 1e-10).all()
    assert (np.diff(regret - own) > -1e-10).all()  # Bayes regret is a sum of KL divergences, Eq. 4


def test_log_loss_reads_off_the_token():
    probs = np.array([[[0.2, 0.8], [0.5, 0.5]], [[1.0, 0.0], [0.25, 0.75]]])
    with np.errstate(divide="ignore"):
        log_probs = np.log(probs)
    loss = log_loss(log_probs, np.array([[1, 0], [1, 1]]))
    np.testing.assert_allclose(loss, [[-log(0.8), log(2)], [inf, -log(0.75)]])
    single = log_loss(jax.numpy.asarray(log_probs, jax.numpy.float32), jax.numpy.array([[1, 0], [1, 1]]))
    assert single.dtype == np.float64
    np.testing.assert_allclose(single, loss, rtol=1e-6)


def test_regret_is_a_mean_of_sums_with_its_standard_error():
    rng = np.random.default_rng(0)
    log_probs = np.log(rng.dirichlet((1, 1, 1), (5, 4)))
    oracle = np.log(rng.dirichlet((1, 1, 1), (5, 4)))
    tokens = rng.integers(0, 3, (5, 4))
    regret = cumulative_regret(log_probs, tokens, oracle)
    for n in range(1, 5):
        sums = [sum(oracle[b, m, tokens[b, m]] - log_probs[b, m, tokens[b, m]] for m in range(n)) for b in range(5)]
        assert regret.mean[n - 1] == pytest.approx(np.mean(sums))
        assert regret.stderr[n - 1] == pytest.approx(np.std(sums, ddof=1) / 5**0.5)
    alone = cumulative_regret(log_probs[:1], tokens[:1], oracle[:1])
    assert np.isfinite(alone.mean).all() and np.isnan(alone.stderr).all()


def test_sampled_regret_may_be_infinite():
    tokens = np.array([[1, 0], [1, 1]])
    regret = cumulative_regret(SINGLE.bayes_log_probs(tokens), tokens, np.log(np.full((2, 2, 2), 0.5)))
    assert np.isfinite(regret.mean).all()
    never = cumulative_regret(Coin(0.0).bayes_log_probs(tokens), tokens, SINGLE.bayes_log_probs(tokens))
    assert np.isfinite(never.mean[0]) and never.mean[1] == inf and np.isnan(never.stderr[1])


@pytest.mark.parametrize("predictor", [LAPLACE, SINGLE, MIXTURE], ids=str)
@pytest.mark.parametrize("target", [SINGLE, MIXTURE], ids=str)
@pytest.mark.parametrize("n", [1, 50])
def test_the_closed_form_of_the_standard_error(predictor, target, n):
    assert exact_stderr(predictor, target, n, 2048) == pytest.approx(
        closed_form_stderr(predictor, target, n, 2048), rel=1e-9, abs=1e-15
    )


def test_the_standard_error_after_a_prompt_is_that_of_all_sequences():
    """Every sequence of six flips, one after the other, for both coins of the mixture."""
    prompt = (3, 1)
    tokens = np.array(list(itertools.product((0, 1), repeat=6)))
    heads = (tokens == 0).sum(1)
    loss = -sum(
        np.where(tokens[:, m] == 0, *np.log([p := (1 + 3 + (tokens[:, :m] == 0).sum(1)) / (6 + m), 1 - p]))
        for m in range(6)
    )
    log_true = np.array([heads * log(tau) + (6 - heads) * log(1 - tau) for tau in (0.2, 0.8)])
    probs, excess = np.exp(log_true) / 2, loss + log_true
    variance = (probs * excess**2).sum() - (probs * excess).sum() ** 2
    assert exact_stderr(LAPLACE, MIXTURE, 6, 100, prompt) == pytest.approx(np.sqrt(variance / 100))


def test_quantiles_over_repetitions():
    values = np.arange(10.0)[:, None] * np.array([1, 2, 3])
    q25, median, q75 = quantiles(values)
    np.testing.assert_allclose([q25, median, q75], np.outer([2.25, 4.5, 6.75], [1, 2, 3]))
    np.testing.assert_allclose(quantiles(values.T, axis=1).median, median)
    assert quantiles(jax.numpy.arange(5)).median == 2


ONES = np.zeros((1, 2, 2))
NOT_COINS = "must be an exchangeable source of 2 tokens"
MESSAGES = {
    f"predictor = {Categorical((0.2, 0.3, 0.5))}: {NOT_COINS}": lambda: exact_regret(
        Categorical((0.2, 0.3, 0.5)), SINGLE, 5
    ),
    f"target = {DirichletCategorical((1.0, 1.0, 1.0))}: {NOT_COINS}": lambda: best_hard_prompt(
        LAPLACE, DirichletCategorical((1.0, 1.0, 1.0)), 2, 5
    ),
    "length = 0: must be an integer >= 1": lambda: exact_regret(LAPLACE, SINGLE, 0),
    "length = -3: must be an integer >= 1": lambda: best_hard_prompt(LAPLACE, SINGLE, 2, -3),
    "prefix_length = -1: must be an integer >= 0": lambda: best_hard_prompt(LAPLACE, SINGLE, -1, 5),
    "prompt_counts = -1.0: must be finite numbers >= 0": lambda: exact_regret(LAPLACE, SINGLE, 5, (3, -1)),
    "prompt_counts = array of shape (3,): must have 2 entries on the last axis": lambda: exact_regret(
        LAPLACE, SINGLE, 5, (1, 1, 1)
    ),
    f"target = {LAPLACE}: must be one of finitely many coins": lambda: exact_stderr(LAPLACE, LAPLACE, 5, 10),
    "tokens = 2: must be integers from 0 to 1": lambda: log_loss(ONES, np.array([[0, 2]])),
    "tokens = -1: must be integers from 0 to 1": lambda: cumulative_regret(ONES, np.array([[0, -1]]), ONES),
    "oracle_log_probs = -inf at a token that came up: must be a finite log-probability": lambda: cumulative_regret(
        ONES, np.array([[0, 1]]), ONES - inf
    ),
    "bayes_log_probs = nan at a token that came up: must be a finite log-probability": lambda: excess_log_loss(
        ONES, np.array([[0, 1]]), ONES * np.nan
    ),
    "tokens = array of shape (1, 1): must be (1, 2), that of log_probs": lambda: log_loss.__wrapped__(
        ONES, np.array([[0]])
    ),
}


@pytest.mark.parametrize("message", MESSAGES)
def test_bad_input_raises_one_line_naming_argument_value_and_range(message):
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        MESSAGES[message]()


def test_a_chain_is_not_exchangeable():
    chain = Markov((0.5, 0.5), ((0.9, 0.1), (0.1, 0.9)))
    with pytest.raises(ValueError, match="^target = Markov.*: must be an exchangeable source of 2 tokens$"):
        exact_regret.__wrapped__(LAPLACE, chain, 5)  # the annotation already says so
