"""The coin experiments as data: targets, networks, methods, scales, and the sweeps of one setting."""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from bayesprompt.lab.experiment import BAYES_METHODS, NETWORKS, SWEPT, Result, Run, Sweep
from bayesprompt.models.predictor import LSTM, Architecture, Predictor, Transformer, make_predictor
from bayesprompt.models.prefixes import MAX_HARD_PREFIXES
from bayesprompt.prompting import compute
from bayesprompt.prompting.compute import SCALES
from bayesprompt.sources import BetaCoins, Coin, CoinMixture, Markov, Source
from bayesprompt.sources.coins import to_config
from bayesprompt.tuning.tuners import METHODS, PREFIX_METHODS

NETWORK_METHODS = ("NoTuning", "RandomPF", *METHODS)
LORA_RANK = 4


@dataclass(frozen=True)
class CoinExperiment:
    """A target, the networks tuned to it, what the paper's figure of it is called, and the chapter that shows it.

    Nothing here needs coins: any source of K tokens can be the target, or what the networks are trained on.
    """

    name: str
    title: str
    figures: str
    chapter: str
    target: Source
    base: "CoinExperiment | None" = None  # the experiment whose networks are tuned; None: this one makes networks
    network: str = "Pretrained"
    prefix_length: int = 6
    tuning_sequences: int | None = None  # K in Eq. 7; None draws new sequences at every step
    chosen: tuple[str, ...] = (*BAYES_METHODS, *NETWORK_METHODS)  # those of them that exist; or which NETWORKS
    # Sizes of the networks that this experiment makes: the embedding, if not as wide as the rest, and times as wide.
    embed_dim: int | None = None
    wider: int = 1
    num_layers: int = 1

    @property
    def pretraining(self) -> Source:
        """What the networks were trained on (or, untrained, are compared with)."""
        return self.base.target if self.base else self.target

    def methods(self, architecture: str) -> tuple[str, ...]:
        """Return the methods that exist on an architecture ("bayes": the exact predictors)."""
        if architecture not in ("bayes", "lstm", "transformer"):
            return ()
        if self.base is None:
            return self.chosen if architecture != "bayes" else ()
        impossible = {"LoRAWT"} if architecture == "lstm" else set()
        if self.target.num_tokens**self.prefix_length > MAX_HARD_PREFIXES:
            impossible.add("HardPT")  # the search is exhaustive
        every = BAYES_METHODS if architecture == "bayes" else NETWORK_METHODS
        return tuple(m for m in every if m in self.chosen and m not in impossible)

    def sizes(self, architecture: str, scale: str) -> Architecture:
        """Return the network's sizes at a scale."""
        makes = self.base or self
        width = SCALES[scale].width * makes.wider
        tokens, embed = self.target.num_tokens, makes.embed_dim or width
        if architecture == "lstm":
            return LSTM(tokens, embed, width, makes.num_layers)
        return Transformer(tokens, embed, math.gcd(4, embed), makes.num_layers, 4 * width)

    def predictor(self, architecture: str, scale: str) -> Predictor:
        """Return the network that is trained or tuned at a scale."""
        return make_predictor(self.sizes(architecture, scale))

    def repetitions(self, method: str, scale: str) -> int:
        """Return the number of repetitions: one for whatever involves no drawn start and no drawn tuning data."""
        single = (*BAYES_METHODS, *NETWORKS, "NoTuning", "HardPT")
        return 1 if method in single else SCALES[scale].repetitions

    def config(self, architecture: str, method: str, scale: str, network_hash: str | None) -> dict[str, Any]:
        """Return what decides a cell's numbers, besides its name and seed, as JSON values."""
        at = SCALES[scale]
        config = {"target": to_config(self.target), "sequences": at.sequences, "length": at.length}
        if architecture != "bayes":
            config["sizes"] = {"type": architecture, **asdict(self.sizes(architecture, scale))}
        if self.base is None:
            steps = at.pretraining.steps if method == "Pretrained" else 0
            return config | {"fit": asdict(at.pretraining) | {"steps": steps}, "length": at.pretraining.length}
        config |= {"pretraining": to_config(self.pretraining), "network": network_hash}
        if method in ("RandomPF", "PreBayesPT", *PREFIX_METHODS):
            config["prefix_length"] = self.prefix_length
        if method == "LoRAWT":
            config["rank"] = LORA_RANK
        if method in METHODS and method != "HardPT":
            config["fit"] = asdict(at.tuning)
            if self.tuning_sequences is not None:
                config |= {"tuning_sequences": self.tuning_sequences, "drawn_from": "sample"}
        if method in ("HardPT", "PreBayesPT"):
            config["search"] = {"sequences": at.sequences, "length": at.tuning.length}
        return config | {"repetitions": self.repetitions(method, scale)}

    def compute(self, run: Run) -> Result:
        """Compute a cell: train or tune its network, or take an exact predictor, and evaluate every repetition."""
        if self.base is None:
            return compute.network(self, run)
        return compute.bayes(self, run.cell) if run.cell.architecture == "bayes" else compute.tuned(self, run)


