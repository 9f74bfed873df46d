"""The stand-in for Solomonoff's mixture against sums over programs, written out here, and its guarantees."""

import itertools
from fractions import Fraction
from math import exp, isclose, log, prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bayesprompt.checks import UserError
from bayesprompt.theory import countable
from bayesprompt.theory.programs import EXAMPLES, Beta, Known, encode, marginal
from bayesprompt.theory.solomonoff import (
    MACHINES,
    StandIn,
    loop_code,
    loop_prints,
    loop_programs,
    loops,
)

TARGETS = (EXAMPLES["two coins"], Beta(1, 1), Known(1, 1), Beta(1, 4))
M = StandIn(TARGETS, max_bits=9, growth="linear")
bits = st.text("01", max_size=12)


def strings(length):
    return ["".join(x) for x in itertools.product("01", repeat=length)]


def interpreter(instructions, length, patience=2000):
    """Another loop machine: cells that are 1 in a set, and far more patience."""
    ones, head, place, printed, quiet = set(), 0, 0, "", 0
    while len(printed) < length and quiet < patience:
        quiet += 1
        match instructions[place]:
            case ".":
                printed, quiet = printed + "01"[head in ones], 0
            case "+":
                ones ^= {head}
            case ">":
                head += 1
            case "?":
                if head in ones:
                    head, place = 0, -1
        place = (place + 1) % len(instructions)
    return printed


def test_what_programs_print_by_hand():
    assert loop_prints(".", 5) == "00000" and loop_prints("+.", 5) == "10101" and loop_prints(".+", 5) == "01010"
    assert loop_prints(".+?+>", 14) == "01011011101111"[:14], "0, then runs of ones, each longer by one"
    assert loop_prints("?.+", 10) == "0", "silent for good"
    assert loop_prints("+", 3) == loop_prints(">", 3) == ""


def test_the_counter_prints_the_flips_of_a_binary_counter():
    """`+.?>` prints every cell that changes when one is added to a number, lowest first, for ever."""
    printed, number = "", 0
    while len(printed) < 300:
        carries = (~number & (number + 1)).bit_length() - 1
        printed, number = printed + "0" * carries + "1", number + 1
    assert loop_prints("+.?>", 300) == printed[:300]


def test_programs_print_what_another_interpreter_prints():
    programs = loop_programs(13)
    assert len(programs) == 4 + 16 + 64 + 256
    assert all(loop_prints(p, 40) == interpreter(p, 40) for p in programs)


def test_loop_codes_are_prefix_free():
    codes = sorted(loop_code(p) for p in loop_programs(15))
    assert not any(b.startswith(a) for a, b in itertools.pairwise(codes))
    assert max(map(len, codes)) == 15 and loop_code("+.?>") == "00100" + "01" + "00" + "11" + "10"
    assert sum(Fraction(1, 2 ** len(code)) for code in codes) == Fraction(1, 2) + Fraction(1, 4) + Fraction(2, 32)


@given(bits)
def test_the_loop_machine_is_a_sum_over_programs(x):
    def total(x):
        return sum(2.0 ** -len(loop_code(p)) for p in loop_programs(9) if interpreter(p, len(x)) == x)

    assert loops(x, 9)[0] == pytest.approx(total(x), abs=1e-15)
    np.testing.assert_allclose(loops(x, 9, 3), [total(x + future) for future in strings(3)], atol=1e-15)


def test_programs_are_followed_for_long():
    for instructions in ("+.", ".+.", ".>+"):
        x = interpreter(instructions, 100)
        other = x[:70] + "10"[int(x[70])] + x[71:]
        assert loops(x, 9)[0] >= 2.0 ** -len(loop_code(instructions))
        assert loops(other[:71], 9)[0] == 0 < loops(other[:70], 9)[0]


def segments(x):
    """Segments of 1, 2, 3, ... tokens, the last perhaps begun only."""
    ends = list(itertools.accumulate(range(1, 20), initial=0))
    return [x[a:b] for a, b in itertools.pairwise(ends) if x[a:b]]


def parts(x):
    """Each machine's part of M(x), from the definition."""

    def zeta(prior, y):
        return marginal(prior, y.count("0"), y.count("1"))

    weights = [Fraction(1, 2 ** len(encode(prior))) for prior in TARGETS]
    loops = sum(2.0 ** -len(loop_code(p)) for p in loop_programs(9) if interpreter(p, len(x)) == x)
    coins = sum(w * zeta(prior, x) for w, prior in zip(weights, TARGETS, strict=True))
    products = (prod((zeta(prior, y) for y in segments(x)), start=Fraction(1)) for prior in TARGETS)
    return [
        part / 4
        for part in (
            loops,
            float(coins),
            float(sum(w * p for w, p in zip(weights, products, strict=True))),
            exp(countable.log_evidence(x)),
        )
    ]


