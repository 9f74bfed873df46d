"""A small computable stand-in for Solomonoff's mixture: four little machines, short programs, weights 2 ** -bits.

Solomonoff's M weighs every program of a universal machine, and nobody can compute it. In `StandIn`, a program's first
two bits choose one of four machines, which the rest of its bits then instruct:

    00  loops     prints what a program of a tiny loop machine prints
    01  coins     reads a program of `programs` in silence, then flips a coin of the prior that it names: zeta
    10  segments  the same, with a new coin in each of ever longer segments: nu_zeta of `product`
    11  reader    a program of `programs`, printed, then flips of a coin of the prior that it names

It is *not* universal: only what is put in is there, and of the programs for coins and segments only a list of them.
Genewein et al. (2025), Appendix E, "Solomonoff mixture". Token 0 is "heads". Letters in shapes: T = N + 1 beginnings of
a sequence of N tokens, F = 2 ** horizon futures.
"""

import functools
import itertools
import math
import os.path
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import xlogy

from bayesprompt.checks import UserError, check_integer
from bayesprompt.theory import countable
from bayesprompt.theory.product import ProductMixture, counts_of
from bayesprompt.theory.programs import (
    NamedPrior,
    Tokens,
    as_bits,
    as_prior,
    decode,
    encode,
    gamma,
    shown,
)

MACHINES = ("loops", "coins", "segments", "reader")
MAX_LOOP_BITS = 19  # 21,844 programs
MAX_HORIZON = 10  # all 2 ** h sequences
MAX_CURVE = 1024
FIRST = 32  # tokens kept of what a program prints
PATIENCE = 256  # instructions in a row that print nothing: from then on a program counts as silent
SYMBOLS = ".+>?"


def loop_code(instructions: str) -> str:
    """Write a loop program such as "+.?>" in bits: their number in Elias' gamma code, then two bits each.

    `.` prints the cell, `+` flips it, `>` goes on to the next cell, `?` goes back to the first cell and the first
    instruction if the cell is 1. Cells start at 0; after the last instruction comes the first. ValueError for others.
    """
    if not instructions or set(instructions) - set(SYMBOLS):
        raise UserError(f"instructions = {instructions!r}: one or more of {SYMBOLS}")
    return gamma(len(instructions)) + "".join(format(SYMBOLS.index(s), "02b") for s in instructions)


def loop_programs(max_bits: int) -> list[str]:
    """All loop programs, as instructions, whose code has at most `max_bits` (0 to 19), shortest first."""
    check_integer("max_bits", max_bits, 0, MAX_LOOP_BITS)
    lengths = itertools.takewhile(lambda n: len(loop_code("." * n)) <= max_bits, itertools.count(1))
    return ["".join(symbols) for n in lengths for symbols in itertools.product(SYMBOLS, repeat=n)]


def loop_prints(instructions: str, length: int) -> str:
    """What a loop program prints first: `length` tokens, fewer if it falls silent."""
    loop_code(instructions)
    return "".join(itertools.islice(_run(instructions), length))


def _run(instructions: str) -> Iterator[str]:
    tape, head, place, quiet = ["0"], 0, 0, 0
    while quiet < PATIENCE and "." in instructions:
        symbol, place, quiet = instructions[place], (place + 1) % len(instructions), quiet + 1
        if symbol == ".":
            quiet = 0
            yield tape[head]
        elif symbol == "+":
            tape[head] = "1" if tape[head] == "0" else "0"
        elif symbol == ">":
            head += 1
            if head == len(tape):
                tape.append("0")
        elif tape[head] == "1":
            head, place = 0, 0


@dataclass(frozen=True)
class LoopMachine:
    """All loop programs of at most `max_bits`: M(x) = sum of 2 ** -bits over those that print x first.

    Longer programs, and the share of the weight that is theirs, are left out: this M is a lower bound.
    """

    max_bits: int = 15

    def __post_init__(self):
        check_integer("max_bits", self.max_bits, 0, MAX_LOOP_BITS)

    @functools.cached_property
    def programs(self) -> list[tuple[str, float, str]]:
        """Instructions, weight, and the first 32 tokens printed, of all programs."""
        return [(p, 2.0 ** -len(loop_code(p)), loop_prints(p, FIRST)) for p in loop_programs(self.max_bits)]

    def log_evidence(self, tokens: Tokens) -> Float[np.ndarray, " T"]:
        """log M(x_{1:t}), nats, t = 0..N; -inf where no program is left. M of nothing is the weight of all programs."""
        bits = as_bits(tokens)
        stops = np.zeros(len(bits) + 1)  # weight of the programs that print exactly t of these tokens, then no more
        for instructions, weight, first in self.programs:
            stops[_agreed(instructions, first, bits)] += weight
        return xlogy(1.0, np.cumsum(stops[::-1])[::-1])

    def futures(self, prompt: Tokens, horizon: int) -> Float[np.ndarray, " F"]:
        """M(prompt, then x) for all F = 2 ** horizon futures x, counting upwards in binary; horizon from 1 to 10."""
        bits = as_bits(prompt, "prompt")
        check_integer("horizon", horizon, 1, MAX_HORIZON)
        found = np.zeros(2**horizon)
        for instructions, weight, first in self.programs:
            if _agreed(instructions, first, bits) == len(bits):
                future = loop_prints(instructions, len(bits) + horizon)[len(bits) :]
                if len(future) == horizon:  # a program that falls silent has no such future
                    found[int(future, 2)] += weight
        return found


