"""The mixture over programs against the paper's sum over all of them, in exact fractions."""

import itertools
from fractions import Fraction
from math import comb, exp, inf, isclose, log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bayesprompt.checks import UserError
from bayesprompt.sources.coins import BetaCoins, CoinMixture
from bayesprompt.theory.countable import (
    conditional,
    futures,
    log_evidence,
    posterior,
    total_variation,
)
from bayesprompt.theory.programs import EXAMPLES, KRAFT, Beta, Known, Mix, decode, encode, marginal, programs

WORDS = {word: decode(word)[0] for word in programs(12)}
TWO_COINS = encode(EXAMPLES["two coins"])


def strings(length):
    return ["".join(bits) for bits in itertools.product("01", repeat=length)]


def nu(program, x):
    """nu_p(x) = [x begins with p] zeta_w(the rest); for an x that is shorter, the sum over all ways to go on."""
    if len(x) < len(program):
        return Fraction(program.startswith(x))
    rest = x[len(program) :]
    return x.startswith(program) * marginal(WORDS[program], rest.count("0"), rest.count("1"))


def listed(x):
    """The sum over the programs of at most 12 bits; all others together weigh `LEFT`."""
    return sum(Fraction(1, 2 ** len(program)) * nu(program, x) for program in WORDS)


LEFT = KRAFT - float(listed(""))


@pytest.mark.parametrize("length", range(7))
def test_the_mixture_is_the_sum_over_all_programs(length):
    """What the list lacks is never negative, and in sum over all strings what all longer programs weigh."""
    lacks = np.array([exp(log_evidence(x)) - float(listed(x)) for x in strings(length)])
    assert lacks.min() > -1e-15
    assert lacks.sum() == pytest.approx(LEFT, rel=1e-12)


@pytest.mark.parametrize("program", [word for word in WORDS if len(word) <= 7])
def test_e4_a_program_turns_the_mixture_into_its_prior_exactly(program):
    """Fractions: among all programs listed, xi(p x) / xi(p) is zeta_w(x), not nearly but equal."""
    for x in strings(3) + ["01101001"]:
        zeta = marginal(WORDS[program], x.count("0"), x.count("1"))
        assert listed(program + x) / listed(program) == zeta
        assert conditional(program, x) == pytest.approx(float(zeta), rel=1e-13, abs=1e-300)


def test_e4_identity_is_with_the_priors_of_the_experiments():
    mixture, uniform = CoinMixture((0.2, 0.8), (0.5, 0.5)), BetaCoins(1.0, 1.0)
    for program, source in ((TWO_COINS, mixture), ("011", uniform)):
        for x in strings(6):
            expected = exp(source.log_evidence((x.count("0"), x.count("1"))))
            assert conditional(program, x) == pytest.approx(expected, rel=1e-12)


def test_e4_holds_at_every_horizon():
    for horizon in (1, 5, 9):
        after = futures(TWO_COINS, horizon)
        assert after.sum() == pytest.approx(1, abs=1e-13)
        assert total_variation(after, EXAMPLES["two coins"]) < 1e-13
    long = conditional(TWO_COINS, [0, 1] * 1000)
    assert long == 0.0 or long < 1e-300, "a probability of 1e-398 underflows, its log does not:"
    after = log_evidence(TWO_COINS + "01" * 1000) - log_evidence(TWO_COINS)
    assert after == pytest.approx(1000 * log(0.16), rel=1e-12)


def test_e4_a_proper_prefix_leaves_the_posterior_spread():
    for program in [TWO_COINS, *(encode(prior) for prior in EXAMPLES.values())]:
        for length in range(len(program)):
            assert 0 < posterior(program[:length], program) <= 0.5
        assert posterior(program, program) == 1 == posterior(program + "0110", program)
    before = [posterior(TWO_COINS[:length], TWO_COINS) for length in (0, 8, 16, 23, 24)]
    assert before == sorted(before) and before[0] == pytest.approx(2.0**-24 / KRAFT)


