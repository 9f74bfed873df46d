"""Computing a cell of the sorting experiments: train or tune its network, and let it answer held-out inputs."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Float, Int

from bayesprompt.lab.cells import Cell, cell_config, load_cell, load_network, stream
from bayesprompt.mechanism.digits import (
    DIGIT_EXPERIMENTS,
    DIGIT_SCALES,
    LORA_BESIDE,
    LORA_RANK,
    DigitExperiment,
    sizes_at,
    training_at,
)
from bayesprompt.models.gpt import GPT, decode, make_gpt
from bayesprompt.models.predictor import Params
from bayesprompt.models.prefixes import NO_PREFIX, Prefix
from bayesprompt.sources.digits import SIZE, TASKS, Digits, answer, one_task
from bayesprompt.store import Store, load_arrays, tree_hash
from bayesprompt.tuning.fitting import fit
from bayesprompt.tuning.tuners import Tuner, make_tuner

Model = tuple[Params, Prefix]

# Losses are stored as means over equal stretches of steps, at most this many.
STRETCHES = 2000


def compute_digits(cell: Cell, store: Store, progress: Callable | None = None) -> tuple[xr.Dataset, Params | None]:
    """Return a cell's results and, unless it is a prefix, the arrays that were trained."""
    experiment = DIGIT_EXPERIMENTS[cell.experiment]
    predictor, config = make_gpt(sizes_at(experiment, cell.scale)), training_at(experiment, cell.method, cell.scale)
    if experiment.base is None:
        base, network = jax.jit(predictor.init)(stream(cell, "init")), None
        source, repetitions, key = one_task(*experiment.tasks), 1, stream(cell, "pretrain")
    else:
        _, base = load_network(cell, store)
        network, repetitions, key = tree_hash(base), len(experiment.tasks), stream(cell, "tune")
        source = Digits(np.stack([one_task(task).weights for task in experiment.tasks]))
    tuner, several = tuner_of(experiment, cell.method, predictor.architecture), experiment.base is not None
    checkpoint = store.checkpoint(cell.name, cell_config(cell, network))
    phi, loss = fit(predictor, tuner, base, source, config, key, repetitions, checkpoint, progress, several)
    models = [tuner.inject(base, jax.tree.map(lambda x, r=r: x[r], phi)) for r in range(repetitions)]
    loss = loss.reshape(repetitions, -1, stretch(config.steps)).mean(axis=-1)
    dataset = xr.Dataset(
        {
            "tuning_loss": (("repetition", "stretch"), loss, {"units": "nats a token"}),
            "accuracy": (("repetition", "task"), np.stack([accuracy(cell, *model) for model in models])),
        }
    )
    if experiment.base is None:
        params = models[0][0]
        return dataset.assign_attrs(network=tree_hash(params)), params
    if cell.method == "PrefixTuning":
        return dataset.assign(prefix=(("repetition", "layer", "position", "feature"), np.asarray(phi))), None
    return dataset, phi


def tuner_of(experiment: DigitExperiment, method: str, architecture: GPT) -> Tuner:
    """Return the tuner of a method; pretraining is FullWT from random weights."""
    method = "FullWT" if method == "Pretrained" else method
    return make_tuner(method, architecture, architecture.pads, LORA_RANK, LORA_BESIDE)


def load_tuned(cell: Cell, store: Store) -> list[tuple[Params, Prefix]] | None:
    """Return the tuned models of a stored cell, one for each of its tasks; None where something is missing."""
    found, dataset = load_network(cell, store), load_cell(cell, store)
    if found is None or dataset is None:
        return None
    predictor, base = found
    experiment = DIGIT_EXPERIMENTS[cell.experiment]
    if experiment.base is None:
        return [(base, NO_PREFIX)]
    if cell.method == "PrefixTuning":
        return [(base, Prefix(layers=jnp.asarray(rows))) for rows in dataset.prefix.values]
    tuner = tuner_of(experiment, cell.method, predictor.architecture)
    like = jax.eval_shape(lambda key: jax.vmap(tuner.init, (0, None))(key[None], base), jax.random.key(0))
    if (path := store.find(cell.name, ".safetensors")) is None:
        return None
    phi = load_arrays(path, like)
    return [tuner.inject(base, jax.tree.map(lambda x: x[0], phi))]


class Tuned(NamedTuple):
    """A stored cell's tuned models, one for each task, with the sizes of their network."""

    cell: Cell
    sizes: GPT
    models: list[Model]
    dataset: xr.Dataset


def load_models(experiment: str, method: str, store: Store, scale: str = "paper") -> Tuned | None:
    """Return a cell's models at this scale, or else at quick scale, or None."""
    for at in dict.fromkeys((scale, "quick")):
        cell = Cell(experiment, "gpt", method, at)
        if (models := load_tuned(cell, store)) is not None:
            return Tuned(cell, sizes_at(DIGIT_EXPERIMENTS[experiment], at), models, load_cell(cell, store))
    return None


def stretch(steps: int) -> int:
    """Return over how many steps each stored loss is a mean."""
    return next(n for n in range(max(1, -(-steps // STRETCHES)), steps + 1) if steps % n == 0)


def held_out_inputs(cell: Cell) -> Int[np.ndarray, "inputs 10"]:
    """Return the held-out inputs that judge a cell: the same for all methods and tasks of an experiment."""
    source = one_task("double histogram", held_out=True)  # whose rule leaves out ten equal digits
    tokens, _ = jax.jit(source.sample, static_argnums=(1, 2))(
        stream(cell, "evaluate"), DIGIT_SCALES[cell.scale].inputs, 2 * SIZE
    )
    return np.asarray(tokens[:, :SIZE])


def accuracy(cell: Cell, params: Params, prefix: Prefix) -> Float[np.ndarray, " tasks"]:
    """Return the share of held-out inputs that get exactly the answer of each of TASKS, by greedy decoding."""
    inputs = held_out_inputs(cell)
    said = np.asarray(decode(sizes_at(DIGIT_EXPERIMENTS[cell.experiment], cell.scale), params, inputs, prefix))
    return np.array([(said == np.asarray(answer(inputs, i))).all(axis=1).mean() for i in range(len(TASKS))])