def _agreed(instructions: str, first: str, bits: str) -> int:
    """How many leading tokens of `bits` a program prints, which prints `first` first."""
    agreed = len(os.path.commonprefix([first, bits]))
    if agreed < FIRST or len(bits) == FIRST:
        return agreed
    return sum(1 for _ in itertools.takewhile(lambda p: p[0] == p[1], zip(bits, _run(instructions), strict=False)))


@dataclass(frozen=True)
class StandIn:
    """M = 1/4 of each machine: `loops`, `coins` and `segments` for these `targets`, and `reader`."""

    targets: tuple[NamedPrior, ...]
    max_bits: int = 15  # of loop programs
    growth: str = "doubling"  # of segments

    def __post_init__(self):
        _ = self.loops, self.product  # both refuse what they cannot use

    @functools.cached_property
    def loops(self) -> LoopMachine:
        """The first machine."""
        return LoopMachine(self.max_bits)

    @functools.cached_property
    def weights(self) -> Float[np.ndarray, " C"]:
        """2 ** -bits of the program of each target, without the two bits that choose the machine."""
        if not self.targets:
            raise UserError("targets = (): at least one prior")
        return 0.5 ** np.array([len(encode(target)) for target in self.targets])

    @functools.cached_property
    def product(self) -> ProductMixture:
        """The third machine, apart from the sum of its weights."""
        return ProductMixture(tuple(map(as_prior, self.targets)), self.weights / self.weights.sum(), self.growth)

    def log_curves(self, tokens: Tokens) -> Float[np.ndarray, "T 4"]:
        """log of each machine's part of M(x_{1:t}), nats, t = 0..N, in the order of MACHINES; N at most 1024."""
        bits = as_bits(tokens)
        check_integer("length of tokens", len(bits), 0, MAX_CURVE)
        others = [self._log_others(bits[:t]) for t in range(len(bits) + 1)]
        return np.column_stack([self.loops.log_evidence(bits), others]) - math.log(4)

    def log_parts(self, tokens: Tokens) -> Float[np.ndarray, " 4"]:
        """The last row of these, for longer sequences too."""
        bits = as_bits(tokens)
        return np.append(self.loops.log_evidence(bits)[-1], self._log_others(bits)) - math.log(4)

    def log_evidence(self, tokens: Tokens) -> float:
        """log M(x), nats; -inf for what none of the machines prints."""
        return float(np.logaddexp.reduce(self.log_parts(tokens)))

    def posterior(self, tokens: Tokens) -> Float[np.ndarray, " 4"]:
        """P(machine | x), in the order of MACHINES; ValueError for x of evidence 0."""
        return np.exp(self.log_parts(tokens) - self._log_evidence_of_prompt(as_bits(tokens)))

    def futures(self, prompt: Tokens, horizon: int) -> Float[np.ndarray, " F"]:
        """M(x | prompt) for all F = 2 ** horizon futures x, counting upwards in binary; horizon from 1 to 10.

        Where programs fall silent the sum is below 1. ValueError for a prompt of evidence 0.
        """
        bits = as_bits(prompt, "prompt")
        check_integer("horizon", horizon, 1, MAX_HORIZON)
        before = self._log_evidence_of_prompt(bits)
        after = np.indices((2,) * horizon, dtype=np.int8).reshape(horizon, -1).T
        array, cut = _array(bits), self.product.boundaries(len(bits))[-1]
        tail = np.hstack([np.tile(array[cut:], (len(after), 1)), after])  # of each sequence, from its last segment on
        segments = self.product.log_likelihoods(array[:cut]) + self.product.log_likelihoods(tail, cut)
        texts = ["".join(map(str, row)) for row in after]
        try:
            decode(bits)
            texts = ["".join(sorted(text)) for text in texts]  # after a program only heads matter
        except ValueError:
            pass
        reader = {text: countable.log_evidence(bits + text) for text in set(texts)}
        log_parts = [
            xlogy(1.0, self.loops.futures(bits, horizon)),
            self._log_coins(counts_of(array) + counts_of(after)),
            self._log_sum(segments),
            [reader[text] for text in texts],
        ]
        return np.exp(np.logaddexp.reduce(log_parts, axis=0) - math.log(4) - before)

    def _log_evidence_of_prompt(self, bits: str) -> float:
        before = self.log_evidence(bits)
        if before == -math.inf:
            raise UserError(f"prompt = {shown(bits)}: one that some machine prints")
        return before

    def _log_others(self, bits: str) -> list[float]:
        array = _array(bits)
        segments = self._log_sum(self.product.log_likelihoods(array))
        return [float(self._log_coins(counts_of(array))), float(segments), countable.log_evidence(bits)]

    def _log_coins(self, counts: np.ndarray) -> Float[np.ndarray, "*F"] | np.floating:
        return self._log_sum(np.stack([source.log_evidence(counts) for source in self.product.targets], axis=-1))

    def _log_sum(self, log_probs: np.ndarray) -> Float[np.ndarray, "*F"] | np.floating:
        """log of the weighted sum over targets, the last axis."""
        return np.logaddexp.reduce(log_probs + np.log(self.weights), axis=-1)


def distances_after_samples(
    stand_in: StandIn, target: int, horizon: int, lengths: Sequence[int], prompts: int = 12, seed: int = 0
) -> Float[np.ndarray, "lengths R"]:
    """Total variation to a target after the first `lengths` tokens of each of R = `prompts` drawn from its segments."""
    drawn = stand_in.product.sample(target, max(lengths), prompts, seed)
    prior = stand_in.targets[target]
    return np.array(
        [[countable.total_variation(stand_in.futures(x[:n], horizon), prior) for x in drawn] for n in lengths]
    )


def _array(bits: str) -> np.ndarray:
    return np.array(list(bits), dtype=np.int8)
