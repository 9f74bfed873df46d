"""The sorting experiments (Section 5, Tables 1 to 3): networks, tasks, methods, scales, and how cells are computed."""

from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Float, Int

from bayesprompt.lab.cells import load_arrays_of, load_cell, load_network, stretch
from bayesprompt.lab.experiment import Cell, Result, Run
from bayesprompt.models.gpt import GPT, decode, make_gpt
from bayesprompt.models.predictor import Params, Predictor
from bayesprompt.models.prefixes import NO_PREFIX, Prefix
from bayesprompt.settings import make_key
from bayesprompt.sources.digits import PRETRAINING_TASKS, SIZE, TASKS, Digits, answer, one_task
from bayesprompt.store import Store
from bayesprompt.tuning.fitting import AdamWConfig, fit
from bayesprompt.tuning.tuners import Tuner, make_tuner

# The dense layers that LoRA runs beside: those that write to the residual stream, and the MLP's first.
LORA_BESIDE = ("attention_output", "mlp_in", "mlp_out")
LORA_RANK = 1
# Losses are stored as means over equal stretches of steps, at most this many.
STRETCHES = 2000


class Training(NamedTuple):
    """Optimisation steps and learning rate, at paper scale."""

    steps: int
    learning_rate: float


class DigitScale(NamedTuple):
    """How much is computed: a share of the paper's steps, at most so many, and how many inputs judge the answers."""

    share: float
    most: int
    batch: int
    inputs: int
    prefix_rate: float = 1.0  # learning rates of prefixes, as a multiple of the paper's
    lora_share: float | None = None  # of LoRA's steps
    width: int | None = None  # for a small network: also at most two layers


# At quick scale prefixes learn twenty times as fast, in fewer steps; else they would stay where they start. LoRA gets
# as many steps there as the prefix beside it.
DIGIT_SCALES = {
    "smoke": DigitScale(0.0005, 20, 16, 64, width=16),
    "quick": DigitScale(0.05, 2000, 64, 800, prefix_rate=20.0, lora_share=0.2),
    "paper": DigitScale(1.0, 500_000, 64, 3200),
}


