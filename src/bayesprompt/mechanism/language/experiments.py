"""The language model's experiments as data: what is tuned, how long, at which scale."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import optax
import xarray as xr

from bayesprompt.lab.experiment import Result, Run
from bayesprompt.mechanism.language import coin, flips, labels, one_token
from bayesprompt.mechanism.language.tasks import (
    ENGLISH,
    FACES,
    FLIPS_SCALES,
    KINDS,
    LANGUAGE_SCALES,
    TRIED,
    LanguageScale,
)
from bayesprompt.models.gguf import SMOLLM2_HASH
from bayesprompt.models.llama import Llama, make_llama
from bayesprompt.models.predictor import Predictor
from bayesprompt.sources import BetaCoins, Coin, CoinMixture, Source
from bayesprompt.sources.coins import to_config
from bayesprompt.tuning.fitting import FitConfig


@dataclass(frozen=True)
class DecayingConfig(FitConfig):
    """As FitConfig, but the learning rate falls to zero along half a cosine."""

    def make_optimizer(self) -> optax.GradientTransformation:
        """Return the optimiser of one repetition."""
        schedule = optax.cosine_decay_schedule(self.learning_rate, self.steps)
        return optax.chain(optax.clip_by_global_norm(self.clip), optax.adam(schedule))


@dataclass(frozen=True)
class LanguageExperiment:
    """One prompt or prefix of a frozen language model, and the chapter that shows it."""

    name: str
    title: str
    figures: str
    how: Callable[[Run], xr.Dataset]  # its cells are computed
    tunings: tuple[tuple[str, FitConfig | None], ...]  # by method, at paper scale; None: nothing is tuned by gradients
    rows: int  # of the prompt or prefix
    texts: Callable[[LanguageScale], int] = lambda at: 1  # that are tuned to, side by side
    chapter: str = "mechanism/language_model"
    base: None = None  # its network is a file, not a cell
    network: str = SMOLLM2_HASH

    def methods(self, architecture: str) -> tuple[str, ...]:
        """Return the methods that exist on an architecture."""
        return tuple(dict(self.tunings)) if architecture == "llama" else ()

    def predictor(self, architecture: str, scale: str) -> Predictor:
        """Return the network."""
        return make_llama(Llama())

    def repetitions(self, method: str, scale: str) -> int:
        """Return the number of repetitions: one for each text that is tuned to."""
        return 1 if self.tuning(method, scale) is None else self.texts(LANGUAGE_SCALES[scale])

    def tuning(self, method: str, scale: str) -> FitConfig | None:
        """Return the settings of a method's tuning at a scale, or None."""
        fit = dict(self.tunings)[method]
        return fit and replace(fit, steps=max(2, round(fit.steps * LANGUAGE_SCALES[scale].share)))

    def config(self, architecture: str, method: str, scale: str, network_hash: str | None) -> dict[str, Any]:
        """Return what decides a cell's numbers, besides its name and seed, as JSON values."""
        config = {"file": self.network, "amounts": LANGUAGE_SCALES[scale]._asdict(), "prefix_length": self.rows}
        fit = self.tuning(method, scale)
        return config | ({} if fit is None else {"fit": asdict(fit)})

    def compute(self, run: Run) -> Result:
        """Compute a cell; its attribute `summary` is a line for people."""
        return Result(self.how(run))


_REVIEWS = FitConfig(100, 16, 16, 1e-2)
LANGUAGE_EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        LanguageExperiment(
            "language-model-one-token", "Texts that one soft token commands, or one of all hard ones",
            "Section 3 in a real model", one_token.compute,
            (("SoftPT", DecayingConfig(300, 1, 12, 0.2)), ("HardPT", None)), 1,
            lambda at: len(at.lengths) * len(KINDS) * at.each * at.starts,
        ),
        LanguageExperiment(
            "language-model-labels", "Reviews in two classes, with a prefix of ten rows", "Figures 5 to 7",
            labels.compute, (("NoTuning", None), ("PrefixTuning", _REVIEWS)), 10,
        ),
        LanguageExperiment(
            "language-model-labels-1", "Reviews in two classes, with a prefix of one row", "Figures 5 and 6",
            labels.compute, (("PrefixTuning", _REVIEWS),), 1,
        ),
        LanguageExperiment(
            "language-model-coin", "Flips of a coin as text", "Eq. 6 in a real model", coin.compute,
            (("NoTuning", None), ("SoftPT", FitConfig(100, 4, 50, 1e-2))), 6,
        ),
    )
}  # fmt: skip


