"""What the workers of test_cluster.py are told at their start, and the one process beside them: `workers.py FOLDER`.

Chunks are short and checkpoints sent at once; the name of each cell that was computed is noted; one cell fails.
"""

import os
import sys
from pathlib import Path

import jax
import reference

from bayesprompt import catalog
from bayesprompt.devices import keep_compiled
from bayesprompt.lab import cluster
from bayesprompt.lab.run import run_cell
from bayesprompt.prompting.experiments import CoinExperiment
from bayesprompt.store import Store, cache_folder
from bayesprompt.tuning.fitting import FitConfig

CELLS = [catalog.cell("single-coin", "lstm", method, "smoke") for method in ("SoftPT", "RealPT", "NoTuning")]
FAILS = CELLS[1]._replace(seed=13)
_compute = CoinExperiment.compute


def noted(self, run):
    if run.cell == FAILS:
        raise ZeroDivisionError("on\npurpose")
    result = _compute(self, run)
    with (cache_folder() / "computed").open("a") as file:
        file.write(f"{run.cell.name}\n")
    return result


def dask_setup(worker):
    jax.jit = reference.quick_jit
    FitConfig.max_chunk, cluster.SEND = 5, 0.1
    CoinExperiment.compute = noted
    cache_folder().mkdir(exist_ok=True)


if __name__ == "__main__":
    dask_setup(None)
    keep_compiled(cache_folder() / "compiled")
    for each in CELLS:
        run_cell(each, Store(Path(sys.argv[1]), None))
    os._exit(0)