@dataclass(frozen=True)
class DigitExperiment:
    """A network trained on tasks, or tuned to each of them by itself; the chapter that shows it."""

    name: str
    title: str
    figures: str
    chapter: str
    largest: GPT  # sizes at paper scale
    tasks: tuple[str, ...]
    trainings: tuple[tuple[str, Training], ...]  # by method
    base: "DigitExperiment | None" = None  # the experiment whose network is tuned; None: this one makes a network
    network: str = "Pretrained"

    def methods(self, architecture: str) -> tuple[str, ...]:
        """Return the methods that exist on an architecture."""
        return tuple(dict(self.trainings)) if architecture == "gpt" else ()

    def sizes(self, scale: str) -> GPT:
        """Return the network's sizes at a scale."""
        width = DIGIT_SCALES[scale].width
        few = min(2, self.largest.num_layers)
        return self.largest if width is None else replace(self.largest, embed_dim=width, num_layers=few)

    def predictor(self, architecture: str, scale: str) -> Predictor:
        """Return the network that is trained or tuned at a scale."""
        return make_gpt(self.sizes(scale))

    def repetitions(self, method: str, scale: str) -> int:
        """Return the number of repetitions: one for each task that is tuned to."""
        return len(self.tasks) if self.base else 1

    def training(self, method: str, scale: str) -> AdamWConfig:
        """Return the settings of a method's training at a scale (weight decay and dropout as in the public code)."""
        training, at = dict(self.trainings)[method], DIGIT_SCALES[scale]
        whole = method in ("Pretrained", "FullWT")
        share = at.lora_share if method == "LoRAWT" and at.lora_share else at.share
        return AdamWConfig(
            steps=min(round(training.steps * share), at.most),
            batch=at.batch,
            length=2 * SIZE,
            learning_rate=training.learning_rate * (at.prefix_rate if method == "PrefixTuning" else 1.0),
            weight_decay=0.1 if whole else 0.01,
            clip_each=method == "LoRAWT",
            dropout=whole,
        )

    def tuner(self, method: str, scale: str) -> Tuner:
        """Return the tuner of a method; pretraining is FullWT from random weights."""
        sizes = self.sizes(scale)
        return make_tuner("FullWT" if method == "Pretrained" else method, sizes, sizes.pads, LORA_RANK, LORA_BESIDE)

    def config(self, architecture: str, method: str, scale: str, network_hash: str | None) -> dict[str, Any]:
        """Return what decides a cell's numbers, besides its name and seed, as JSON values."""
        config = {
            "sizes": {"type": architecture, **asdict(self.sizes(scale))},
            "tasks": list(self.tasks),
            "fit": asdict(self.training(method, scale)),
            "inputs": DIGIT_SCALES[scale].inputs,
        }
        if method == "LoRAWT":
            config |= {"rank": LORA_RANK, "beside": list(LORA_BESIDE)}
        return config | ({"network": network_hash} if self.base else {})

    def compute(self, run: Run) -> Result:
        """Train or tune the network, and let it answer held-out inputs; prefixes are stored with the results."""
        cell, repetitions = run.cell, run.cell.repetitions
        config, tuner = self.training(cell.method, cell.scale), self.tuner(cell.method, cell.scale)
        if self.base is None:
            base, source, key = jax.jit(cell.predictor.init)(cell.key("init")), one_task(*self.tasks), "pretrain"
        else:
            base, key = run.network[1], "tune"
            source = Digits(np.stack([one_task(task).weights for task in self.tasks]))
        given = (config, cell.key(key), repetitions, run.checkpoint(), run.progress, self.base is not None)
        phi, loss = fit(cell.predictor, tuner, base, source, *given)
        models = [tuner.inject(base, jax.tree.map(lambda x, r=r: x[r], phi)) for r in range(repetitions)]
        loss = loss.reshape(repetitions, -1, stretch(config.steps, STRETCHES)).mean(axis=-1)
        dataset = xr.Dataset(
            {
                "tuning_loss": (("repetition", "stretch"), loss, {"units": "nats a token"}),
                "accuracy": (("repetition", "task"), np.stack([accuracy(cell, *model) for model in models])),
            }
        )
        if self.base is None:
            return Result(dataset, models[0][0])
        if cell.method == "PrefixTuning":
            return Result(dataset.assign(prefix=(("repetition", "layer", "position", "feature"), np.asarray(phi))))
        return Result(dataset, phi)


class Tuned(NamedTuple):
    """A stored cell's tuned models, one for each task, with the sizes of their network."""

    cell: Cell
    sizes: GPT
    models: list[tuple[Params, Prefix]]
    dataset: xr.Dataset


def load_tuned(cell: Cell, store: Store) -> Tuned | None:
    """Return the tuned models of a stored cell, one for each of its tasks; None where something is missing."""
    found, dataset = load_network(cell, store), load_cell(cell, store)
    if found is None or dataset is None:
        return None
    base, models = found[1], [(found[1], NO_PREFIX)]
    if cell.method == "PrefixTuning":
        models = [(base, Prefix(layers=jnp.asarray(rows))) for rows in dataset.prefix.values]
    elif not cell.makes_network:
        tuner, keys = cell.experiment.tuner(cell.method, cell.scale), jax.random.split(make_key(0), cell.repetitions)
        like = jax.eval_shape(jax.vmap(tuner.init, (0, None)), keys, base)
        if (phi := load_arrays_of(cell, dataset, store, like)) is None:
            return None
        models = [tuner.inject(base, jax.tree.map(lambda x, r=r: x[r], phi)) for r in range(cell.repetitions)]
    return Tuned(cell, cell.experiment.sizes(cell.scale), models, dataset)