@given(bits)
def test_the_mixture_is_the_sum_of_its_machines(x):
    expected = np.array(parts(x))
    np.testing.assert_allclose(np.exp(M.log_parts(x))[:, 0], expected, rtol=1e-10, atol=1e-300)
    after = [parts(x + future) for future in strings(2)]
    np.testing.assert_allclose(np.exp(M.log_parts(x, 2)).T, after, rtol=1e-10, atol=1e-300)
    np.testing.assert_allclose(M.posterior(x), expected / expected.sum(), rtol=1e-10, atol=1e-300)
    assert M.log_evidence(x) == pytest.approx(log(expected.sum()))


@pytest.mark.parametrize("prompt", ["", "0", "1001", "10010010", "011" + "0110", "0101010101", encode(TARGETS[0])])
def test_futures_are_ratios_of_evidences(prompt):
    futures = M.futures(prompt, 3)
    for number, future in enumerate(strings(3)):
        assert futures[number] == pytest.approx(sum(parts(prompt + future)) / sum(parts(prompt)), rel=1e-10)
    assert futures.sum() <= 1 + 1e-12


def test_what_falls_silent_is_missing():
    assert M.futures("", 4).sum() < 1 - 1e-3, "programs such as + never print"
    assert M.futures("0110", 4).sum() < 1 + 1e-12


@pytest.mark.parametrize("instructions", [".", ".+", "+.?", ".+.", "+.?>", ".+?+>"])
def test_e6_the_price_of_a_computable_sequence_is_its_program(instructions):
    """Log-loss over 64 tokens, from nothing, is at most the program's bits, two to choose the machine included."""
    stand_in = StandIn(TARGETS, max_bits=15)
    x = loop_prints(instructions, 64)
    assert len(x) == 64
    curve = np.array([stand_in.log_evidence(x[:t]) for t in range(65)])
    assert (-curve <= (2 + len(loop_code(instructions))) * log(2) + 1e-12).all()
    assert (np.diff(curve) <= 1e-12).all() and exp(curve[-1] - curve[-2]) > 0.999


@given(st.text("01", max_size=40), st.sampled_from(range(len(TARGETS))))
def test_e6_the_mixture_is_never_far_below_the_product_of_any_target(x, target):
    """M >= c nu_zeta with c = 2 ** -(2 + bits of zeta's program), the premise of the paper's argument."""
    log_nu = sum(log(marginal(TARGETS[target], y.count("0"), y.count("1"))) for y in segments(x))
    assert M.log_evidence(x) >= log_nu - (2 + len(encode(TARGETS[target]))) * log(2) - 1e-9


@pytest.mark.parametrize("name", ["two coins", "random coins", "fair coin", "mostly tails"])
def test_e6_prompted_by_program(name):
    """Near at once and at every horizon: one minus the reader's posterior bounds the total variation from above."""
    program = encode(EXAMPLES[name])
    reader = M.posterior(program)[MACHINES.index("reader")]
    distances = [countable.total_variation(M.futures(program, h), EXAMPLES[name]) for h in (1, 4, 8)]
    assert 0 < distances[0] < distances[1] < distances[2] <= 1 - reader + 1e-12
    assert distances[2] < 0.35 * countable.total_variation(M.futures("", 8), EXAMPLES[name])
    # A fair coin is in the list of coins and in that of segments, with 10 bits each, and prints any program by chance.
    assert 1 - reader >= 1 / 129


def test_long_prompts():
    assert M.log_evidence("01" * 3000) == pytest.approx(-(2 + 7) * log(2), abs=0.5)
    assert isclose(M.futures("01" * 3000, 2)[1], 1, rel_tol=1e-9)
    noise = M.product.sample(1, 5000, 1, seed=3)[0]
    assert isclose(M.futures(noise, 4).sum(), 1, rel_tol=1e-9)


# What `checks` and `sources` say is tested there, and here only that it names the argument and its value.
MESSAGES = {
    "instructions = '': must be one or more of .+>?": lambda: loop_code(""),
    "instructions = '.x': must be one or more of .+>?": lambda: loop_prints(".x", 3),
    "max_bits = 20: ": lambda: loops("0", 20),
    "max_bits = -1: ": lambda: StandIn(TARGETS, max_bits=-1),
    "targets = (): must be at least one prior": lambda: StandIn(()),
    "growth = none: must be one of linear, doubling": lambda: StandIn(TARGETS, growth="none"),
    "horizon = 11: ": lambda: M.futures("", 11),
    "tokens = 3: must be zeros and ones only": lambda: M.futures("013", 2),
    "tokens = 20000 of them: must be at most 16384": lambda: M.futures("0" * 20000, 2),
    "tokens = 1011: must be what some machine prints": lambda: StandIn((Known(1, 0),), max_bits=3).futures("1011", 1),
}


@pytest.mark.parametrize("message", MESSAGES)
def test_bad_input_raises_one_line(message):
    with pytest.raises(UserError) as told:
        MESSAGES[message]()
    assert str(told.value).startswith(message) and "\n" not in str(told.value)