@dataclass(frozen=True)
class FlipsExperiment:
    """A target whose flips, written as text, the language model is tuned to predict, by several methods."""

    name: str
    title: str
    target: Source
    rows: int = 6  # of a soft prompt or prefix
    rank: int = 4  # of LoRA
    chosen: tuple[str, ...] = ("NoTuning", "HardPT", "SoftPT", "PrefixTuning", "UnembedWT", "LoRAWT", "FullWT")
    figures: str = "Figures 1 and 3 in a real model"
    chapter: str = "mechanism/limits_in_a_language_model"
    base: None = None  # its network is a file, not a cell
    network: str = SMOLLM2_HASH

    def methods(self, architecture: str) -> tuple[str, ...]:
        """Return the methods that exist on an architecture ("bayes": the exact predictor of the target)."""
        return {"llama": self.chosen, "bayes": ("TargetBayes",)}.get(architecture, ())

    def predictor(self, architecture: str, scale: str) -> Predictor:
        """Return the network."""
        return make_llama(Llama())

    def repetitions(self, method: str, scale: str) -> int:
        """Return the number of repetitions: one where nothing is tuned by gradients."""
        return 1 if self.tuning(method, scale) is None else FLIPS_SCALES[scale].repetitions

    def tuning(self, method: str, scale: str) -> FitConfig | None:
        """Return the settings of a method's tuning at a scale (length in flips; the rate in the middle), or None."""
        at = FLIPS_SCALES[scale]
        return FitConfig(at.steps, at.batch, at.length, _RATES[method]) if method in _RATES else None

    def config(self, architecture: str, method: str, scale: str, network_hash: str | None) -> dict[str, Any]:
        """Return what decides a cell's numbers, besides its name and seed, as JSON values."""
        at = FLIPS_SCALES[scale]
        config = {"target": to_config(self.target), "sequences": at.sequences, "length": at.flips}
        if architecture == "bayes":
            return config
        config |= {"file": self.network, "faces": FACES, "amounts": at._asdict()}
        config |= {"repetitions": self.repetitions(method, scale)}
        own = {"LoRAWT": {"rank": self.rank}, "HardPT": {"english": ENGLISH}}
        own |= dict.fromkeys(("SoftPT", "PrefixTuning"), {"prefix_length": self.rows})
        fit = self.tuning(method, scale)
        return config | own.get(method, {}) | ({} if fit is None else {"fit": asdict(fit), "rates": TRIED})

    def compute(self, run: Run) -> Result:
        """Compute a cell."""
        return Result(flips.compute(run))


# Learning rates in the middle of those that are tried.
_RATES = {"SoftPT": 1e-2, "PrefixTuning": 1e-2, "UnembedWT": 1e-2, "LoRAWT": 1e-3, "FullWT": 3e-5}
_TARGETS = {
    "limits-single-coin": ("A single coin, flipped in text", Coin(0.2)),
    "limits-two-coins": ("A mixture of two coins, flipped in text", CoinMixture((0.2, 0.8), (0.5, 0.5))),
    "limits-random-coins": ("Random coins, flipped in text", BetaCoins()),
}
FLIPS_EXPERIMENTS = {name: FlipsExperiment(name, *of) for name, of in _TARGETS.items()}
FLIPS_EXPERIMENTS |= {
    f"{name}-larger": replace(
        each, name=f"{name}-larger", title=f"{each.title}: prompts of 25 rows, LoRA of rank 16", rows=25, rank=16,
        chosen=("SoftPT", "LoRAWT"),
    )
    for name, each in FLIPS_EXPERIMENTS.items()
}  # fmt: skip
