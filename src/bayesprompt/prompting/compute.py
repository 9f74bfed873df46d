"""Computing a cell: train or tune the network it names, evaluate every repetition, and store the result."""

import functools
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from bayesprompt.devices import part_size
from bayesprompt.lab.cells import (
    Cell,
    architecture_of,
    cell_config,
    evaluation_data,
    load_cell,
    load_network,
    makes_network,
    needs_network,
    network_cell,
    repetitions_of,
    search_data,
    stream,
    tuning_source,
)
from bayesprompt.measures.regret import cumulative_regret, excess_log_loss, log_loss
from bayesprompt.mechanism.digits import DIGIT_EXPERIMENTS
from bayesprompt.mechanism.digits_compute import compute_digits
from bayesprompt.mechanism.language.compute import compute_language
from bayesprompt.mechanism.language.experiments import LANGUAGE_EXPERIMENTS
from bayesprompt.models.predictor import Params, Predictor, make_predictor
from bayesprompt.models.prefixes import NO_PREFIX, Prefix, hard_prefix, prompt_compositions
from bayesprompt.prompting.experiments import EXPERIMENTS, RANDOM_COINS, SCALES
from bayesprompt.store import Store, tree_hash
from bayesprompt.tuning.fitting import fit
from bayesprompt.tuning.hard_search import hard_search
from bayesprompt.tuning.tuners import PREFIX_METHODS, make_tuner

# Predictions are tabulated by step and heads up to this step: the posterior a network seems to hold (see `tabulate`).
TABULATED_STEPS = 50


def run_cell(cell: Cell, store: Store, progress: Callable[[int, float], None] | None = None) -> xr.Dataset:
    """Return a cell's results: from disk if they are there, else computed (after its base network) and stored.

    A run killed at any moment continues from its last checkpoint; a second process waits for the first.
    """
    if needs_network(cell):
        run_cell(network_cell(cell), store)
    with store.lock(cell.name):
        found = load_cell(cell, store)
        if found is not None and (not makes_network(cell) or load_network(cell, store)):
            return found
        began = time.monotonic()
        if cell.experiment in DIGIT_EXPERIMENTS:
            base = None if makes_network(cell) else load_network(cell, store)
            config = cell_config(cell, base and tree_hash(base[1]))
            dataset, arrays = compute_digits(cell, store, progress)
            if arrays is not None:
                store.save_arrays(cell.name, arrays)
        elif cell.experiment in LANGUAGE_EXPERIMENTS:
            config = cell_config(cell)
            dataset = compute_language(cell, store, progress)
        elif makes_network(cell):
            config = cell_config(cell)
            dataset, params = _network(cell, store, progress)
            store.save_arrays(cell.name, params)
        elif cell.architecture == "bayes":
            config = cell_config(cell)
            dataset = _bayes(cell)
        else:
            predictor, params = load_network(cell, store)
            config = cell_config(cell, tree_hash(params))
            dataset = _tuned(cell, store, config, predictor, params, progress)
        dataset = store.save(cell.name, dataset, config, time.monotonic() - began)
        store.drop_checkpoints(cell.name, config)
        return dataset


