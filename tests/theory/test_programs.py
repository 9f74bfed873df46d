"""The language of priors: its code against a table of hand-made words, its weights against counts of words."""

import itertools
from fractions import Fraction
from math import comb, factorial, isclose
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bayesprompt.checks import UserError
from bayesprompt.theory.programs import (
    EXAMPLES,
    KRAFT,
    Beta,
    Known,
    Mix,
    as_bits,
    as_prior,
    decode,
    encode,
    gamma,
    marginal,
    parse,
    programs,
)

WORDS = programs(12)
small = st.integers(1, 40)
named = st.recursive(
    st.builds(Beta, small, small) | st.builds(Known, small, st.integers(0, 40)),
    lambda inner: st.builds(Mix, st.tuples(small, small), inner, inner),
    max_leaves=4,
)
bits = st.text("01", max_size=40)


def every(max_bits):
    """All priors with programs of at most `max_bits`, built from the grammar and not from the decoder."""
    integers = [n for n in range(1, 2**max_bits) if 2 * n.bit_length() - 1 <= max_bits]
    length = {n: 2 * n.bit_length() - 1 for n in integers}
    found = {size: [] for size in range(max_bits + 1)}
    pairs = [(m, n) for m, n in itertools.product(integers, repeat=2) if length[m] + length[n] < max_bits]
    for size in range(max_bits + 1):
        found[size] += [Beta(m, n) for m, n in pairs if 1 + length[m] + length[n] == size]
        known = [(m, n) for m, n in pairs if 2 + length[m] + length[n] == size and (m, n) != (1, 1)]
        found[size] += [Known(m - 1, n - 1) for m, n in known]
        for (m, n), first in itertools.product(pairs, range(size)):
            second = size - 2 - length[m] - length[n] - first
            if second >= 0:
                found[size] += [Mix((m, n), a, b) for a, b in itertools.product(found[first], found[second])]
    return found


def test_programs_written_by_hand():
    table = {
        "011": Beta(1, 1),
        "0" + "010" + "00101": Beta(2, 5),
        "10" + "010" + "00101": Known(1, 4),
        "10" + "1" + "010": Known(0, 1),
        "11" + "1" + "011" + "011" + "10010010": Mix((1, 3), Beta(1, 1), Known(1, 1)),
    }
    for word, prior in table.items():
        assert encode(prior) == word and decode(word) == (prior, "")
    assert [gamma(n) for n in (1, 2, 3, 4, 9)] == ["1", "010", "011", "00100", "0001001"]


def test_e4_the_code_is_prefix_free_and_misses_only_the_coin_that_is_none():
    assert len(set(WORDS)) == len(WORDS)
    assert not any(b.startswith(a) for a, b in itertools.pairwise(sorted(WORDS)))  # sorted: a prefix comes just before
    assert sorted(WORDS) == sorted(encode(prior) for group in every(12).values() for prior in group)


def test_e4_all_weights_together():
    """Kraft's sum from counts of words by length, as exact integers, and from programs nested ever deeper."""
    most = 200
    integer = [0] * (most + 1)
    integer[1::2] = [2**k for k in range(len(integer[1::2]))]  # 2 ** k numbers take 2 k + 1 bits
    two = [sum(integer[i] * integer[n - i] for i in range(n + 1)) for n in range(most + 1)]
    count, pairs = [0] * (most + 1), [0] * (most + 1)
    for n in range(3, most + 1):
        count[n] = two[n - 1] + two[n - 2] - (n == 4) + sum(two[i] * pairs[n - 2 - i] for i in range(n - 1))
        pairs[n] = sum(count[i] * count[n - i] for i in range(1, n))
    assert count[:13] == [sum(len(word) == n for word in WORDS) for n in range(13)]
    sums = [float(sum(Fraction(count[i], 2**i) for i in range(n + 1))) for n in (50, 100, most)]
    assert sums[0] < sums[1] < sums[2] < KRAFT < sums[2] + 1e-3
    deeper = 0.0
    for _ in range(60):
        deeper = 1 / 2 + 1 / 4 * 3 / 4 + 1 / 4 * deeper**2
    assert isclose(deeper, KRAFT, rel_tol=1e-15)


@given(named, bits)
def test_a_program_is_read_back_whatever_follows(prior, after):
    assert decode(encode(prior) + after) == (prior, after)