def load_models(experiment: DigitExperiment, method: str, store: Store, scale: str = "paper") -> Tuned | None:
    """Return a cell's models at this scale, or else at quick scale, or None."""
    each = (load_tuned(Cell(experiment, "gpt", method, at), store) for at in dict.fromkeys((scale, "quick")))
    return next((tuned for tuned in each if tuned is not None), None)


def held_out_inputs(cell: Cell) -> Int[np.ndarray, "inputs 10"]:
    """Return the held-out inputs that judge a cell: the same for all methods and tasks of an experiment."""
    source = one_task("double histogram", held_out=True)  # whose rule leaves out ten equal digits
    sample = jax.jit(source.sample, static_argnums=(1, 2))
    return np.asarray(sample(cell.key("evaluate"), DIGIT_SCALES[cell.scale].inputs, 2 * SIZE)[0][:, :SIZE])


def accuracy(cell: Cell, params: Params, prefix: Prefix) -> Float[np.ndarray, " tasks"]:
    """Return the share of held-out inputs that get exactly the answer of each of TASKS, by greedy decoding."""
    inputs = held_out_inputs(cell)
    said = np.asarray(decode(cell.experiment.sizes(cell.scale), params, inputs, prefix))
    return np.array([(said == np.asarray(answer(inputs, i))).all(axis=1).mean() for i in range(len(TASKS))])


def _pair(
    name: str, title: str, figures: str, chapter: str, sizes: GPT, steps: int, learned: tuple[str, ...],
    tuned: dict[str, tuple[tuple[str, ...], dict[str, Training]]],
) -> list[DigitExperiment]:  # fmt: skip
    """Return a base network's experiment and those that tune it: name -> (tasks, trainings)."""
    shown, pretraining = (figures, chapter, sizes), (("Pretrained", Training(steps, 5e-4)),)
    base = DigitExperiment(f"{name}-pretraining", f"{title}: the network", *shown, learned, pretraining)
    return [base] + [
        DigitExperiment(each, f"{title}: {', '.join(tasks)}", *shown, tasks, tuple(trainings.items()), base)
        for each, (tasks, trainings) in tuned.items()
    ]


DIGIT_EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        *_pair(
            "sorting", "A sorter of digits", "Table 1 and Figure 1", "mechanism/sorting",
            GPT(embed_dim=96, num_heads=1, num_layers=1, pads=1), 20_000, ("ascending",),
            {"sorting": (("descending",), {"FullWT": Training(10_000, 5e-4), "PrefixTuning": Training(40_000, 5e-4)})},
        ),
        *_pair(
            "eliciting-skills", "Four skills in one layer", "Table 2 and Figures 2 and 3", "mechanism/eliciting_skills",
            GPT(num_layers=1, pads=1, first_norm=False), 20_000, PRETRAINING_TASKS,
            {"eliciting-skills": (PRETRAINING_TASKS, {"PrefixTuning": Training(30_000, 5e-5)})},
        ),
        *_pair(
            "longer-prefixes", "Four layers, prefixes of ten rows", "Table 3 and Figure 7", "mechanism/longer_prefixes",
            GPT(pads=10), 40_000, PRETRAINING_TASKS,
            {
                "longer-prefixes": (PRETRAINING_TASKS, {"PrefixTuning": Training(20_000, 5e-5)}),
                "longer-prefixes-new-tasks": (
                    ("ascending + 1", "double histogram"), {"PrefixTuning": Training(500_000, 5e-5)}
                ),
            },
        ),
        *_pair(
            "lora-control", "As many parameters in LoRA", "Public code", "mechanism/longer_prefixes", GPT(pads=12),
            40_000, PRETRAINING_TASKS,
            {
                "lora-control": (
                    ("double histogram",), {"PrefixTuning": Training(100_000, 5e-5), "LoRAWT": Training(10_000, 5e-3)}
                )
            },
        ),
    )
}  # fmt: skip