def _network(cell: Cell, store: Store, progress: Callable | None) -> tuple[xr.Dataset, Params]:
    """Train a network on random coins (or leave it as drawn), and compare it with Laplace's rule (Eq. 6)."""
    scale, config, predictor = SCALES[cell.scale], cell_config(cell), make_predictor(architecture_of(cell))
    params, loss = jax.jit(predictor.init)(stream(cell, "init")), np.zeros((1, 0), np.float32)
    if cell.method == "Pretrained":
        full, checkpoint = make_tuner("FullWT", predictor.architecture), store.checkpoint(cell.name, config)
        key = stream(cell, "pretrain")
        phi, loss = fit(predictor, full, params, RANDOM_COINS, scale.pretraining, key, 1, checkpoint, progress)
        params = jax.tree.map(lambda x: x[0], phi)
    tokens, latent = evaluation_data(cell)
    log_probs = predict_all(predictor, params, NO_PREFIX, tokens)
    bayes = RANDOM_COINS.bayes_log_probs(tokens)
    excess = excess_log_loss(log_probs, tokens, bayes)
    regret = cumulative_regret(log_probs, tokens, RANDOM_COINS.oracle_log_probs(tokens, latent))
    dataset = xr.Dataset(
        {
            "training_loss": ("step", loss[0]),
            "regret": (("repetition", "n"), regret.mean[None]),
            "regret_stderr": (("repetition", "n"), regret.stderr[None]),
            "excess": ("n", excess.mean),
            "excess_stderr": ("n", excess.stderr),
            "kl": ("n", (np.exp(bayes) * (bayes - log_probs)).sum(-1).mean(0)),
            "prediction": (("repetition", "seen", "heads"), tabulate(log_probs, tokens)[None]),
        },
        attrs={"network": tree_hash(params)},
    )
    return _label(dataset), params


def _bayes(cell: Cell) -> xr.Dataset:
    """Evaluate an exact predictor: of the target, of random coins, or of random coins after the best hard prompt."""
    experiment, (tokens, latent) = EXPERIMENTS[cell.experiment], evaluation_data(cell)
    target, extra = experiment.target, {}
    if cell.method == "TargetBayes":
        log_probs = target.bayes_log_probs(tokens)
    else:
        prompt = np.zeros(2)
        if cell.method == "PreBayesPT":
            # Order does not matter to an exchangeable predictor: the K**L prompts are one per composition of counts.
            data = np.asarray(search_data(cell))
            compositions = prompt_compositions(experiment.prefix_length, 2)
            losses = [log_loss(_conditioned(p, data), data).sum(1).mean() for p in compositions]
            prompt = compositions[int(np.argmin(losses))]
            extra = {"prompt_counts": ("token", prompt), "search_loss": ("candidate", np.array(losses))}
        log_probs = _conditioned(prompt, tokens)
    return _label(_evaluated([log_probs], tokens, target.oracle_log_probs(tokens, latent)).assign(extra))