def test_posterior_is_bayes_rule_on_the_list():
    begin = "10010"
    weights = {word: 2.0 ** -len(word) for word in WORDS if word.startswith(begin)}
    longer = exp(log_evidence(begin)) - sum(weights.values())
    assert 0 < longer < 0.1 * sum(weights.values())
    for word, weight in weights.items():
        assert posterior(begin, word) == pytest.approx(weight / (sum(weights.values()) + longer), rel=1e-12)
    assert posterior(begin, "011") == 0


def test_an_integer_that_never_ends_is_none():
    """After 64 zeros no number can follow; before, what goes on is nearly certain to be one."""
    assert log_evidence("0" * 60) == pytest.approx(-60 * log(2), rel=1e-2)
    assert log_evidence("0" * 65) == log_evidence("0" * 2000) == -inf


def test_e4_a_string_that_begins_no_program_is_refused():
    assert log_evidence("1011") == -inf == log_evidence("1011" + TWO_COINS)
    assert log_evidence("101") > -inf
    with pytest.raises(ValueError, match="^prompt = 10110: must have evidence > 0; this begins no program$"):
        conditional("10110", "0")


@given(st.text("01", max_size=30), st.integers(1, 4))
def test_all_futures_together_are_certain(prompt, horizon):
    if log_evidence(prompt) > -inf:
        assert futures(prompt, horizon).sum() == pytest.approx(1, rel=1e-12)


def test_what_begins_no_program_has_no_share_in_the_future():
    np.testing.assert_allclose(futures("101", 2), [0.5, 0.5, 0, 0], rtol=1e-12)
    assert conditional("10", "11") == 0


def test_total_variation_between_distributions_written_by_hand():
    assert total_variation(np.array([0.2, 0.8]), Known(1, 4)) == 0
    assert total_variation(np.array([0.5, 0.5]), Known(1, 4)) == pytest.approx(0.3)
    assert total_variation(np.array([0.1, 0.8]), Known(1, 4)) == pytest.approx(0.1), "0.1 is missing, and 0.1 lost"
    uniform = np.full(8, 1 / 8)
    by_heads = sum(comb(3, k) * abs(1 / 8 - 1 / (4 * comb(3, k))) for k in range(4)) / 2
    assert isclose(total_variation(uniform, Beta(1, 1)), by_heads)


# What `checks` and `sources` say is tested there, and here only that it names the argument and its value.
MESSAGES = {
    "prompt = 1011: must have evidence > 0; this begins no program": lambda: futures("1011", 2),
    "begin = 10010110: must have evidence > 0; this has data that its program rules out": lambda: posterior(
        "10010110", "100101"
    ),
    "prompt = 2: must be zeros and ones only": lambda: conditional("012", "0"),
    "tokens = 7: must be zeros and ones only": lambda: log_evidence([0, 7]),
    "program = 0110: must be a program and nothing after it": lambda: posterior("0", "0110"),
    "tokens = 10: must begin with a program; this ends inside a program": lambda: posterior("1", "10"),
    "horizon = 0: ": lambda: futures("011", 0),
    "horizon = 40: ": lambda: futures("011", 40),
    "futures = array of shape (3,): must have 2 ** horizon entries": lambda: total_variation(np.ones(3), Beta(1, 1)),
}


@pytest.mark.parametrize("message", MESSAGES)
def test_bad_input_raises_one_line(message):
    with pytest.raises(UserError) as told:
        MESSAGES[message]()
    assert str(told.value).startswith(message) and "\n" not in str(told.value)


def test_a_mixture_of_mixtures_is_promptable_too():
    nested = Mix((1, 2), EXAMPLES["two coins"], Mix((3, 1), Beta(2, 2), Known(0, 1)))
    assert total_variation(futures(encode(nested), 4), nested) < 1e-14
