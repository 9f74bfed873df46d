"""Truncated Beta densities against exact rational arithmetic, power series in sixty digits, and adaptive quadrature."""

import math
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats
from scipy.integrate import quad

from bayesprompt.theory.truncated_beta import moments, quadrature, quantile

INTERVALS = [(0, 1 / 4), (3 / 4, 1), (1 / 4, 3 / 4), (1 / 8, 3 / 16), (0, 1 / 128), (127 / 128, 1), (1 / 2, 129 / 256)]
EXPONENTS = [(1, 1), (1, 5), (5, 1), (3, 3), (30, 50), (100, 1), (1, 200), (200, 150)]


def arrays(*values):
    return (np.array([float(value)]) for value in values)


def log_of(fraction):
    """log of a Fraction that may be far below what a float can hold."""
    bits = fraction.numerator.bit_length() - fraction.denominator.bit_length()
    return math.log(fraction / Fraction(2) ** bits) + bits * math.log(2)


def integral(alpha, beta, low, high):
    """The integral of theta^(alpha - 1) (1 - theta)^(beta - 1), exactly: binomial tail probabilities."""
    trials = alpha + beta - 1
    tail = [
        sum(math.comb(trials, k) * x**k * (1 - x) ** (trials - k) for k in range(alpha, trials + 1))
        for x in (Fraction(low), Fraction(high))
    ]
    return (tail[1] - tail[0]) / (trials * math.comb(trials - 1, alpha - 1))


@pytest.mark.parametrize("low, high", INTERVALS)
@pytest.mark.parametrize("alpha, beta", EXPONENTS)
def test_moments_are_the_exact_rational_numbers(alpha, beta, low, high):
    mass, first, second = (integral(alpha + j, beta, low, high) for j in range(3))
    found = moments(*arrays(alpha, beta, low, high))
    assert found.log_mass[0] == pytest.approx(log_of(mass), rel=1e-14, abs=1e-12)
    assert found.mean[0] == pytest.approx(float(first / mass), rel=1e-12)
    assert found.rest[0] == pytest.approx(float(integral(alpha, beta + 1, low, high) / mass), rel=1e-12)
    assert found.variance[0] == pytest.approx(float(second / mass - (first / mass) ** 2), rel=1e-9)


def series(x, alpha, beta):
    """The integral from 0 to x in sixty digits, by its power series; all terms are positive."""
    with localcontext() as context:
        context.prec = 60
        x, alpha, beta = Decimal(x), Decimal(alpha), Decimal(beta)
        term, total, m = Decimal(1), Decimal(1), 0
        while term > total * Decimal(10) ** -50:
            term *= (alpha + beta + m) / (alpha + 1 + m) * x
            total, m = total + term, m + 1
        return (alpha * x.ln() + beta * (1 - x).ln()).exp() / alpha * total if x else Decimal(0)


@pytest.mark.parametrize(
    "alpha, beta, low, high",
    [
        (50001.0, 50001.0, 0.0, 1 / 3),
        (50001.0, 50001.0, 0.2, 0.21),
        (100001.0, 1.0, 0.2, 0.3),
        (30001.0, 70001.0, 0.0, 0.25),
        (1.0, 100001.0, 0.0, 1e-6),
        (0.5, 0.5, 0.0, 0.3),
        (0.5, 3.5, 0.0, 0.01),
    ],
)
def test_log_masses_hold_a_hundred_thousand_flips_out_in_the_tail(alpha, beta, low, high):
    with localcontext() as context:
        context.prec = 60
        exact = (series(high, alpha, beta) - series(low, alpha, beta)).ln()
    for found in (
        moments(*arrays(alpha, beta, low, high)).log_mass[0],
        quadrature(*arrays(alpha, beta, low, high)).log_mass[0],
    ):
        assert found == pytest.approx(float(exact), rel=1e-15, abs=1e-12)


