"""Computing the language model's cells: tune a prompt or a prefix of the frozen network, and see what it does."""

import functools
import hashlib
from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Bool, Float, Int

from bayesprompt.cells import Cell, cell_config, load_cell, stream
from bayesprompt.fitting import fit
from bayesprompt.mechanism.language_model.experiments import (
    LANGUAGE_EXPERIMENTS,
    LANGUAGE_SCALES,
    tuning_at,
)
from bayesprompt.mechanism.language_model.files import SMOLLM2, LanguageModel, load
from bayesprompt.mechanism.language_model.identities import Errors, identity_errors, prefix_use, read_layers
from bayesprompt.mechanism.language_model.llama import generate, make_llama
from bayesprompt.mechanism.language_model.tasks import (
    LENGTHS,
    Labelled,
    Target,
    Texts,
    labelled,
    targets,
    written_flips,
)
from bayesprompt.predictors import Predictor
from bayesprompt.prefixes import NO_PREFIX, Prefix
from bayesprompt.sources import BetaCoins, Coin
from bayesprompt.store import RefusedFileError, Store
from bayesprompt.tuners import make_tuner

COINS = {"random coins": BetaCoins(), "bias 0.2": Coin(0.2)}
_BATCH = 256  # contexts of a token or a few that are read at a time
_SHORT = 16  # sequences at a time where they are short, or few of their tokens predicted


@functools.lru_cache(1)
def the_model() -> LanguageModel:
    """Return the packaged model, read once; raises RefusedFileError unless it is the file of the stored results."""
    model = load(SMOLLM2)
    found = hashlib.sha256(model.path.read_bytes()).hexdigest()
    if found != (wanted := next(iter(LANGUAGE_EXPERIMENTS.values())).network):
        raise RefusedFileError(
            f"{model.path} = another file ({found[:12]}) than the results' ({wanted[:12]}): not used"
        )
    return model


def compute_language(cell: Cell, store: Store, progress: Callable | None = None) -> xr.Dataset:
    """Return a cell's results; their attribute `summary` is a line for people."""
    if cell.experiment == "language-model-one-token":
        dataset = _commanded(cell, store, progress) if cell.method == "SoftPT" else _commanded_by_hard(cell)
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
    rows = jnp.asarray(dataset.prefix.values)
    return Prefix(layers=rows) if cell.method == "PrefixTuning" else Prefix(embeddings=rows)


def _every_target(cell: Cell, model: LanguageModel) -> list[Target]:
    at = LANGUAGE_SCALES[cell.scale]
    return [target for length in at.lengths for target in targets(model, length, at.each)]


def _described(found: list[Target]) -> xr.Dataset:
    """Return the targets as a dataset: kind (an index of KINDS), length, tokens padded with -1."""
    tokens = np.full((len(found), max(LENGTHS)), -1, np.int32)
    for row, target in zip(tokens, found, strict=True):
        row[: len(target.tokens)] = target.tokens
    kinds = list(dict.fromkeys(target.kind for target in found))
    return xr.Dataset(
        {
            "kind": ("target", np.array([kinds.index(target.kind) for target in found], np.int32)),
            "length": ("target", np.array([len(target.tokens) for target in found], np.int32)),
            "tokens": (("target", "place"), tokens),
        }
    )


def _commanded(cell: Cell, store: Store, progress: Callable | None) -> xr.Dataset:
    """Tune one soft token to each target from several starts; all targets of a length side by side."""
    model, at = the_model(), LANGUAGE_SCALES[cell.scale]
    config, experiment = cell_config(cell), LANGUAGE_EXPERIMENTS[cell.experiment]
    tuner = make_tuner("SoftPT", model.sizes, experiment.rows)
    said, losses, reached, prefixes, checkpoints = [], [], [], [], []
    for index, length in enumerate(at.lengths):
        found = targets(model, length, at.each)
        rows = np.repeat(np.stack([target.tokens for target in found]), at.starts, axis=0)
        settings = replace(tuning_at(experiment, "SoftPT", cell.scale), length=length)
        checkpoints.append(store.checkpoint(cell.name, config | {"target length": length}))

        def advance(step, loss, done=index * settings.steps):
            if progress is not None:
                progress((done + step) / len(at.lengths), loss)

        phi, loss = fit(
            model.predictor, tuner, model.params, Texts(rows[:, None]), settings, stream(cell, "tune"), len(rows),
            checkpoints[-1], advance, sources=True,
        )  # fmt: skip
        spoken = np.stack([command(model, Prefix(embeddings=jnp.asarray(p)), length) for p in phi])
        said.append(np.pad(spoken, ((0, 0), (0, max(LENGTHS) - length)), constant_values=-1))
        reached.append((spoken == rows).all(axis=1))
        losses.append(loss)
        prefixes.append(np.asarray(phi)[:, 0])
    split = [np.concatenate(x).reshape(-1, at.starts, *x[0].shape[1:]) for x in (said, losses, reached, prefixes)]
    said, losses, reached, prefixes = split
    best = losses[..., -1].argmin(axis=1)  # of the starts; its prompt is kept
    each = np.arange(len(best))
    dataset = _described(_every_target(cell, model)).assign(
        said=(("target", "start", "place"), said.astype(np.int32)),
        tuning_loss=(("target", "start", "step"), losses, {"units": "nats a target"}),
        reached=(("target", "start"), reached.astype(np.int8)),
        prefix=(("target", "feature"), prefixes[each, best]),
    )
    for path in checkpoints:
        path.unlink(missing_ok=True)
    return dataset


