"""Cells, the unit of work and of storage: (experiment, architecture, method) with all repetitions."""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import xarray as xr

from bayesprompt.checks import UserError
from bayesprompt.mechanism.digits import DIGIT_EXPERIMENTS
from bayesprompt.mechanism.language.experiments import LANGUAGE_EXPERIMENTS
from bayesprompt.models.gpt import GPT, make_gpt
from bayesprompt.models.predictor import LSTM, Architecture, Params, Predictor, make_predictor
from bayesprompt.prompting.experiments import (
    BAYES_METHODS,
    EXPERIMENTS,
    NETWORK_METHODS,
    NETWORKS,
    SCALES,
    SWEEPS,
    SWEPT,
    Sample,
)
from bayesprompt.sources import Sampler
from bayesprompt.store import (
    LOG,
    RefusedFileError,
    Store,
    load_arrays,
    read_dataset,
    tree_hash,
    write_atomically,
)
from bayesprompt.tuning.tuners import make_tuner

ALL = EXPERIMENTS | DIGIT_EXPERIMENTS | LANGUAGE_EXPERIMENTS
ARCHITECTURES = ("bayes", "lstm", "transformer", "gpt", "llama")


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
    return ALL[experiment].methods_on(architecture)


def cells(
    experiment: str | None = None,
    architecture: str | None = None,
    method: str | None = None,
    scale: str = "paper",
    seed: int = 0,
) -> list[Cell]:
    """Return the cells that match, of an experiment, of a sweep, or of all experiments but the sweeps' own.

    Raises ValueError for an unknown name or a match of none.
    """
    _check_choice("experiment", experiment, (*ALL, *SWEEPS))
    _check_choice("architecture", architecture, ARCHITECTURES)
    _check_choice("method", method, (*BAYES_METHODS, *NETWORK_METHODS, "PrefixTuning", *NETWORKS))
    _check_choice("scale", scale, SCALES)
    if not 0 <= seed < 2**32:  # JAX reads 32 bits: a larger seed would repeat a smaller one's numbers
        raise UserError(f"seed = {seed}: must lie in 0..{2**32 - 1}")
    if experiment in SWEEPS:
        names = SWEEPS[experiment].experiments.values()
    else:
        names = [experiment] if experiment else [e for e, spec in ALL.items() if spec.figures != SWEPT]
    swept = SWEEPS[experiment].methods if experiment in SWEEPS else None
    found = [
        Cell(e, a, m, scale, seed)
        for e in names
        for a in ARCHITECTURES
        if architecture in (a, None)
        for m in methods_of(e, a)
        if method in (m, None) and (swept is None or m in swept)
    ]
    if not found:
        if method == "LoRAWT" and architecture == "lstm":
            make_tuner("LoRAWT", LSTM())  # raises with the reason
        raise UserError(f"method = {method}: not part of experiment {experiment} with architecture {architecture}")
    return found


def _check_choice(argument: str, value: str | None, allowed: Any) -> None:
    if value is not None and value not in allowed:
        raise UserError(f"{argument} = {value}: must be one of {', '.join(allowed)}")


def architecture_of(cell: Cell) -> Architecture:
    """Return the network's sizes at the cell's scale."""
    return ALL[cell.experiment].sizes_on(cell.architecture, cell.scale)


def predictor_of(cell: Cell) -> Predictor:
    """Return the network's predictor at the cell's scale."""
    sizes = architecture_of(cell)
    return make_gpt(sizes) if isinstance(sizes, GPT) else make_predictor(sizes)


def network_cell(cell: Cell) -> Cell:
    """Return the cell of the base network that this cell tunes."""
    spec = ALL[cell.experiment]
    return Cell(spec.base, cell.architecture, spec.network, cell.scale, cell.seed)


def makes_network(cell: Cell) -> bool:
    """Tell whether the cell is a base network, not a result of tuning one."""
    return cell.method in NETWORKS


def needs_network(cell: Cell) -> bool:
    """Tell whether the cell tunes (or evaluates) a base network that is a cell."""
    return ALL[cell.experiment].base is not None and cell.architecture != "bayes"


def cell_config(cell: Cell, network_hash: str | None = None) -> dict[str, Any]:
    """Return everything that decides a cell's numbers, as JSON values."""
    return cell._asdict() | ALL[cell.experiment].config(cell.architecture, cell.method, cell.scale, network_hash)


def repetitions_of(cell: Cell) -> int:
    """Return the number of repetitions."""
    return ALL[cell.experiment].repetitions_of(cell.method, cell.scale)


# What a seed is used for; each use draws from its own stream.
_STREAMS = ("init", "pretrain", "tune", "search", "evaluate", "sample")


def stream(cell: Cell, use: str) -> jax.Array:
    """Return the random key for one use of a cell's seed; the same for all methods of an experiment."""
    return jax.random.fold_in(jax.random.key(cell.seed), _STREAMS.index(use))


def evaluation_data(cell: Cell) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the evaluation sequences (B, N) and their latents: the same for every method and repetition."""
    scale, length = SCALES[cell.scale], cell_config(cell)["length"]
    data = EXPERIMENTS[cell.experiment].target.sample(stream(cell, "evaluate"), scale.sequences, length)
    return jax.device_get(data)


def tuning_source(cell: Cell) -> Sampler:
    """Return what the cell is tuned on: its target, or K sequences of it that were drawn once (Eq. 7)."""
    spec = EXPERIMENTS[cell.experiment]
    if spec.tuning_sequences is None:
        return spec.target
    return Sample(spec.target, jax.random.key_data(stream(cell, "sample")), spec.tuning_sequences)


def search_data(cell: Cell) -> jax.Array:
    """Return the fresh target sequences on which hard prefixes are scored."""
    scale = SCALES[cell.scale]
    target = EXPERIMENTS[cell.experiment].target
    return target.sample(stream(cell, "search"), scale.sequences, scale.tuning.length)[0]


def load_cell(cell: Cell, store: Store) -> xr.Dataset | None:
    """Return a finished cell of exactly today's configuration and of the store's own base network, or None."""
    if not needs_network(cell):
        return store.load(cell.name, cell_config(cell))
    base = load_cell(network_cell(cell), store)
    return store.load(cell.name, cell_config(cell, base.attrs["network"])) if base is not None else None


def load_network(cell: Cell, store: Store) -> tuple[Predictor, Params] | None:
    """Return the base network of a cell (or the network that the cell is) if its arrays are intact, or None."""
    cell = cell if makes_network(cell) else network_cell(cell)
    dataset, predictor = load_cell(cell, store), predictor_of(cell)
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
    for path in sorted(folder.glob("*.nc"), key=lambda p: ("pretraining" not in p.name, p.name)):
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
    if makes_network(cell):
        read_dataset(path, cell_config(cell))
        if load_network(cell, other) is None:
            raise RefusedFileError(f"{path} = without its network's arrays, or with others: not used; it is kept")
    else:
        base = load_cell(network_cell(cell), store) if needs_network(cell) else None
        if base is None and needs_network(cell):
            raise RefusedFileError(f"{path} = tuned on a base network that is not here: merge that cell first")
        read_dataset(path, cell_config(cell, base.attrs["network"] if base is not None else None))
    for suffix in (".safetensors", ".nc"):
        if (source := folder_file(path, suffix)).exists():
            write_atomically(store.folder / source.name, lambda temporary, s=source: shutil.copyfile(s, temporary))
    return "taken"


def folder_file(path: Path, suffix: str) -> Path:
    """Return the file beside `path` with another suffix (a cell's name has dots of its own)."""
    return path.with_name(path.name.removesuffix(".nc") + suffix)
