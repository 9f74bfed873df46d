"""Claims of Genewein et al. (2025) about networks: G1 to G19, and E8."""

import json
from collections.abc import Iterator

import numpy as np

from bayesprompt.lab.judging import Claim, Part, Results, minus
from bayesprompt.measures.regret import exact_regret, exact_stderr
from bayesprompt.prompting.experiments import EXPERIMENTS, RANDOM_COINS
from bayesprompt.prompting.state_plots import load_ordered
from bayesprompt.sources.coins import CoinMixture
from bayesprompt.tuning.tuners import PREFIX_METHODS, WEIGHT_METHODS

NETWORKS = ("lstm", "transformer")
# "Reaches Bayes": R(n) - R_TargetBayes(n) at n = 50, in nats; "fails" starts at the larger difference.
REACHES, FAILS = 0.10, 0.30
# The regret of the best constant predictor, 1/2, on two coins of bias 0.2 and 0.8 at n = 50.
CONSTANT = 50 * (np.log(2) - EXPERIMENTS["two-coins"].target.mean_entropy())


def _g1(results: Results) -> Iterator[Part]:
    for network in NETWORKS:
        cell = results.cell("pretraining", network, "Pretrained")
        excess = cell if cell is None else float(cell.excess.sel(n=100))
        yield Part(f"{network}: excess log-loss over Laplace, 100 steps", excess, "<=", 0.15)
        yield Part(f"{network}: largest mean KL of a step", cell if cell is None else float(cell.kl.max()), "<=", 0.01)


def _reaches(results: Results, experiment: str, network: str, method: str, where: str = "") -> Part:
    gap = results.gap(experiment, network, method)
    return Part(f"{where}{network}: {method} above TargetBayes", gap, "<=", REACHES)


def _prefixes_fail(results: Results, experiment: str, network: str, where: str = "") -> list[Part]:
    parts = [_reaches(results, experiment, network, method, where) for method in PREFIX_METHODS]
    return [part._replace(relation=">=", bound=FAILS) for part in parts]


def _enough_reach(results: Results, experiment: str, network: str, methods: tuple[str, ...], enough: int) -> Part:
    gaps = [results.gap(experiment, network, method) for method in methods]
    reached = sum(gap is not None and gap <= REACHES for gap in gaps)
    open_ = sum(gap is None for gap in gaps)
    # Cells that are still missing decide only if they could.
    known = reached if reached >= enough or reached + open_ < enough else None
    return Part(f"{network}: of {len(methods)} weight methods reach Bayes", known, ">=", enough)


def _g2(results: Results) -> Iterator[Part]:
    for network in NETWORKS:
        yield _reaches(results, "single-coin", network, "SoftPT")


def _g3(results: Results) -> Iterator[Part]:
    for network in NETWORKS:
        soft = results.regret("single-coin", network, "SoftPT")
        for method in ("HardPT", "SimplexPT", "RealPT"):
            worse = minus(results.regret("single-coin", network, method), soft)
            yield Part(f"{network}: {method} above SoftPT", worse, ">=", 0.10)


def _g4(results: Results) -> Iterator[Part]:
    for network in NETWORKS:
        soft, hard = (results.regret("single-coin", network, method) for method in ("SoftPT", "HardPT"))
        yield Part(f"{network}: HardPT above SoftPT", minus(hard, soft), ">", 0.30)


def _g5(results: Results) -> Iterator[Part]:
    for network in NETWORKS:
        soft, none = (results.regret("single-coin", network, method, 200) for method in ("SoftPT", "NoTuning"))
        yield Part(f"{network}: SoftPT at n = 200", soft, "<=", 0.60)
        yield Part(f"{network}: SoftPT against NoTuning / 3, n = 200", soft, "<", None if none is None else none / 3)


def _g6(results: Results) -> Iterator[Part]:
    for network, methods, enough in (("lstm", WEIGHT_METHODS[:4], 3), ("transformer", WEIGHT_METHODS, 4)):
        for method in ("FullWT", "LoRAWT"):
            if method in methods:
                yield _reaches(results, "single-coin", network, method)
        yield _enough_reach(results, "single-coin", network, methods, enough)


def _g7(results: Results) -> Iterator[Part]:
    for network in NETWORKS:
        yield from _prefixes_fail(results, "two-coins", network)


def _g8(results: Results) -> Iterator[Part]:
    for network in NETWORKS:
        soft = results.regret("two-coins", network, "SoftPT")
        for method in ("HardPT", "SimplexPT", "RealPT", "NoTuning"):
            yield Part(f"{network}: SoftPT against {method}", soft, "<", results.regret("two-coins", network, method))


