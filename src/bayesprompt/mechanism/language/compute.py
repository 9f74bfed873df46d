"""Computing the language model's cells: tune a prompt or a prefix of the frozen network, and see what it does."""

import functools
from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Float, Int

from bayesprompt.lab.cells import Cell, cell_config, load_cell, stream
from bayesprompt.measures.identities import Errors, identity_errors
from bayesprompt.measures.regret import excess_log_loss
from bayesprompt.mechanism.language.experiments import (
    LANGUAGE_EXPERIMENTS,
    LANGUAGE_SCALES,
    tuning_at,
)
from bayesprompt.mechanism.language.one_token import commanded, commanded_by_hard, reached_by_length
from bayesprompt.mechanism.language.reading import prefix_use, read_layers
from bayesprompt.mechanism.language.tasks import (
    Labelled,
    Texts,
    labelled,
    written_flips,
)
from bayesprompt.models.gguf import LanguageModel, the_model
from bayesprompt.models.llama import make_llama
from bayesprompt.models.predictor import Predictor
from bayesprompt.models.prefixes import NO_PREFIX, Prefix
from bayesprompt.sources.coins import BetaCoins, Coin
from bayesprompt.store import Store
from bayesprompt.tuning.fitting import fit
from bayesprompt.tuning.tuners import make_tuner, prefix_from_rows

COINS = {"random coins": BetaCoins(), "bias 0.2": Coin(0.2)}
_SHORT = 16  # sequences at a time where they are short, or few of their tokens predicted


def compute_language(cell: Cell, store: Store, progress: Callable | None = None) -> xr.Dataset:
    """Return a cell's results; their attribute `summary` is a line for people."""
    if cell.experiment == "language-model-one-token":
        dataset = commanded(cell, store, progress) if cell.method == "SoftPT" else commanded_by_hard(cell)
        shares = {n: reached.mean() for n, reached in reached_by_length(dataset).items()}
        return dataset.assign_attrs(
            summary="targets reached: " + ", ".join(f"{share:.0%} of {n} tokens" for n, share in shares.items())
        )
    if cell.experiment == "language-model-coin":
        dataset = _coin(cell, store, progress)
        return dataset.assign_attrs(summary=f"probability of a flip {float(dataset.mass.mean()):.3f} on average")
    dataset = _labels(cell, store, progress)
    share = dataset.correct.values[dataset.held_out.values == 1].mean()
    return dataset.assign_attrs(summary=f"{share:.1%} of the reviews that were not trained on")


def load_prefix(cell: Cell, store: Store) -> Prefix | None:
    """Return the tuned prompt or prefix of a stored cell, or None."""
    dataset = load_cell(cell, store)
    if dataset is None or "prefix" not in dataset:
        return None
    return prefix_from_rows(cell.method, dataset.prefix.values)


def _flips(dataset: xr.Dataset, coins: str) -> tuple[Int[np.ndarray, "B n"], Float[np.ndarray, "B n"]]:
    """Return the flips of these coins, heads as token 0, and the model's beliefs in heads, given a flip."""
    at = list(COINS).index(coins)
    return 1 - dataset.flipped_heads.values[at].astype(int), dataset.heads.values[at].astype(float)


def flips_excess(dataset: xr.Dataset, coins: str, over: str = "random coins") -> Float[np.ndarray, " n"]:
    """Return the mean cumulative log-loss of the beliefs over the Bayes predictor of the coins `over`, nats.

    That of random coins is Laplace's rule.
    """
    tokens, heads = _flips(dataset, coins)
    beliefs = np.log(np.stack([heads, 1 - heads], axis=-1))
    return excess_log_loss(beliefs, tokens, COINS[over].bayes_log_probs(tokens)).mean


def beside_laplace(dataset: xr.Dataset, coins: str, n: int) -> tuple[Float[np.ndarray, " B"], Float[np.ndarray, " B"]]:
    """Return Laplace's rule and the model's belief in heads after n flips of each sequence."""
    tokens, heads = _flips(dataset, coins)
    return np.exp(COINS["random coins"].bayes_log_probs(tokens))[:, n, 0], heads[:, n]


def _tuned(
    cell: Cell, store: Store, predictor: Predictor, source, progress: Callable | None, length: int
) -> tuple[Prefix, dict]:
    """Return the prompt or prefix of a cell, and what is stored of it; NoTuning has none."""
    experiment = LANGUAGE_EXPERIMENTS[cell.experiment]
    settings = tuning_at(experiment, cell.method, cell.scale)
    if settings is None:
        return NO_PREFIX, {}
    tuner = make_tuner(cell.method, predictor.architecture, experiment.rows)
    checkpoint, params = store.checkpoint(cell.name, cell_config(cell)), the_model().params
    settings = replace(settings, length=length)
    phi, loss = fit(predictor, tuner, params, source, settings, stream(cell, "tune"), 1, checkpoint, progress)
    names = ("layer", "position", "feature") if cell.method == "PrefixTuning" else ("position", "feature")
    extra = {
        "prefix": (names, np.asarray(phi[0])),
        "tuning_loss": ("tuning_step", loss[0], {"units": "nats a sequence"}),
    }
    return tuner.inject(params, phi[0])[1], extra


