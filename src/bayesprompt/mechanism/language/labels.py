"""Reviews in two classes: a prefix of the frozen language model is tuned to them, and looked into."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Float, Int

from bayesprompt.lab.experiment import Run
from bayesprompt.measures.attention import Reading
from bayesprompt.measures.subspaces import Errors, bias_directions, identity_errors, prefix_range
from bayesprompt.mechanism.language.tasks import Labelled, Texts, labelled
from bayesprompt.models.gguf import LanguageModel, the_model
from bayesprompt.models.llama import make_llama
from bayesprompt.models.predictor import Predictor
from bayesprompt.models.prefixes import NO_PREFIX, Prefix
from bayesprompt.models.trace import inspect
from bayesprompt.tuning.fitting import fit
from bayesprompt.tuning.tuners import make_tuner

SHORT = 16  # sequences at a time where they are short, or few of their tokens predicted


def compute(run: Run) -> xr.Dataset:
    """Tune to the reviews' classes, and compare the labels' probabilities on reviews that were not trained on."""
    model, data = the_model(), labelled(the_model())
    train = data.tokens[data.held_out == 0]
    predictor = make_llama(replace(model.sizes, sequences_in_cache=SHORT), answer=1)
    prefix, extra = tuned(run, predictor, Texts(train, model.sizes.num_tokens), train.shape[1])
    log_probs = log_probs_of(model, data.tokens, data.labels, 1, prefix)[:, 0]
    if prefix.length:
        extra |= _inside(model, data, prefix, jax.random.normal(run.cell.key("init"), prefix.layers.shape))
    correct = (data.labels[log_probs.argmax(axis=1)] == data.tokens[:, -1]).astype(np.int8)
    share = correct[data.held_out == 1].mean()
    return xr.Dataset(extra, attrs={"summary": f"{share:.1%} of the reviews that were not trained on"}).assign(
        label_log_probs=(("sentence", "label"), log_probs, {"units": "nats"}),
        correct=("sentence", correct),
        held_out=("sentence", data.held_out.astype(np.int8)),
    )


def tuned(run: Run, predictor: Predictor, source: Texts, length: int) -> tuple[Prefix, dict]:
    """Return the prompt or prefix of a cell, and what is stored of it; NoTuning has none."""
    cell, params = run.cell, the_model().params
    settings = cell.experiment.tuning(cell.method, cell.scale)
    if settings is None:
        return NO_PREFIX, {}
    tuner = make_tuner(cell.method, predictor.architecture, cell.experiment.rows)
    given = (replace(settings, length=length), cell.key("tune"), 1, run.checkpoint(), run.progress)
    phi, loss = fit(predictor, tuner, params, source, *given)
    names = ("layer", "position", "feature") if cell.method == "PrefixTuning" else ("position", "feature")
    extra = {
        "prefix": (names, np.asarray(phi[0])),
        "tuning_loss": ("tuning_step", loss[0], {"units": "nats a sequence"}),
    }
    return tuner.inject(params, phi[0])[1], extra


def _inside(model: LanguageModel, data: Labelled, prefix: Prefix, drawn: jax.Array) -> dict:
    """Return what the prefix, and one that was only drawn, do inside: on the reviews that were not trained on."""
    tokens = data.tokens[data.held_out == 1][:, :-1]
    readings, unlearned = (read_layers(model, tokens, p) for p in (prefix, Prefix(layers=drawn)))
    errors = [[identity_errors(reading) for reading in each] for each in (readings, unlearned)]
    axes = ("rows", "layer", "head")  # rows: tuned, drawn
    stored = {
        f"{name}_error": (axes, np.array([[getattr(e, name) for e in layers] for layers in errors]))
        for name in Errors._fields
    }
    if prefix.length > 1:  # one row's share of the attention within the prefix is 1
        ranges, directions = (
            np.stack([measure(reading, tokens.shape[1] - 1) for reading in readings]).astype(np.float32)
            for measure in (prefix_range, bias_directions)
        )
        stored["range"] = (("layer", "level", "head", "position"), ranges)
        stored["directions"] = (("layer", "head"), directions)
    return stored


def read_layers(model: LanguageModel, tokens: Int[np.ndarray, "B N"], prefix: Prefix) -> list[Reading]:
    """Return what each block's attention reads at every token: leading axes (B, H)."""
    one_more = np.pad(tokens, ((0, 0), (0, 1)))  # the last token is not read
    layers = inspect(make_llama(model.sizes, answer=1), model.params, one_more, prefix).layers
    return jax.device_get([layer.reading for layer in layers])


def log_probs_of(
    model: LanguageModel, tokens: Int[np.ndarray, "B N"], among: Int[np.ndarray, " K"], answer: int, prefix: Prefix
) -> Float[np.ndarray, "B answer K"]:
    """Return the log-probabilities, nats, of some tokens as each of the last `answer` ones, a sequence at a time."""
    predictor = make_llama(model.sizes, answer=answer)
    return np.asarray(_log_probs_of(predictor, model.params, prefix, jnp.asarray(tokens), jnp.asarray(among)))


@functools.partial(jax.jit, static_argnums=0)
def _log_probs_of(predictor, params, prefix, tokens, among):
    state = predictor.prompt(params, prefix, tokens.shape[1])
    return jax.lax.map(lambda row: predictor.predict(params, state, row[None])[0][:, among], tokens)
