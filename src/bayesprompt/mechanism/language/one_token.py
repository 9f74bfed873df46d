"""What one token makes the language model write: soft tokens tuned to a text, and all hard ones tried."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Bool, Int

from bayesprompt.lab.experiment import Cell, Run
from bayesprompt.mechanism.language.tasks import KINDS, LANGUAGE_SCALES, LENGTHS, Target, Texts, targets
from bayesprompt.models.gguf import LanguageModel, the_model
from bayesprompt.models.llama import generate
from bayesprompt.models.prefixes import Prefix
from bayesprompt.tuning.fitting import fit
from bayesprompt.tuning.tuners import make_tuner

_BATCH = 256  # contexts of a token or a few that are read at a time


def compute(run: Run) -> xr.Dataset:
    """Tune one soft token to each target, or search all hard ones."""
    dataset = tune_soft_tokens(run) if run.cell.method == "SoftPT" else search_hard_tokens(run.cell)
    words = ", ".join(f"{share:.0%} of {n} tokens" for n, share in share_reached(dataset).items())
    return dataset.assign_attrs(summary=f"targets reached: {words}")


def _every_target(cell: Cell, model: LanguageModel) -> list[Target]:
    at = LANGUAGE_SCALES[cell.scale]
    return [target for length in at.lengths for target in targets(model, length, at.each)]


def _described(found: list[Target]) -> xr.Dataset:
    """Return the targets as a dataset: kind (an index of KINDS), length, tokens padded with -1."""
    tokens = [np.pad(t.tokens, (0, max(LENGTHS) - len(t.tokens)), constant_values=-1) for t in found]
    return xr.Dataset(
        {
            "kind": ("target", np.array([KINDS.index(target.kind) for target in found], np.int32)),
            "length": ("target", np.array([len(target.tokens) for target in found], np.int32)),
            "tokens": (("target", "place"), np.stack(tokens)),
        }
    )


def tune_soft_tokens(run: Run) -> xr.Dataset:
    """Tune one soft token to each target from several starts; all targets of a length side by side."""
    cell, model, at = run.cell, the_model(), LANGUAGE_SCALES[run.cell.scale]
    tuner = make_tuner("SoftPT", model.sizes, cell.experiment.rows)
    fitted = cell.experiment.tuning("SoftPT", cell.scale)
    said, losses, written, prefixes = [], [], [], []
    for index, length in enumerate(at.lengths):
        found = targets(model, length, at.each)
        rows = np.repeat(np.stack([target.tokens for target in found]), at.starts, axis=0)
        settings = replace(fitted, length=length)

        def advance(step, loss, done=index * settings.steps):
            if run.progress is not None:
                run.progress((done + step) / len(at.lengths), loss)

        phi, loss = fit(
            model.predictor, tuner, model.params, Texts(rows[:, None], model.sizes.num_tokens), settings,
            cell.key("tune"), len(rows), run.checkpoint(f"{length}-tokens"), advance, sources=True,
        )  # fmt: skip
        spoken = np.stack([command(model, Prefix(embeddings=jnp.asarray(p)), length) for p in phi])
        said.append(np.pad(spoken, ((0, 0), (0, max(LENGTHS) - length)), constant_values=-1))
        written.append((spoken == rows).all(axis=1))
        losses.append(loss)
        prefixes.append(np.asarray(phi)[:, 0])
    split = [np.concatenate(x).reshape(-1, at.starts, *x[0].shape[1:]) for x in (said, losses, written, prefixes)]
    said, losses, written, prefixes = split
    best = losses[..., -1].argmin(axis=1)  # of the starts; its prompt is kept
    each = np.arange(len(best))
    return _described(_every_target(cell, model)).assign(
        said=(("target", "start", "place"), said.astype(np.int32)),
        tuning_loss=(("target", "start", "step"), losses, {"units": "nats a target"}),
        reached=(("target", "start"), written.astype(np.int8)),
        prefix=(("target", "feature"), prefixes[each, best]),
    )


def command(model: LanguageModel, prefix: Prefix, steps: int) -> Int[np.ndarray, " steps"]:
    """Return what greedy decoding writes behind a prompt of rows."""
    return np.asarray(generate(model.sizes, model.params, np.zeros((1, 0), np.int32), steps, prefix)[0])


def search_hard_tokens(cell: Cell) -> xr.Dataset:
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


def reached(dataset: xr.Dataset, name: str = "reached") -> Bool[np.ndarray, " targets"]:
    """Tell for each target whether it was reached, from any start."""
    found = dataset[name].values.astype(bool)
    return found.reshape(len(found), -1).any(axis=1)


def share_reached(dataset: xr.Dataset) -> dict[int, float]:
    """Return for each length the share of its targets that were reached."""
    found = reached(dataset)
    return {int(n): float(found[dataset.length.values == n].mean()) for n in np.unique(dataset.length.values)}
