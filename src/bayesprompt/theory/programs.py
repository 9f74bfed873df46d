"""A language for priors over coins: a program is a string of bits that names one, and no program begins another.

    prior   = 0 integer integer                 Beta(a, b)
            | 10 integer integer                a known coin: heads + 1 and tails + 1 of its odds, which are not 0 : 0
            | 11 integer integer prior prior    two priors, mixed with these odds
    integer = Elias' gamma code of 1, 2, 3, ..., 2 ** 64 - 1: in binary, after one zero less than that has bits

The language names Beta priors with whole parameters, coins with rational odds, and finite mixtures of these; a prior
without a program can only be approached. Token 0 is heads. What a named prior says about data is an exact fraction.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from jaxtyping import Integer

from bayesprompt.checks import UserError, check_integer
from bayesprompt.theory.bernoulli import Prior

Tokens = str | Sequence[int] | Integer[np.ndarray, " N"]  # "0110", [0, 1, 1, 0] or an array
KRAFT = 2 - math.sqrt(5) / 2  # the weights' sum: K = 1/2 + 1/4 * 3/4 + 1/4 * K ** 2 (no coin has odds 0 : 0)
INTEGER_BITS = 64  # integers end at 2 ** 64 - 1; what this takes from KRAFT lies below its rounding
MAX_TOKENS = 2**14  # flips are exponents of fractions, so these have a million digits at most
MAX_NESTED = 100  # mixtures that a reader may have open at a time
MAX_LISTED_BITS = 16  # listed programs may be so much longer than what they begin with: some two thousand programs


@dataclass(frozen=True)
class Beta:
    """A random coin: P(heads) ~ Beta(`a`, `b`), integers from 1."""

    a: int
    b: int

    def __post_init__(self):
        check_integer("a", self.a, 1)
        check_integer("b", self.b, 1)


@dataclass(frozen=True)
class Known:
    """A known coin: P(heads) = `heads` / (`heads` + `tails`), integers from 0, not both 0."""

    heads: int
    tails: int

    def __post_init__(self):
        check_integer("heads", self.heads, 0)
        check_integer("tails", self.tails, 0)
        if self.heads == self.tails == 0:
            raise UserError("heads, tails = 0, 0: must not both be 0")


@dataclass(frozen=True)
class Mix:
    """A mixture of two priors, `first` and `second`, with these `odds` (two integers from 1)."""

    odds: tuple[int, int]
    first: "NamedPrior"
    second: "NamedPrior"

    def __post_init__(self):
        if not isinstance(self.odds, tuple) or len(self.odds) != 2:
            raise UserError(f"odds = {self.odds}: must be two integers >= 1")
        for weight in self.odds:
            check_integer("odds", weight, 1)


NamedPrior = Beta | Known | Mix
EXAMPLES = {
    "two coins": Mix((1, 1), Known(1, 4), Known(4, 1)),
    "random coins": Beta(1, 1),
    "fair coin": Known(1, 1),
    "coin 1/5": Known(1, 4),
    "coin 4/5": Known(4, 1),
    "coins 1/3, 2/3": Mix((1, 1), Known(1, 2), Known(2, 1)),
    "nearly fair coins": Beta(4, 4),
    "mostly tails": Beta(1, 4),
}


def gamma(number: int) -> str:
    """Write an integer from 1 to 2 ** 64 - 1 in Elias' gamma code: 1 is "1", 2 is "010", 5 is "00101"."""
    check_integer("number", number, 1, 2**INTEGER_BITS - 1)
    return format(number, "b").zfill(2 * int(number).bit_length() - 1)


def encode(prior: NamedPrior) -> str:
    """Write a program for `prior`, as text of zeros and ones."""
    match prior:
        case Beta(a, b):
            return "0" + gamma(a) + gamma(b)
        case Known(heads, tails):
            return "10" + gamma(heads + 1) + gamma(tails + 1)
        case Mix((u, v), first, second):
            return "11" + gamma(u) + gamma(v) + encode(first) + encode(second)


def decode(tokens: Tokens) -> tuple[NamedPrior, str]:
    """Return the prior that a program names, and the bits after the program; ValueError if there is no program."""
    bits = as_bits(tokens)
    prior, position, _ = parse(bits)
    if prior is None:
        raise UserError(f"tokens = {shown(bits)}: must begin with a program; this {fault(bits)}")
    return prior, bits[position:]


@functools.lru_cache(64)  # many continuations of a prompt have the same counts
def marginal(prior: NamedPrior, heads: int, tails: int) -> Fraction:
    """Return zeta_w(x), exactly, of one sequence x with these heads and tails: a coin from the prior w is flipped."""
    check_integer("heads", heads, 0)
    check_integer("tails", tails, 0)
    match prior:
        case Beta(a, b):  # (a)_h (b)_t / (a + b)_n, rising factorials: (a)_h = (a + h - 1)! / (a - 1)!
            both = math.perm(a + heads - 1, heads) * math.perm(b + tails - 1, tails)
            return Fraction(both, math.perm(a + b + heads + tails - 1, heads + tails))
        case Known(h, t):
            return Fraction(h**heads * t**tails, (h + t) ** (heads + tails))
        case Mix((u, v), first, second):
            return (u * marginal(first, heads, tails) + v * marginal(second, heads, tails)) / (u + v)


