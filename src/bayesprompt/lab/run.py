"""Running cells: from disk if they are there, else computed and stored, so that no two runs of one meet."""

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator

import jax
import xarray as xr
from jax.experimental import multihost_utils
from tqdm import tqdm

from bayesprompt.files import tree_hash
from bayesprompt.lab import plan
from bayesprompt.lab.cells import condense, load_cell, load_network
from bayesprompt.lab.experiment import Cell, Run
from bayesprompt.provenance import provenance
from bayesprompt.settings import fixed
from bayesprompt.store import Store


class Stopped(Exception):
    """A run was asked to stop, and does so after a checkpoint; `signal` is the signal's number, or 0."""

    def __init__(self, signal: int) -> None:
        super().__init__(signal)
        self.signal = signal


class Stop:
    """Listens for SIGINT and SIGTERM, and to the clock; a second signal stops the program at once."""

    def __init__(self, hours: float | int | None = None) -> None:
        self.signal, self.end = 0, None if hours is None else time.monotonic() + 3600 * hours
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, number: int, _frame: object) -> None:
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number
        print("stopping after the next checkpoint; once more stops at once", file=sys.stderr)

    def check(self) -> None:
        """Raise Stopped if it is time; called between cells, and after each checkpoint."""
        if self.signal or (self.end is not None and time.monotonic() > self.end):
            raise Stopped(self.signal)


def run_cells(todo: list[Cell], store: Store, stop: Stop) -> None:
    """Run cells one after the other, and print each; the bar shows all of them together."""
    with make_bar(todo) as bar:
        for number, cell in enumerate(todo, 1):
            stop.check()
            bar.set_description(f"{cell.name} ({number}/{len(todo)})")
            start = bar.n
            dataset = run_cell(cell, store, _advance(bar, start, cell.repetitions, stop))
            bar.update(start + plan.work(cell) - bar.n)
            report(bar, cell, dataset)


def make_bar(todo: list[Cell]) -> tqdm:
    """Return one bar for all cells, in optimisation steps of all repetitions: its estimate is of the whole run."""
    return tqdm(total=sum(map(plan.work, todo)), unit="step", dynamic_ncols=True, smoothing=0.05)


def report(bar: tqdm, cell: Cell, dataset: xr.Dataset) -> None:
    """Print a finished cell's result in one line, above the bar."""
    bar.write(f"{cell.name}: {_result(dataset)}, {dataset.attrs['seconds']:.0f} s", file=sys.stdout)


def _result(dataset: xr.Dataset) -> str:
    if "accuracy" in dataset:
        return f"best accuracies {', '.join(f'{best:.1%}' for best in dataset.accuracy.values.max(axis=1))}"
    if "regret" not in dataset:
        return dataset.attrs["summary"]
    last = int(dataset.n[-1])
    return f"R({last}) = {float(dataset.regret.sel(n=last).median()):.3f} nats"


def _advance(bar: tqdm, start: int, repetitions: int, stop: Stop) -> Callable[[int, float], None]:
    def progress(step: int, loss: float) -> None:
        bar.update(start + step * repetitions - bar.n)
        bar.set_postfix(loss=f"{loss:.3f}")
        stop.check()

    return progress


@fixed()
def run_cell(cell: Cell, store: Store, progress: Callable[[int, float], None] | None = None) -> xr.Dataset:
    """Return a cell's results: from disk if they are there, else computed (after its base network) and stored.

    A run killed at any moment continues from its last checkpoint; a second process waits for the first. Hosts of one
    `jax.distributed` program, which compute a cell together, share a folder; the first of them stores the result.
    """
    if cell.base is not None:
        run_cell(cell.base, store)
    if (found := finished(cell, store)) is not None:
        return found
    with _alone(cell, store):
        if (found := finished(cell, store)) is not None:
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


def finished(cell: Cell, store: Store) -> xr.Dataset | None:
    """Return a cell's results if they are stored, and with them the network if it makes one; else None."""
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
