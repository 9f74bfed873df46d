"""Claims of Genewein et al. (2025), Appendix E, about exact mathematics (E1 to E7, E9): each part is computed here."""

import itertools
import json
import math
from collections.abc import Iterator

import numpy as np
import pytest
from exact import hold
from hypothesis import given
from hypothesis import strategies as st

from bayesprompt import catalog
from bayesprompt.lab.judging import EXACT, Part
from bayesprompt.measures.regret import best_hard_prompt, exact_regret
from bayesprompt.prompting.experiments import RANDOM_COINS
from bayesprompt.sources.coins import BetaCoins, Coin, CoinMixture
from bayesprompt.theory import claims, countable, entropy, programs
from bayesprompt.theory.bernoulli import Prior
from bayesprompt.theory.product import ProductMixture, errors_of_samples
from bayesprompt.theory.shape import count_modes, is_log_concave, modes
from bayesprompt.theory.solomonoff import StandIn, loop_code, loop_prints

LONG = 100_000  # flips
REACHES = 0.10  # nats above TargetBayes


def _counts(heads, flips):
    return np.stack([heads, flips - heads], axis=-1)


def oscillating_flips(length, low, high):
    """Tokens whose frequency of heads never settles: heads until it is `high`, tails until `low`, and so on."""
    tokens, heads, token = np.zeros(length, np.int64), 0, 0
    for step in range(length):
        tokens[step] = token
        heads += token == 0
        if heads >= high * (step + 1) if token == 0 else heads <= low * (step + 1):
            token = 1 - token
    return tokens