RANDOM_COINS = BetaCoins(1.0, 1.0)
TWO_COINS = CoinMixture((0.2, 0.8), (0.5, 0.5))
# Outside the pretraining distribution, where order does not matter: 0101..., and a chain that mostly repeats itself.
ALTERNATING = Markov((1.0, 0.0), ((0.0, 1.0), (1.0, 0.0)))
STICKY = Markov((0.5, 0.5), ((0.9, 0.1), (0.1, 0.9)))

_ABLATION = "Ablation (conference version)", "prompting/ablations"
_PREFIXES_ONLY = (*BAYES_METHODS, "NoTuning", "RandomPF", *PREFIX_METHODS)
_FEW = (*BAYES_METHODS, "NoTuning", *PREFIX_METHODS, "FullWT")

PRETRAINING = CoinExperiment(
    "pretraining", "Networks trained on random coins, or not at all", "Eq. 6", "foundations/in_context_learning",
    RANDOM_COINS, chosen=NETWORKS,
)  # fmt: skip
NARROW = CoinExperiment(
    "pretraining-embedding-4", "Networks with embeddings of width 4", *_ABLATION, RANDOM_COINS, embed_dim=4,
    chosen=("Pretrained",),
)  # fmt: skip
LARGE = CoinExperiment(
    "pretraining-large", "Networks twice as wide, of two layers", *_ABLATION, RANDOM_COINS, wider=2, num_layers=2,
    chosen=("Pretrained",),
)  # fmt: skip
SINGLE_COIN = CoinExperiment(
    "single-coin", "Random coins to a single coin", "Figures 1, 2 and A5", "prompting/single_coin", Coin(0.2),
    PRETRAINING,
)  # fmt: skip
MIXTURE = CoinExperiment(
    "two-coins", "Random coins to a mixture of two coins", "Figures 3, A6 and A7", "prompting/two_coins", TWO_COINS,
    PRETRAINING,
)  # fmt: skip

