"""How long does a tuning step of a real language model take, and how much memory does it need?

With `--python PYTHON`, a Python that has torch, transformers and peft, PEFT's step of the same method on the same model
and batch takes turns with ours, in a process of its own.
"""

import contextlib
import functools
import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import jax
import numpy as np
from harness import arguments, finish, our_steps, paired

from bayesprompt.devices import make_mesh
from bayesprompt.mechanism.language.tasks import Texts
from bayesprompt.models.gguf import LanguageModel, load
from bayesprompt.tuning.fitting import FitConfig, compiled_loop
from bayesprompt.tuning.tuners import make_tuner

# Method, rows of the prefix, sequences, tokens of each.
CASES = [("SoftPT", 1, 1, 13), ("SoftPT", 1, 8, 64), ("PrefixTuning", 10, 1, 13), ("PrefixTuning", 10, 8, 64)]

# PEFT on the same file, one step a turn; the frozen weights ask for no gradient, as PEFT sets it.
CHILD = """
import json, os, sys, warnings
given, turns = json.loads(sys.argv[1]), sys.stdout
sys.stdout = open(os.devnull, "w")
warnings.simplefilter("ignore")
import torch
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM
device = "cuda" if given["gpu"] else "cpu"
model = AutoModelForCausalLM.from_pretrained(given["folder"], gguf_file=given["file"], dtype=torch.float32)
kind = PromptTuningConfig if given["method"] == "SoftPT" else PrefixTuningConfig
model = get_peft_model(model, kind(task_type="CAUSAL_LM", num_virtual_tokens=given["rows"])).to(device)
learned = [p for p in model.parameters() if p.requires_grad]
optimizer = torch.optim.Adam(learned, lr=1e-3)
tokens = torch.tensor(given["tokens"], device=device)
print("ready", file=turns, flush=True)
while sys.stdin.readline():
    for _ in range(given["steps"]):
        optimizer.zero_grad()
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
    loss.item()
    print("done", file=turns, flush=True)
"""


def our_step(model: LanguageModel, method: str, rows: int, tokens: np.ndarray, steps: int) -> Any:
    """Return a call that takes `steps` steps of one repetition."""
    config = FitConfig(steps, *tokens.shape, learning_rate=1e-3)
    mesh = make_mesh(1, len(tokens), model.predictor.cores)
    run, start = compiled_loop(model.predictor, make_tuner(method, model.sizes, rows), config, mesh)
    keys = jax.random.split(jax.random.key(1), 1)
    return our_steps(run, (model.params, Texts(tokens), start(model.params, keys), keys, 0))


@contextlib.contextmanager
def public_step(python: str, model: LanguageModel, method: str, rows: int, tokens: np.ndarray, steps: int) -> Iterator:
    """Give a call that takes `steps` steps with PEFT."""
    given = {
        "folder": str(model.path.parent), "file": model.path.name, "method": method, "rows": rows, "steps": steps,
        "tokens": tokens.tolist(), "gpu": jax.default_backend() == "gpu",
    }  # fmt: skip
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([python, "-c", CHILD, json.dumps(given)], text=True, bufsize=1, **pipes) as process:

        def hear(word):
            if process.stdout.readline() != word:
                sys.exit(f"--python = {python}: PEFT stopped")

        def call():
            process.stdin.write("\n")
            hear("done\n")

        hear("ready\n")
        yield call
        process.stdin.close()


def compare(options: Any, method: str, rows: int, batch: int, length: int) -> dict[str, Any]:
    """Time our steps, beside PEFT's, and print the row; in a process of its own, so that the memory is this case's."""
    model = load()
    steps = max(1, options.steps[0] // batch)  # of a turn: long enough to outlast what the other code leaves running
    tokens = np.random.default_rng(0).integers(0, model.sizes.num_tokens, (batch, length), np.int32)
    with contextlib.ExitStack() as stack:
        calls = [our_step(model, method, rows, tokens, steps)]
        if options.python[0]:
            theirs = public_step(options.python[0], model, method, rows, tokens, steps)
            calls.append(stack.enter_context(theirs))
        seconds = [time / steps for time in paired(options.rounds, *calls)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    row = {"case": f"{method} {batch} x {length}", "rows": rows, "batch": batch, "length": length}
    row |= {"seconds": seconds[0], "peak_mebibytes": peak}
    line = f"{row['case']:24s} {1000 * seconds[0]:8.1f} ms  {peak:6.0f} MiB at most"
    if len(seconds) > 1:
        row |= {"public_seconds": seconds[1], "ratio": seconds[1] / seconds[0]}
        line += f"  PEFT {1000 * seconds[1]:8.1f} ms  ratio {row['ratio']:5.2f}"
    print(line, flush=True)
    return row


if __name__ == "__main__":
    options = arguments(__doc__, python=[""], steps=[16], cases=list(range(len(CASES))))
    cases = [CASES[i] for i in options.cases]
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as processes:
        finish(options, __file__, list(processes.map(functools.partial(compare, options), *zip(*cases, strict=True))))
