"""Computing a cell of the coin experiments: train or tune a network, or take an exact predictor, and evaluate it."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt32

from bayesprompt.lab.experiment import Cell, Result, Run
from bayesprompt.measures.regret import cumulative_regret, excess_log_loss, log_loss
from bayesprompt.models.predictor import predict_all
from bayesprompt.models.prefixes import NO_PREFIX, Prefix, all_hard_prefixes, hard_prefix, prompt_compositions
from bayesprompt.settings import KEYS
from bayesprompt.sources import Exchangeable, Sampler, Source
from bayesprompt.tuning.fitting import FitConfig, fit
from bayesprompt.tuning.hard_search import hard_search
from bayesprompt.tuning.tuners import make_tuner

# Predictions are tabulated by step and heads up to this step: the posterior a network seems to hold (see `tabulate`).
TABULATED_STEPS = 50


@dataclass(frozen=True)
class Scale:
    """How much is computed: `smoke` in seconds (tests), `quick` in about a laptop minute a cell, `paper` as printed."""

    pretraining: FitConfig
    tuning: FitConfig
    repetitions: int
    sequences: int
    length: int
    width: int = 128


SCALES = {
    "smoke": Scale(FitConfig(20, 16, 20, 1e-2), FitConfig(20, 16, 10, 5e-3), 2, 32, 20, width=16),
    "quick": Scale(FitConfig(500, 128, 100, 1e-3), FitConfig(300, 64, 50, 5e-3), 3, 512, 200),
    "paper": Scale(FitConfig(1000, 256, 100, 1e-3), FitConfig(1000, 256, 50, 5e-3), 10, 2048, 200),
}


@functools.partial(jax.tree_util.register_dataclass, data_fields=["source", "key_data"], meta_fields=["size"])
@dataclass(frozen=True)
class Sample:
    """`size` sequences of a source, drawn once with a key: each batch is drawn from these, with replacement."""

    source: Sampler
    key_data: UInt32[np.ndarray | Array, "2"]
    size: int

    @property
    def num_tokens(self) -> int:
        """Size of the alphabet."""
        return self.source.num_tokens

    def sample(
        self, key: PRNGKeyArray, batch: int, length: int
    ) -> tuple[Int[Array, "{batch} {length}"], Float[Array, "{batch} K"] | None]:
        """Draw `batch` of the kept sequences, and the latent of each."""
        kept = self.source.sample(jax.random.wrap_key_data(self.key_data, impl=KEYS), self.size, length)
        chosen = jax.random.randint(key, (batch,), 0, self.size, jnp.int32)
        return jax.tree.map(lambda x: x[chosen], kept)


def evaluation_data(cell: Cell) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the evaluation sequences (B, N) and their latents: the same for every method and repetition."""
    length = cell.config()["length"]
    return jax.device_get(cell.experiment.target.sample(cell.key("evaluate"), SCALES[cell.scale].sequences, length))


def tuning_source(cell: Cell) -> Sampler:
    """Return what the cell is tuned on: its target, or K sequences of it that were drawn once (Eq. 7)."""
    target, size = cell.experiment.target, cell.experiment.tuning_sequences
    return target if size is None else Sample(target, np.asarray(jax.random.key_data(cell.key("sample"))), size)


def search_data(cell: Cell) -> jax.Array:
    """Return the fresh target sequences on which hard prefixes are scored."""
    scale = SCALES[cell.scale]
    return cell.experiment.target.sample(cell.key("search"), scale.sequences, scale.tuning.length)[0]


def network(experiment: Any, run: Run) -> Result:
    """Train a network on the pretraining source (or leave it as drawn), and compare it with the Bayes one (Eq. 6)."""
    cell, source, predictor = run.cell, experiment.target, run.cell.predictor
    params, loss = jax.jit(predictor.init)(cell.key("init")), np.zeros((1, 0), np.float32)
    if cell.method == "Pretrained":
        full, config = make_tuner("FullWT", predictor.architecture), SCALES[cell.scale].pretraining
        key = cell.key("pretrain")
        phi, loss = fit(predictor, full, params, source, config, key, 1, run.checkpoint(), run.progress)
        params = jax.tree.map(lambda x: x[0], phi)
    tokens, latent = evaluation_data(cell)
    log_probs, bayes = predict_all(predictor, params, NO_PREFIX, tokens), source.bayes_log_probs(tokens)
    excess = excess_log_loss(log_probs, tokens, bayes)
    dataset = evaluated([log_probs], tokens, source.oracle_log_probs(tokens, latent)).assign(
        training_loss=("step", loss[0]),
        excess=("n", excess.mean),
        excess_stderr=("n", excess.stderr),
        kl=("n", (np.exp(bayes) * (bayes - log_probs)).sum(-1).mean(0)),
    )
    return Result(label(dataset), params)


