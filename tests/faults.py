"""Runs that are killed, meet a full disk or each other: `python faults.py FAULT JOB TIMES FOLDER`.

JAX is imported once and never started here: each run is a fork that starts it. What is wrong is an AssertionError.
"""

import os
import random
import resource
import signal
import sys
import time
from pathlib import Path

import jax
import numpy as np
import reference

from bayesprompt import catalog, cli
from bayesprompt.devices import keep_compiled, use_every_core
from bayesprompt.files import tree_hash
from bayesprompt.lab.run import run_cell
from bayesprompt.mechanism.language.tasks import Texts
from bayesprompt.models.llama import make_llama
from bayesprompt.models.llama_sizes import Llama
from bayesprompt.settings import make_key
from bayesprompt.store import Store
from bayesprompt.tuning.fitting import FitConfig, fit
from bayesprompt.tuning.tuners import make_tuner

CELLS = {
    "coins": ("single-coin", "lstm", "SoftPT"),
    "digits": ("sorting", "gpt", "PrefixTuning"),
    "network": ("pretraining", "lstm", "Untrained"),
}
TINY = Llama(num_tokens=23, embed_dim=24, num_heads=3, num_kv_heads=1, num_layers=2, mlp_dim=32, context=64)


def job(name: str, folder: Path) -> str:
    """Compute a cell, or tune a small language model, in a folder; return a hash of all its numbers."""
    if name == "language":
        model, texts = make_llama(TINY), Texts(np.arange(60, dtype=np.int32).reshape(6, 10) % 23, 23)
        tuner, config = make_tuner("SoftPT", TINY, 2), FitConfig(40, 4, 10, 1e-2)
        folder.mkdir(exist_ok=True)
        base = model.init(make_key(0))
        return tree_hash(fit(model, tuner, base, texts, config, make_key(1), 2, folder / "language.partial"))
    dataset = run_cell(catalog.cell(*CELLS[name], "smoke"), Store(folder, shipped=None))
    return tree_hash({str(k): np.asarray(v) for k, v in dataset.variables.items() if v.dtype.kind in "fiu"})


def start(folder: Path, work, name: str = "words") -> int:
    """Do some work in a process of its own; what it returns or says is written beside the folder."""
    if pid := os.fork():
        return pid
    words = os.open(folder.with_suffix(f".{name}"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(words, 1)
    os.dup2(words, 2)
    code = 1
    try:
        use_every_core()
        keep_compiled(folder.parent / "compiled")
        jax.jit = reference.quick_jit
        FitConfig.max_chunk = 5
        print(work(), flush=True)
        code = 0
    except SystemExit as ended:
        code = ended.code
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", flush=True)
    os._exit(code)


def said(folder: Path, name: str = "words") -> str:
    return folder.with_suffix(f".{name}").read_text()


def end(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def whole(name: str, folder: Path) -> tuple[str, float]:
    """Run a job to its end; return its hash and how long it took."""
    began = time.monotonic()
    assert end(start(folder, lambda: job(name, folder))) == 0, said(folder)
    return said(folder).splitlines()[-1], time.monotonic() - began


def killed(name: str, times: int, place: Path) -> None:
    """Kill runs at random moments; each goes on where the one before was, to the numbers of a run left alone."""
    whole(name, place / "compiling")
    expected, seconds = whole(name, place / "alone")
    kills = number = 0
    while kills < times:
        folder = place / f"killed-{number}"
        pid = start(folder, lambda folder=folder: job(name, folder))
        time.sleep(random.uniform(0, seconds))
        os.kill(pid, signal.SIGKILL)
        if end(pid) == -signal.SIGKILL:
            kills += 1
        else:  # it was faster
            assert said(folder).splitlines()[-1] == expected, said(folder)
            number += 1
    assert whole(name, folder)[0] == expected
    print(f"{name}: {kills} kills, {number + 1} runs to the end, all with the same numbers")


def filled(name: str, times: int, place: Path) -> None:
    """Let files end at a random byte, as on a full disk: exit code 2, and the run goes on when there is room."""
    expected, _ = whole(name, place / "alone")
    largest = max(path.stat().st_size for path in (place / "alone").iterdir())

    def limited(folder, room):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write past the limit is then an OSError
        os.environ["BAYESPROMPT_CACHE"] = str(folder)
        experiment, architecture, method = CELLS[name]
        sys.argv = ["bayesprompt", "run", experiment, "--scale", "smoke", "--architecture", architecture]
        sys.argv += ["--method", method]
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
        cli.main()

    for number in range(times):
        folder, room = place / f"filled-{number}", random.randrange(largest)
        code = end(start(folder, lambda folder=folder, room=room: limited(folder, room), "said"))
        # The words end at the limit, too: with room for a few of them they say nothing.
        assert code == 2 and "Traceback" not in said(folder, "said"), (room, code, said(folder, "said"))
        assert not list(folder.glob(".*")), "no temporary file stays"
        assert whole(name, folder)[0] == expected
    print(f"{name}: {times} times no room, the same numbers afterwards")


def together(name: str, times: int, place: Path) -> None:
    """Start runs of one cell at once: one computes it, all return it."""
    computed = place / "computed"

    def counted(folder):
        cell = catalog.cell(*CELLS[name], "smoke")
        compute = type(cell.experiment).compute

        def count(self, run):
            with computed.open("a") as file:
                file.write("once\n")
            return compute(self, run)

        type(cell.experiment).compute = count
        return job(name, folder)

    folder = place / "together"
    pids = [start(folder, lambda: counted(folder), f"run-{i}") for i in range(times)]
    assert [end(pid) for pid in pids] == [0] * times, [said(folder, f"run-{i}") for i in range(times)]
    assert len({said(folder, f"run-{i}").splitlines()[-1] for i in range(times)}) == 1
    assert computed.read_text() == "once\n"
    print(f"{name}: {times} runs, one computed")


if __name__ == "__main__":
    fault, chosen, number, where = sys.argv[1:]
    random.seed(f"{fault} {chosen} {number}")
    Path(where).mkdir(parents=True, exist_ok=True)
    {"killed": killed, "filled": filled, "together": together}[fault](chosen, int(number), Path(where))
