"""Cells on a Dask cluster: a task for each, after its base network's; results pass `merge`'s checks into the store.

Workers need no disk of the caller's. The scheduler holds the files of each cell while the run lasts: a base network or
checkpoint that the caller has, the checkpoint that a worker sends twice a minute, and what is finished. So the cell of
a worker that dies goes on elsewhere. Workers that do see the caller's folder compute there, under its locks.
Dask is imported only where it is asked for. A worker has one thread, and JAX all cores that its process may use.
"""

import contextlib
import json
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jax

from bayesprompt.checks import UserError
from bayesprompt.devices import allowed_cores, keep_compiled, use_every_core
from bayesprompt.lab import plan
from bayesprompt.lab.exchange import Named, merge
from bayesprompt.lab.experiment import Cell
from bayesprompt.lab.run import finished, make_bar, report, run_cell
from bayesprompt.lab.stop import Stop, Stopped
from bayesprompt.provenance import commit
from bayesprompt.store import Store, cache_folder
from bayesprompt.version import __version__

SEND, ANSWER = 30.0, 10.0  # seconds between two checkpoints that a worker sends; for a scheduler to answer
_SHARE = "BAYESPROMPT_WORKER_CORES"  # of a worker process on this machine
_FINISHED, _UNFINISHED = (".nc", ".safetensors"), (".*.partial",)

Files = dict[str, bytes]


def run_cells(todo: list[Cell], store: Store, stop: Stop, address: str, named: Named) -> None:
    """Run cells on the cluster at `address`, and print each; base networks come before the cells that need them.

    A cell that fails is one line, and the others go on. Raises UserError at the end if there was one, or at once where
    the scheduler goes away. What is finished is stored then, as it is when the run is stopped.
    """
    with make_bar(todo) as bar, connect(address) as client:
        from distributed import Variable

        run, steps, futures, held, sent, failed = client.id, {}, {}, {}, {}, []
        token = store.folder / f".{run}"
        token.touch()
        client.subscribe_topic(f"{run} steps", lambda event: steps.update([event[1]]))
        while not (workers := client.scheduler_info()["workers"]):
            bar.set_description("waiting for a worker")
            _check(stop, client, address)
            time.sleep(0.1)
        resources = {"GPU": 1} if any("GPU" in worker["resources"] for worker in workers.values()) else None

        def hold(cell: Cell, files: Files) -> None:
            held[cell], sent[cell] = Variable(f"{run} {cell.name}", client), files
            held[cell].set(files)

        try:
            for cell in todo:
                if (dataset := finished(cell, store)) is not None:
                    bar.update(plan.work(cell))
                    report(bar, cell, dataset)
                    continue
                if cell.base is not None and cell.base not in held:
                    hold(cell.base, stored_files(cell.base, store))
                hold(cell, _files(cell, store.folder, _UNFINISHED))
                futures[cell] = client.submit(
                    _compute, cell.name, futures.get(cell.base), run, _identity(), store, named,
                    key=f"{cell.name}-{run}", priority=int(cell.makes_network), resources=resources,
                )  # fmt: skip
            done = bar.n
            while futures:
                _check(stop, client, address)
                for cell in [cell for cell, future in futures.items() if future.done()]:
                    future = futures.pop(cell)
                    problem = f"base = {cell.base.name}: must be there" if cell.base in failed else _problem(future)
                    problem = problem or _take(held[cell].get(), store, named)
                    if (dataset := None if problem else finished(cell, store)) is None:
                        failed.append(cell)
                        bar.write(f"{cell.name}: failed: {problem}")
                    else:
                        store.drop_checkpoints(cell.name, json.loads(dataset.attrs["config"]))
                        report(bar, cell, dataset)
                    done += plan.work(cell)
                    if not cell.makes_network:
                        held.pop(cell).delete()
                bar.set_description(f"{len(todo) - len(futures)}/{len(todo)} cells", refresh=False)
                bar.update(done + sum(steps.get(c.name, 0) * c.repetitions for c in futures) - bar.n)
                time.sleep(0.1)
        finally:
            token.unlink(missing_ok=True)
            if client.status == "running":
                client.cancel(list(futures.values()))
                for cell in futures:
                    if (files := held[cell].get()) != sent[cell]:  # later than what is here
                        for name in files:
                            (store.folder / Path(name).name).unlink(missing_ok=True)
                        _take(files, store, named)
                for variable in held.values():
                    variable.delete()
    if failed:
        raise UserError(f"failed = {', '.join(cell.name for cell in failed)}: must be run again, see above")


