"""Flips written as text, predicted by a tuned language model: Figures 1 and 3 of Genewein et al. in a real model.

The prediction is the model's distribution over the two tokens that stand for heads and tails, renormalised; the
probability that it gives to all other tokens is kept beside it.
"""

import functools
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, Int

from bayesprompt.lab.experiment import Cell, Run
from bayesprompt.measures.regret import cumulative_regret
from bayesprompt.mechanism.language.labels import SHORT, log_probs_of
from bayesprompt.mechanism.language.tasks import ENGLISH, FACES, FLIPS_SCALES, PAIRS, TRIED, written_flips
from bayesprompt.models.gguf import LanguageModel, the_model
from bayesprompt.models.llama import make_llama
from bayesprompt.models.predictor import Params, Predictor
from bayesprompt.models.prefixes import NO_PREFIX, Prefix, hard_prefix
from bayesprompt.prompting.compute import evaluated, label
from bayesprompt.sources import BetaCoins
from bayesprompt.tuning.fitting import DivergedError, FitConfig, fit
from bayesprompt.tuning.hard_search import coordinate_search, in_parts, mean_loss
from bayesprompt.tuning.tuners import Tuner, make_tuner


class FlipsRead(NamedTuple):
    """What a model says of B sequences of N flips."""

    log_probs: Float[np.ndarray, "B N 2"]  # nats, of heads and of tails, given that one of them comes
    outside: Float[np.ndarray, " N"]  # probability of all other tokens, the mean over sequences


def flips_predictor(model: LanguageModel, flips: int) -> Predictor:
    """Return the predictor of the last so many tokens as flips: its distribution over FACES, renormalised."""
    faces = tuple(written_flips(model, BetaCoins(), FACES).faces.tolist())
    return make_llama(replace(model.sizes, sequences_in_cache=SHORT), answer=flips, among=faces)


def read_flips(
    model: LanguageModel, flips: Int[np.ndarray, "B N"], prefix: Prefix = NO_PREFIX, faces: tuple[str, str] = FACES
) -> FlipsRead:
    """Let the model predict each flip, heads as 0, from those before it, the header, and a prefix before that."""
    text = written_flips(model, BetaCoins(), faces)
    header = np.tile(np.asarray(text.header, np.int32), (len(flips), 1))
    tokens = np.concatenate([header, np.asarray(text.faces, np.int32)[flips]], axis=1)
    found = log_probs_of(model, tokens, np.asarray(text.faces), flips.shape[1], prefix).astype(np.float64)
    total = np.logaddexp(found[..., 0], found[..., 1])
    return FlipsRead(found - total[..., None], 1 - np.exp(total).mean(axis=0))


def asymmetry(model: LanguageModel, faces: tuple[str, str], key: Array, sequences: int = 8, length: int = 16) -> float:
    """Return how differently a model treats two faces: 0 if it predicts mirrored flips as the mirror image.

    It is the mean over n, and over flips x of random coins, of |p(heads | x_<n) - p(tails | x_<n mirrored)|.
    """
    flips = np.asarray(BetaCoins().sample(key, sequences, length)[0])
    heads, tails = (read_flips(model, x, faces=faces).log_probs[..., i] for i, x in enumerate((flips, 1 - flips)))
    return float(np.abs(np.exp(heads) - np.exp(tails)).mean())


@functools.cache
def readout_rows(tokens: tuple[int, ...]) -> Tuner:
    """Learn the rows of the unembedding that belong to some tokens; an embedding that it shares them with stays."""

    def rows_of(base):
        return base["unembedding"].get("rows", base["embedding"])

    def init(key, base):
        return rows_of(base)[jnp.array(tokens)]

    def inject(base, phi):
        rows = rows_of(base).at[jnp.array(tokens)].set(phi)
        return {**base, "unembedding": {**base["unembedding"], "rows": rows}}, NO_PREFIX

    return Tuner(init, inject, f"UnembedWT of tokens {tokens}")


def flips_tuner(model: LanguageModel, method: str, rows: int, rank: int) -> Tuner:
    """Return a method as a tuner; UnembedWT learns the two rows of FACES."""
    if method == "UnembedWT":
        return readout_rows(tuple(written_flips(model, BetaCoins(), FACES).faces.tolist()))
    return make_tuner(method, model.sizes, rows, rank)


def evaluation_flips(cell: Cell) -> tuple[Int[np.ndarray, "B N"], Float[np.ndarray, "B 2"]]:
    """Return the evaluation sequences, heads as 0, and each one's coin: the same for all methods and repetitions."""
    at = FLIPS_SCALES[cell.scale]
    return jax.device_get(cell.experiment.target.sample(cell.key("evaluate"), at.sequences, at.flips))


def compute(run: Run) -> xr.Dataset:
    """Compute a cell: an exact predictor, or the model after tuning, one repetition after the other (Eq. 10)."""
    cell, target = run.cell, run.cell.experiment.target
    flips, latent = evaluation_flips(cell)
    oracle = target.oracle_log_probs(flips, latent)
    if cell.architecture == "bayes":
        return label(evaluated([target.bayes_log_probs(flips)], flips, oracle))
    model, read, kept = the_model(), [], []
    for params, prefix, found in _models(run, model):
        read.append(read_flips(model._replace(params=params), flips, prefix))
        kept.append(found)
    dataset = label(evaluated([each.log_probs for each in read], flips, oracle)).assign(
        outside=(("repetition", "n"), np.stack([each.outside for each in read]), {"units": "probability"}),
        **{
            name: (("repetition", *dims), np.stack([found[name][1] for found in kept]))
            for name, (dims, _) in kept[0].items()
        },
    )
    if cell.method == "NoTuning":
        key = cell.key("sample")
        dataset["asymmetry"] = ("pair", np.array([asymmetry(model, pair, key) for pair in PAIRS]))
    if cell.method == "HardPT":
        dataset = dataset.assign(_in_english(model, flips, oracle))
    return dataset


