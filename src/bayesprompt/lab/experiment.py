"""What the bench works on: experiments, their cells, and how much of each is computed.

An experiment says which cells it has, what decides a cell's numbers, and how they are computed; everything else (names,
files, locks, checkpoints, merging, judging) is the same for all, and knows no experiment.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import xarray as xr

from bayesprompt.checks import check_integer
from bayesprompt.models.predictor import Params, Predictor
from bayesprompt.settings import make_key
from bayesprompt.store import Store

SCALES = ("smoke", "quick", "paper")  # seconds (tests), about a laptop minute a cell, as printed
ARCHITECTURES = ("bayes", "lstm", "transformer", "gpt", "llama")  # "bayes": the exact predictors
NETWORKS = ("Pretrained", "Untrained")  # the methods that make a network for others to tune
BAYES_METHODS = ("TargetBayes", "PreBayes", "PreBayesPT")  # the exact predictors
SWEPT = "Sweep (not in the paper)"  # in place of a figure: an experiment that belongs to a sweep

# What a seed is used for; each use draws from its own stream.
STREAMS = ("init", "pretrain", "tune", "search", "evaluate", "sample")


class Result(NamedTuple):
    """What computing a cell gives: its dataset, and the arrays to be kept beside it (a network, tuned weights)."""

    dataset: xr.Dataset
    arrays: Any = None


@runtime_checkable
class Experiment(Protocol):
    """One experiment of the book, on all its architectures, with all its methods."""

    name: str
    title: str
    figures: str  # what the paper calls its figures
    chapter: str  # that shows it
    base: "Experiment | None"  # the experiment whose networks are tuned; None: there is none
    network: str  # which of NETWORKS that is

    def methods(self, architecture: str) -> tuple[str, ...]:
        """Return the methods that exist on an architecture."""

    def predictor(self, architecture: str, scale: str) -> Predictor:
        """Return the network that is trained or tuned at a scale."""

    def repetitions(self, method: str, scale: str) -> int:
        """Return the number of repetitions."""

    def config(self, architecture: str, method: str, scale: str, network_hash: str | None) -> dict[str, Any]:
        """Return what decides a cell's numbers, besides its name and seed, as JSON values."""

    def compute(self, run: "Run") -> Result:
        """Compute a cell."""


class Cell(NamedTuple):
    """The unit of work and of storage: one method on one network, with all repetitions."""

    experiment: Experiment
    architecture: str
    method: str
    scale: str = "paper"
    seed: int = 0

    @property
    def name(self) -> str:
        """The stem of the cell's files."""
        return ".".join([self.experiment.name, *map(str, self[1:])])

    @property
    def makes_network(self) -> bool:
        """Whether the cell is a base network, not a result of tuning one."""
        return self.method in NETWORKS

    @property
    def base(self) -> "Cell | None":
        """The cell of the network that this one tunes or evaluates, if that is a cell."""
        if self.experiment.base is None or self.architecture == "bayes":
            return None
        return self._replace(experiment=self.experiment.base, method=self.experiment.network)

    @property
    def predictor(self) -> Predictor:
        """The network's predictor."""
        return self.experiment.predictor(self.architecture, self.scale)

    @property
    def repetitions(self) -> int:
        """The number of repetitions."""
        return self.experiment.repetitions(self.method, self.scale)

    def config(self, network_hash: str | None = None) -> dict[str, Any]:
        """Return everything that decides the cell's numbers, as JSON values."""
        named = self._asdict() | {"experiment": self.experiment.name}
        return named | self.experiment.config(self.architecture, self.method, self.scale, network_hash)

    def key(self, use: str) -> jax.Array:
        """Return the random key for one of STREAMS: the same for all methods of an experiment, in every process."""
        check_integer("seed", self.seed, 0, 2**32 - 1)  # JAX reads 32 bits: larger seeds would repeat smaller ones
        return jax.random.fold_in(make_key(self.seed), STREAMS.index(use))


class Run(NamedTuple):
    """What a computation is given: its cell and configuration, the base network, and where it keeps its state."""

    cell: Cell
    config: dict[str, Any]
    network: tuple[Predictor, Params] | None
    store: Store
    progress: Callable[[int, float], None] | None

    def checkpoint(self, part: str = "") -> Path:
        """Return where the run, or a named part of it, keeps its unfinished state."""
        return self.store.checkpoint(self.cell.name, self.config, part)


class Sweep(NamedTuple):
    """One setting varied, all else as in one experiment of the paper."""

    title: str
    methods: tuple[str, ...]
    experiments: dict[float | int, Experiment]  # the experiment that has this value of the setting
