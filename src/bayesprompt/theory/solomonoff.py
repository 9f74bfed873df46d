"""A small computable stand-in for Solomonoff's mixture: four little machines, short programs, weights 2 ** -bits.

Solomonoff's M weighs every program of a universal machine, and nobody can compute it. In `StandIn`, a program's first
two bits choose one of four machines, which the rest of its bits then instruct:

    00  loops     prints what a program of a tiny loop machine prints
    01  coins     reads a program of `programs` in silence, then flips a coin of the prior that it names: zeta
    10  segments  the same, with a new coin in each of ever longer segments: nu_zeta of `product`
    11  reader    a program of `programs`, printed, then flips of a coin of the prior that it names

It is *not* universal: only what is put in is there, and of the programs for coins and segments only a list of them.
Genewein et al. (2025), Appendix E, "Solomonoff mixture". Token 0 is heads. Letters in shapes: F = 2 ** horizon
continuations of a sequence, which count upwards in binary.
"""

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import xlogy

from bayesprompt.checks import UserError, check_integer
from bayesprompt.theory import countable
from bayesprompt.theory.product import ProductMixture, counts_of
from bayesprompt.theory.programs import NamedPrior, Tokens, as_bits, as_prior, encode, gamma, shown

MACHINES = ("loops", "coins", "segments", "reader")
MAX_LOOP_BITS = 19  # 21,844 programs
MAX_HORIZON = 10
PATIENCE = 256  # instructions in a row that print nothing: from then on a program counts as silent
SYMBOLS = ".+>?"


def loop_code(instructions: str) -> str:
    """Write a loop program such as "+.?>" in bits: their number in Elias' gamma code, then two bits each.

    `.` prints the cell, `+` flips it, `>` goes on to the next cell, `?` goes back to the first cell and the first
    instruction if the cell is 1. Cells start at 0; after the last instruction comes the first. ValueError for others.
    """
    if not instructions or set(instructions) - set(SYMBOLS):
        raise UserError(f"instructions = {instructions!r}: must be one or more of {SYMBOLS}")
    return gamma(len(instructions)) + "".join(format(SYMBOLS.index(s), "02b") for s in instructions)


@functools.cache
def loop_programs(max_bits: int) -> tuple[str, ...]:
    """List all loop programs, as instructions, whose code has at most `max_bits` (0 to 19), shortest first."""
    check_integer("max_bits", max_bits, 0, MAX_LOOP_BITS)
    lengths = itertools.takewhile(lambda n: len(loop_code("." * n)) <= max_bits, itertools.count(1))
    return tuple("".join(symbols) for n in lengths for symbols in itertools.product(SYMBOLS, repeat=n))


def loop_prints(instructions: str, length: int) -> str:
    """Return what a loop program prints first: `length` tokens, fewer if it falls silent."""
    loop_code(instructions)
    return "".join(itertools.islice(_run(instructions), length))


def _run(instructions: str) -> Iterator[str]:
    ones, head, place, quiet = set(), 0, 0, 0  # ones: the cells that are 1
    while quiet < PATIENCE and "." in instructions:
        symbol, place, quiet = instructions[place], (place + 1) % len(instructions), quiet + 1
        if symbol == ".":
            quiet = 0
            yield "1" if head in ones else "0"
        elif symbol == "+":
            ones ^= {head}
        elif symbol == ">":
            head += 1
        elif head in ones:
            head, place = 0, 0


def loops(tokens: Tokens, max_bits: int = 15, horizon: int = 0) -> Float[np.ndarray, " F"]:
    """Return the loop machine's M(`tokens`, then x) for all F continuations x of `horizon` (0 to 10) tokens.

    M is the sum of 2 ** -bits over the programs of at most `max_bits` that print a sequence first. Longer programs, and
    the share of the weight that is theirs, are left out: this M is a lower bound.
    """
    bits = as_bits(tokens)
    check_integer("horizon", horizon, 0, MAX_HORIZON)
    found = np.zeros(2**horizon)
    for instructions in loop_programs(max_bits):
        printed = _run(instructions)
        if all(next(printed, None) == bit for bit in bits):
            future = "".join(itertools.islice(printed, horizon))
            if len(future) == horizon:  # a program that falls silent has no such future
                found[int(future or "0", 2)] += 2.0 ** -len(loop_code(instructions))
    return found


@dataclass(frozen=True)
class StandIn:
    """The mixture M of the four machines, 1/4 each; those of coins and of segments know these `targets` (C,)."""

    targets: tuple[NamedPrior, ...]
    max_bits: int = 15  # of loop programs
    growth: str = "doubling"  # of segments

    def __post_init__(self):
        """Raise ValueError if there is no target, or for a wrong `max_bits` or `growth`."""
        if not self.targets:
            raise UserError("targets = (): must be at least one prior")
        _ = self.product, loop_programs(self.max_bits)

    @functools.cached_property
    def weights(self) -> Float[np.ndarray, " C"]:
        """2 ** -bits of the program of each target, without the two bits that choose the machine."""
        return 0.5 ** np.array([len(encode(target)) for target in self.targets])

    @functools.cached_property
    def product(self) -> ProductMixture:
        """The third machine, apart from the sum of its weights."""
        return ProductMixture(tuple(map(as_prior, self.targets)), self.weights / self.weights.sum(), self.growth)

    def log_parts(self, tokens: Tokens, horizon: int = 0) -> Float[np.ndarray, "4 F"]:
        """Return log of each machine's part of M(`tokens`, then x), nats, in MACHINES' order, for all F sequences x."""
        bits = as_bits(tokens)
        log_loops = xlogy(1.0, loops(bits, self.max_bits, horizon))
        ends = list(itertools.product("01", repeat=horizon))
        read, after = np.array(list(bits), int), np.array(ends, int).reshape(len(ends), horizon)
        rows = np.hstack([np.tile(read, (len(ends), 1)), after])
        counts, log_weights = counts_of(rows), np.log(self.weights)
        log_coins = np.stack([source.log_evidence(counts) for source in self.product.targets], axis=-1)
        log_segments = self.product.log_likelihoods(rows)
        sums = [np.logaddexp.reduce(log_probs + log_weights, axis=-1) for log_probs in (log_coins, log_segments)]
        log_reader = [countable.log_evidence(bits + "".join(end)) for end in ends]
        return np.stack([log_loops, *sums, log_reader]) - math.log(4)

    def log_evidence(self, tokens: Tokens) -> float:
        """Return log M(x), nats; it is -inf for what no machine prints."""
        return float(np.logaddexp.reduce(self.log_parts(tokens)[:, 0]))

    def posterior(self, tokens: Tokens) -> Float[np.ndarray, " 4"]:
        """Return P(machine | `tokens`), in the order of MACHINES; ValueError for tokens of evidence 0."""
        return np.exp(self.log_parts(tokens)[:, 0] - self._log_evidence_if_any(tokens))

    def futures(self, tokens: Tokens, horizon: int) -> Float[np.ndarray, " F"]:
        """Return M(x | `tokens`) for all F continuations x of `horizon` (0 to 10) tokens.

        Where programs fall silent the sum is below 1. Raises ValueError for tokens of evidence 0.
        """
        log_parts = self.log_parts(tokens, horizon)
        return np.exp(np.logaddexp.reduce(log_parts, axis=0) - self._log_evidence_if_any(tokens))

    def _log_evidence_if_any(self, tokens: Tokens) -> float:
        before = self.log_evidence(tokens)
        if before == -math.inf:
            raise UserError(f"tokens = {shown(as_bits(tokens))}: must be what some machine prints")
        return before
