"""The product mixture against the definition, in exact fractions over all sequences, and against independence."""

import itertools
from fractions import Fraction
from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bayesprompt.checks import UserError
from bayesprompt.sources.coins import BetaCoins, Categorical, Coin, CoinMixture
from bayesprompt.theory.product import GROWTHS, ProductMixture, heads_of, variation_between
from bayesprompt.theory.programs import EXAMPLES, Beta, Known, Mix, as_prior, marginal

NAMED = (EXAMPLES["two coins"], Beta(1, 1), Known(1, 3), Mix((1, 2), Beta(2, 1), Known(0, 1)))
WEIGHTS = tuple(Fraction(n, 10) for n in (1, 2, 3, 4))
SOURCES = tuple(map(as_prior, NAMED))
MIXTURES = {growth: ProductMixture(SOURCES, tuple(map(float, WEIGHTS)), growth) for growth in GROWTHS}
every_growth = pytest.mark.parametrize("growth", GROWTHS)
sequences = st.lists(st.integers(0, 1), max_size=14)


def cut(x, growth):
    """The segments of a sequence, the last perhaps begun only: 1, 2, 3, ... or 2, 4, 8, ... tokens."""
    parts, k = [], 1
    while x:
        size = k if growth == "linear" else 2**k
        parts, x, k = [*parts, x[:size]], x[size:], k + 1
    return parts


def zeta(named, x):
    return marginal(named, x.count(0), x.count(1))


def nu(named, x, growth):
    return prod((zeta(named, part) for part in cut(list(x), growth)), start=Fraction(1))


def xi(x, growth):
    return sum(w * nu(named, x, growth) for w, named in zip(WEIGHTS, NAMED, strict=True))


def futures(horizon):
    return [list(x) for x in itertools.product((0, 1), repeat=horizon)]


@every_growth
@given(x=sequences)
def test_evidence_and_predictions_are_those_of_the_definition(growth, x):
    mixture = MIXTURES[growth]
    assert np.exp(mixture.log_evidence(x)) == pytest.approx(float(xi(x, growth)), rel=1e-11)
    assert mixture.heads(x, 1)[1] == pytest.approx(float(xi([*x, 0], growth) / xi(x, growth)), rel=1e-11)
    posterior = [float(w * nu(named, x, growth) / xi(x, growth)) for w, named in zip(WEIGHTS, NAMED, strict=True)]
    np.testing.assert_allclose(mixture.posterior(x), posterior, rtol=1e-10, atol=1e-300)


@every_growth
def test_probabilities_of_all_sequences_sum_to_one(growth):
    every = np.array(futures(9))
    assert np.exp(MIXTURES[growth].log_evidence(every)).sum() == pytest.approx(1, rel=1e-12)


