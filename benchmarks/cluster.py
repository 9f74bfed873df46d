"""What does a Dask cluster cost: two workers with one core each, beside one process on two cores?"""

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import REPOSITORY, arguments, finish

from bayesprompt import catalog
from bayesprompt.lab.cluster import stored_files
from bayesprompt.lab.experiment import Cell
from bayesprompt.lab.run import run_cell
from bayesprompt.store import Store

METHODS = ("SoftPT", "RealPT", "SimplexPT", "EmbedWT", "UnembedWT", "FullWT")
TUNED = list(itertools.product(("single-coin", "two-coins"), ("lstm",), METHODS))
EXACT = [catalog.cells("single-coin", "bayes", scale="smoke", seed=seed) for seed in range(8)]
# Cells, and others like them that are computed before: exact cells take no time, what is left is that of the cluster.
CASES = {
    "LSTM, smoke": ([catalog.cell(*each, "smoke") for each in TUNED], []),
    "LSTM, quick": ([catalog.cell(*each, "quick") for each in TUNED[:6]], []),
    "exact, smoke": (sum(EXACT[3:], []), sum(EXACT[:3], [])),  # as many before as both workers need to compile
}

# In a process of its own, which has imported everything and, if so, started its workers before the clock does.
CHILD = """
import contextlib, json, sys, time
from bayesprompt.catalog import cell_named
from bayesprompt.devices import keep_compiled, use_every_core
from bayesprompt.lab import cluster, run
from bayesprompt.lab.run import Stop
from bayesprompt.store import Store, cache_folder

where, folder, cells, before = json.loads(sys.argv[1])
cells, before, store, stop = map(cell_named, cells), map(cell_named, before), Store(folder, None), Stop()
with cluster.connect(where) if where else contextlib.nullcontext() as client:
    if where:
        client.wait_for_workers(2)
        compute = lambda todo: cluster.run_cells(list(todo), store, stop, client.scheduler.address, cell_named)
    else:
        use_every_core()
        keep_compiled(cache_folder() / "compiled")
        compute = lambda todo: run.run_cells(list(todo), store, stop)
    compute(before)
    began = time.perf_counter()
    compute(cells)
    print(json.dumps(time.perf_counter() - began))
"""


def measure(where: str, cells: list[Cell], before: list[Cell]) -> float:
    """Return the seconds from nothing, but the base networks, to all cells."""
    with tempfile.TemporaryDirectory() as folder:
        cache, place = Path(folder) / "cache", Path(folder) / "cells"
        place.mkdir()
        for base in {cell.base for cell in cells} - {None}:
            kept = Store(cache)
            run_cell(base, kept)
            for name, content in stored_files(base, kept).items():
                (place / name).write_bytes(content)
        told = json.dumps([where, str(place), *([cell.name for cell in each] for each in (cells, before))])
        environment = os.environ | {"BAYESPROMPT_CACHE": str(cache)}
        command = [sys.executable, "-c", CHILD, told]
        done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=environment)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    options, rows = arguments(__doc__, cases=list(CASES)), []
    for case in options.cases:
        cells, before = CASES[case]
        turns = [[measure(where, cells, before) for where in ("", "local:2")] for _ in range(options.rounds)]
        one, two = (statistics.median(times) for times in zip(*turns, strict=True))
        row = {
            "case": case, "cells": len(cells), "seconds": one, "cluster_seconds": two, "ratio": one / two,
            "worker_seconds_more": (2 * two - one) / len(cells),
        }  # fmt: skip
        print(
            f"{case:14s} {len(cells):3d} cells  one process {one:7.2f} s  two workers {two:7.2f} s  ratio "
            f"{row['ratio']:.2f}  a worker {row['worker_seconds_more']:6.3f} s more a cell",
            flush=True,
        )
        rows.append(row)
    finish(options, __file__, rows)
