"""An experiment of one's own in half a minute: train a small network, tune it to a target, and see what became of it.

`work` does it, without widgets; `Laboratory` puts sliders and buttons around it, and needs a kernel.
"""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
import xarray as xr

from bayesprompt.checks import UserError, check_integer
from bayesprompt.files import digest
from bayesprompt.lab.cells import median_repetition
from bayesprompt.measures.beliefs import fit_beta
from bayesprompt.measures.regret import cumulative_regret
from bayesprompt.models.predictor import LSTM, Params, Predictor, Transformer, make_predictor, predict_all
from bayesprompt.models.prefixes import NO_PREFIX, hard_prefix
from bayesprompt.prompting.compute import tabulate
from bayesprompt.settings import make_key
from bayesprompt.sources import BetaCoins, Categorical, Coin, CoinMixture, DirichletCategorical, Markov, Source
from bayesprompt.sources.coins import Exchangeable
from bayesprompt.store import Store, cache_folder
from bayesprompt.tuning.fitting import FitConfig, fit
from bayesprompt.tuning.hard_search import hard_search
from bayesprompt.tuning.tuners import METHODS, make_tuner

TARGETS = ("one coin", "two coins", "alternating", "chain", "die")
CHOICES = {"target": TARGETS, "architecture": ("lstm", "transformer"), "method": METHODS}
LENGTH, SEQUENCES = 50, 256  # of tuning and evaluation
PREFIX = "laboratory-"  # of what is saved
# Called with a stage, a step, how many there are, and the loss (nats a sequence); it returns True to stop the stage.
Watch = Callable[[str, int, int, float], bool | None]


