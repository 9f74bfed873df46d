"""The coin experiments as data: targets, networks, methods, scales. How each is named, and found again: `cells`.

Each kind of experiment (this one, `mechanism.experiments`, `mechanism.language_model.experiments`) tells which methods
exist on an architecture, the network's sizes, how many repetitions there are, and what decides a cell's numbers.
"""

import functools
import math
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt

from bayesprompt.models.predictor import LSTM, Architecture, Transformer
from bayesprompt.models.prefixes import MAX_HARD_PREFIXES
from bayesprompt.sources import BetaCoins, Coin, CoinMixture, Markov, Sampler, Source
from bayesprompt.sources.coins import to_config
from bayesprompt.tuning.fitting import FitConfig
from bayesprompt.tuning.tuners import METHODS, PREFIX_METHODS

RANDOM_COINS = BetaCoins(1.0, 1.0)
BAYES_METHODS = ("TargetBayes", "PreBayes", "PreBayesPT")
NETWORK_METHODS = ("NoTuning", "RandomPF", *METHODS)
NETWORKS = ("Pretrained", "Untrained")


@dataclass(frozen=True)
class Scale:
    """How much is computed: `smoke` in seconds (tests), `quick` in about a laptop minute a cell, `paper` as printed."""

    pretraining: FitConfig
    tuning: FitConfig
    repetitions: int
    sequences: int
    length: int
    width: int = 128


SCALES = {
    "smoke": Scale(FitConfig(20, 16, 20, 1e-2), FitConfig(20, 16, 10, 5e-3), 2, 32, 20, width=16),
    "quick": Scale(FitConfig(500, 128, 100, 1e-3), FitConfig(300, 64, 50, 5e-3), 3, 512, 200),
    "paper": Scale(FitConfig(1000, 256, 100, 1e-3), FitConfig(1000, 256, 50, 5e-3), 10, 2048, 200),
}


@functools.partial(jax.tree_util.register_dataclass, data_fields=["source", "key"], meta_fields=["size"])
@dataclass(frozen=True)
class Sample:
    """`size` sequences of a source, drawn once from `key` (its data); batches are drawn of these, with replacement."""

    source: Sampler
    key: UInt[np.ndarray | Array, "*shape"]
    size: int
    num_tokens = property(lambda self: self.source.num_tokens)

    def sample(
        self, key: PRNGKeyArray, batch: int, length: int
    ) -> tuple[Int[Array, "{batch} {length}"], Float[Array, "{batch} K"] | None]:
        """Draw `batch` of the kept sequences, and the latent of each."""
        kept = self.source.sample(jax.random.wrap_key_data(self.key), self.size, length)
        chosen = jax.random.randint(key, (batch,), 0, self.size)
        return jax.tree.map(lambda x: x[chosen], kept)


