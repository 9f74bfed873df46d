"""Cells on a Dask cluster: the numbers of one process, whatever dies; what goes wrong is one line, the rest is kept."""

import importlib.util
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time

import jax
import pytest
from workers import CELLS, FAILS, ROOT, SOFT, Cluster, Never, numbers

from bayesprompt.catalog import cell_named
from bayesprompt.checks import UserError
from bayesprompt.devices import allowed_cores
from bayesprompt.lab import cluster, plan
from bayesprompt.lab.cells import load_cell
from bayesprompt.lab.run import Stopped, run_cell
from bayesprompt.store import Store
from bayesprompt.tuning.fitting import FitConfig

LONG = os.environ.get("FAULTS") == "long"
PLAIN = {"PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1", "TQDM_MININTERVAL": "5"}
# Exact cells, many and quick.
RUN = [sys.executable, "-m", "bayesprompt", "run", "--all", "--scale", "smoke", "--architecture", "bayes"]


needs_dask = pytest.mark.skipif(
    importlib.util.find_spec("distributed") is None and os.environ.get("CI") != "true",
    reason="distributed must be installed; CI has it",
)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    cluster = Cluster(tmp_path_factory.mktemp("two"), workers=2)
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def alone(two, tmp_path_factory):
    """What one process computes."""
    folder = tmp_path_factory.mktemp("alone")
    subprocess.run([sys.executable, ROOT / "tests" / "workers.py", folder], env=two.environment, check=True)
    return numbers(Store(folder, None))


def run(store, address, todo=CELLS, stop=Never()):  # noqa: B008
    store.folder.mkdir(parents=True, exist_ok=True)
    cluster.run_cells(todo, store, stop, address, cell_named)


@pytest.fixture(params=["with a folder of their own", "in the caller's folder"])
def store(request, tmp_path, monkeypatch):
    """A store that workers see or, since its path means another folder to them, do not see."""
    monkeypatch.chdir(tmp_path)
    return Store(tmp_path / "store" if "caller" in request.param else "store", None)


@needs_dask
@pytest.mark.slow
def test_two_workers_compute_each_cell_once_to_the_numbers_of_one_process(two, alone, store, capsys):
    before = len(two.computed())
    run(store, two.address)
    assert numbers(store) == alone
    assert sorted(name for name, _ in two.computed()[before:]) == sorted(cell.name for cell in CELLS)
    printed = capsys.readouterr().out
    assert all(printed.count(f"{cell.name}: ") == 1 for cell in CELLS) and printed.count(" nats, ") == len(CELLS)
    assert [path.name for path in store.folder.iterdir() if path.suffix not in (".nc", ".safetensors", ".lock")] == []
    run(store, two.address)
    assert len(two.computed()) == before + len(CELLS), "what is there is not computed again"


