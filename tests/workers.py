"""Dask's scheduler and workers for test_cluster.py, and the one process beside them: `python workers.py FOLDER`.

Workers take short chunks and send checkpoints at once, and note what they computed; one cell fails.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import reference

from bayesprompt import catalog
from bayesprompt.devices import keep_compiled
from bayesprompt.files import tree_hash
from bayesprompt.lab import cluster, plan
from bayesprompt.lab.cells import load_cell, load_network
from bayesprompt.lab.run import Stop, run_cell
from bayesprompt.prompting.experiments import CoinExperiment
from bayesprompt.store import Store, cache_folder
from bayesprompt.tuning.fitting import FitConfig

ROOT = Path(__file__).resolve().parents[1]
SOFT, AS_IT_IS = (catalog.cell("single-coin", "lstm", method, "smoke") for method in ("SoftPT", "NoTuning"))
CELLS = plan.with_bases([SOFT, AS_IT_IS])
FAILS = AS_IT_IS._replace(seed=13)
_compute = CoinExperiment.compute


def noted(self, run):
    if run.cell == FAILS:
        raise ZeroDivisionError("on\npurpose")
    steps = [0]

    def progress(step, loss):
        steps.append(step)
        if run.progress is not None:
            run.progress(step, loss)

    result = _compute(self, run._replace(progress=progress))
    with (cache_folder() / "computed").open("a") as file:
        file.write(f"{run.cell.name} {steps[1] if steps[1:] else 0}\n")
    return result


def dask_setup(worker):
    jax.jit = reference.quick_jit
    FitConfig.max_chunk, cluster.SEND = 5, 0.1
    CoinExperiment.compute = noted
    cache_folder().mkdir(exist_ok=True)


def numbers(store):
    """Hash all numbers of each cell, and of the network."""
    found = {cell.name: load_cell(cell, store) for cell in CELLS}
    hashes = {name: tree_hash({str(k): np.asarray(v) for k, v in d.variables.items()}) for name, d in found.items()}
    return hashes | {"network": tree_hash(load_network(CELLS[0], store)[1])}


class Never(Stop):
    def __init__(self):
        """Leave signals alone."""

    def check(self):
        pass


class Cluster:
    """A scheduler and worker processes, each with a nanny that starts it again, on this machine."""

    def __init__(self, folder: Path, workers: int):
        self.cache, file = folder / "cache", folder / "scheduler.json"
        self.environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")]),
            "BAYESPROMPT_CACHE": str(self.cache),
            "JAX_NUM_CPU_DEVICES": "1",
            "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "100",
        }
        self.log = (folder / "log").open("w")
        self.processes = []
        self.scheduler = self.start("scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(file))
        while not file.exists():
            time.sleep(0.05)
        self.address = json.loads(file.read_text())["address"]
        words = (self.address, "--nthreads", "1", "--preload", "workers", "--local-directory", str(folder))
        self.nannies = [self.start("worker", *words, "--resources", "GPU=1") for _ in range(workers)]

    def start(self, kind, *words):
        command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", "--dashboard-address", ":0", *words]
        self.processes.append(subprocess.Popen(command, env=self.environment, stdout=self.log, stderr=self.log))
        return self.processes[-1]

    def pids(self):
        """Return the processes that work now."""
        import psutil

        children = [child for nanny in self.nannies for child in psutil.Process(nanny.pid).children()]
        return [child.pid for child in children if "spawn_main" in " ".join(child.cmdline())]

    def computed(self):
        """Return which cells were computed to their end, and the step that was reported first."""
        lines = (self.cache / "computed").read_text().splitlines()
        return [(name, int(step)) for name, step in map(str.split, lines)]

    def close(self):
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:  # a worker that was killed again and again may start another one yet
                process.kill()
                process.wait()
        self.log.close()


if __name__ == "__main__":
    dask_setup(None)
    keep_compiled(cache_folder() / "compiled")
    for each in CELLS:
        run_cell(each, Store(Path(sys.argv[1]), None))