def bayes(experiment: Any, cell: Cell) -> Result:
    """Evaluate an exact predictor: the target's, or that of pretraining, alone or after its best hard prompt."""
    target, source, extra = experiment.target, experiment.pretraining, {}
    tokens, latent = evaluation_data(cell)
    if cell.method == "TargetBayes":
        log_probs = target.bayes_log_probs(tokens)
    elif cell.method == "PreBayes":
        log_probs = source.bayes_log_probs(tokens)
    else:
        data, prompts = np.asarray(search_data(cell)), _prompts(source, experiment.prefix_length)
        losses = np.array([log_loss(_after(source, p, data), data).sum(1).mean() for p in prompts])
        best = prompts[int(np.argmin(losses))]
        extra["prompt_counts"] = ("token", np.bincount(best, minlength=source.num_tokens))
        extra["search_loss"] = ("candidate", losses)
        log_probs = _after(source, best, tokens)
    return Result(label(evaluated([log_probs], tokens, target.oracle_log_probs(tokens, latent)).assign(extra)))


def _prompts(source: Source, length: int) -> Int[np.ndarray, "prompts L"]:
    """Return all prompts that the source's predictor can tell apart: one for each composition, if order is nothing."""
    if not isinstance(source, Exchangeable):
        return all_hard_prefixes(length, source.num_tokens)
    compositions = prompt_compositions(length, source.num_tokens)
    return np.stack([np.repeat(np.arange(source.num_tokens), counts) for counts in compositions])


def _after(source: Source, prompt: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Return the source's Bayes log-probabilities (B, N, K) of tokens that follow a prompt (L,)."""
    whole = np.concatenate([np.tile(prompt, (len(tokens), 1)), tokens], axis=1)
    return source.bayes_log_probs(whole)[:, len(prompt) :]


def tuned(experiment: Any, run: Run) -> Result:
    """Tune the base network to the target with one method, and evaluate every repetition."""
    cell, (predictor, base), extra, phi = run.cell, run.network, {}, None
    key = cell.key("tune")
    if cell.method == "NoTuning":
        models = [(base, NO_PREFIX)]
    elif cell.method == "HardPT":
        search = hard_search(predictor, base, experiment.prefix_length, search_data(cell))
        models = [(base, hard_prefix(search.prefix, predictor.architecture.num_tokens))]
        extra["search_loss"] = ("candidate", search.loss)
    elif cell.method == "RandomPF":  # what RealPT starts from
        tuner = make_tuner("RealPT", predictor.architecture, experiment.prefix_length)
        keys = [jax.random.fold_in(jax.random.fold_in(key, r), 0) for r in range(cell.repetitions)]
        models = [tuner.inject(base, tuner.init(k, base)) for k in keys]
    else:
        tuner = make_tuner(cell.method, predictor.architecture, experiment.prefix_length)
        given = (SCALES[cell.scale].tuning, key, cell.repetitions, run.checkpoint(), run.progress)
        phi, loss = fit(predictor, tuner, base, tuning_source(cell), *given)
        extra["tuning_loss"] = (("repetition", "tuning_step"), loss)
        models = [tuner.inject(base, jax.tree.map(lambda x, r=r: x[r], phi)) for r in range(cell.repetitions)]
    if (rows := [_rows(prefix) for _, prefix in models])[0] is not None:
        extra["prefix"], phi = (("repetition", "position", "feature"), np.stack(rows)), None
    tokens, latent = evaluation_data(cell)
    log_probs = (predict_all(predictor, params, prefix, tokens) for params, prefix in models)
    dataset = evaluated(log_probs, tokens, experiment.target.oracle_log_probs(tokens, latent)).assign(extra)
    # What the model still knows of pretraining: excess log-loss over the Bayes predictor, on the base network's data.
    tokens, _ = evaluation_data(cell.base)
    bayes = experiment.pretraining.bayes_log_probs(tokens)
    forgotten = [excess_log_loss(predict_all(predictor, *model, tokens), tokens, bayes).mean for model in models]
    dataset = dataset.assign(forgetting=(("repetition", "seen_random"), np.stack(forgotten)))
    return Result(label(dataset), phi)


def _rows(prefix: Prefix) -> np.ndarray | None:
    return next((np.asarray(field) for field in prefix if field is not None), None)


def evaluated(log_probs: Iterator[np.ndarray] | list[np.ndarray], tokens: np.ndarray, oracle: np.ndarray) -> xr.Dataset:
    """Return cumulative regret (Eq. 10) and, of coins, tabulated predictions, a row for each repetition."""
    read = [(cumulative_regret(each, tokens, oracle), tabulate(each, tokens)) for each in log_probs]
    found = {
        "regret": (("repetition", "n"), np.stack([regret.mean for regret, _ in read])),
        "regret_stderr": (("repetition", "n"), np.stack([regret.stderr for regret, _ in read])),
    }
    if oracle.shape[-1] == 2:  # how many heads have been seen says all only of coins
        found["prediction"] = (("repetition", "seen", "heads"), np.stack([table for _, table in read]))
    return xr.Dataset(found)


def label(dataset: xr.Dataset) -> xr.Dataset:
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