@dataclass(frozen=True)
class Settings:
    """What is computed. The target's numbers: `bias` of the (first) coin, or the first side's probability of a die;
    `other` and `weight`, the second coin's bias and the first one's probability; `stay`, that a chain repeats a token.

    Pretraining draws coins from Beta(`alpha`, `beta`), dice from a Dirichlet with `alpha` for every side.
    """

    target: str = "one coin"
    bias: float = 0.2
    other: float = 0.8
    weight: float = 0.5
    stay: float = 0.9
    sides: int = 3
    alpha: float = 1.0
    beta: float = 1.0
    architecture: str = "lstm"
    width: int = 32
    pretraining_steps: int = 300
    method: str = "SoftPT"
    prefix_length: int = 6
    steps: int = 300
    repetitions: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise UserError for a name that is not there; numbers are checked where they are used."""
        for name, among in CHOICES.items():
            if getattr(self, name) not in among:
                raise UserError(f"{name} = {getattr(self, name)}: must be one of {', '.join(among)}")
        check_integer("sides", self.sides, 2, 10)

    def sources(self) -> tuple[Source, Source]:
        """Return target and pretraining source; raises UserError for numbers that make none."""
        rest, other, move = ((1 - self.bias) / (self.sides - 1), round(1 - self.weight, 12), round(1 - self.stay, 12))
        target = {
            "one coin": lambda: Coin(self.bias),
            "two coins": lambda: CoinMixture((self.bias, self.other), (self.weight, other)),
            "alternating": lambda: Markov((0.5, 0.5), ((0.0, 1.0), (1.0, 0.0))),
            "chain": lambda: Markov((0.5, 0.5), ((self.stay, move), (move, self.stay))),
            "die": lambda: Categorical((self.bias, *[rest] * (self.sides - 1))),
        }[self.target]()
        prior = BetaCoins(self.alpha, self.beta)
        return target, DirichletCategorical((self.alpha,) * self.sides) if self.target == "die" else prior

    def predictor(self) -> Predictor:
        """Return the network."""
        tokens, width = self.sides if self.target == "die" else 2, self.width
        lstm = self.architecture == "lstm"
        return make_predictor(LSTM(tokens, width, width) if lstm else Transformer(tokens, width, mlp_dim=4 * width))

    def configs(self) -> tuple[FitConfig, FitConfig]:
        """Return how the network is trained, and how it is tuned."""
        return FitConfig(self.pretraining_steps, 64, LENGTH, 5e-3), FitConfig(max(1, self.steps), 64, LENGTH, 5e-3)

    def code(self) -> str:
        """Return the lines of Python that compute the same."""
        (target, prior), network, (train, tune) = self.sources(), self.predictor().architecture, self.configs()
        names = {type(each).__name__ for each in (target, prior, network)}
        names |= {"FitConfig", "fit", "make_predictor", "make_tuner"}
        names |= {"hard_search"} if self.method == "HardPT" else set()
        lines = [
            "import jax",
            f"from bayesprompt import {', '.join(sorted(names))}",
            f"target, random = {target}, {prior}",
            f"network = make_predictor({network})",
            f"init, train, tune, search = jax.random.split(jax.random.key({self.seed}), 4)",
            'full, start = make_tuner("FullWT", network.architecture), jax.jit(network.init)(init)',
            f"trained, _ = fit(network, full, start, random, {train}, train)",
            "params = jax.tree.map(lambda x: x[0], trained)",
        ]
        if self.method == "HardPT":
            lines.append(f"data, _ = target.sample(search, {SEQUENCES}, {LENGTH})")
            lines.append(f"found = hard_search(network, params, {self.prefix_length}, data)")
        else:
            lines.append(f'tuner = make_tuner("{self.method}", network.architecture, {self.prefix_length})')
            lines.append(f"found = fit(network, tuner, params, target, {tune}, tune, {self.repetitions})")
        return "\n".join(lines)


class Outcome(NamedTuple):
    """What became of it: curves and predictions, the trained network, and what was tuned (of HardPT, the tokens)."""

    settings: Settings
    dataset: xr.Dataset
    base: Params
    phi: Any = None


def work(settings: Settings, base: Params | None = None, watch: Watch = lambda *_: None) -> Outcome:
    """Train the network (unless its parameters are given), tune it, and evaluate every repetition.

    A stage that `watch` stops ends with the steps that are done.
    """
    (target, prior), network = settings.sources(), settings.predictor()
    init, train, tune, search = jax.random.split(make_key(settings.seed), 4)
    training, tuning = settings.configs()

    def watched(stage: str, steps: int) -> Callable[[int, float], bool | None]:
        return lambda step, loss: watch(stage, step, steps, loss)

    if base is None:
        full, start = make_tuner("FullWT", network.architecture), jax.jit(network.init)(init)
        trained, _ = fit(network, full, start, prior, training, train, progress=watched("training", training.steps))
        base = jax.tree.map(lambda x: x[0], trained)
    phi, loss = None, np.zeros((1, 0), np.float32)
    if settings.method == "HardPT":
        data, _ = target.sample(search, SEQUENCES, LENGTH)
        phi = hard_search(network, base, settings.prefix_length, data).prefix
        models = [(base, hard_prefix(phi, network.architecture.num_tokens))]
    else:
        tuner = make_tuner(settings.method, network.architecture, settings.prefix_length)
        watching = watched("tuning", tuning.steps)
        phi, loss = fit(network, tuner, base, target, tuning, tune, settings.repetitions, progress=watching)
        models = [tuner.inject(base, jax.tree.map(lambda x, r=r: x[r], phi)) for r in range(settings.repetitions)]
    return Outcome(settings, _evaluate(network, models, base, target, prior, loss), base, phi)


def _evaluate(network: Predictor, models: list, base: Params, target: Any, prior: Any, loss: np.ndarray) -> xr.Dataset:
    tokens, latent = jax.device_get(target.sample(jax.random.fold_in(make_key(0), 1), SEQUENCES, LENGTH))
    oracle = target.oracle_log_probs(tokens, latent)
    tuned = [predict_all(network, params, prefix, tokens) for params, prefix in models]
    others = {
        "untuned": predict_all(network, base, NO_PREFIX, tokens),
        "pretraining_bayes": prior.bayes_log_probs(tokens),
        "target_bayes": target.bayes_log_probs(tokens),
    }
    dataset = xr.Dataset(
        {"regret": (("repetition", "n"), np.stack([cumulative_regret(p, tokens, oracle).mean for p in tuned]))}
        | {name: ("n", cumulative_regret(p, tokens, oracle).mean) for name, p in others.items()}
        | {"tuning_loss": (("run", "tuning_step"), loss)},
        {"n": np.arange(1, LENGTH + 1, dtype=np.int32)},
    )
    if network.architecture.num_tokens == 2:
        dataset["prediction"] = (("seen", "heads"), tabulate(tuned[median_repetition(dataset)], tokens))
    return dataset


def belief(outcome: Outcome) -> str:
    """Return in words the Beta belief that the median repetition's predictions are closest to."""
    target, _ = outcome.settings.sources()
    if "prediction" not in outcome.dataset or not isinstance(target, Exchangeable):
        return "no Beta belief: the target is no coin whose flips may come in any order"
    a, b, misfit = fit_beta(outcome.dataset.prediction.values, target)
    held = f"the {a / (a + b):.3f} coin, known" if a + b > 1e5 else f"Beta({a:.3g}, {b:.3g})"
    return f"{held}; misfit {misfit:.3f} nats"


def own_store() -> Store:
    """Return the laboratory's folder beside the user's results, among which only cells of the book are looked for."""
    return Store(cache_folder() / "laboratory", shipped=None)


def save(outcome: Outcome, store: Store, seconds: float = 0.0) -> str:
    """Store settings, curves and arrays as a cell; return its name."""
    config = dataclasses.asdict(outcome.settings) | {"done": outcome.dataset.sizes["tuning_step"]}
    name = f"{PREFIX}{digest(config)[:8]}"
    store.save(name, outcome.dataset, config, seconds)
    store.save_arrays(name, {"base": outcome.base} | ({} if outcome.phi is None else {"phi": outcome.phi}))
    return name


def saved(store: Store) -> list[str]:
    """Return the names of what was saved."""
    return sorted(path.stem for path in store.folder.glob(f"{PREFIX}*.nc"))


def load(name: str, store: Store) -> Outcome:
    """Return what was saved under a name, without its arrays; raises UserError where nothing is, or it is damaged."""
    if (dataset := store.load(name)) is None:
        raise UserError(f"name = {name}: must be one of {', '.join(saved(store)) or 'none, for nothing is saved'}")
    config = json.loads(dataset.attrs["config"])
    config.pop("done")
    return Outcome(Settings(**config), dataset, None)
