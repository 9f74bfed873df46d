"""Everything that one accelerator should do for the book, in slices that end in time; each goes on after the last.

    OUT=folder SLICE=1 python scripts/accelerator.py     and again with SLICE=2, 3, ... until it says "all done"

1. A smoke cell of each method, computed by the accelerator and by the CPU: do they agree?
2. The benchmarks of the coins, of sorting and of the language model, beside the public codes that THUNNINI, MINGPT and
   TORCH name.
3. The cells that undecided claims wait for: two programs side by side, each with a quarter of the memory.
4. The rest of every experiment at paper scale.

What a slice computed, its checkpoints included, is packed in $OUT/results by `bayesprompt export`. On a machine that
does not have it, it is merged again: from the folder that FROM names, and from unfinished/ in the repository.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "accelerator"
CELLS, DONE = WORK / "cells", WORK / "done.json"
OUT = Path(os.environ.get("OUT") or WORK / "out")
MINUTES = float(os.environ.get("MINUTES", 9))  # of a slice
LEAST = 90.0  # seconds that packing, or a step of the work, may still need at the end of a slice
METHODS_AGREE = 0.02  # nats of R(n) between devices after twenty steps in float32: they add in another order

ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(ROOT / "src"),
    "BAYESPROMPT_CACHE": str(CELLS),
    "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.25",
}
CLAIMS = (["P9", "P11", "P12", "G17"], ["P10"])  # each group is one program: their long runs stand side by side


def bayesprompt(*words: str, **more: str) -> subprocess.Popen:
    """Start a command of the package; `more` adds to its environment."""
    command = [sys.executable, "-m", "bayesprompt", *words]
    return subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT | more)


def compare_devices() -> bool:
    """Compute each method's smoke cells twice, on the accelerator and on the CPU, and print how far apart they are."""
    folders = {"accelerator": WORK / "smoke", "cpu": WORK / "smoke-cpu"}
    words = ("run", "single-coin", "--scale", "smoke")
    where = {"accelerator": {}, "cpu": {"JAX_PLATFORMS": "cpu"}}
    started = [bayesprompt(*words, BAYESPROMPT_CACHE=str(f), **where[name]) for name, f in folders.items()]
    if any([process.wait() for process in started]):
        return False
    from bayesprompt.store import Store

    own, cpu = (Store(folder, shipped=None) for folder in folders.values())
    rows = {}
    for path in sorted(own.folder.glob("single-coin.*.nc")):
        a, b = own.load(path.stem), cpu.load(path.stem)
        rows[path.stem] = float(np.abs(a.regret.values - b.regret.values).max())
        print(f"{path.stem:44s} regret differs by at most {rows[path.stem]:.2e} nats", flush=True)
    (OUT / "devices.json").write_text(json.dumps(rows, indent=1))
    return bool(rows) and max(rows.values()) < METHODS_AGREE


def benchmark(name: str, *options: str) -> bool:
    """Run one benchmark and keep its rows."""
    command = [sys.executable, f"benchmarks/{name}.py", "--rounds", "3", "--save", *options]
    passed = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT).returncode == 0
    kept = ROOT / "src" / "bayesprompt" / "results" / "benchmarks.json"
    (OUT / kept.name).write_text(kept.read_text())
    return passed


def claims(seconds: float) -> bool:
    """Compute for the claims until the time is over; True when nothing is missing."""
    hours = str(seconds / 3600)
    running = [bayesprompt("run", "--claims", *group, "--hours", hours) for group in CLAIMS]
    return not any([process.wait() for process in running]) and nothing_missing()


def nothing_missing() -> bool:
    """Tell whether every claim that the accelerator works for is judged."""
    from bayesprompt import catalog
    from bayesprompt.lab.plan import undecided
    from bayesprompt.store import Store

    names = [name for group in CLAIMS for name in group]
    return not undecided(catalog.evaluate(name, Store(CELLS)) for name in names)


def everything(seconds: float) -> bool:
    """Compute the rest of all experiments until the time is over; True when nothing is missing."""
    began = time.monotonic()
    process = bayesprompt("run", "--all", "--scale", "paper", "--hours", str(seconds / 3600))
    return process.wait() == 0 and time.monotonic() - began < seconds


def steps() -> dict[str, tuple[float, object]]:
    """Return every step: its name, the least seconds it needs, and what to call with the seconds that are left."""
    public = ["--thunnini", os.environ["THUNNINI"]] if os.environ.get("THUNNINI") else []
    torch = ["--python", os.environ["TORCH"]] if os.environ.get("TORCH") else []
    sorting = ["--mingpt", os.environ["MINGPT"], *torch] if os.environ.get("MINGPT") else []
    options = {
        "roofline": [], "pretraining": public, "tuning": public, "memory": public, "sorting": sorting,
        "language_model": torch,
    }  # fmt: skip
    return {
        "devices agree": (120, lambda left: compare_devices()),
        **{name: (120, lambda left, n=name, o=given: benchmark(n, *o)) for name, given in options.items()},
        "claims": (LEAST, claims),
        "everything": (LEAST, everything),
    }


def main() -> int:
    """Do what fits in one slice; exit code 0, or 1 where a step failed (it is tried again by the next slice)."""
    end = time.monotonic() + 60 * MINUTES - LEAST
    for folder in (CELLS, OUT):
        folder.mkdir(parents=True, exist_ok=True)
    for source in (os.environ.get("FROM"), ROOT / "unfinished"):
        if source and Path(source).is_dir():
            bayesprompt("merge", str(source)).wait()
    done, failed = json.loads(DONE.read_text()) if DONE.exists() else [], []
    for name, (least, call) in steps().items():
        left = end - time.monotonic()
        if name in done or left < least:
            continue
        print(f"== slice {os.environ.get('SLICE', '?')}: {name}, {left:.0f} s left", flush=True)
        if call(left):
            done.append(name)
            DONE.write_text(json.dumps(done))
        elif end - time.monotonic() > LEAST:  # it did not end for want of time
            failed.append(name)
    if any(CELLS.glob("*.*")):
        bayesprompt("export", str(OUT / "results"), "--unfinished").wait()
    print(f"done: {', '.join(done) or 'nothing'}; failed: {', '.join(failed) or 'nothing'}")
    print("all done" if len(done) == len(steps()) else "the next slice goes on")
    return 1 if failed else 0


if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"  # of this process alone, so that it holds none of the accelerator's memory
    sys.path.insert(0, str(ROOT / "src"))
    sys.exit(main())