@needs_dask
@pytest.mark.slow
def test_a_network_and_a_checkpoint_that_are_there_go_out_to_the_workers(two, alone, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(FitConfig, "max_chunk", 5)
    store, before = Store("store", None), len(two.computed())

    def leave(step, loss):
        if step == 10:
            raise Stopped(0)

    run(store, two.address, CELLS[:1])
    with pytest.raises(Stopped):
        run_cell(SOFT, store, leave)
    run(store, two.address, [SOFT])
    assert two.computed()[before:] == [(CELLS[0].name, 5), (SOFT.name, 15)]
    assert load_cell(SOFT, store) is not None and not list(store.folder.glob("*.partial"))


@needs_dask
@pytest.mark.slow
def test_killed_workers_lose_nothing(two, alone, store, tmp_path):
    """Workers are killed at random moments until it was often enough; every run has the numbers of one process."""
    kills, times, rounds, over = [], 15 if LONG else 2, 0, threading.Event()

    def kill():
        while not over.wait(random.uniform(0.2, 2.0)):
            if len(kills) < times and (pids := two.pids()):
                os.kill(random.choice(pids), signal.SIGKILL)
                kills.append(rounds)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        while len(kills) < times:
            place = Store(store.folder / str(rounds), None)
            run(place, two.address)
            assert numbers(place) == alone
            assert not list(place.folder.glob("*.partial")) and not list(place.folder.glob("*.refused*"))
            rounds += 1
    finally:
        over.set()
        killer.join()
    print(f"{len(kills)} kills, {rounds} runs, all with the numbers of one process")


@needs_dask
@pytest.mark.slow
def test_a_cell_that_fails_is_one_line_and_the_others_go_on(two, tmp_path, capsys):
    store = Store(tmp_path / "store", None)
    others = [FAILS.base, SOFT._replace(seed=13)]
    with pytest.raises(UserError, match=rf"^failed = {re.escape(FAILS.name)}: must be run again, see above$"):
        run(store, two.address, [*others, FAILS])
    assert all(load_cell(cell, store) is not None for cell in others) and load_cell(FAILS, store) is None
    lines = [line for line in capsys.readouterr().out.splitlines() if "failed" in line]
    assert lines == [f"{FAILS.name}: failed: ZeroDivisionError: on purpose"]


@needs_dask
@pytest.mark.slow
def test_a_worker_with_other_code_computes_nothing(two, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cluster, "_identity", lambda: "bayesprompt 0.0.1, commit 123")
    store = Store(tmp_path / "store", None)
    with pytest.raises(UserError, match="^failed = "):
        run(store, two.address)
    first, *others = [line for line in capsys.readouterr().out.splitlines() if "failed" in line]
    told = r"worker tcp://[\d.:]+ = bayesprompt .*: must be the caller's, bayesprompt 0.0.1, commit 123"
    assert re.fullmatch(f"{re.escape(CELLS[0].name)}: failed: {told}", first)
    assert len(others) == len(CELLS) - 1 and all(f"base = {CELLS[0].name}: must be there" in line for line in others)
    assert not list(store.folder.glob("*.nc"))


@needs_dask
@pytest.mark.slow
def test_a_stopped_run_keeps_what_is_finished_and_the_checkpoints(two, alone, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store, seen = Store("store", None), []

    class Soon(Never):
        def check(self):
            seen.append(time.monotonic())
            if list(store.folder.glob("*.nc")) and len(seen) > 5:
                raise Stopped(signal.SIGINT)

    with pytest.raises(Stopped):
        run(store, two.address, stop=Soon())
    assert load_cell(CELLS[0], store) is not None and plan.missing(CELLS, store)
    run(store, two.address)
    assert numbers(store) == alone and not list(store.folder.glob("*.partial"))


@needs_dask
@pytest.mark.slow
def test_when_the_scheduler_dies_what_is_finished_is_kept(tmp_path):
    one = Cluster(tmp_path, workers=1)
    try:
        process = subprocess.Popen(
            [*RUN, "--cluster", one.address], env=os.environ | PLAIN | {"BAYESPROMPT_CACHE": str(tmp_path / "mine")},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        first = process.stdout.readline()
        one.scheduler.kill()
        out, err = process.communicate(timeout=60)
    finally:
        one.close()
    assert process.returncode == 2 and "Traceback" not in err
    said = f"error: --cluster = {one.address}: must stay there, but its scheduler is gone; what was finished is kept"
    assert err.splitlines()[-1] == said
    done = [line.split(":")[0] for line in [first, *out.splitlines()]]
    assert all(load_cell(cell_named(name), Store(tmp_path / "mine")) is not None for name in done) and done


@needs_dask
@pytest.mark.slow
def test_workers_here_share_the_cores_and_stop_by_ctrl_c(tmp_path):
    environment = os.environ | PLAIN | {"BAYESPROMPT_CACHE": str(tmp_path / "cache")}
    process = subprocess.Popen(
        [*RUN, "--cluster", "local"], env=environment, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    first = process.stdout.readline()
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    assert err.splitlines()[-1] == "stopped: the same command continues from the last checkpoint"
    store = Store(tmp_path / "cache")
    assert load_cell(cell_named(first.split(":")[0]), store) is not None
    with pytest.raises(ProcessLookupError):
        for _ in range(200):  # twenty seconds
            os.killpg(process.pid, 0)
            time.sleep(0.1)


@needs_dask
@pytest.mark.slow
def test_each_worker_here_has_its_own_cores():
    workers = allowed_cores()
    with cluster.connect("local") as client:
        client.wait_for_workers(workers)
        pinned = client.run(lambda: sorted(os.sched_getaffinity(0)))
        assert {*client.run(lambda: (allowed_cores(), jax.device_count())).values()} == {(1, 1)}
    assert len(pinned) == workers == len({core for each in pinned.values() for core in each})


SMOKE = ("run", "single-coin", "--scale", "smoke", "--cluster")


def test_without_dask_one_line_says_what_to_install(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "dask", None)
    monkeypatch.setitem(sys.modules, "distributed", None)
    said = "error: --cluster = local: must have Dask: pip install 'bayesprompt[cluster]'"
    code, _, err = command(*SMOKE, "local")
    assert (code, err.splitlines()[-1]) == (2, said)


@needs_dask
@pytest.mark.parametrize("number", ["0", "two", "-1", str(allowed_cores() + 1)])
def test_there_are_no_more_workers_than_cores(command, number):
    code, _, said = command(*SMOKE, f"local:{number}")
    assert code == 2 and f"local:{number}: must be local, or local:1 to local:{allowed_cores()}" in said


@needs_dask
@pytest.mark.parametrize("address", ["nowhere", "tcp://127.0.0.1:1", "ftp://127.0.0.1:1"])
def test_an_address_without_a_scheduler_is_one_line(command, address, monkeypatch):
    monkeypatch.setattr(cluster, "ANSWER", 0.5)
    code, _, said = command(*SMOKE, address)
    assert code == 2 and f"--cluster = {address}: must be local or the address of a scheduler" in said
