"""How long does a training iteration of the sorting experiments take, data included (batch 64)?

With `--mingpt PATH`, the folder minGPT of a checkout of AleksandarPetrov/prefix-tuning-theory, its training loop takes
turns with ours. It runs in a process of its own, by `--python`, a Python that has torch. Nothing of it is part of this
project.
"""

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from harness import arguments, finish, matrix_rate, our_steps, paired

from bayesprompt.devices import make_mesh, padded
from bayesprompt.mechanism.digits import DIGIT_EXPERIMENTS, DigitExperiment
from bayesprompt.models.gpt import make_gpt
from bayesprompt.sources.digits import Digits, one_task
from bayesprompt.tuning.fitting import AdamWConfig, compiled_loop, step_flops

# Experiment -> the method whose iterations are timed.
CASES = {
    "sorting-pretraining": "Pretrained",
    "eliciting-skills-pretraining": "Pretrained",
    "eliciting-skills": "PrefixTuning",
    "longer-prefixes-pretraining": "Pretrained",
    "longer-prefixes": "PrefixTuning",
}

# The public training loop as its notebooks call it (data drawn in the same process); it waits for its turn between
# `steps` iterations. Its plots and its LoRA are not needed: their packages are replaced by empty ones.
CHILD = """
import json, os, sys, warnings
from unittest import mock
given, turns = json.loads(sys.argv[1]), sys.stdout
sys.stdout = open(os.devnull, "w")
warnings.simplefilter("ignore")
sys.path.insert(0, given["path"])
sys.modules.update({name: mock.MagicMock() for name in ("minlora", "matplotlib", "seaborn")})
import torch
from mingpt.data_tools import CustomDataset, batch_end_callback
from mingpt.model import GPT
from mingpt.trainer import PrefixTrainer, Trainer

def wait():
    if not sys.stdin.readline():
        sys.exit()

def after_batch(trainer):
    if (trainer.iter_num + 1) % given["steps"] == 0:
        print("done", file=turns, flush=True)
        wait()

data = CustomDataset("train", mode=given["mode"], prefix_padding=given["pads"])
sizes = GPT.get_default_config()
sizes.merge_from_dict(given["sizes"] | {"model_type": None, "block_size": data.get_block_size()})
model, config = GPT(sizes), Trainer.get_default_config()
config.merge_from_dict({"num_workers": 0, "max_iters": None, "learning_rate": given["learning_rate"]})
if given["prefix"]:
    rows = torch.randn((sizes.n_layer, given["pads"], sizes.n_embd), requires_grad=True)
    trainer = PrefixTrainer(config, model, data, rows)
else:
    trainer = Trainer(config, model, data)
trainer.set_callback("on_batch_end", batch_end_callback)
trainer.add_callback("on_batch_end", after_batch)
wait()
trainer.run()
"""


def our_training(experiment: DigitExperiment, method: str, config: AdamWConfig) -> tuple[Callable[[], Any], int]:
    """Return a call that takes `config.steps` iterations of each repetition, and the number of repetitions."""
    predictor, tuner = make_gpt(experiment.largest), experiment.tuner(method, "paper")
    several = experiment.base is not None
    repetitions, source = 1, one_task(*experiment.tasks)
    if several:
        repetitions = len(experiment.tasks)
        source = Digits(np.stack([one_task(task).weights for task in experiment.tasks]))
    base = jax.device_get(jax.jit(predictor.init)(jax.random.key(0)))
    mesh = make_mesh(repetitions, config.batch, predictor.cores)
    keys = jax.random.split(jax.random.key(1), padded(repetitions, mesh.shape["repetition"]))
    run, start = compiled_loop(predictor, tuner, config, mesh, several)
    return our_steps(run, (base, source, start(base, keys), keys, 0)), repetitions


@contextlib.contextmanager
def public_training(
    path: str, python: str, experiment: DigitExperiment, method: str, config: AdamWConfig
) -> Iterator[Callable[[], None]]:
    """Give a call that takes `config.steps` iterations of one repetition with the public code."""
    sizes = experiment.largest
    given = {
        "path": path, "steps": config.steps, "learning_rate": config.learning_rate, "pads": sizes.pads,
        "prefix": method == "PrefixTuning",
        "mode": experiment.tasks[0].replace(" ", "") if experiment.base or len(experiment.tasks) == 1 else "random",
        "sizes": {
            "vocab_size": sizes.num_tokens, "n_layer": sizes.num_layers, "n_head": sizes.num_heads,
            "n_embd": sizes.embed_dim, "skip_layer_norm": not sizes.first_norm,
        },
    }  # fmt: skip
    with subprocess.Popen(
        [python, "-c", CHILD, json.dumps(given)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:

        def call():
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write("\n")
            if process.stdout.readline() != "done\n":
                sys.exit(f"--mingpt = {path}: the public code stopped (see above)")

        yield call
        process.stdin.close()


def compare(options: Any, name: str) -> dict[str, Any]:
    """Time the iterations of an experiment's repetitions, beside the public code's, and print the row."""
    experiment, method = DIGIT_EXPERIMENTS[name], CASES[name]
    steps = max(1, options.steps[0] // experiment.largest.num_layers)  # so that turns are of about the same length
    config = replace(experiment.training(method, "paper"), steps=steps)
    ours, repetitions = our_training(experiment, method, config)
    with contextlib.ExitStack() as stack:
        calls = [ours]
        if options.mingpt[0]:
            theirs = public_training(options.mingpt[0], options.python[0], experiment, method, config)
            calls.append(stack.enter_context(theirs))
        # A turn of ours takes the iterations of all repetitions; the public code runs them one after the other.
        seconds = [time / config.steps for time in paired(options.rounds, *calls)]
    sizes = experiment.largest
    rate = repetitions * step_flops(sizes, config.batch, config.length, method == "Pretrained") / seconds[0]
    row = {
        "case": name, "method": method, "layers": sizes.num_layers, "width": sizes.embed_dim, "pads": sizes.pads,
        "batch": config.batch, "repetitions": repetitions, "seconds": seconds[0] / repetitions,
        "flops_per_second": rate, "fraction_of_peak": rate / matrix_rate(),
    }  # fmt: skip
    line = f"{name:30s} {1000 * row['seconds']:8.2f} ms  {row['fraction_of_peak']:5.2f} of peak"
    if len(seconds) > 1:
        row |= {"public_seconds": seconds[1], "ratio": seconds[1] / row["seconds"]}
        line += f"  public code {1000 * row['public_seconds']:8.2f} ms  ratio {row['ratio']:5.2f}"
    print(line, flush=True)
    return row


if __name__ == "__main__":
    options = arguments(__doc__, mingpt=[""], python=[sys.executable], cases=list(CASES), steps=[80])
    if options.mingpt[0] and not (Path(options.mingpt[0]) / "mingpt" / "trainer.py").exists():
        print(f"argument --mingpt: {options.mingpt[0]}: must be a folder with mingpt/trainer.py in it", file=sys.stderr)
        sys.exit(2)
    finish(options, __file__, [compare(options, name) for name in options.cases])
