"""Claims of this book: what the first paper finds on small networks, in a language model that reads flips as text."""

import functools
from collections.abc import Iterator

from bayesprompt.lab.judging import Claim, Part, Results, minus
from bayesprompt.measures.beliefs import one_hump_bound
from bayesprompt.measures.regret import exact_regret
from bayesprompt.mechanism.language.experiments import FLIPS_EXPERIMENTS

REACHES, FAILS = 0.10, 0.30  # nats above TargetBayes at n = 50, as on the small networks
TUNED, LONGEST = 50, 100  # flips that are tuned to, and that are evaluated
SINGLE, MIXTURE, RANDOM = "limits-single-coin", "limits-two-coins", "limits-random-coins"
_ROWS = {"": "6 rows", "-larger": "25 rows"}
_RANKS = {"": "rank 4", "-larger": "rank 16"}


def _gap(results: Results, experiment: str, method: str, n: int = TUNED) -> float | None:
    return results.gap(experiment, "llama", method, n)


@functools.cache
def one_hump_gap() -> float:
    """Return how far, in nats, every belief with one hump stays above TargetBayes on the mixture at n = 50."""
    target = FLIPS_EXPERIMENTS[MIXTURE].target
    return one_hump_bound(target, TUNED) - float(exact_regret(target, target, TUNED)[-1])


def _l1(results: Results) -> Iterator[Part]:
    for size, rows in _ROWS.items():
        yield Part(f"SoftPT, {rows}, above TargetBayes", _gap(results, SINGLE + size, "SoftPT"), "<=", REACHES)


def _l2(results: Results) -> Iterator[Part]:
    yield Part("HardPT above TargetBayes", _gap(results, MIXTURE, "HardPT"), ">=", FAILS)
    cell = results.cell(MIXTURE, "llama", "HardPT")
    least = None if cell is None else float(cell.english_regret.sel(n=TUNED).min())
    gap = minus(least, results.regret(MIXTURE, "bayes", "TargetBayes", TUNED))
    yield Part("best prompt in plain English above TargetBayes", gap, ">=", FAILS)
    for size, rows in _ROWS.items():
        gap = _gap(results, MIXTURE + size, "SoftPT")
        yield Part(f"SoftPT, {rows}, above TargetBayes", gap, ">=", FAILS)
    yield Part("PrefixTuning above TargetBayes", _gap(results, MIXTURE, "PrefixTuning"), ">=", FAILS)
    for size, rank in _RANKS.items():
        yield Part(f"LoRA, {rank}, above TargetBayes", _gap(results, MIXTURE + size, "LoRAWT"), "<=", REACHES)


def _l3(results: Results) -> Iterator[Part]:
    for name in (SINGLE, MIXTURE, RANDOM):
        untuned = minus(*(_gap(results, name, "NoTuning", n) for n in (LONGEST, TUNED)))
        for size, rows in _ROWS.items():
            grown = minus(*(_gap(results, name + size, "SoftPT", n) for n in (LONGEST, TUNED)))
            label = f"{name.removeprefix('limits-')}: SoftPT, {rows}, n = 51 to 100, against NoTuning"
            yield Part(label, grown, "<", untuned)


def _l4(results: Results) -> Iterator[Part]:
    for size, rows in _ROWS.items():
        gap = _gap(results, MIXTURE + size, "SoftPT")
        yield Part(f"SoftPT, {rows}, above TargetBayes, against the best hump", gap, ">=", one_hump_gap())
    gap = _gap(results, MIXTURE, "PrefixTuning")
    yield Part("PrefixTuning above TargetBayes, against the best hump", gap, ">=", one_hump_gap())


def _l5(results: Results) -> Iterator[Part]:
    long, short = (_gap(results, MIXTURE + size, "SoftPT") for size in ("-larger", ""))
    yield Part("SoftPT: L = 25 against half of L = 6", long, ">=", None if short is None else short / 2)


CLAIMS: dict[str, Claim] = {
    "L1": ("A soft prompt makes a language model optimal on a single coin.", "paper", _l1),
    "L2": (
        "No prompt or prefix of a language model reaches Bayes on the mixture of two coins, LoRA does.",
        "paper",
        _l2,
    ),
    "L3": ("Beyond the tuned length a language model's soft prompt loses less than no prompt.", "paper", _l3),
    "L4": ("On the mixture no soft prompt or prefix gets below every belief with one hump.", "paper", _l4),
    "L5": ("Soft prompts of 25 rows do not rescue the mixture in a language model.", "paper", _l5),
}
