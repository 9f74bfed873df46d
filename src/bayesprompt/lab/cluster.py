"""Cells on a Dask cluster: a task for each, after its base network's; results pass `merge`'s checks into the store.

Workers need no disk of the caller's. While a run lasts the scheduler holds the files of each cell: what the caller has
(a base network, a checkpoint), the checkpoint that a worker sends twice a minute, and what is finished. So a cell goes
on elsewhere when its worker dies. Workers that do see the caller's folder compute there, under its locks.
Dask is imported only where it is asked for. A worker has one thread, and JAX all cores that its process may use.
"""

import contextlib
import functools
import json
import logging
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import xarray as xr

from bayesprompt.checks import UserError
from bayesprompt.devices import allowed_cores, keep_compiled, keep_freed_memory, use_every_core
from bayesprompt.lab import plan
from bayesprompt.lab.exchange import Named, merge
from bayesprompt.lab.experiment import Cell
from bayesprompt.lab.run import Stop, Stopped, finished, make_bar, report, run_cell
from bayesprompt.provenance import commit
from bayesprompt.store import Store, cache_folder
from bayesprompt.version import __version__

SEND, ANSWER = 30.0, 10.0  # seconds between two checkpoints that a worker sends; for a scheduler to answer
_GONE = "must stay there, but its scheduler is gone; what was finished is kept"
_SHARE = "BAYESPROMPT_WORKER_CORES"  # the cores of a worker process on the caller's machine
Files = dict[str, bytes]


def run_cells(todo: list[Cell], store: Store, stop: Stop, address: str, named: Named) -> None:
    """Run cells on the cluster at `address`, and print each; of a base network and its cells it comes first in `todo`.

    A failed cell is one line, and UserError at the end; a lost scheduler is UserError at once. What is done is stored.
    """
    failed: list[Cell] = []
    with make_bar(todo) as bar, connect(address) as client, _Tasks(client, store, named) as tasks:
        bar.set_description("waiting for a worker")
        while not (workers := client.scheduler_info()["workers"]):
            _check(stop, client, address)
            time.sleep(0.1)
        resources = {"GPU": 1} if any("GPU" in worker["resources"] for worker in workers.values()) else None
        for cell in todo:
            if (dataset := finished(cell, store)) is None:
                tasks.submit(cell, resources)
            else:
                bar.update(plan.work(cell))
                report(bar, cell, dataset)
        done = bar.n
        while tasks.running:
            _check(stop, client, address)
            for cell in [cell for cell, future in tasks.running.items() if future.done()]:
                _check(stop, client, address)  # without a scheduler all are done
                found = tasks.take(cell)
                if cell.base in failed:
                    found = f"base = {cell.base.name}: must be there"
                if isinstance(found, str):
                    failed.append(cell)
                    bar.write(f"{cell.name}: failed: {found}")
                else:
                    report(bar, cell, found)
                done += plan.work(cell)
            bar.set_description(f"{len(todo) - len(tasks.running)}/{len(todo)} cells", refresh=False)
            bar.update(done + sum(tasks.steps.get(c.name, 0) * c.repetitions for c in tasks.running) - bar.n)
            time.sleep(0.1)
    if failed:
        raise UserError(f"failed = {', '.join(cell.name for cell in failed)}: must be run again, see above")


def _check(stop: Stop, client: Any, address: str) -> None:
    stop.check()
    if client.status != "running":
        raise UserError(f"--cluster = {address}: {_GONE}")


class _Tasks:
    """The tasks of one run, by cell, and for each the files that the scheduler holds; a context that ends them all."""

    def __init__(self, client: Any, store: Store, named: Named) -> None:
        self.client, self.store, self.named = client, store, named
        self.running: dict[Cell, Any] = {}  # futures
        self.steps: dict[str, int] = {}  # by the cell's name, of each repetition
        self._sent: dict[Cell, Files] = {}
        self._held = functools.partial(_held, client.id, client=client)
        self._token = store.folder / f".{client.id}"  # workers that see it see the folder

    def __enter__(self) -> "_Tasks":
        self._token.touch()
        self.client.subscribe_topic(f"{self.client.id} steps", lambda event: self.steps.update([event[1]]))
        return self

    def __exit__(self, *_: object) -> None:
        """Cancel what still runs, and keep those of its checkpoints that are later than the caller's."""
        self._token.unlink(missing_ok=True)
        if self.client.status != "running":
            return
        self.client.cancel(list(self.running.values()))
        for cell in self.running:
            if (files := self._held(cell.name).get()) != self._sent[cell]:
                for name in files:
                    (self.store.folder / Path(name).name).unlink(missing_ok=True)
                _take(files, self.store, self.named)
        for cell in self._sent:
            self._held(cell.name).delete()

    def submit(self, cell: Cell, resources: dict[str, int] | None) -> None:
        """Let a cell be computed, after its base network if that is among the tasks."""
        new = {cell: _files(cell, self.store.folder, ".*.partial")}
        if cell.base is not None and cell.base not in self._sent:
            new[cell.base] = stored_files(cell.base, self.store)
        for each, files in new.items():
            self._held(each.name).set(files)
        self._sent |= new
        after = self.running.get(cell.base)
        self.running[cell] = self.client.submit(
            _compute, cell.name, after, self.client.id, _identity(), self.store, self.named,
            key=f"{cell.name}-{self.client.id}", priority=int(cell.makes_network), resources=resources,
        )  # fmt: skip

    def take(self, cell: Cell) -> xr.Dataset | str:
        """Store what the task of a cell has left, and return it; or say in one line why there is none."""
        future = self.running.pop(cell)
        if future.status not in ("error", "finished"):
            return "cancelled by the scheduler"
        if (error := future.exception()) is not None:
            return " ".join(str(error if isinstance(error, UserError) else f"{type(error).__name__}: {error}").split())
        problem = _take(self._held(cell.name).get(), self.store, self.named)
        if (dataset := None if problem else finished(cell, self.store)) is not None:
            self.store.drop_checkpoints(cell.name, json.loads(dataset.attrs["config"]))
        if not cell.makes_network:  # nobody needs it any more
            self._held(cell.name).delete()
            del self._sent[cell]
        return dataset if dataset is not None else problem or "what came back is not whole"


