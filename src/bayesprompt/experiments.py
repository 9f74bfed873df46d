"""The experiments as data, and the cells they consist of: (experiment, architecture, method) with all repetitions."""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import xarray as xr

from bayesprompt.fitting import FitConfig
from bayesprompt.predictors import LSTM, Architecture, Params, Predictor, Transformer, make_predictor
from bayesprompt.sources import BetaCoins, Coin, Source, to_config
from bayesprompt.store import (
    LOG,
    RefusedFileError,
    Store,
    load_arrays,
    read_dataset,
    tree_hash,
    write_atomically,
)
from bayesprompt.tuners import METHODS, PREFIX_METHODS, make_tuner

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
    "quick": Scale(FitConfig(500, 128, 100, 1e-3), FitConfig(300, 128, 50, 5e-3), 3, 512, 200),
    "paper": Scale(FitConfig(1000, 256, 100, 1e-3), FitConfig(1000, 256, 50, 5e-3), 10, 2048, 200),
}


@dataclass(frozen=True)
class Experiment:
    """A target, the networks tuned to it, and what the paper's figure of it is called."""

    title: str
    figures: str
    target: Source
    network: str = "Pretrained"
    prefix_length: int = 6
    architectures: tuple[str, ...] = ("lstm", "transformer")


EXPERIMENTS = {
    "pretraining": Experiment("Networks trained on random coins, or not at all", "Section 2, Eq. 6", RANDOM_COINS),
    "single-coin": Experiment("Random coins to a single coin", "Figures 1 and A5", Coin(0.2)),
}


class Cell(NamedTuple):
    """The unit of work and of storage: one method on one network, all repetitions."""

    experiment: str
    architecture: str
    method: str
    scale: str = "paper"
    seed: int = 0

    @property
    def name(self) -> str:
        """The stem of the cell's files."""
        return ".".join(map(str, self))


def methods_of(experiment: str, architecture: str) -> tuple[str, ...]:
    """Return the methods that exist for one experiment and architecture ("bayes": the exact predictors)."""
    if experiment == "pretraining":
        return NETWORKS if architecture != "bayes" else ()
    if architecture == "bayes":
        return BAYES_METHODS
    return tuple(m for m in NETWORK_METHODS if not (m == "LoRAWT" and architecture == "lstm"))


def cells(
    experiment: str | None = None,
    architecture: str | None = None,
    method: str | None = None,
    scale: str = "paper",
    seed: int = 0,
) -> list[Cell]:
    """Return the cells that match, base networks first; raises ValueError for an unknown name or a match of none."""
    _check_choice("experiment", experiment, EXPERIMENTS)
    _check_choice("architecture", architecture, ("bayes", "lstm", "transformer"))
    _check_choice("method", method, (*BAYES_METHODS, *NETWORK_METHODS, *NETWORKS))
    _check_choice("scale", scale, SCALES)
    if not 0 <= seed < 2**32:  # JAX reads 32 bits: a larger seed would repeat a smaller one's numbers
        raise ValueError(f"seed = {seed}: must lie in 0..{2**32 - 1}")
    found = [
        Cell(e, a, m, scale, seed)
        for e, spec in EXPERIMENTS.items()
        if experiment in (e, None)
        for a in ("bayes", *spec.architectures)
        if architecture in (a, None)
        for m in methods_of(e, a)
        if method in (m, None)
    ]
    if not found:
        if method == "LoRAWT" and architecture == "lstm":
            make_tuner("LoRAWT", LSTM())  # raises with the reason
        raise ValueError(f"method = {method}: not part of experiment {experiment} with architecture {architecture}")
    return found


def _check_choice(argument: str, value: str | None, allowed: Any) -> None:
    if value is not None and value not in allowed:
        raise ValueError(f"{argument} = {value}: must be one of {', '.join(allowed)}")


def architecture_of(cell: Cell) -> Architecture:
    """Return the network's sizes at the cell's scale."""
    width = SCALES[cell.scale].width
    return LSTM(2, width, width) if cell.architecture == "lstm" else Transformer(2, width, 4, 1, 4 * width)


def network_cell(cell: Cell) -> Cell:
    """Return the cell of the base network that this cell tunes."""
    return Cell("pretraining", cell.architecture, EXPERIMENTS[cell.experiment].network, cell.scale, cell.seed)


def cell_config(cell: Cell, network_hash: str | None = None) -> dict[str, Any]:
    """Return everything that decides a cell's numbers, as JSON values."""
    scale, experiment = SCALES[cell.scale], EXPERIMENTS[cell.experiment]
    config = {
        **cell._asdict(),
        "target": to_config(experiment.target),
        "sequences": scale.sequences,
        "length": scale.length,
    }
    if cell.architecture != "bayes":
        config["sizes"] = {"type": cell.architecture, **asdict(architecture_of(cell))}
    if cell.experiment == "pretraining":
        steps = scale.pretraining.steps if cell.method == "Pretrained" else 0
        return config | {"fit": asdict(scale.pretraining) | {"steps": steps}, "length": scale.pretraining.length}
    config |= {"pretraining": to_config(RANDOM_COINS), "network": network_hash}
    if cell.method in ("RandomPF", "PreBayesPT", *PREFIX_METHODS):
        config["prefix_length"] = experiment.prefix_length
    if cell.method == "LoRAWT":
        config["rank"] = 4
    if cell.method in METHODS and cell.method != "HardPT":
        config["fit"] = asdict(scale.tuning)
    if cell.method in ("HardPT", "PreBayesPT"):
        config["search"] = {"sequences": scale.sequences, "length": scale.tuning.length}
    return config | {"repetitions": repetitions_of(cell)}