@given(bits)
@example("0" * 62)
@example("0" * 64)
@example("10" + "1" + "0" * 63)
def test_the_weight_of_all_ways_to_go_on_is_the_mean_of_the_two_next_steps(begin):
    prior, position, weight = parse(begin)
    if prior is None and position == len(begin) and weight > 0:
        nexts = [parse(begin + bit)[2] for bit in "01"]
        assert isclose(weight, sum(nexts) / 2, rel_tol=1e-12)
    else:
        assert parse(begin + "0")[1:] == (position, weight)  # a program, or none, whatever follows


@given(named, st.integers(0, 12), st.integers(0, 12))
def test_marginals_are_those_of_the_prior_in_floating_point(prior, heads, tails):
    log_evidence = as_prior(prior).log_evidence((heads, tails))
    assert float(np.exp(log_evidence)) == pytest.approx(float(marginal(prior, heads, tails)), rel=1e-10, abs=1e-300)


@given(named, st.integers(0, 8))
def test_marginals_of_all_sequences_sum_to_one(prior, length):
    assert sum(comb(length, k) * marginal(prior, k, length - k) for k in range(length + 1)) == 1


def test_integers_end_where_their_code_does():
    assert decode(encode(Beta(2**64 - 1, 1))) == (Beta(2**64 - 1, 1), "")
    assert parse("0" + "0" * 63)[2] == 0.5 and parse("0" + "0" * 64)[2] == 0.0


def test_marginals_are_exact():
    assert marginal(Beta(1, 1), 3, 2) == Fraction(factorial(3) * factorial(2), factorial(6))
    assert marginal(Known(1, 4), 2, 1) == Fraction(4, 125)
    assert marginal(Mix((1, 3), Known(1, 0), Known(0, 1)), 0, 7) == Fraction(3, 4)
    assert marginal(EXAMPLES["two coins"], 1, 1) == Fraction(4, 25)


def test_the_list_after_a_beginning():
    assert programs(12, "1001") == [word for word in WORDS if word.startswith("1001")]
    assert programs(3, "100101") == [] and programs(19, "011") == ["011"]


def test_sequences_in_any_form():
    assert as_bits("011") == as_bits([0, 1, 1]) == as_bits(np.array([0, 1, 1], np.int8)) == "011"
    assert as_bits([]) == as_bits("") == ""


def nest(times):
    prior = Beta(1, 1)
    for _ in range(times):
        prior = Mix((1, 1), prior, Known(1, 1))
    return prior


def test_priors_may_nest_a_hundred_times():
    assert decode(encode(nest(100))) == (nest(100), "")


DEEP = "11" + "1" + "1"
# What `checks` and `sources` say is tested there, and here only that it names the argument and its value.
MESSAGES = {
    "a = 0: ": lambda: Beta(0, 1),
    "tails = -1: ": lambda: Known(1, -1),
    "heads, tails = 0, 0: must not both be 0": lambda: Known(0, 0),
    "odds = 0: ": lambda: Mix((1, 0), Beta(1, 1), Beta(1, 1)),
    "odds = (1,): must be two integers >= 1": lambda: Mix.__post_init__(SimpleNamespace(odds=(1,))),
    "number = 0: ": lambda: gamma(0),
    "number = 18446744073709551616: ": lambda: encode(Beta(2**64, 1)),
    "heads = -1: ": lambda: marginal(Beta(1, 1), -1, 0),
    "tokens = (nothing): must begin with a program; this ends inside a program": lambda: decode(""),
    "tokens = 0010: must begin with a program; this ends inside a program": lambda: decode("0010"),
    "tokens = 101101: must begin with a program; this begins no program": lambda: decode("101101"),
    "tokens = 2: must be zeros and ones only": lambda: decode("0121"),
    "tokens = -1: must be zeros and ones only": lambda: as_bits([0, 1, -1]),
    "tokens = 10: must be zeros and ones only": lambda: as_bits([0, 1, 10]),
    "tokens = 0.5: must be zeros and ones only": lambda: as_bits.__wrapped__(np.array([0.5])),
    "tokens = " + (DEEP * 16)[:61] + "...: must nest at most 100 mixtures": lambda: decode(DEEP * 4000),
    "tokens = 16385 of them: must be at most 16384": lambda: as_bits("0" * 16385),
    "max_bits = 21: ": lambda: programs(21, "1001"),
}


@pytest.mark.parametrize("message", MESSAGES)
def test_bad_input_raises_one_line(message):
    with pytest.raises(UserError) as told:
        MESSAGES[message]()
    assert str(told.value).startswith(message) and "\n" not in str(told.value)