def _in_english(model: LanguageModel, flips: np.ndarray, oracle: np.ndarray) -> dict[str, Any]:
    """Return the regret behind each of the prompts in plain English, nats."""
    heads, tails = (face.strip() for face in FACES)
    prompts = (model.encode(prompt.format(heads=heads, tails=tails)) for prompt in ENGLISH)
    read = [read_flips(model, flips, hard_prefix(tokens, model.sizes.num_tokens)) for tokens in prompts]
    regret = np.stack([cumulative_regret(each.log_probs, flips, oracle).mean for each in read])
    return {
        "english_regret": (("english", "n"), regret, {"units": "nats"}),
        "english_outside": (("english", "n"), np.stack([each.outside for each in read])),
    }


def _models(run: Run, model: LanguageModel) -> Iterator[tuple[Params, Prefix, dict[str, Any]]]:
    """Yield parameters and prefix of each repetition, and what is kept of it: variables as (axes, values)."""
    cell, at = run.cell, FLIPS_SCALES[run.cell.scale]
    if cell.method == "NoTuning":
        yield model.params, NO_PREFIX, {}
        return
    text, predictor = written_flips(model, cell.experiment.target, FACES), flips_predictor(model, at.length)
    start = len(text.header)
    searched = np.asarray(text.sample(cell.key("search"), at.searched, start + at.length)[0])
    if cell.method == "HardPT":
        found = coordinate_search(predictor, model.params, at.longest, searched, at.candidates)
        padded = np.full(at.longest, -1, np.int32)  # -1 where the best prompt is shorter
        padded[: len(found.prefix)] = found.prefix
        kept = {"prompt": (("position",), padded), "search_loss": (("prompt_length",), found.loss)}
        yield model.params, hard_prefix(found.prefix, model.sizes.num_tokens), kept
        return
    tuner = flips_tuner(model, cell.method, cell.experiment.rows, cell.experiment.rank)
    settings = cell.experiment.tuning(cell.method, cell.scale)
    settings = replace(settings, length=start + settings.length)
    given = predictor, tuner, model.params, text
    settings, tried = _choose_rate(run, given, settings, searched)
    for repetition in range(cell.repetitions):
        clock: list[tuple[int, float]] = []

        def advance(step, loss, done=repetition * settings.steps, clock=clock):
            clock.append((step, time.monotonic()))
            if run.progress is not None:
                return run.progress((done + step) / cell.repetitions, loss)

        key, checkpoint = jax.random.fold_in(cell.key("tune"), repetition), run.checkpoint(f"repetition-{repetition}")
        phi, loss = fit(*given, settings, key, 1, checkpoint, advance)
        params, prefix = tuner.inject(model.params, jax.tree.map(lambda x: x[0], phi))
        kept = {
            "tuning_loss": (("tuning_step",), loss[0]),
            "learning_rate": ((), np.float64(settings.learning_rate)),
            "step_seconds": ((), np.float64(_step_seconds(clock))),
        }
        if prefix.length:
            names = ("layer", "position", "feature") if cell.method == "PrefixTuning" else ("position", "feature")
            kept["prefix"] = (names, np.asarray(phi[0]))
        yield params, prefix, kept | tried


def _step_seconds(clock: list[tuple[int, float]]) -> float:
    """Return the seconds of a step after the first chunk, which compiles; NaN where this process computed no other."""
    if len(clock) < 2:
        return np.nan
    return (clock[-1][1] - clock[0][1]) / (clock[-1][0] - clock[0][0])


def _choose_rate(
    run: Run, given: tuple, settings: FitConfig, searched: Int[np.ndarray, "B N"]
) -> tuple[FitConfig, dict[str, Any]]:
    """Return the settings with the learning rate whose short trial does best on other sequences, and all losses there.

    A trial that diverges has infinite loss. The flips of the trials are no repetition's. `fit` is `given` first what
    all its runs share: predictor, tuner, parameters and source.
    """
    steps = FLIPS_SCALES[run.cell.scale].trial
    if not steps:
        return settings, {}
    rates, losses = [factor * settings.learning_rate for factor in TRIED], []
    predictor, tuner, params, _ = given
    parts = in_parts(predictor, searched)
    score = jax.jit(lambda params, phi: mean_loss(predictor, *tuner.inject(params, phi), parts))
    for index, rate in enumerate(rates):
        trial = replace(settings, steps=steps, learning_rate=rate)
        key, checkpoint = run.cell.key("sample"), run.checkpoint(f"rate-{index}")
        progress = run.progress and (lambda _, loss: run.progress(0, loss))
        try:
            phi, _ = fit(*given, trial, key, 1, checkpoint, progress)
            losses.append(float(score(params, jax.tree.map(lambda x: x[0], phi))))
        except DivergedError:
            losses.append(np.inf)
    best = rates[int(np.argmin(losses))]
    tried = {"rate": (("trial",), np.array(rates)), "rate_loss": (("trial",), np.array(losses))}
    return replace(settings, learning_rate=best), tried
