"""Claims of Petrov et al. (2024) on how a prefix acts inside stored networks: the attention algebra."""

from collections.abc import Iterator

import jax
import numpy as np

from bayesprompt.lab.cells import load_network
from bayesprompt.lab.experiment import Cell
from bayesprompt.lab.judging import Claim, Part, Results
from bayesprompt.measures.attention import Reading, bias_decomposition, outputs, relative_content_attention
from bayesprompt.measures.subspaces import (
    beyond_rank,
    bias_directions,
    composed_logits,
    identity_errors,
    moved_attention,
)
from bayesprompt.mechanism.digits import DIGIT_EXPERIMENTS, held_out_inputs, load_tuned
from bayesprompt.models.predictor import Params, Predictor
from bayesprompt.models.prefixes import NO_PREFIX, Prefix, hard_prefix
from bayesprompt.models.trace import composed_heads, first_rows, inspect, layers_from_soft, soft_from_hard
from bayesprompt.prompting.compute import evaluation_data
from bayesprompt.prompting.experiments import SINGLE_COIN
from bayesprompt.sources.digits import SIZE, with_answer

RELATIVE = 1e-5  # float32, relative to the largest entry of the reference


def _coin_transformer(results: Results):
    """The tuned soft prefixes of the single coin (R, L, D), their network, and 16 sequences of 50 flips; or None."""
    cell = Cell(SINGLE_COIN, "transformer", "SoftPT", results.scale)
    dataset = results.cell("single-coin", *cell[1:3])
    found = load_network(cell, results.store) if dataset is not None else None
    return None if found is None else (dataset.prefix.values, *found, evaluation_data(cell)[0][:16, :50])


def _worst(found, reference) -> float:
    return float(np.abs(found - reference).max() / np.abs(reference).max())


# The experiments of Tables 1 to 3 whose prefixes must obey Eq. 6 and 7.
_PREFIXED = ("sorting", "eliciting-skills", "longer-prefixes")


def _digit_models(results: Results, experiment: str):
    """The predictor; for each task (params, prefix), and 1000 held-out inputs with answers; None without the cell."""
    cell = Cell(DIGIT_EXPERIMENTS[experiment], "gpt", "PrefixTuning", results.scale)
    if results.cell(experiment, *cell[1:3]) is None or (tuned := load_tuned(cell, results.store)) is None:
        return None
    inputs = held_out_inputs(cell)[:1000]
    return cell.predictor, tuned.models, [with_answer(inputs, task) for task in cell.experiment.tasks]


def _readings(predictor: Predictor, params: Params, prefix: Prefix, tokens: np.ndarray) -> list[Reading]:
    return jax.device_get([layer.reading for layer in inspect(predictor, params, tokens, prefix).layers])


def _every_reading(results: Results) -> Iterator[tuple[str, Iterator[Reading] | None]]:
    """What each block reads behind each tuned prefix, on 16 texts; None for an experiment without its cell."""
    readings = None
    if (given := _coin_transformer(results)) is not None:
        prefixes, predictor, params, flips = given
        readings = (_readings(predictor, params, Prefix(embeddings=rows), flips)[0] for rows in prefixes)
    yield "coin Transformer", readings
    for experiment in _PREFIXED:
        readings = None
        if (found := _digit_models(results, experiment)) is not None:
            predictor, *both = found
            each = zip(*both, strict=True)
            readings = (r for model, rows in each for r in _readings(predictor, *model, rows[:16]))
        yield experiment, readings


def _p5(results: Results) -> Iterator[Part]:
    for name, readings in _every_reading(results):
        error = None
        if readings is not None:
            error = max(float(identity_errors(reading).content.max()) for reading in readings)
        yield Part(f"{name}, every head: content attention with and without prefix", error, "<=", RELATIVE)