@dataclass(frozen=True)
class Experiment:
    """A target, the networks tuned to it, what the paper's figure of it is called, and the chapter that shows it."""

    title: str
    figures: str
    chapter: str
    target: Source
    base: str | None = "pretraining"  # the experiment whose networks are tuned; None: this one makes networks
    network: str = "Pretrained"
    prefix_length: int = 6
    tuning_sequences: int | None = None  # K in Eq. 7; None draws new sequences at every step
    methods: tuple[str, ...] = (*BAYES_METHODS, *NETWORK_METHODS)  # those of them that exist; or which NETWORKS
    # Sizes of the networks that this experiment makes: the embedding, if not as wide as the rest, and times as wide.
    embed_dim: int | None = None
    wider: int = 1
    num_layers: int = 1

    def methods_on(self, architecture: str) -> tuple[str, ...]:
        """Return the methods that exist on an architecture ("bayes": the exact predictors)."""
        if architecture not in ("bayes", "lstm", "transformer"):
            return ()
        if self.base is None:
            return self.methods if architecture != "bayes" else ()
        if architecture == "bayes":
            return tuple(m for m in BAYES_METHODS if m in self.methods)
        impossible = {"LoRAWT"} if architecture == "lstm" else set()
        if 2**self.prefix_length > MAX_HARD_PREFIXES:
            impossible.add("HardPT")  # the search is exhaustive
        return tuple(m for m in NETWORK_METHODS if m in self.methods and m not in impossible)

    def sizes_on(self, architecture: str, scale: str) -> Architecture:
        """Return the network's sizes at a scale."""
        makes = EXPERIMENTS[self.base] if self.base else self
        width = SCALES[scale].width * makes.wider
        embed = makes.embed_dim or width
        if architecture == "lstm":
            return LSTM(2, embed, width, makes.num_layers)
        return Transformer(2, embed, math.gcd(4, embed), makes.num_layers, 4 * width)

    def repetitions_of(self, method: str, scale: str) -> int:
        """Return the number of repetitions: one for whatever involves no drawn start and no drawn tuning data."""
        single = (*BAYES_METHODS, *NETWORKS, "NoTuning", "HardPT")
        return 1 if method in single else SCALES[scale].repetitions

    def config(self, architecture: str, method: str, scale: str, network_hash: str | None) -> dict[str, Any]:
        """Return what decides a cell's numbers, besides its name and seed, as JSON values."""
        at = SCALES[scale]
        config = {"target": to_config(self.target), "sequences": at.sequences, "length": at.length}
        if architecture != "bayes":
            config["sizes"] = {"type": architecture, **asdict(self.sizes_on(architecture, scale))}
        if self.base is None:
            steps = at.pretraining.steps if method == "Pretrained" else 0
            return config | {"fit": asdict(at.pretraining) | {"steps": steps}, "length": at.pretraining.length}
        config |= {"pretraining": to_config(RANDOM_COINS), "network": network_hash}
        if method in ("RandomPF", "PreBayesPT", *PREFIX_METHODS):
            config["prefix_length"] = self.prefix_length
        if method == "LoRAWT":
            config["rank"] = 4
        if method in METHODS and method != "HardPT":
            config["fit"] = asdict(at.tuning)
            if self.tuning_sequences is not None:
                config |= {"tuning_sequences": self.tuning_sequences, "sample": "own stream"}
        if method in ("HardPT", "PreBayesPT"):
            config["search"] = {"sequences": at.sequences, "length": at.tuning.length}
        return config | {"repetitions": self.repetitions_of(method, scale)}


TWO_COINS = CoinMixture((0.2, 0.8), (0.5, 0.5))
# Outside the pretraining distribution, where order does not matter: 0101..., and a chain that mostly repeats itself.
ALTERNATING = Markov((1.0, 0.0), ((0.0, 1.0), (1.0, 0.0)))
STICKY = Markov((0.5, 0.5), ((0.9, 0.1), (0.1, 0.9)))

EXPERIMENTS = {
    "pretraining": Experiment(
        "Networks trained on random coins, or not at all", "Eq. 6", "foundations/in_context_learning", RANDOM_COINS,
        None, methods=NETWORKS,
    ),
    "single-coin": Experiment(
        "Random coins to a single coin", "Figures 1, 2 and A5", "prompting/single_coin", Coin(0.2)
    ),
    "two-coins": Experiment(
        "Random coins to a mixture of two coins", "Figures 3, A6 and A7", "prompting/two_coins", TWO_COINS
    ),
    "untrained-two-coins": Experiment(
        "Untrained networks to a mixture of two coins", "Figures 4 and A8", "prompting/untrained_networks", TWO_COINS,
        network="Untrained",
    ),
    "untrained-random-coins": Experiment(
        "Untrained networks to random coins", "Figures 4 and A9", "prompting/untrained_networks", RANDOM_COINS,
        network="Untrained",
    ),
    "two-coins-prefix-25": Experiment(
        "Two coins with prefixes of 25 rows", "Figure A10", "prompting/prefix_length", TWO_COINS, prefix_length=25,
        methods=(*BAYES_METHODS, "NoTuning", "RandomPF", *PREFIX_METHODS),
    ),
    "untrained-two-coins-prefix-25": Experiment(
        "Untrained networks to two coins with prefixes of 25 rows", "Figure A10", "prompting/prefix_length", TWO_COINS,
        network="Untrained", prefix_length=25, methods=(*BAYES_METHODS, "NoTuning", "RandomPF", *PREFIX_METHODS),
    ),
    "pretraining-embedding-4": Experiment(
        "Networks with embeddings of width 4", "Ablation (conference version)", "prompting/ablations", RANDOM_COINS,
        None, embed_dim=4, methods=("Pretrained",),
    ),
    "single-coin-embedding-4": Experiment(
        "A single coin with embeddings of width 4", "Ablation (conference version)", "prompting/ablations", Coin(0.2),
        "pretraining-embedding-4", methods=(*BAYES_METHODS, "NoTuning", *PREFIX_METHODS, "FullWT"),
    ),
    "pretraining-large": Experiment(
        "Networks twice as wide, of two layers", "Ablation (conference version)", "prompting/ablations", RANDOM_COINS,
        None, wider=2, num_layers=2, methods=("Pretrained",),
    ),
    "single-coin-large": Experiment(
        "A single coin with larger networks", "Ablation (conference version)", "prompting/ablations", Coin(0.2),
        "pretraining-large", methods=(*BAYES_METHODS, "NoTuning", *PREFIX_METHODS, "FullWT"),
    ),
    "two-coins-large": Experiment(
        "Two coins with larger networks", "Ablation (conference version)", "prompting/ablations", TWO_COINS,
        "pretraining-large", methods=(*BAYES_METHODS, "NoTuning", *PREFIX_METHODS, "FullWT"),
    ),
    "alternating": Experiment(
        "A novel task: heads and tails in turn", "Limitation II (not tested there)", "prompting/novel_tasks",
        ALTERNATING,
    ),
    "sticky-chain": Experiment(
        "A novel task: a chain that mostly repeats itself", "Limitation II (not tested there)", "prompting/novel_tasks",
        STICKY,
    ),
}  # fmt: skip