def _g9(results: Results) -> Iterator[Part]:
    yield _reaches(results, "two-coins", "lstm", "FullWT")
    yield _reaches(results, "two-coins", "transformer", "FullWT")
    yield _reaches(results, "two-coins", "transformer", "LoRAWT")
    yield _enough_reach(results, "two-coins", "lstm", ("EmbedWT", "UnembedWT", "Un+EmbedWT"), 2)


def _g10(results: Results) -> Iterator[Part]:
    for network in NETWORKS:
        long, short = (results.gap(name, network, "SoftPT") for name in ("two-coins-prefix-25", "two-coins"))
        yield Part(f"{network}: SoftPT with L = 25 above TargetBayes", long, ">", REACHES)
        yield Part(f"{network}: the same against half of L = 6", long, ">=", None if short is None else short / 2)
    names = ("untrained-two-coins-prefix-25", "untrained-two-coins")
    long, short = (results.gap(name, "transformer", "SoftPT") for name in names)
    yield Part("untrained transformer: L = 25 against half of L = 6", long, ">=", None if short is None else short / 2)


def _g11(results: Results) -> Iterator[Part]:
    for experiment in ("untrained-two-coins", "untrained-random-coins"):
        soft = results.gap(experiment, "transformer", "SoftPT")
        for method in ("HardPT", "SimplexPT", "RealPT", "NoTuning"):
            other = results.gap(experiment, "transformer", method)
            target = experiment.removeprefix("untrained-")
            yield Part(f"{target}: SoftPT against {method} / 3", soft, "<=", None if other is None else other / 3)


def _g12(results: Results) -> Iterator[Part]:
    for experiment in ("untrained-two-coins", "untrained-random-coins"):
        gap = {n: results.gap(experiment, "transformer", "SoftPT", n) for n in (25, 50, 150, 200)}
        early, late = minus(gap[50], gap[25]), minus(gap[200], gap[150])
        label = f"{experiment.removeprefix('untrained-')}: excess a step, 150-200 against 5 times 25-50"
        yield Part(label, None if late is None else late / 50, ">=", None if early is None else 5 * early / 25)


def _g13(results: Results) -> Iterator[Part]:
    soft = results.regret("untrained-two-coins", "lstm", "SoftPT")
    yield Part("R(50) of SoftPT against half of the best constant's", soft, ">=", CONSTANT / 2)


def _g14(results: Results) -> Iterator[Part]:
    yield Part("LoRAWT above TargetBayes", results.gap("untrained-two-coins", "transformer", "LoRAWT"), "<=", 0.30)


def _g15(results: Results) -> Iterator[Part]:
    for network in NETWORKS:
        there = results.cell("pretraining", network, "Pretrained") is not None
        found = load_ordered(results.store, network, results.scale) if there else None
        for quantity in ("step", "heads"):
            correlation = None if found is None else abs(getattr(found.order, f"{quantity}_correlation"))
            yield Part(f"{network}: one of two components with {quantity}, Spearman", correlation, ">=", 0.8)


def _g16(results: Results) -> Iterator[Part]:
    leads = {}
    for experiment in ("single-coin-embedding-4", "single-coin"):
        real, soft = (results.regret(experiment, "lstm", method) for method in ("RealPT", "SoftPT"))
        leads[experiment] = minus(real, soft)
    wide = leads["single-coin"]
    label = "lstm: SoftPT's lead over RealPT at width 4 against a third of it at 128"
    yield Part(label, leads["single-coin-embedding-4"], "<=", None if wide is None else wide / 3)


def _g17(results: Results) -> Iterator[Part]:
    for network in NETWORKS:
        yield _reaches(results, "single-coin-large", network, "SoftPT", "single coin, ")
        yield from _prefixes_fail(results, "two-coins-large", network, "two coins, ")
        yield _reaches(results, "two-coins-large", network, "FullWT", "two coins, ")