@contextlib.contextmanager
def connect(address: str) -> Iterator[Any]:
    """Connect to a scheduler, or start one with worker processes that share the cores of this machine."""
    try:
        import dask

        dask.config.set(logging={"distributed": "critical", "distributed.client": "critical"})  # we say what is wrong
        from distributed import Client, LocalCluster
        from distributed.comm import CommClosedError
    except ImportError:
        raise UserError(f"--cluster = {address}: must have Dask: pip install 'bayesprompt[cluster]'") from None
    kind, _, number = address.partition(":")
    if kind != "local":
        try:
            client = Client(address, timeout=ANSWER, set_as_default=False)
        except (OSError, ValueError) as error:
            raise UserError(f"--cluster = {address}: must be local or the address of a scheduler ({error})") from None
        with client:
            try:
                yield client
            except CommClosedError:  # while it was asked for something
                raise UserError(f"--cluster = {address}: {_GONE}") from None
        return
    cores = allowed_cores()
    if number and not (number.isdecimal() and 1 <= int(number) <= cores):
        raise UserError(f"--cluster = {address}: must be local, or local:1 to local:{cores}, a core for each worker")
    workers = int(number or cores)
    settings = {"env": {_SHARE: str(cores // workers)}, "preload": [__name__], "memory_limit": 0}
    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None, **settings) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def dask_setup(worker: Any) -> None:
    """Give a worker process of this machine its share of the cores; Ctrl-C and words are left to the caller."""
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    share = int(os.environ[_SHARE])
    jax.config.update("jax_num_cpu_devices", share)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[worker.name * share : (worker.name + 1) * share])


def _held(run: str, name: str, client: Any = None) -> Any:
    """Return the scheduler's variable with the files of a cell: on a worker, or at a client."""
    from distributed import Variable

    return Variable(f"{run} {name}", client)


def _files(cell: Cell, folder: Path, *endings: str) -> Files:
    """Return those of a cell's files in a folder that have these endings."""
    return {path.name: path.read_bytes() for ending in endings for path in folder.glob(cell.name + ending)}


def stored_files(cell: Cell, store: Store) -> Files:
    """Return a finished cell's files, from the first of the store's folders that has them whole."""
    whole = (folder for folder in store.folders if finished(cell, Store(folder, None)) is not None)
    return next((_files(cell, folder, ".nc", ".safetensors") for folder in whole), {})


def _take(files: Files, store: Store, named: Named) -> str | None:
    """Merge files into a store; return in one line what was refused, or None."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / Path(name).name).write_bytes(content)
        refused = [outcome for _, outcome in merge(Path(folder), store, named) if outcome.startswith("refused")]
    return "; ".join(refused) or None


@functools.cache
def _identity() -> str:
    """Return which code this process runs."""
    return f"bayesprompt {__version__}, commit {commit()}"


def _compute(name: str, after: None, run: str, identity: str, store: Store, named: Named) -> None:
    """Compute a cell on a worker, `after` its base network, and leave its files with the scheduler."""
    from distributed import get_worker

    worker = get_worker()
    if _identity() != identity:
        raise UserError(f"worker {worker.address} = {_identity()}: must be the caller's, {identity}")
    use_every_core()
    keep_freed_memory()
    keep_compiled(cache_folder() / "compiled")
    cell, shared = named(name), (store.folder / f".{run}").exists()
    with tempfile.TemporaryDirectory(dir=worker.local_directory) as scratch:
        place = store if shared else Store(scratch, None)
        for each in filter(None, (cell.base, cell)):
            _take(_held(run, each.name).get(timeout="60s"), place, named)
        if cell.base is not None and finished(cell.base, place) is None:
            raise UserError(f"base = {cell.base.name}: must have come whole to worker {worker.address}")
        run_cell(cell, place, _progress(worker, cell, run, None if shared else place))
        _held(run, name).set(_files(cell, place.folder, ".nc", ".safetensors"))


def _progress(worker: Any, cell: Cell, run: str, place: Store | None) -> Callable[[int, float], None]:
    """Return a callback that sends the step, and now and then the checkpoint in `place`; it ends a cancelled task."""
    key, said, sent = worker.get_current_task(), 0.0, time.monotonic()

    def progress(step: int, loss: float) -> None:
        nonlocal said, sent
        now, task = time.monotonic(), worker.state.tasks.get(key)
        if task is None or task.state == "cancelled":
            raise Stopped(0)
        if now - said > 1:
            worker.log_event(f"{run} steps", [cell.name, step])
            said = now
        if place is not None and now - sent > SEND:
            _held(run, cell.name).set(_files(cell, place.folder, ".*.partial"))
            sent = time.monotonic()

    return progress