class Sweep(NamedTuple):
    """One setting varied, all else as in one experiment of the paper."""

    title: str
    methods: tuple[str, ...]
    experiments: dict[float | int, str]  # the experiment that has this value of the setting


def _sweep(title: str, chapter: str, like: str, usual: float | int, methods: tuple[str, ...], varied: dict) -> Sweep:
    """Enter a sweep's own experiments among the others; `varied` maps values to (name, what differs)."""
    every = {usual: like}
    for value, (name, changes) in varied.items():
        every[value] = name
        if name not in EXPERIMENTS:
            words = f"{EXPERIMENTS[like].title}, {title} = {value:g}"
            changes = {"methods": methods} | changes
            EXPERIMENTS[name] = replace(EXPERIMENTS[like], title=words, figures=SWEPT, chapter=chapter, **changes)
    return Sweep(title, methods, dict(sorted(every.items())))


SWEPT = "Sweep (not in the paper)"
for _width in (2, 8, 16, 32, 64):
    EXPERIMENTS[f"pretraining-embedding-{_width}"] = replace(
        EXPERIMENTS["pretraining-embedding-4"], title=f"Networks with embeddings of width {_width}", figures=SWEPT,
        embed_dim=_width,
    )  # fmt: skip

_PREFIXES = (1, 2, 3, 12, 25)
SWEEPS = {
    "prefix-length": _sweep(
        "prefix length L", "prompting/prefix_length", "single-coin", 6, ("SoftPT",),
        {n: (f"single-coin-prefix-{n}", {"prefix_length": n}) for n in _PREFIXES},
    ),
    "prefix-length-two-coins": _sweep(
        "prefix length L", "prompting/prefix_length", "two-coins", 6, ("SoftPT",),
        {n: (f"two-coins-prefix-{n}", {"prefix_length": n}) for n in _PREFIXES},
    ),
    "bias": _sweep(
        "bias of the target", "prompting/single_coin", "single-coin", 0.2, ("HardPT", "SoftPT"),
        {n / 100: (f"single-coin-bias-{n:02d}", {"target": Coin(n / 100)}) for n in (5, 10, 30, 40, 50)},
    ),
    "embedding": _sweep(
        "embedding width", "prompting/ablations", "single-coin", 128, ("RealPT", "SoftPT"),
        {n: (f"single-coin-embedding-{n}", {"base": f"pretraining-embedding-{n}"}) for n in (2, 4, 8, 16, 32, 64)},
    ),
    "tuning-sequences": _sweep(
        "tuning sequences K", "prompting/ablations", "single-coin", np.inf, ("SoftPT", "FullWT"),
        {n: (f"single-coin-sequences-{n}", {"tuning_sequences": n}) for n in (4, 16, 64, 256, 1024)},
    ),
}  # fmt: skip
