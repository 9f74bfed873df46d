"""Running a cell: from disk if it is there, else computed and stored, so that no two runs of it meet."""

import contextlib
import time
from collections.abc import Callable, Iterator

import jax
import xarray as xr
from jax.experimental import multihost_utils

from bayesprompt.files import tree_hash
from bayesprompt.lab.cells import condense, load_cell, load_network
from bayesprompt.lab.experiment import Cell, Run
from bayesprompt.provenance import provenance
from bayesprompt.settings import fixed
from bayesprompt.store import Store


@fixed()
def run_cell(cell: Cell, store: Store, progress: Callable[[int, float], None] | None = None) -> xr.Dataset:
    """Return a cell's results: from disk if they are there, else computed (after its base network) and stored.

    A run killed at any moment continues from its last checkpoint; a second process waits for the first. Hosts of one
    `jax.distributed` program, which compute a cell together, share a folder; the first of them stores the result.
    """
    if cell.base is not None:
        run_cell(cell.base, store)
    if (found := _finished(cell, store)) is not None:
        return found
    with _alone(cell, store):
        if (found := _finished(cell, store)) is not None:
            return found
        began, origin = time.monotonic(), provenance()
        network = None if cell.base is None else load_network(cell, store)
        config = cell.config(network and tree_hash(network[1]))
        dataset, arrays = cell.experiment.compute(Run(cell, config, network, store, progress))
        dataset = condense(dataset)
        if arrays is not None:
            dataset = dataset.assign_attrs({"network" if cell.makes_network else "arrays": tree_hash(arrays)})
        if _first_host():
            if arrays is not None:
                store.save_arrays(cell.name, arrays)
            dataset = store.save(cell.name, dataset, config, time.monotonic() - began, origin)
            store.drop_checkpoints(cell.name, config)
    return dataset


def _finished(cell: Cell, store: Store) -> xr.Dataset | None:
    found = load_cell(cell, store)
    return found if found is not None and (not cell.makes_network or load_network(cell, store)) else None


@contextlib.contextmanager
def _alone(cell: Cell, store: Store) -> Iterator[None]:
    """Hold the cell's lock, on the first host for all of them: they enter together, and leave after the last."""
    with store.lock(cell.name) if _first_host() else contextlib.nullcontext():
        _meet(f"{cell.name} begins")
        yield
        _meet(f"{cell.name} ends")


def _first_host() -> bool:
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def _meet(where: str) -> None:
    if jax.distributed.is_initialized():
        multihost_utils.sync_global_devices(where)
