"""How long does a cell take to start: without compiled programs on disk, and with them?"""

import json
import subprocess
import sys
import tempfile

from harness import REPOSITORY, arguments, finish

CASES = [("Transformer", "FullWT", 100), ("Transformer", "SoftPT", 50), ("LSTM", "FullWT", 100), ("LSTM", "SoftPT", 50)]

# One step of the loop in a process of its own: what is not the step itself is the start.
CHILD = """
import json, sys, time
began = time.perf_counter()
import jax
from bayesprompt.models import predictor as predictors
from bayesprompt.devices import keep_compiled, use_every_core
from bayesprompt.tuning.fitting import FitConfig, fit
from bayesprompt.sources.coins import Coin
from bayesprompt.tuning.tuners import make_tuner
from pathlib import Path
imported = time.perf_counter()
keep_compiled(Path(sys.argv[1]))
use_every_core()
architecture = getattr(predictors, sys.argv[2])()
predictor, tuner = predictors.make_predictor(architecture), make_tuner(sys.argv[3], architecture)
base = jax.jit(predictor.init)(jax.random.key(0))
config, key = FitConfig(steps=1, batch=256, length=int(sys.argv[4])), jax.random.key(1)
times = []
for _ in range(2):
    fit(predictor, tuner, base, Coin(0.2), config, key, 1)
    times.append(time.perf_counter())
print(json.dumps({"imports": imported - began, "start": 2 * times[0] - times[1] - imported}))
"""


def start(folder, case) -> dict:
    """Return the seconds of the imports, and from there to the first step's beginning."""
    command = [sys.executable, "-c", CHILD, folder, *map(str, case)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    options, rows = arguments(__doc__), []
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            first, second = start(folder, case), start(folder, case)
        row = {
            "case": f"{case[0]} {case[1]}", "length": case[2], "imports_seconds": second["imports"],
            "first_start_seconds": first["start"], "second_start_seconds": second["start"],
        }  # fmt: skip
        print(
            f"{row['case']:24s}  imports {second['imports']:5.1f} s  first start {first['start']:5.1f} s"
            f"  second start {second['start']:5.1f} s",
            flush=True,
        )
        rows.append(row)
    finish(options, __file__, rows)