PAPERS = (
    PRETRAINING,
    SINGLE_COIN,
    MIXTURE,
    CoinExperiment(
        "untrained-two-coins", "Untrained networks to a mixture of two coins", "Figures 4 and A8",
        "prompting/untrained_networks", TWO_COINS, PRETRAINING, network="Untrained",
    ),
    CoinExperiment(
        "untrained-random-coins", "Untrained networks to random coins", "Figures 4 and A9",
        "prompting/untrained_networks", RANDOM_COINS, PRETRAINING, network="Untrained",
    ),
    CoinExperiment(
        "two-coins-prefix-25", "Two coins with prefixes of 25 rows", "Figure A10", "prompting/prefix_length", TWO_COINS,
        PRETRAINING, prefix_length=25, chosen=_PREFIXES_ONLY,
    ),
    CoinExperiment(
        "untrained-two-coins-prefix-25", "Untrained networks to two coins with prefixes of 25 rows", "Figure A10",
        "prompting/prefix_length", TWO_COINS, PRETRAINING, network="Untrained", prefix_length=25, chosen=_PREFIXES_ONLY,
    ),
    NARROW,
    CoinExperiment(
        "single-coin-embedding-4", "A single coin with embeddings of width 4", *_ABLATION, Coin(0.2), NARROW,
        chosen=_FEW,
    ),
    LARGE,
    CoinExperiment(
        "single-coin-large", "A single coin with larger networks", *_ABLATION, Coin(0.2), LARGE, chosen=_FEW
    ),
    CoinExperiment("two-coins-large", "Two coins with larger networks", *_ABLATION, TWO_COINS, LARGE, chosen=_FEW),
    CoinExperiment(
        "alternating", "A novel task: heads and tails in turn", "Limitation II (not tested there)",
        "prompting/novel_tasks", ALTERNATING, PRETRAINING,
    ),
    CoinExperiment(
        "sticky-chain", "A novel task: a chain that mostly repeats itself", "Limitation II (not tested there)",
        "prompting/novel_tasks", STICKY, PRETRAINING,
    ),
)  # fmt: skip
EXPERIMENTS = {experiment.name: experiment for experiment in PAPERS}

_NARROWER = {
    width: replace(
        NARROW, name=f"pretraining-embedding-{width}", title=f"Networks with embeddings of width {width}",
        figures=SWEPT, embed_dim=width,
    )
    for width in (2, 8, 16, 32, 64)
}  # fmt: skip


def _sweep(
    title: str, chapter: str, like: CoinExperiment, usual: float | int, methods: tuple[str, ...],
    varied: dict[float | int, tuple[str, dict[str, Any]]],
) -> Sweep:  # fmt: skip
    """Return a sweep; `varied` maps values to the name and what differs. An experiment of the paper is taken as it is.

    Raises AssertionError where that experiment differs in what the sweep varies.
    """
    every = {usual: like}
    for value, (name, changes) in varied.items():
        words = {"title": f"{like.title}, {title} = {value:g}", "figures": SWEPT, "chapter": chapter, "chosen": methods}
        every[value] = EXPERIMENTS.get(name) or replace(like, name=name, **words, **changes)
        assert all(getattr(every[value], field) == change for field, change in changes.items()), name
    return Sweep(title, methods, dict(sorted(every.items())))


_ROWS = (1, 2, 3, 12, 25)
SWEEPS = {
    "prefix-length": _sweep(
        "prefix length L", "prompting/prefix_length", SINGLE_COIN, 6, ("SoftPT",),
        {n: (f"single-coin-prefix-{n}", {"prefix_length": n}) for n in _ROWS},
    ),
    "prefix-length-two-coins": _sweep(
        "prefix length L", "prompting/prefix_length", MIXTURE, 6, ("SoftPT",),
        {n: (f"two-coins-prefix-{n}", {"prefix_length": n}) for n in _ROWS},
    ),
    "bias": _sweep(
        "bias of the target", "prompting/single_coin", SINGLE_COIN, 0.2, ("HardPT", "SoftPT"),
        {n / 100: (f"single-coin-bias-{n:02d}", {"target": Coin(n / 100)}) for n in (5, 10, 30, 40, 50)},
    ),
    "embedding": _sweep(
        "embedding width", "prompting/ablations", SINGLE_COIN, 128, ("RealPT", "SoftPT"),
        {
            n: (f"single-coin-embedding-{n}", {"base": _NARROWER.get(n, NARROW)})
            for n in (2, 4, 8, 16, 32, 64)
        },
    ),
    "tuning-sequences": _sweep(
        "tuning sequences K", "prompting/ablations", SINGLE_COIN, np.inf, ("SoftPT", "FullWT"),
        {n: (f"single-coin-sequences-{n}", {"tuning_sequences": n}) for n in (4, 16, 64, 256, 1024)},
    ),
}  # fmt: skip
EXPERIMENTS |= {experiment.name: experiment for experiment in _NARROWER.values()}
EXPERIMENTS |= {each.name: each for sweep in SWEEPS.values() for each in sweep.experiments.values()}
