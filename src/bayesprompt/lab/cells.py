"""Stored cells: loading them with what belongs to them, and taking those of another machine."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import xarray as xr

from bayesprompt.lab.experiment import Cell, Experiment
from bayesprompt.models.predictor import Params, Predictor
from bayesprompt.store import (
    LOG,
    RefusedFileError,
    Store,
    load_arrays,
    read_dataset,
    tree_hash,
    write_atomically,
)


def load_cell(cell: Cell, store: Store) -> xr.Dataset | None:
    """Return a finished cell of exactly today's configuration and of the store's own base network, or None."""
    if cell.base is None:
        return store.load(cell.name, cell.config())
    base = load_cell(cell.base, store)
    return None if base is None else store.load(cell.name, cell.config(base.attrs["network"]))


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
    for path in (folder / f"{cell.name}.safetensors" for folder in store.folders):
        try:
            arrays = load_arrays(path, like)
        except FileNotFoundError:
            continue
        except RefusedFileError as error:
            LOG.warning("%s", error)
            continue
        if tree_hash(arrays) == wanted:
            return arrays
        LOG.warning("%s", f"{path} = other arrays than the cell's: not used; it is kept")
    return None


def load_network(cell: Cell, store: Store) -> tuple[Predictor, Params] | None:
    """Return the base network of a cell (or the network that the cell is) if its arrays are intact, or None."""
    cell = cell if cell.makes_network else cell.base
    if cell is None or (dataset := load_cell(cell, store)) is None:
        return None
    shapes = jax.eval_shape(cell.predictor.init, jax.random.key(0))
    params = load_arrays_of(cell, dataset, store, shapes)
    return None if params is None else (cell.predictor, params)


def merge_cells(folder: Path, store: Store, named: Callable[[str], Cell | None]) -> list[tuple[str, str]]:
    """Copy finished cells from another machine's folder into the store's; tell what became of each.

    `named` finds a cell by its files' stem. Refused is a file that is damaged, that is no cell of this version, or
    whose base network is not the store's own. Networks are taken before what is tuned on them.
    """
    other, outcomes = Store(folder, shipped=None), []
    found = {path: named(path.name.removesuffix(".nc")) for path in folder.glob("*.nc")}
    for path in sorted(found, key=lambda p: (found[p] is None or not found[p].makes_network, p.name)):
        stem = path.name.removesuffix(".nc")
        try:
            if found[path] is None:
                raise RefusedFileError(f"{stem} = not the name of a cell")
            outcomes.append((stem, _merge_cell(found[path], path, other, store)))
        except RefusedFileError as error:
            outcomes.append((stem, f"refused: {error}"))
    return outcomes


def _merge_cell(cell: Cell, path: Path, other: Store, store: Store) -> str:
    if (mine := load_cell(cell, store)) is not None:
        same = mine.attrs["checksum"] == read_dataset(path).attrs["checksum"]
        return "there already" if same else "kept ours: there already, with other numbers"
    base = None if cell.base is None else load_cell(cell.base, store)
    if base is None and cell.base is not None:
        raise RefusedFileError(f"{path} = tuned on a base network that is not here: merge that cell first")
    read_dataset(path, cell.config(None if base is None else base.attrs["network"]))
    if cell.makes_network and load_network(cell, other) is None:
        raise RefusedFileError(f"{path} = without its network's arrays, or with others: not used; it is kept")
    for suffix in (".safetensors", ".nc"):
        if (source := path.with_name(cell.name + suffix)).exists():
            write_atomically(store.folder / source.name, lambda temporary, s=source: shutil.copyfile(s, temporary))
    return "taken"