@contextlib.contextmanager
def connect(address: str) -> Iterator[Any]:
    """Connect to a scheduler, or start one with worker processes that share the cores of this machine."""
    try:
        import dask

        dask.config.set(logging={"distributed": "critical"})  # what a person needs to know is said here
        from distributed import Client, LocalCluster
    except ImportError:
        raise UserError(f"--cluster = {address}: must have Dask: pip install 'bayesprompt[cluster]'") from None
    kind, _, number = address.partition(":")
    if kind != "local":
        try:
            client = Client(address, timeout=ANSWER, set_as_default=False)
        except (OSError, ValueError) as error:
            raise UserError(f"--cluster = {address}: must be local or the address of a scheduler ({error})") from None
        with client:
            yield client
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
    """Give a worker process on the caller's machine its share of the cores, and leave Ctrl-C to the caller."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    share = int(os.environ[_SHARE])
    jax.config.update("jax_num_cpu_devices", share)
    if hasattr(os, "sched_setaffinity"):
        mine = sorted(os.sched_getaffinity(0))[worker.name * share : (worker.name + 1) * share]
        os.sched_setaffinity(0, mine)


def _check(stop: Stop, client: Any, address: str) -> None:
    stop.check()
    if client.status != "running":
        raise UserError(f"--cluster = {address}: must stay there, but its scheduler is gone; what was finished is kept")


def _problem(future: Any) -> str | None:
    """Return in one line why a task failed, or None."""
    if future.status == "finished":
        return None
    if future.status != "error":
        return "cancelled by the scheduler"
    error = future.exception()
    words = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return " ".join(words.split())


def _files(cell: Cell, folder: Path, endings: tuple[str, ...]) -> Files:
    """Return those of a cell's files in a folder that have these endings."""
    return {path.name: path.read_bytes() for ending in endings for path in folder.glob(cell.name + ending)}


def stored_files(cell: Cell, store: Store) -> Files:
    """Return a finished cell's files, from the first folder that has them whole."""
    whole = (folder for folder in store.folders if finished(cell, Store(folder, None)) is not None)
    return next((_files(cell, folder, _FINISHED) for folder in whole), {})


def _take(files: Files, store: Store, named: Named) -> str | None:
    """Merge files into a store; return in one line what was refused, or None."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / Path(name).name).write_bytes(content)
        refused = [outcome for _, outcome in merge(Path(folder), store, named) if outcome.startswith("refused")]
    return "; ".join(refused) or None


@cache
def _identity() -> str:
    """Return which code this process runs."""
    return f"bayesprompt {__version__}, commit {commit()}"


def _compute(name: str, base: None, run: str, identity: str, store: Store, named: Named) -> None:
    """Compute a cell on a worker, and leave its files with the scheduler; `base` is its base network's task."""
    from distributed import Variable, get_worker

    worker = get_worker()
    if _identity() != identity:
        raise UserError(f"worker {worker.address} = {_identity()}: must be the caller's, {identity}")
    use_every_core()
    keep_compiled(cache_folder() / "compiled")
    cell, held, shared = named(name), Variable(f"{run} {name}"), (store.folder / f".{run}").exists()
    with tempfile.TemporaryDirectory(dir=worker.local_directory) as scratch:
        place = store if shared else Store(scratch, None)
        for each in (cell.base, cell):
            if each is not None:
                _take(Variable(f"{run} {each.name}").get(timeout="60s"), place, named)
        if cell.base is not None and finished(cell.base, place) is None:
            raise UserError(f"base = {cell.base.name}: must have come whole to worker {worker.address}")
        run_cell(cell, place, _send(worker, cell, run, None if shared else (place, held)))
        held.set(_files(cell, place.folder, _FINISHED))


def _send(worker: Any, cell: Cell, run: str, held: tuple[Store, Any] | None) -> Callable[[int, float], None]:
    """Return a callback that sends the step once a second and the checkpoint seldom, and ends what was cancelled."""
    key, said, kept = worker.get_current_task(), 0.0, time.monotonic()

    def progress(step: int, loss: float) -> None:
        nonlocal said, kept
        now = time.monotonic()
        if now - said > 1:
            worker.log_event(f"{run} steps", [cell.name, step])
            said = now
        if held is not None and now - kept > SEND:
            held[1].set(_files(cell, held[0].folder, _UNFINISHED))
            kept = time.monotonic()
        task = worker.state.tasks.get(key)
        if task is None or task.state == "cancelled":
            raise Stopped(0)

    return progress