def test_small_exponents_are_as_exact_as_the_docstring_says():
    with localcontext() as context:
        context.prec = 60
        exact = float(series(0.5, 0.05, 0.05).ln())
    assert quadrature(*arrays(0.05, 0.05, 0, 0.5)).log_mass[0] == pytest.approx(exact, abs=1e-7)


@pytest.mark.parametrize("alpha, beta", [(0.5, 0.5), (1.0, 1.0), (2.5, 7.0), (900.0, 30.0)])
def test_the_whole_interval_and_points_have_closed_forms(alpha, beta):
    found = moments(*(np.array([x, x]) for x in (alpha, beta)), np.array([0, 0.3]), np.array([1, 0.3]))
    reference = stats.beta(alpha, beta)
    rule = quadrature(*arrays(alpha, beta, 0, 1))
    assert found.log_mass[0] == pytest.approx(rule.log_mass[0], rel=1e-13, abs=1e-12)
    assert found.mean.tolist() == pytest.approx([reference.mean(), 0.3]) and found.rest[1] == 0.7
    assert found.variance.tolist() == pytest.approx([reference.var(), 0.0], abs=1e-15)
    entropies = [reference.expect(lambda p: stats.bernoulli(p).entropy()), stats.bernoulli(0.3).entropy()]
    assert found.coin_entropy.tolist() == pytest.approx(entropies, rel=1e-7)
    assert found.log_mass[1] == pytest.approx((alpha - 1) * math.log(0.3) + (beta - 1) * math.log(0.7))


@pytest.mark.parametrize("alpha, beta, low, high", [(2.5, 0.7, 0.1, 0.9), (0.5, 0.5, 0.2, 1.0), (40.5, 3.0, 0.3, 0.6)])
def test_fractional_exponents_agree_with_adaptive_quadrature(alpha, beta, low, high):
    def integrate(function):
        """Over u = (1 - p)^beta, which takes the pole at 1 away."""

        def at(u):
            p = 1 - u ** (1 / beta)
            return function(p) * p ** (alpha - 1) / beta

        return quad(at, (1 - high) ** beta, (1 - low) ** beta, epsabs=0, epsrel=1e-12)[0]

    def entropy(p):
        return 0.0 if p in (0.0, 1.0) else -p * math.log(p) - (1 - p) * math.log1p(-p)

    found, mass = moments(*arrays(alpha, beta, low, high)), integrate(lambda p: 1.0)
    assert found.log_mass[0] == pytest.approx(math.log(mass), abs=1e-10)
    assert found.mean[0] == pytest.approx(integrate(lambda p: p) / mass, rel=1e-10)
    assert found.coin_entropy[0] == pytest.approx(integrate(entropy) / mass, rel=1e-9)


def test_many_parameters_at_once_are_one_at_a_time():
    rng = np.random.default_rng(0)
    alpha, beta, low = rng.uniform(0.5, 50, (3, 5000))
    low = low / 100
    together = moments(alpha, beta, low, low + 0.3)
    for index in (0, 4095, 4096, 4999):
        alone = moments(*arrays(alpha[index], beta[index], low[index], low[index] + 0.3))
        assert [field[index] for field in together] == [field[0] for field in alone]


def test_quantiles_invert_the_cumulative_distribution():
    probability = np.array([0.01, 0.3, 0.5, 0.99])
    for alpha, beta, low, high in [(1, 1, 0.2, 0.7), (2.5, 4, 0, 1), (2.5, 4, 0.1, 0.6), (800.0, 800.0, 0.0, 0.3)]:
        found = quantile(probability, *arrays(alpha, beta, low, high))
        below = [moments(*arrays(alpha, beta, low, x)).log_mass[0] for x in found]
        whole = moments(*arrays(alpha, beta, low, high)).log_mass[0]
        assert np.exp(below - whole).tolist() == pytest.approx(probability.tolist(), rel=1e-6)
    assert quantile(probability, *arrays(1, 1, 0.25, 0.25)).tolist() == [0.25] * 4