def as_prior(prior: NamedPrior) -> Prior:
    """Return the same prior in floating point, as a source of coins."""
    match prior:
        case Beta(a, b):
            return Prior.beta(a, b)
        case Known(heads, tails):
            return Prior.points([heads / (heads + tails)], [1.0])
        case Mix((u, v), first, second):
            return Prior.mixture([as_prior(first), as_prior(second)], [u / (u + v), v / (u + v)])


def programs(max_bits: int, begin: Tokens = "") -> list[str]:
    """List all programs of at most `max_bits` that begin with `begin`, shortest first.

    Raises ValueError for a limit more than 16 bits beyond what they begin with.
    """
    begin, found = as_bits(begin, "begin"), []
    check_integer("max_bits", max_bits, 0, len(begin) + MAX_LISTED_BITS)
    open_ = [begin] if len(begin) <= max_bits else []
    while open_:
        bits = open_.pop()
        prior, position, weight = parse(bits)
        if prior is not None and position == len(bits):
            found.append(bits)
        elif prior is None and weight > 0 and len(bits) < max_bits:
            open_ += [bits + "1", bits + "0"]
    return sorted(found, key=lambda bits: (len(bits), bits))


def as_bits(tokens: Tokens, name: str = "tokens") -> str:
    """Write a binary sequence as text; raises ValueError for anything but zeros and ones, and for more than 16384."""
    if len(tokens) > MAX_TOKENS:
        raise UserError(f"{name} = {len(tokens)} of them: must be at most {MAX_TOKENS}")
    bits = tokens if isinstance(tokens, str) else [str(token) for token in np.asarray(tokens).tolist()]
    if wrong := sorted(set(bits) - {"0", "1"}):
        raise UserError(f"{name} = {wrong[0]}: must be zeros and ones only")
    return "".join(bits)


def fault(bits: str) -> str:
    """Say why a string is no program, or has evidence 0."""
    prior, _, weight = parse(bits)
    if prior is None:
        return "ends inside a program" if weight > 0 else "begins no program"
    return "has data that its program rules out"


def shown(bits: str) -> str:
    """Shorten a string for an error message."""
    return (bits if len(bits) <= 64 else bits[:61] + "...") or "(nothing)"


def parse(bits: str) -> tuple[NamedPrior | None, int, float]:
    """Read a program at the start of `bits`, and return its prior, its length, and 1.0.

    If the bits end before a program does, return None, their number, and the weight of all ways to go on, where a way
    of n bits weighs 2 ** -n. If they begin no program, return None, the number of bits read, and 0.0.
    """
    reader = _Reader(bits)
    try:
        return reader.prior(), reader.position, 1.0
    except _Ended as ended:
        return None, reader.position, ended.args[0]


class _Ended(Exception):
    """The bits end inside a program, or begin none; the argument is the weight of all ways to go on."""


class _Reader:
    """A reader by the grammar. `rest` is the weight of all ways to finish, from here, what is being read."""

    def __init__(self, bits: str):
        self.bits, self.position = bits, 0
        self.owed = 0  # priors to come after the one being read

    def bit(self, rest: float) -> str:
        if self.position == len(self.bits):
            raise _Ended(rest * KRAFT**self.owed)
        self.position += 1
        return self.bits[self.position - 1]

    def integer(self, rest: float = 1.0) -> int:
        zeros, number = 0, 1
        while self.bit(1 - 0.5 ** (INTEGER_BITS - zeros) if zeros else rest) == "0":
            zeros += 1
            if zeros == INTEGER_BITS:
                raise _Ended(0.0)
        for _ in range(zeros):
            number = 2 * number + int(self.bit(1.0))
        return number

    def prior(self, nested: int = 0) -> NamedPrior:
        if self.bit(KRAFT) == "0":
            return Beta(self.integer(), self.integer())
        if self.bit(2 * KRAFT - 1) == "0":
            heads = self.integer(0.75) - 1
            tails = self.integer(1.0 if heads else 0.5) - 1
            if heads == tails == 0:
                raise _Ended(0.0)
            return Known(heads, tails)
        if nested == MAX_NESTED:
            raise UserError(f"tokens = {shown(self.bits)}: must nest at most {MAX_NESTED} mixtures")
        self.owed += 2
        odds = self.integer(), self.integer()
        self.owed -= 1
        first = self.prior(nested + 1)
        self.owed -= 1
        return Mix(odds, first, self.prior(nested + 1))