def e1() -> Iterator[Part]:
    betas = {(a, b): Prior.beta(a, b) for a, b in ((1, 1), (0.5, 0.5), (10, 1), (2, 30))}
    formula, bound = 0.0, 0.0
    for n in (1, 2, 10, 100, 1000):
        heads = np.arange(n + 1)
        for (a, b), prior in betas.items():
            counts, mean = _counts(heads, n), (heads + a) / (n + a + b)
            # The variance once more, from evidences: P(two heads) - P(heads) ** 2.
            one, two = (np.exp(prior.log_evidence(counts + [j, 0]) - prior.log_evidence(counts)) for j in (1, 2))
            formula = max(formula, np.abs(two - one**2 - mean * (1 - mean) / (n + a + b + 1)).max())
            bound = max(bound, 4 * n * prior.variance(counts).max())
    yield Part("largest difference from m(1-m)/(n+a+b+1), all k, n to 1000", float(formula), "<=", 1e-9)
    yield Part("largest variance x 4n, all k, n to 1000", float(bound), "<=", 1.0)
    flips, heads = np.arange(1, LONG + 1), np.cumsum(oscillating_flips(LONG, 0.3, 0.6) == 0)
    along = 4 * flips * Prior.uniform().variance(_counts(heads, flips))
    yield Part("k/n swinging between 0.3 and 0.6: largest variance x 4n", float(along.max()), "<=", 1.0)
    heads = np.arange(10_001)
    above = Prior.uniform().variance(_counts(heads, 10_000)) > heads * (10_000 - heads) / 1e12
    yield Part("share of k with variance above the printed k(n-k)/n^3", float(above.mean()), ">", 0.0)
    gap = Prior.gap(1 / 3, 2 / 3)
    inside, outside = (float(gap.variance((heads, LONG - heads))) for heads in (LONG // 4, LONG // 2))
    yield Part("prior with a gap, k/n = 1/4 in its support: variance x 4n", 4 * LONG * inside, "<=", 1.0)
    yield Part("the same, k/n = 1/2 in its gap: variance", outside, ">=", 1 / 36)


def e2() -> Iterator[Part]:
    tent = Prior.mixture([Prior.beta(2, 1, 0, 0.5), Prior.beta(1, 2, 0.5, 1)], (0.5, 0.5))
    for name, prior in {"uniform": Prior.uniform(), "Beta(2, 5)": Prior.beta(2, 5), "tent": tent}.items():
        assert is_log_concave(prior)
        yield Part(f"{name}: most peaks after any prefix of up to 20", float(count_modes(prior, 20).max()), "<=", 1.0)
    yield Part("Beta(1/2, 1/2), no prefix: peaks", float(len(modes(Prior.beta(0.5, 0.5)))), ">=", 2.0)
    target = CoinMixture((0.2, 0.8), (0.5, 0.5))
    own = exact_regret(target, target, 50)[-1]
    exactly = [float(best_hard_prompt(BetaCoins(), target, length, 50).regret[-1]) for length in range(51)]
    for length, regret in ((0, 1.48), (6, 1.96), (50, 5.28)):
        difference = abs(exactly[length] - regret)
        yield Part(f"best prompt of exactly {length} tokens: R(50) against {regret}", difference, "<=", 5e-3)
    yield Part("best prompt of at most 50 tokens above TargetBayes", float(min(exactly) - own), ">", REACHES)
    gap = exact_regret(Prior.gap(0.2, 0.8), target, 50, (25, 25))[-1]
    yield Part("the same, prior with a gap between the coins", float(gap - own), "<=", REACHES)


def e3() -> Iterator[Part]:
    half, coins, gap = LONG // 2, Prior.points((1 / 3, 2 / 3), (0.5, 0.5)), Prior.gap(1 / 3, 2 / 3)
    moved = np.abs(coins.posterior(half, half).weights - 0.5).max()
    yield Part("two points, k = n/2: change of their weights", float(moved), "<=", 1e-9)
    posterior = gap.posterior(half, half)
    yield Part("gap, k = n/2: peaks", float(len(modes(posterior))), ">=", 2.0)
    off = abs(posterior.probability(0, 1 / 3) - 0.5)
    yield Part("gap, k = n/2: mass of its left half against 1/2", float(off), "<=", 1e-9)
    for name, belief in {"two points": coins.posterior(half, half), "gap": posterior}.items():
        alike = np.exp(belief.log_evidence(np.array([(2, 0), (0, 2)]))).sum()
        yield Part(f"{name}: P(next two flips are alike), a fair coin has 1/2", float(alike), ">=", 0.55)


def random_program(seed: int, max_bits: int = 64) -> str:
    """Flip a fair coin until a program of at most `max_bits` is complete, or start again: P(p) ~ 2 ** -bits."""
    coin = np.random.default_rng(seed)
    while True:
        bits, prior, weight = "", None, 1.0
        while prior is None and weight > 0 and len(bits) < max_bits:
            bits += str(coin.integers(2))
            prior, _, weight = programs.parse(bits)
        if prior is not None:
            return bits


def identity_error(num_programs: int, length: int) -> float:
    """Return the largest |xi(x | p) - zeta_w(x)| over random programs p, each of its prior w, and all short x."""
    strings = ["".join(x) for n in range(1, length + 1) for x in itertools.product("01", repeat=n)]
    counts, worst = np.array([(x.count("0"), x.count("1")) for x in strings]), 0.0
    for program in map(random_program, range(num_programs)):
        mixture = np.array([countable.conditional(program, x) for x in strings])
        target = np.exp(programs.as_prior(programs.decode(program)[0]).log_evidence(counts))
        worst = max(worst, float(abs(mixture - target).max()))
    return worst


def e4() -> Iterator[Part]:
    two = programs.EXAMPLES["two coins"]
    program = programs.encode(two)
    cut = [program[:length] for length in range(len(program))]
    error = identity_error(50, 6)
    yield Part("50 programs, all x of up to 6 bits: largest |xi(x|p) - zeta(x)|", error, "<=", 1e-12)
    after = countable.total_variation(countable.futures(program, 8), two)
    yield Part("two coins, after their program: total variation over 8 flips", after, "<=", 1e-12)
    likely = max(countable.posterior(begin, program) for begin in cut)
    yield Part("after less than their program: largest P(program)", likely, "<=", 0.5)
    least = min(countable.total_variation(countable.futures(begin, 8), two) for begin in cut)
    yield Part("after less than their program: least total variation", least, ">=", 0.1)
    yield Part("evidence of a string that begins no program", math.exp(countable.log_evidence("1011")), "<=", 0.0)


def _product(growth: str) -> ProductMixture:
    priors = [programs.as_prior(named) for named in programs.EXAMPLES.values()]
    return ProductMixture(tuple(priors), (1 / len(priors),) * len(priors), growth)


def e5() -> Iterator[Part]:
    def variation(growth, horizon, *lengths):  # median over 32 prompts drawn from the target's product
        return np.median(errors_of_samples(_product(growth), 0, horizon, lengths, prompts=32).total, axis=1)

    for growth, length in (("linear", 496), ("doubling", 510)):
        before, after = variation(growth, 8, 0, length)
        yield Part(f"segments {growth}, two coins, 8 flips, no prompt: total variation", float(before), ">=", 0.1)
        yield Part(f"segments {growth}: the same after {length} tokens", float(after), "<=", 0.01)
    near, far, farther = (float(variation("linear", horizon, 253)[0]) for horizon in (23, 24, 64))
    yield Part("after 253 tokens, to the segment's end (23): total variation", near, "<=", 0.01)
    yield Part("one flip beyond the segment's end", far, ">=", 0.1)
    yield Part("64 flips", farther, ">=", far)


def e6() -> Iterator[Part]:
    machine, two = StandIn(tuple(programs.EXAMPLES.values()), growth="linear"), programs.EXAMPLES["two coins"]
    bits = []
    for instructions in (".+", ".+.", "+.?>", ".+?+>"):
        cost = -machine.log_evidence(loop_prints(instructions, 64)) / math.log(2)
        bits.append(cost - 2 - len(loop_code(instructions)))
    yield Part("computable sequences, 64 tokens: bits of log-loss beyond the program's", max(bits), "<=", 0.0)
    prompts = machine.product.sample(0, 1275, 12, seed=0)
    distances = [[countable.total_variation(machine.futures(x[:n], 8), two) for x in prompts] for n in (0, 1275)]
    none, long = np.median(distances, axis=1)
    yield Part("two coins, 8 flips, no prompt: total variation", float(none), ">=", 0.1)
    yield Part("the same after 1275 tokens drawn from the target's product", float(long), "<=", 0.01)
    ratios = []
    for named in programs.EXAMPLES.values():
        after, before = (machine.futures(prompt, 8) for prompt in (programs.encode(named), ""))
        ratios.append(countable.total_variation(after, named) / countable.total_variation(before, named))
    yield Part("eight priors, by their program: largest total variation, relative to no prompt", max(ratios), "<=", 0.5)


def e7() -> Iterator[Part]:
    beliefs = {
        Prior.points((0.1, 0.5, 0.8), (0.5, 0.3, 0.2)): entropy.discrete_entropy,
        Prior.points((0.0, 0.5), (0.01, 0.99)): entropy.discrete_entropy,
        Prior.beta(1, 9): entropy.differential_entropy,
        Prior.gap(1 / 3, 2 / 3): entropy.differential_entropy,
    }
    rise = -np.inf
    for prior, measure in beliefs.items():
        expected = [entropy.expected_entropy(prior, n, measure) for n in range(30)]
        rise = max(rise, float(np.diff(expected).max()))
    yield Part("largest rise of an expected entropy by one more flip, nats", rise, "<=", 1e-12)
    off, low = 0.0, np.inf
    for peak in range(1, 21):
        epsilon = 1 / (1 + 2**peak)
        doubted = Prior.points((0.0, 0.5), (epsilon, 1 - epsilon))
        along = entropy.entropy_along(doubted, np.ones(50, int), entropy.discrete_entropy)
        off = max(off, abs(float(along.argmax()) - math.log2((1 - epsilon) / epsilon)))
        low = min(low, float(along.max() - along[0]))
    yield Part("tails at the peak against log2((1 - eps)/eps), 20 values of eps", off, "<=", 1e-9)
    yield Part("smallest rise of the entropy up to the peak, nats", low, ">", 0.0)
    discrete, density = list(beliefs)[0], Prior.uniform()
    ends = float(entropy.expected_entropy(discrete, 1000, entropy.discrete_entropy))
    yield Part("three coins: expected entropy after 1000 flips", ends, "<=", 1e-9)
    fall = [entropy.expected_entropy(density, n, entropy.differential_entropy) for n in (100, 10_000)]
    yield Part("density: change of its entropy from 100 to 10,000 flips", fall[1] - fall[0], "<=", -2.0)


def e9() -> Iterator[Part]:
    """The values of the single coin, with the chosen counts; every coin's regret behind its best prompt goes to 0."""
    for length, heads, regret in ((0, 0, 1.477), (6, 1, 0.571), (50, 10, 0.096)):
        best = best_hard_prompt(RANDOM_COINS, Coin(0.2), length, 50)
        off = abs(float(best.regret[-1]) - regret)
        yield Part(f"best hard prompt of {length} tokens: R(50) against {regret}", off, "<=", 5e-4)
        off = abs(best.counts[0] - heads) + abs(best.counts[1] - (length - heads))
        yield Part(f"best hard prompt of {length} tokens: counts against {heads} and {length - heads}", off, "<=", 0)
    # A coin that always shows heads costs log(1 + 50 / (L + 1)) after L heads, at most 50 / (L + 1): others no more.
    share = max(
        float(best_hard_prompt(RANDOM_COINS, Coin(bias), length, 50).regret[-1]) * (length + 1) / 50
        for bias in (0.03, 0.2, 0.5, 0.77, 1.0)
        for length in (50, 500, 5000)
    )
    yield Part("five coins, L = 50, 500, 5000: largest R(50) as a share of 50 / (L + 1)", share, "<=", 1.0)


PARTS = {"E1": e1, "E2": e2, "E3": e3, "E4": e4, "E5": e5, "E6": e6, "E7": e7, "E9": e9}


@given(st.integers(0, 10_000), st.text("01", max_size=30))
def test_e4_programs_drawn_at_random(seed, x):
    program = random_program(seed)
    zeta = programs.marginal(programs.decode(program)[0], x.count("0"), x.count("1"))
    assert countable.conditional(program, x) == pytest.approx(float(zeta), rel=1e-12, abs=1e-300)


def test_programs_drawn_at_random_come_as_often_as_they_weigh():
    drawn, words = [random_program(seed, 12) for seed in range(100)], programs.programs(12)
    assert set(drawn) <= set(words)
    share = 2.0**-3 / sum(2.0 ** -len(word) for word in words)  # of Beta(1, 1), three bits
    assert abs(drawn.count("011") - 100 * share) < 4 * (100 * share * (1 - share)) ** 0.5


@pytest.mark.parametrize("claim", PARTS)
def test_each_part_holds_and_is_the_one_on_record(claim):
    hold(claim, PARTS[claim]())


def test_all_exact_claims_are_computed_and_on_record():
    assert PARTS.keys() == claims.CLAIMS.keys()
    exact = [claim for claim, (_, scale, _) in catalog.CLAIMS.items() if scale == "exact"]
    assert list(json.loads(EXACT.read_text())) == exact