@every_growth
@pytest.mark.parametrize("length", range(8))
def test_errors_are_sums_over_all_futures(growth, length):
    """Total variation, all three, in fractions: no grouping by heads, prompts in all positions within a segment."""
    horizon, target = 4, 0
    prompts = np.array(futures(length), dtype=int).reshape(2**length, length)[:: max(1, 2**length // 4)]
    found = MIXTURES[growth].errors(prompts, target, horizon)
    for row, prompt in enumerate(prompts.tolist()):
        total = learning = segments = Fraction(0)
        for x in futures(horizon):
            p = xi([*prompt, *x], growth) / xi(prompt, growth)
            q = nu(NAMED[target], [*prompt, *x], growth) / nu(NAMED[target], prompt, growth)
            goal = zeta(NAMED[target], x)
            total, learning, segments = total + abs(p - goal), learning + abs(p - q), segments + abs(q - goal)
        expected = [float(part) / 2 for part in (total, learning, segments)]
        np.testing.assert_allclose([error[row] for error in found], expected, atol=1e-12)


def shortest_prompt(mixture, horizon):
    """How long a prompt is, at least, after which a segment of `horizon` tokens or more begins."""
    return next(end for end in mixture.boundaries(horizon**2) if len(mixture.segments(end, horizon)) == 1)


@every_growth
def test_e5_where_a_long_enough_segment_begins_the_process_is_the_target(growth):
    mixture = MIXTURES[growth]
    for horizon in (1, 2, 5, 9):
        length = shortest_prompt(mixture, horizon)
        prompts = mixture.sample(0, length, 3, seed=1)
        assert mixture.errors(prompts, 0, horizon).segments == pytest.approx(0, abs=1e-13)
        assert (mixture.errors(prompts, 0, horizon + len(cut([0] * 60, growth)[-1])).segments > 0.01).all()


def test_e5_how_long_a_prompt_a_horizon_needs_at_least():
    """Segments of length k: h (h - 1) / 2 tokens. Segments of length 2 ** k: about h to 2 h."""
    for h in range(1, 200):
        assert shortest_prompt(MIXTURES["linear"], h) == h * (h - 1) // 2
        assert max(0, h - 2) <= shortest_prompt(MIXTURES["doubling"], h) <= max(0, 2 * h - 4)


@every_growth
@given(x=sequences, horizon=st.integers(1, 6), target=st.integers(0, 1))
def test_e5_errors_are_bounded_by_the_posterior_and_grow_with_the_horizon(growth, x, horizon, target):
    mixture = MIXTURES[growth]
    here, further = (mixture.errors(x, target, h) for h in (horizon, horizon + 1))
    assert here.learning[0] <= 1 - mixture.posterior(x)[target] + 1e-12, "and this bound knows no horizon"
    assert here.total[0] <= here.learning[0] + here.segments[0] + 1e-12
    for near, far in zip(here, further, strict=True):
        assert near[0] <= far[0] + 1e-12


def test_samples_have_the_distribution_of_the_product():
    """Heads in the second and third segment: means, and no correlation; within a segment a strong one."""
    mixture = MIXTURES["doubling"]
    drawn = 1 - mixture.sample(0, 14, 4000, seed=2)
    assert set(np.unique(drawn)) == {0, 1} and drawn.shape == (4000, 14)
    np.testing.assert_allclose(drawn.mean(0), 0.5, atol=5 * 0.5 / 4000**0.5)
    second, third = drawn[:, 2:6].sum(1), drawn[:, 6:].sum(1)
    pmf = [sum(0.5 * p**k * (1 - p) ** (4 - k) for p in (0.2, 0.8)) * n for k, n in enumerate((1, 4, 6, 4, 1))]
    np.testing.assert_allclose(np.bincount(second, minlength=5) / 4000, pmf, atol=5 * 0.5 / 4000**0.5)
    assert abs(np.corrcoef(second, third)[0, 1]) < 5 / 4000**0.5
    pairs = [np.corrcoef(drawn[:, i], drawn[:, j])[0, 1] for i, j in itertools.combinations(range(6, 14), 2)]
    np.testing.assert_allclose(pairs, 0.36, atol=0.08)  # variance of the bias over that of a flip: 0.09 / 0.25
    assert (mixture.sample(0, 14, 4000, seed=2) == 1 - drawn).all()


@every_growth
@pytest.mark.parametrize("prompt", [[], [0], [1, 1, 0], [0, 1, 1, 0, 1, 1]], ids=str)
def test_heads_of_the_future_are_counted_over_all_sequences(growth, prompt):
    expected = np.zeros(6)
    for x in futures(5):
        expected[x.count(0)] += float(xi([*prompt, *x], growth) / xi(prompt, growth))
    np.testing.assert_allclose(MIXTURES[growth].heads(prompt, 5), expected, rtol=1e-11)


def test_one_target_is_known_at_once():
    alone = ProductMixture((CoinMixture((0.2, 0.8), (0.5, 0.5)),), (1.0,))
    errors = alone.errors([0, 1], 0, 4)
    assert errors.total[0] == pytest.approx(0, abs=1e-14) == errors.learning[0] == errors.segments[0]


def test_total_variation_between_sources():
    first, second = Coin(0.2), BetaCoins(1.0, 1.0)
    np.testing.assert_allclose(heads_of(first, 2), [0.64, 0.32, 0.04])
    np.testing.assert_allclose(heads_of(second, 9), np.full(10, 0.1))
    by_hand = sum(abs(0.2 ** (3 - k) * 0.8**k * n - 1 / 4) for k, n in enumerate((1, 3, 3, 1))) / 2
    assert variation_between(first, second, 3) == pytest.approx(by_hand)
    assert variation_between(first, first, 50) == 0


def test_a_coin_that_is_ruled_out_does_no_harm():
    mixture = ProductMixture((Coin(1.0), Coin(0.5)), (0.5, 0.5), "linear")
    np.testing.assert_allclose(mixture.posterior([0, 1, 0]), [0, 1])
    np.testing.assert_allclose(mixture.heads([0, 1, 0], 1), 0.5)
    assert mixture.errors([0, 1, 0, 0], 1, 3).total[0] == pytest.approx(0, abs=1e-14)


MIXTURE = MIXTURES["doubling"]
TWO = "must be 2 numbers in [0, 1], summing to 1"
# What `checks` and `sources` say is tested there, and here only that it names the argument and its value.
MESSAGES = {
    f"weights = [0.5, 0.6]: {TWO}": lambda: ProductMixture(SOURCES[:2], (0.5, 0.6)),
    f"weights = [1.5, -0.5]: {TWO}": lambda: ProductMixture(SOURCES[:2], (1.5, -0.5)),
    f"weights = [1.0]: {TWO}": lambda: ProductMixture(SOURCES[:2], (1.0,)),
    "targets = Categorical(probs=(0.2, 0.3, 0.5)): must be exchangeable sources of 2 tokens": lambda: ProductMixture(
        (Categorical((0.2, 0.3, 0.5)),), (1.0,)
    ),
    "growth = cubic: must be one of linear, doubling": lambda: ProductMixture(SOURCES[:1], (1.0,), "cubic"),
    "tokens = 2: ": lambda: MIXTURE.log_evidence([0, 2]),
    "tokens = a sequence of probability 0: must be one that some target admits": lambda: ProductMixture(
        (Coin(1.0),), (1.0,)
    ).posterior([0, 1]),
    "prompts = one of probability 0 under target 0: must be prompts that it admits": lambda: ProductMixture(
        (Coin(1.0), Coin(0.5)), (0.5, 0.5)
    ).errors([0, 1], 0, 2),
    "target = 4: ": lambda: MIXTURE.errors([0, 1], 4, 2),
    "horizon = 0: ": lambda: MIXTURE.errors([0, 1], 0, 0),
    "horizon = 300: must leave 262144 groups or fewer to sum over": lambda: MIXTURE.errors([0, 1], 0, 300),
    "prompts = 0: ": lambda: MIXTURE.sample(0, 5, 0, 0),
    "length = -1: ": lambda: MIXTURE.sample(0, -1, 3, 0),
}


@pytest.mark.parametrize("message", MESSAGES)
def test_bad_input_raises_one_line(message):
    with pytest.raises(UserError) as told:
        MESSAGES[message]()
    assert str(told.value).startswith(message) and "\n" not in str(told.value)