def command(model: LanguageModel, prefix: Prefix, steps: int) -> Int[np.ndarray, " steps"]:
    """Return what greedy decoding writes behind a prompt of rows."""
    return np.asarray(generate(model.sizes, model.params, np.zeros((1, 0), np.int32), steps, prefix)[0])


def _commanded_by_hard(cell: Cell) -> xr.Dataset:
    """Find which targets some token of the vocabulary commands, and which their own first token does."""
    model = the_model()
    found = _every_target(cell, model)
    number = hard_tokens_reaching(model, [target.tokens for target in found])
    own = [_continues(model, target.tokens) for target in found]
    return _described(found).assign(
        reached=("target", (number > 0).astype(np.int8)),
        number=("target", number.astype(np.int32), {"units": "tokens"}),
        own_first=("target", np.array(own, np.int8)),
    )


def hard_tokens_reaching(model: LanguageModel, wanted: list[np.ndarray]) -> Int[np.ndarray, " targets"]:
    """Return how many of all tokens make greedy decoding write each target: an exhaustive search.

    After every step only the tokens are kept that have written the start of some target.
    """
    contexts = np.arange(model.sizes.num_tokens, dtype=np.int32)[:, None]
    number = np.zeros(len(wanted), int)
    for step in range(max(len(target) for target in wanted)):
        contexts = np.concatenate([contexts, next_tokens(model, contexts)[:, None]], axis=1)
        starts = {tuple(target[: step + 1]) for target in wanted if len(target) > step}
        contexts = contexts[[tuple(row[1:]) in starts for row in contexts.tolist()]]
        for index, target in enumerate(wanted):
            if len(target) == step + 1:
                number[index] = (contexts[:, 1:] == target).all(axis=1).sum()
        if not len(contexts):
            break
    return number


def next_tokens(model: LanguageModel, contexts: Int[np.ndarray, "B N"]) -> Int[np.ndarray, " B"]:
    """Return the most probable next token of each context."""
    said = []
    for start in range(0, len(contexts), _BATCH):
        part = contexts[start : start + _BATCH]
        filled = np.pad(part, ((0, _BATCH - len(part)), (0, 0)))
        said.append(np.asarray(generate(model.sizes, model.params, filled, 1))[: len(part), 0])
    return np.concatenate(said) if said else np.zeros(0, np.int32)


def _continues(model: LanguageModel, target: np.ndarray) -> bool:
    """Tell whether the target's own first token makes greedy decoding write the rest of it."""
    if len(target) == 1:
        return True
    said = np.asarray(generate(model.sizes, model.params, target[None, :1], len(target) - 1))[0]
    return bool((said == target[1:]).all())


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
    """Tune to the reviews' sentiment, and compare the labels' probabilities on reviews that were not trained on."""
    model, data = the_model(), labelled(the_model())
    train = data.tokens[data.held_out == 0]
    predictor = make_llama(replace(model.sizes, sequences_in_cache=_SHORT), answer=1)
    prefix, extra = _tuned(cell, store, predictor, Texts(train), progress, train.shape[1])
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
    errors = [identity_errors(each) for each in (readings, unlearned)]
    axes = ("rows", "layer", "head")  # rows: tuned, drawn
    stored = {f"{name}_error": (axes, np.stack([getattr(e, name) for e in errors])) for name in Errors._fields}
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


def reached_by_length(dataset: xr.Dataset, name: str = "reached") -> dict[int, Bool[np.ndarray, "targets"]]:
    """Return for each length which of its targets were reached (from any start)."""
    reached = dataset[name].values.astype(bool)
    reached = reached.any(axis=1) if reached.ndim == 2 else reached
    return {int(n): reached[dataset.length.values == n] for n in np.unique(dataset.length.values)}
