"""The language model's experiments as data: what is tuned, how long, at which scale."""

from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import optax

from bayesprompt.mechanism.language.tasks import LENGTHS
from bayesprompt.models.gguf import SMOLLM2_HASH
from bayesprompt.models.llama import Llama
from bayesprompt.tuning.fitting import FitConfig


@dataclass(frozen=True)
class DecayingConfig(FitConfig):
    """As FitConfig, but the learning rate falls to zero along half a cosine."""

    def make_optimizer(self) -> optax.GradientTransformation:
        """Return the optimiser of one repetition."""
        schedule = optax.cosine_decay_schedule(self.learning_rate, self.steps)
        return optax.chain(optax.clip_by_global_norm(self.clip), optax.adam(schedule))


class LanguageScale(NamedTuple):
    """How much is computed. The papers have no such experiments: "paper" is the scale at which claims are judged."""

    share: float  # of the steps
    each: int  # targets of each kind and length
    starts: int  # drawn starts of each soft token; the best counts
    lengths: tuple[int, ...]  # of targets
    sequences: int  # of flips that are evaluated
    flips: int  # of each


LANGUAGE_SCALES = {
    "smoke": LanguageScale(0.01, 1, 1, (1, 2), 2, 4),
    "quick": LanguageScale(0.25, 2, 1, (1, 2, 4), 16, 50),
    "paper": LanguageScale(1.0, 4, 2, LENGTHS, 64, 100),
}


@dataclass(frozen=True)
class LanguageExperiment:
    """One prompt or prefix of a frozen language model, and the chapter that shows it."""

    title: str
    figures: str
    tunings: dict[str, FitConfig | None]  # by method, at paper scale; None where nothing is tuned by gradients
    rows: int  # of the prompt or prefix
    chapter: str = "mechanism/language_model"
    base: None = None  # its network is a file, not a cell
    network: str = SMOLLM2_HASH

    def methods_on(self, architecture: str) -> tuple[str, ...]:
        """Return the methods that exist on an architecture."""
        return tuple(self.tunings) if architecture == "llama" else ()

    def sizes_on(self, architecture: str, scale: str) -> Llama:
        """Return the network's sizes."""
        return Llama()

    def repetitions_of(self, method: str, scale: str) -> int:
        """Return the number of repetitions: one (texts that are tuned to side by side are one piece of work)."""
        return 1

    def config(self, architecture: str, method: str, scale: str, network_hash: str | None) -> dict[str, Any]:
        """Return what decides a cell's numbers, besides its name and seed, as JSON values."""
        config = {"file": self.network, "amounts": LANGUAGE_SCALES[scale]._asdict(), "prefix_length": self.rows}
        fit = tuning_at(self, method, scale)
        return config | ({} if fit is None else {"fit": asdict(fit)})


def tuning_at(experiment: LanguageExperiment, method: str, scale: str) -> FitConfig | None:
    """Return the settings of a method's tuning at a scale, or None."""
    fit = experiment.tunings[method]
    return fit and replace(fit, steps=max(2, round(fit.steps * LANGUAGE_SCALES[scale].share)))


LANGUAGE_EXPERIMENTS = {
    "language-model-one-token": LanguageExperiment(
        "Texts that one soft token commands, or one of all hard ones", "Section 3 in a real model",
        {"SoftPT": DecayingConfig(300, 1, 12, 0.2), "HardPT": None}, 1,
    ),
    "language-model-labels": LanguageExperiment(
        "Reviews in two classes, with a prefix of ten rows", "Figures 5 to 7",
        {"NoTuning": None, "PrefixTuning": FitConfig(100, 16, 16, 1e-2)}, 10,
    ),
    "language-model-labels-1": LanguageExperiment(
        "Reviews in two classes, with a prefix of one row", "Figures 5 and 6",
        {"PrefixTuning": FitConfig(100, 16, 16, 1e-2)}, 1,
    ),
    "language-model-coin": LanguageExperiment(
        "Flips of a coin as text", "Eq. 6 in a real model",
        {"NoTuning": None, "SoftPT": FitConfig(100, 4, 50, 1e-2)}, 6,
    ),
}  # fmt: skip