def _p6(results: Results) -> Iterator[Part]:
    for name, readings in _every_reading(results):
        error = beyond = block = None
        if readings is not None:
            error = beyond = block = 0.0
            for reading in readings:
                found, whole = identity_errors(reading), outputs(reading)
                error, beyond = max(error, found.bias.max()), max(beyond, found.rank.max())
                # The block's bias is a linear map of its heads' biases side by side.
                both = (whole - bias_decomposition(reading).kept, whole)
                beside = (np.concatenate(x.swapaxes(0, 1), axis=-1)[:, None] for x in both)
                heads, size = reading.prefix_key.shape[1:-1]
                block = max(block, beyond_rank(*beside, heads * size).max())
            error, beyond, block = (float(x) for x in (error, beyond, block))
        yield Part(f"{name}, every head: outputs against bias and what is kept", error, "<=", RELATIVE)
        yield Part(f"{name}, every head: singular value n_S + 1 of the bias", beyond, "<=", RELATIVE)
        yield Part(f"{name}, block: singular value heads * n_S + 1", block, "<=", RELATIVE)


def _p14(results: Results) -> Iterator[Part]:
    soft = layers = None
    if (given := _coin_transformer(results)) is not None:
        prefixes, predictor, params, tokens = given
        read, hard = jax.jit(predictor.apply), hard_prefix(np.array([0, 1, 1, 0, 1, 1]))
        reference = read(params, tokens, hard)
        soft = _worst(read(params, tokens, soft_from_hard(predictor, params, hard)), reference)
        layers = 0.0
        for rows in prefixes[:3]:
            prefix = Prefix(embeddings=rows)
            reference = read(params, tokens, prefix)
            deep = layers_from_soft(predictor, params, prefix)
            layers = max(layers, _worst(read(params, tokens, deep), reference))
    yield Part("coin Transformer: a hard prompt as a soft one, log-probabilities", soft, "<=", RELATIVE)
    yield Part("coin Transformer: trained soft prompts as prefixes in every layer", layers, "<=", RELATIVE)


def _p11(results: Results) -> Iterator[Part]:
    """Over the inputs at the last input's row, the median head of the layer and prefix where it is largest."""
    largest, pads = None, DIGIT_EXPERIMENTS["longer-prefixes"].largest.pads
    if (found := _digit_models(results, "longer-prefixes")) is not None:
        predictor, *both = found
        largest = max(
            float(np.median(bias_directions(reading, SIZE - 1)))
            for model, rows in zip(*both, strict=True)
            for reading in _readings(predictor, *model, rows)
        )
    yield Part("participation ratio of a head's bias, median head, largest layer and prefix", largest, "<=", pads / 2)


def _p12(results: Results) -> Iterator[Part]:
    error, moved = None, [None, None]
    if (found := _digit_models(results, "longer-prefixes")) is not None:
        predictor, *both = found
        sizes, error, moves = predictor.architecture, 0.0, []
        for (params, prefix), rows in zip(*both, strict=True):
            first, second = (composed_heads(sizes, params, layer) for layer in (0, 1))
            x, s = first_rows(sizes, params, rows[:1], prefix)
            for head in second:
                terms, logits = composed_logits(first, head, x[0], s)
                error = max(error, _worst(sum(terms), logits))
            readings = [_readings(predictor, params, p, rows) for p in (prefix, NO_PREFIX)]
            content = [[relative_content_attention(r) for r in layers[:2]] for layers in readings]
            moves.append([float(moved_attention(*pair).mean()) for pair in zip(*content, strict=True)])
        moved = np.mean(moves, axis=0).tolist()
    yield Part("composed layers: four terms against the logits", error, "<=", RELATIVE)
    yield Part("content attention moved in layer 1, mean total variation", moved[0], "<=", 1e-5)
    yield Part("content attention moved in layer 2, mean total variation", moved[1], ">=", 0.05)


CLAIMS: dict[str, Claim] = {
    "P5": ("A prefix rescales content attention and never reorders it (Eq. 6).", "paper", _p5),
    "P6": ("A prefix adds a bias of low rank to each head's output (Eq. 7).", "paper", _p6),
    "P11": ("Longer prefixes do not use the directions that they have (Appendix B).", "paper", _p11),
    "P12": ("A prefix changes attention in the next layer, not in the first (Appendix C).", "paper", _p12),
    "P14": ("Any hard prompt is a soft prompt, any soft prompt is a prefix.", "paper", _p14),
}