def _conditioned(prompt: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Return the random-coins Bayes predictor's log-probabilities after a prompt with these counts."""
    onehot = np.eye(2)[tokens]
    return RANDOM_COINS.predictive_log_probs(np.cumsum(onehot, axis=1) - onehot + prompt)


def _tuned(
    cell: Cell, store: Store, config: dict, predictor: Predictor, base: Params, progress: Callable | None
) -> xr.Dataset:
    """Tune the base network to the target with one method, and evaluate every repetition."""
    experiment, scale, extra = EXPERIMENTS[cell.experiment], SCALES[cell.scale], {}
    key, repetitions = stream(cell, "tune"), repetitions_of(cell)
    if cell.method == "NoTuning":
        models = [(base, NO_PREFIX)]
    elif cell.method == "HardPT":
        search = hard_search(predictor, base, experiment.prefix_length, search_data(cell))
        models = [(base, hard_prefix(search.prefix))]
        extra["search_loss"] = ("candidate", search.loss)
    else:
        # RandomPF reads what RealPT starts from: RealPT after no step.
        method = "RealPT" if cell.method == "RandomPF" else cell.method
        tuner = make_tuner(method, predictor.architecture, experiment.prefix_length)
        if cell.method == "RandomPF":
            keys = [jax.random.fold_in(jax.random.fold_in(key, r), 0) for r in range(repetitions)]
            models = [tuner.inject(base, tuner.init(k, base)) for k in keys]
        else:
            checkpoint = store.checkpoint(cell.name, config)
            source = tuning_source(cell)
            phi, loss = fit(predictor, tuner, base, source, scale.tuning, key, repetitions, checkpoint, progress)
            extra["tuning_loss"] = (("repetition", "tuning_step"), loss)
            models = [tuner.inject(base, jax.tree.map(lambda x, r=r: x[r], phi)) for r in range(repetitions)]
            if cell.method not in PREFIX_METHODS:
                store.save_arrays(cell.name, phi)
    if (prefixes := [_rows(prefix) for _, prefix in models])[0] is not None:
        extra["prefix"] = (("repetition", "position", "feature"), np.stack(prefixes))
    tokens, latent = evaluation_data(cell)
    log_probs = (predict_all(predictor, params, prefix, tokens) for params, prefix in models)
    oracle = experiment.target.oracle_log_probs(tokens, latent)
    dataset = _evaluated(log_probs, tokens, oracle).assign(extra)
    # What the model still knows of random coins: excess log-loss over Laplace on the base network's own sequences.
    tokens, _ = evaluation_data(network_cell(cell))
    laplace = RANDOM_COINS.bayes_log_probs(tokens)
    forgotten = [excess_log_loss(predict_all(predictor, *model, tokens), tokens, laplace).mean for model in models]
    return _label(dataset.assign(forgetting=(("repetition", "seen_random"), np.stack(forgotten))))


def _rows(prefix: Prefix) -> np.ndarray | None:
    return next((np.asarray(field) for field in prefix if field is not None), None)


def _evaluated(
    log_probs: Iterator[np.ndarray] | list[np.ndarray], tokens: np.ndarray, oracle: np.ndarray
) -> xr.Dataset:
    """Return cumulative regret (Eq. 10) and tabulated predictions, a row for each repetition."""
    regrets, tables = [], []
    for repetition in log_probs:
        regrets.append(cumulative_regret(repetition, tokens, oracle))
        tables.append(tabulate(repetition, tokens))
    return xr.Dataset(
        {
            "regret": (("repetition", "n"), np.stack([r.mean for r in regrets])),
            "regret_stderr": (("repetition", "n"), np.stack([r.stderr for r in regrets])),
            "prediction": (("repetition", "seen", "heads"), np.stack(tables)),
        }
    )


def _label(dataset: xr.Dataset) -> xr.Dataset:
    """Number the steps and state the units."""
    dataset = dataset.assign_coords(n=np.arange(1, dataset.sizes["n"] + 1, dtype=np.int32))
    for name in dataset.data_vars:
        if name not in ("prediction", "prefix", "prompt_counts"):
            dataset[name].attrs["units"] = "nats"
    return dataset


def tabulate(log_probs: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Return the mean P(next = heads) after seeing `seen` tokens with `heads` heads among them; NaN where none did."""
    steps = min(TABULATED_STEPS, tokens.shape[1])
    heads = np.cumsum(tokens == 0, axis=1) - (tokens == 0)
    total, number = np.zeros((steps, steps)), np.zeros((steps, steps))
    index = (np.broadcast_to(np.arange(steps), (len(tokens), steps)), heads[:, :steps])
    np.add.at(total, index, np.exp(log_probs[:, :steps, 0]))
    np.add.at(number, index, 1)
    return np.divide(total, number, out=np.full_like(total, np.nan), where=number > 0).astype(np.float32)


def predict_all(predictor: Predictor, params: Params, prefix: Prefix, tokens: np.ndarray) -> np.ndarray:
    """Return log-probabilities (B, N, K) in float64 storage for many sequences, a part of them at a time."""
    part = part_size(len(tokens), predictor.architecture.sequences_in_cache)
    parts = _predict_parts(predictor, params, prefix, jnp.asarray(tokens).reshape(-1, part, tokens.shape[1]))
    return np.asarray(parts, np.float64).reshape(*tokens.shape, -1)


@functools.partial(jax.jit, static_argnums=0)
def _predict_parts(predictor, params, prefix, parts):
    state = predictor.prompt(params, prefix, parts.shape[-1])
    return jax.lax.map(lambda part: predictor.predict(params, state, part), parts)