def repetitions_of(cell: Cell) -> int:
    """Return the number of repetitions: one for whatever involves no drawn start and no drawn tuning data."""
    single = (*BAYES_METHODS, "NoTuning", "HardPT")
    return 1 if cell.method in single else SCALES[cell.scale].repetitions


# What a seed is used for; each use draws from its own stream.
_STREAMS = ("init", "pretrain", "tune", "search", "evaluate")


def stream(cell: Cell, use: str) -> jax.Array:
    """Return the random key for one use of a cell's seed; the same for all methods of an experiment."""
    return jax.random.fold_in(jax.random.key(cell.seed), _STREAMS.index(use))


def evaluation_data(cell: Cell) -> tuple[np.ndarray, np.ndarray]:
    """Return the evaluation sequences (B, N) and their latents: the same for every method and repetition."""
    scale, length = SCALES[cell.scale], cell_config(cell)["length"]
    tokens, latent = EXPERIMENTS[cell.experiment].target.sample(stream(cell, "evaluate"), scale.sequences, length)
    return np.asarray(tokens), np.asarray(latent)


def search_data(cell: Cell) -> jax.Array:
    """Return the fresh target sequences on which hard prefixes are scored."""
    scale = SCALES[cell.scale]
    target = EXPERIMENTS[cell.experiment].target
    return target.sample(stream(cell, "search"), scale.sequences, scale.tuning.length)[0]


def load_cell(cell: Cell, store: Store) -> xr.Dataset | None:
    """Return a finished cell of exactly today's configuration and of the store's own base network, or None."""
    if cell.experiment == "pretraining" or cell.architecture == "bayes":
        return store.load(cell.name, cell_config(cell))
    base = load_cell(network_cell(cell), store)
    return store.load(cell.name, cell_config(cell, base.attrs["network"])) if base is not None else None


def load_network(cell: Cell, store: Store) -> tuple[Predictor, Params] | None:
    """Return the base network of a cell (or the network that the cell is) if its arrays are intact, or None."""
    cell = cell if cell.experiment == "pretraining" else network_cell(cell)
    dataset, predictor = load_cell(cell, store), make_predictor(architecture_of(cell))
    if dataset is None:
        return None
    shapes = jax.eval_shape(predictor.init, jax.random.key(0))
    for path in (folder / f"{cell.name}.safetensors" for folder in store.folders):
        try:
            params = load_arrays(path, shapes)
        except FileNotFoundError:
            continue
        except RefusedFileError as error:
            LOG.warning("%s", error)
            continue
        if tree_hash(params) == dataset.attrs["network"]:
            return predictor, params
        LOG.warning("%s", f"{path} = another network than the cell's: not used; it is kept")
    return None


def merge_cells(folder: Path, store: Store) -> list[tuple[str, str]]:
    """Copy finished cells from another machine's folder into the store's; tell what became of each.

    Refused is a file that is damaged, that is no cell of this version, or whose base network is not the store's own.
    """
    other, outcomes = Store(folder, shipped=None), []
    for path in sorted(folder.glob("*.nc"), key=lambda p: (not p.name.startswith("pretraining."), p.name)):
        try:
            cell = _cell_of(path.stem)
            outcomes.append((path.stem, _merge_cell(cell, path, other, store)))
        except RefusedFileError as error:
            outcomes.append((path.stem, f"refused: {error}"))
    return outcomes


def _cell_of(name: str) -> Cell:
    parts = name.split(".")
    try:
        found = Cell(*parts[:4], seed=int(parts[4]))
        if len(parts) == 5 and found in cells(*found):
            return found
    except (ValueError, IndexError, TypeError):
        pass
    raise RefusedFileError(f"{name} = not the name of a cell")


def _merge_cell(cell: Cell, path: Path, other: Store, store: Store) -> str:
    if load_cell(cell, store) is not None:
        same = load_cell(cell, store).attrs["checksum"] == read_dataset(path).attrs["checksum"]
        return "there already" if same else "kept ours: there already, with other numbers"
    if cell.experiment == "pretraining":
        read_dataset(path, cell_config(cell))
        if load_network(cell, other) is None:
            raise RefusedFileError(f"{path} = without its network's arrays, or with others: not used; it is kept")
    else:
        base = load_cell(network_cell(cell), store) if cell.architecture != "bayes" else None
        if base is None and cell.architecture != "bayes":
            raise RefusedFileError(f"{path} = tuned on a base network that is not here: merge that cell first")
        read_dataset(path, cell_config(cell, base.attrs["network"] if base is not None else None))
    for suffix in (".safetensors", ".nc"):
        if (source := folder_file(path, suffix)).exists():
            write_atomically(store.folder / source.name, lambda temporary, s=source: shutil.copyfile(s, temporary))
    return "taken"


def folder_file(path: Path, suffix: str) -> Path:
    """Return the file beside `path` with another suffix (a cell's name has dots of its own)."""
    return path.with_name(path.name.removesuffix(".nc") + suffix)
