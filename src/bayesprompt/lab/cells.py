"""Stored cells: what is kept of a result, and loading it with what belongs to it."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xarray as xr

from bayesprompt.files import RefusedFileError, load_arrays, read_arrays, tree_hash
from bayesprompt.lab.experiment import Cell, Experiment
from bayesprompt.models.predictor import Params, Predictor
from bayesprompt.settings import make_key
from bayesprompt.store import Store, read_dataset

# Tuning losses are stored as means over stretches of steps of equal length, at most this many.
STRETCHES = 250


def load_cell(cell: Cell, store: Store) -> xr.Dataset | None:
    """Return a finished cell of exactly today's configuration and of the store's own base network, or None."""
    base = None if cell.base is None else load_cell(cell.base, store)
    if base is None and cell.base is not None:
        return None
    found = store.load(cell.name, cell.config(None if base is None else base.attrs["network"]))
    return None if found is None else condense(found)


def scale_of(dataset: xr.Dataset) -> str:
    """Return the scale at which a stored cell was computed: one of SCALES."""
    return json.loads(dataset.attrs["config"])["scale"]


def condense(dataset: xr.Dataset) -> xr.Dataset:
    """Return what is kept of a cell's results; a cell that was stored whole, as earlier versions did, becomes the same.

    Networks compute in float32, and so are the regrets of their repetitions kept. Of the repetitions' tabulated
    predictions there remain those of `median_repetition`, and their mean.
    Tuning losses become means over stretches of steps, named by their last.
    """
    narrow = {k: v.astype(np.float32) for k, v in dataset.data_vars.items() if v.dtype == np.float64 and v.size > 1000}
    dataset = dataset.assign(narrow)
    if "prediction" in dataset and "repetition" in dataset.prediction.dims:
        each = dataset.prediction
        dataset = dataset.assign(prediction=each[median_repetition(dataset)])
        if each.sizes["repetition"] > 1:
            dataset = dataset.assign(mean_prediction=each.mean("repetition"))
    if "tuning_step" in dataset.dims and "tuning_step" not in dataset.coords:
        loss, steps = dataset.tuning_loss, dataset.sizes["tuning_step"]
        size = stretch(steps, STRETCHES)
        means = loss.values.reshape(*loss.shape[:-1], -1, size).mean(-1)
        ends = np.arange(size, steps + 1, size, dtype=np.int32)
        dataset = dataset.drop_vars("tuning_loss").assign(tuning_loss=(loss.dims, means, loss.attrs))
        dataset = dataset.assign_coords(tuning_step=ends)
    return dataset


def median_repetition(dataset: xr.Dataset, n: int = 50) -> int:
    """Return which repetition has the median regret at step n (or the last): of an even number, the upper of two."""
    regret = dataset.regret.sel(n=min(n, int(dataset.n[-1]))).values
    return int(np.argsort(regret, kind="stable")[len(regret) // 2])


def stretch(steps: int, most: int) -> int:
    """Return the length of equal stretches that divide so many steps into at most `most`."""
    return next(size for size in range(max(1, -(-steps // most)), steps + 1) if steps % size == 0)


def load_methods(
    store: Store, experiment: Experiment, architecture: str, scale: str = "paper"
) -> dict[str, xr.Dataset | None]:
    """Return every method's stored dataset for one network, and the exact predictors'; None where a cell is missing.

    Where a cell is not there at `scale`, the quick one stands in.
    """
    found: dict[str, xr.Dataset | None] = {}
    for kind in ("bayes", architecture):
        for method in experiment.methods(kind):
            each = (load_cell(Cell(experiment, kind, method, s), store) for s in dict.fromkeys((scale, "quick")))
            found[method] = next((dataset for dataset in each if dataset is not None), None)
    return found


def load_arrays_of(cell: Cell, dataset: xr.Dataset, store: Store, like: Any) -> Any:
    """Return the arrays that belong to a stored cell, shaped like `like`, or None; files of others are not used."""
    wanted = dataset.attrs.get("network" if cell.makes_network else "arrays")

    def read(folder: Path) -> Any:
        arrays = load_arrays(path := folder / f"{cell.name}.safetensors", like)
        if tree_hash(arrays) != wanted:
            raise RefusedFileError(f"{path} = other arrays than the cell's: not used; it is kept")
        return arrays

    return store.first(read)


def load_network(cell: Cell, store: Store) -> tuple[Predictor, Params] | None:
    """Return the base network of a cell (or the network that the cell is) if its arrays are intact, or None."""
    cell = cell if cell.makes_network else cell.base
    if cell is None or (dataset := load_cell(cell, store)) is None:
        return None
    shapes = jax.eval_shape(cell.predictor.init, make_key(0))
    params = load_arrays_of(cell, dataset, store, shapes)
    return None if params is None else (cell.predictor, params)


def problem_with(path: Path, cell: Cell | None, store: Store) -> str | None:
    """Return in one line why a file of results would not be used, or None; `cell` is the one that it is named after."""
    if cell is None:
        return f"{path} = not the name of a cell: not used; it is kept"
    try:
        (read_dataset if path.suffix == ".nc" else read_arrays)(path)
    except RefusedFileError as error:
        return str(error)
    except FileNotFoundError:
        return f"{path} = a link that leads nowhere: not used; it is kept"
    if load_cell(cell, store) is None:
        return f"{path} = of another configuration or base network: not used; it is kept"
    return None