def _labels(cell: Cell, store: Store, progress: Callable | None) -> xr.Dataset:
    """Tune to the reviews' classes, and compare the labels' probabilities on reviews that were not trained on."""
    model, data = the_model(), labelled(the_model())
    train = data.tokens[data.held_out == 0]
    predictor = make_llama(replace(model.sizes, sequences_in_cache=_SHORT), answer=1)
    prefix, extra = _tuned(cell, store, predictor, Texts(train, model.sizes.num_tokens), progress, train.shape[1])
    log_probs = label_log_probs(model, data.tokens, data.labels, prefix)
    if prefix.length:
        extra |= _inside(model, data, prefix, jax.random.normal(stream(cell, "init"), prefix.layers.shape))
    return xr.Dataset(extra).assign(
        label_log_probs=(("sentence", "label"), log_probs, {"units": "nats"}),
        correct=("sentence", (data.labels[log_probs.argmax(axis=1)] == data.tokens[:, -1]).astype(np.int8)),
        held_out=("sentence", data.held_out.astype(np.int8)),
    )


def _inside(model: LanguageModel, data: Labelled, prefix: Prefix, drawn: jax.Array) -> dict:
    """Return what the prefix, and one that was only drawn, do inside: on the reviews that were not trained on."""
    tokens = data.tokens[data.held_out == 1][:, :-1]
    readings, unlearned = (read_layers(model.sizes, model.params, tokens, p) for p in (prefix, Prefix(layers=drawn)))
    errors = [[identity_errors(reading) for reading in each] for each in (readings, unlearned)]
    axes = ("rows", "layer", "head")  # rows: tuned, drawn
    stored = {
        f"{name}_error": (axes, np.array([[getattr(e, name) for e in layers] for layers in errors]))
        for name in Errors._fields
    }
    if prefix.length > 1:  # one row's share of the attention within the prefix is 1
        use = prefix_use(readings, tokens.shape[1] - 1)
        stored["range"] = (("layer", "level", "head", "position"), use.ranges.astype(np.float32))
        stored["directions"] = (("layer", "head"), use.directions.astype(np.float32))
    return stored


def label_log_probs(
    model: LanguageModel, tokens: Int[np.ndarray, "B N"], labels: Int[np.ndarray, "2"], prefix: Prefix = NO_PREFIX
) -> Float[np.ndarray, "B 2"]:
    """Return the log-probabilities, nats, of both labels as the last token."""
    found = _last_log_probs(make_llama(model.sizes, answer=1), model.params, prefix, jnp.asarray(tokens))
    return np.asarray(found[:, labels])


@functools.partial(jax.jit, static_argnums=0)
def _last_log_probs(predictor, params, prefix, tokens):
    state = predictor.prompt(params, prefix, tokens.shape[1])
    return jax.lax.map(lambda row: predictor.predict(params, state, row[None])[0, -1], tokens)


def _coin(cell: Cell, store: Store, progress: Callable | None) -> xr.Dataset:
    """Let the model read flips of random coins and of the target, before or after soft prompting to the target."""
    model, at = the_model(), LANGUAGE_SCALES[cell.scale]
    source = written_flips(model, COINS["bias 0.2"])
    start, settings = len(source.header), tuning_at(LANGUAGE_EXPERIMENTS[cell.experiment], cell.method, cell.scale)
    flips = settings.length if settings else 0
    predictor = make_llama(replace(model.sizes, sequences_in_cache=_SHORT), answer=max(1, flips))
    prefix, extra = _tuned(cell, store, predictor, source, progress, start + flips)
    heads, mass, seen = [], [], []
    for coins in COINS.values():
        text = written_flips(model, coins)
        tokens = np.asarray(text.sample(stream(cell, "evaluate"), at.sequences, start + at.flips)[0])
        found = flip_log_probs(model, tokens, start, prefix)
        total = np.logaddexp(*np.moveaxis(found, -1, 0))
        heads.append(np.exp(found[..., 0] - total))
        mass.append(np.exp(total))
        seen.append(tokens[:, start:] == text.faces[0])
    axes = ("coins", "sequence", "n")
    return xr.Dataset(extra).assign(
        heads=(axes, np.stack(heads).astype(np.float32), {"units": "probability of heads, given a flip"}),
        mass=(axes, np.stack(mass).astype(np.float32), {"units": "probability of any flip"}),
        flipped_heads=(axes, np.stack(seen).astype(np.int8)),
    )


def flip_log_probs(
    model: LanguageModel, tokens: Int[np.ndarray, "B N"], start: int, prefix: Prefix = NO_PREFIX
) -> Float[np.ndarray, "B n 2"]:
    """Return the log-probabilities, nats, of heads and of tails as each flip, which begin at place `start`."""
    faces = tuple(int(face) for face in written_flips(model, COINS["bias 0.2"]).faces)
    predictor = make_llama(model.sizes, answer=tokens.shape[1] - start)
    return np.asarray(_flip_log_probs(predictor, faces, model.params, prefix, jnp.asarray(tokens)), np.float64)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _flip_log_probs(predictor, faces, params, prefix, tokens):
    state = predictor.prompt(params, prefix, tokens.shape[1])
    return jax.lax.map(lambda row: predictor.predict(params, state, row[None])[0][:, jnp.array(faces)], tokens)