def _g18(results: Results) -> Iterator[Part]:
    mixture = CoinMixture((0.2, 0.8), (0.5, 0.5))
    final = abs(exact_regret(mixture, mixture, 200)[-1] - np.log(2))
    yield Part("two-coin mixture: R_TargetBayes(200) against ln 2", float(final), "<=", 1e-3)
    for experiment in ("single-coin", "two-coins"):
        target = EXPERIMENTS[experiment].target
        for method in ("TargetBayes", "PreBayes", "PreBayesPT"):
            cell = results.cell(experiment, "bayes", method)
            worst = None
            if cell is not None:
                predictor = target if method == "TargetBayes" else RANDOM_COINS
                prompt = tuple(cell.prompt_counts.values.tolist()) if method == "PreBayesPT" else (0, 0)
                exact, sequences = exact_regret(predictor, target, 200, prompt), json.loads(cell.config)["sequences"]
                # A sampled standard error is none where nearly all sequences lose the same: the closed form is.
                errors = [exact_stderr(predictor, target, n, sequences, prompt) for n in (50, 200)]
                difference = np.abs(cell.regret.values[0] - exact)[[49, 199]]
                # The known coin has no regret at all, sampled or exact: leave rounding aside.
                worst = float((difference / np.maximum(errors, 1e-9)).max())
            yield Part(f"{experiment}: {method}, standard errors from exact", worst, "<=", 3.0)


def _g19(results: Results) -> Iterator[Part]:
    for network in NETWORKS:
        base = results.cell("pretraining", network, "Pretrained")
        tuned = results.cell("two-coins", network, "FullWT")
        knew = None if base is None else 5 * float(base.excess.sel(n=100))
        forgot = None if tuned is None else float(tuned.forgetting.isel(seen_random=-1).median())
        yield Part(f"{network}: FullWT's excess over Laplace against 5 times NoTuning's", forgot, ">=", knew)
        prefixed, others = [results.cell("two-coins", network, method) for method in PREFIX_METHODS], None
        if all(cell is not None for cell in (base, *prefixed)):
            others = sum(json.loads(cell.config)["network"] != base.attrs["network"] for cell in prefixed)
        yield Part(f"{network}: prefixes that changed the network below them", others, "<=", 0)


def _e8(results: Results) -> Iterator[Part]:
    # 0101... has as many heads as tails (n even): theta**25 (1 - theta)**25 <= 4**-25 under every prior and prompt.
    turns = np.arange(50) % 2
    heads = np.cumsum(turns == 0) - (turns == 0)
    counts = np.stack([heads, np.arange(50) - heads], axis=1)
    prompts = [(h, length - h) for length in range(51) for h in range(length + 1)]
    losses = [-RANDOM_COINS.predictive_log_probs(counts + np.array(p))[np.arange(50), turns].sum() for p in prompts]
    bound = 50 * np.log(2)
    yield Part("0101...: R(50) of Laplace after the best of all prompts to 50 tokens", float(min(losses)), ">=", bound)
    for experiment in ("alternating", "sticky-chain"):
        for network in NETWORKS:
            yield from _prefixes_fail(results, experiment, network, f"{experiment}, ")
            yield _reaches(results, experiment, network, "FullWT", f"{experiment}, ")


CLAIMS: dict[str, Claim] = {
    "G1": ("Meta-training makes both networks Bayes predictors (Eq. 6).", "paper", _g1),
    "G2": ("Six soft vectors make both pretrained networks optimal on the single coin.", "paper", _g2),
    "G3": ("No other prefix method does on the single coin.", "paper", _g3),
    "G4": ("Six soft vectors beat the best six tokens.", "paper", _g4),
    "G5": ("The soft prompt holds to n = 50 and degrades little to n = 200.", "paper", _g5),
    "G6": ("Most weight tuning is optimal on the single coin.", "paper", _g6),
    "G7": ("No prefix method reaches Bayes on the mixture of two coins.", "paper", _g7),
    "G8": ("SoftPT is still the best prefix on the mixture.", "paper", _g8),
    "G9": ("Tuning all weights, or LoRA, reaches Bayes on the mixture, as do most LSTM embeddings.", "paper", _g9),
    "G10": ("Prefixes of 25 rows do not rescue the mixture.", "paper", _g10),
    "G11": ("SoftPT programs an untrained Transformer.", "paper", _g11),
    "G12": ("What SoftPT programs breaks beyond the tuned length.", "paper", _g12),
    "G13": ("SoftPT does not program an untrained LSTM.", "paper", _g13),
    "G14": ("LoRA is very effective on the untrained Transformer.", "paper", _g14),
    "G15": ("Pretrained states are ordered by step and by heads-to-tails.", "paper", _g15),
    "G16": ("With embeddings of width 4, SoftPT loses most of its lead over RealPT.", "paper", _g16),
    "G17": ("Larger networks behave alike.", "paper", _g17),
    "G18": ("The sampled regrets of the exact Bayes predictors agree with their closed forms.", "paper", _g18),
    "G19": ("Tuned weights forget the pretraining distribution, tuned prompts do not.", "paper", _g19),
    "E8": ("No prefix reaches a novel atomic task; tuning all weights does (Limitation II).", "paper", _e8),
}
