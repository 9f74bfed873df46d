"""Claims of Petrov et al. (2024): P1 to P4 computed on the spot; P5, P6 and P14 on stored networks and prefixes."""

import itertools
from collections.abc import Iterator

import jax
import numpy as np

from bayesprompt.cells import Cell, evaluation_data, load_network
from bayesprompt.claims.judging import Claim, Part, Results
from bayesprompt.mechanism import constructions
from bayesprompt.mechanism.attention import (
    attention,
    bias_decomposition,
    content_only,
    layers_from_soft,
    outputs,
    read_block,
    relative_content_attention,
    soft_from_hard,
    spectrum,
)
from bayesprompt.mechanism.constructions import generate
from bayesprompt.prefixes import Prefix, hard_prefix

RELATIVE = 1e-5  # float32, relative to the largest entry of the reference


def _all_rows(values: int, length: int) -> np.ndarray:
    return np.array(list(itertools.product(range(values), repeat=length)))


def _p1(_: Results) -> Iterator[Part]:
    rng = np.random.default_rng(0)
    for V, N, texts in ((2, 8, _all_rows(2, 8)), (4, 4, _all_rows(4, 4)), (8, 8, rng.integers(8, size=(200, 8)))):
        network = constructions.unconditional(V, N)
        virtual = constructions.encode_sequence(texts, V)
        written = generate(network, virtual, np.zeros((len(texts), 0), int), N)
        missed = 1 - float((written == texts).all(1).mean())
        yield Part(f"V = {V}, N = {N}: share of {len(texts)} sequences missed", missed, "<=", 0.0)
        real = generate(network, np.zeros((V, 0, virtual.shape[-1])), np.arange(V)[:, None], N)
        yield Part(f"V = {V}, N = {N}: sequences after one real token", float(len(np.unique(real, axis=0))), "<=", V)


def _p2(_: Results) -> Iterator[Part]:
    rng = np.random.default_rng(0)
    for V, maps in ((3, _all_rows(3, 3)), (4, _all_rows(4, 4)), (10, rng.integers(10, size=(100, 10)))):
        virtual = np.repeat(constructions.encode_map(maps), V, axis=0)
        users = np.tile(np.arange(V), len(maps))[:, None]
        said = generate(constructions.conditional(V), virtual, users, 1).reshape(maps.shape)
        yield Part(f"V = {V}: share of {len(maps)} maps missed", 1 - float((said == maps).all(1).mean()), "<=", 0.0)


def _p3(_: Results) -> Iterator[Part]:
    rng = np.random.default_rng(0)
    for V, N_0 in ((2, 3), (5, 4), (10, 6)):
        network, missed = constructions.longer_responses(V, N_0), 0
        for m in rng.integers(V, size=(20, V, N_0)):
            virtual = np.repeat(constructions.encode_long_map(m)[None], V, axis=0)
            missed += not (generate(network, virtual, np.arange(V)[:, None], N_0) == m).all()
        yield Part(f"V = {V}, N_0 = {N_0}: random maps missed, of 20", float(missed), "<=", 0.0)


def _p4(_: Results) -> Iterator[Part]:
    rng = np.random.default_rng(0)
    for V in (2, 3, 4, 5, 6):
        maps = _all_rows(2, 4).reshape(-1, 2, 2) if V == 2 else rng.integers(V, size=(20, V, V))
        network, pairs, missed = constructions.longer_inputs(V), _all_rows(V, 2), 0
        for m in maps:
            virtual = np.repeat(constructions.encode_pair_map(m)[None], len(pairs), axis=0)
            missed += not (generate(network, virtual, pairs, 1)[:, 0] == m[tuple(pairs.T)]).all()
        yield Part(f"V = {V}: maps of two tokens missed, of {len(maps)}", float(missed), "<=", 0.0)


def _coin_transformer(results: Results):
    """The tuned soft prefixes of the single coin (R, L, D), their network, and 16 sequences of 50 flips; or None."""
    cell = Cell("single-coin", "transformer", "SoftPT")
    dataset = results.cell(*cell[:3])
    found = load_network(cell, results.store) if dataset is not None else None
    return None if found is None else (dataset.prefix.values, *found, evaluation_data(cell)[0][:16, :50])


def _worst(found, reference) -> float:
    return float(np.abs(found - reference).max() / np.abs(reference).max())


def _p5(results: Results) -> Iterator[Part]:
    error = None
    if (given := _coin_transformer(results)) is not None:
        prefixes, predictor, params, tokens = given
        readings = [read_block(predictor, params, tokens, Prefix(embeddings=rows)) for rows in prefixes]
        errors = [_worst(relative_content_attention(r), attention(content_only(r)).content) for r in readings]
        error = max(errors)
    yield Part("coin Transformer, every head: content attention with and without prefix", error, "<=", RELATIVE)
    yield Part("trained GPTs", None, "<=", RELATIVE)


def _p6(results: Results) -> Iterator[Part]:
    error = beyond = None
    if (given := _coin_transformer(results)) is not None:
        prefixes, predictor, params, tokens = given
        error = beyond = 0.0
        for rows in prefixes:
            reading = read_block(predictor, params, tokens, Prefix(embeddings=rows))
            whole, parts = outputs(reading), bias_decomposition(reading)
            error = max(error, _worst(parts.bias + parts.kept, whole))
            added = np.asarray(whole - parts.kept).swapaxes(0, 1)
            values = spectrum(added.reshape(len(added), -1, added.shape[-1]))
            beyond = max(beyond, float((values[:, len(rows)] / values[:, 0]).max()))
    yield Part("coin Transformer, every head: outputs against bias and what is kept", error, "<=", RELATIVE)
    yield Part("singular value n_S + 1 of the bias against the first", beyond, "<=", RELATIVE)
    yield Part("trained GPTs", None, "<=", RELATIVE)


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


CLAIMS: dict[str, Claim] = {
    "P1": ("One virtual token generates any of V^N sequences, one real token at most V.", "exact", _p1),
    "P2": ("One virtual token realises any map of a token.", "exact", _p2),
    "P3": ("Several virtual tokens realise any map to sequences.", "exact", _p3),
    "P4": ("Two layers and V virtual tokens realise any map of two tokens.", "exact", _p4),
    "P5": ("A prefix rescales content attention and never reorders it (Eq. 6).", "paper", _p5),
    "P6": ("A prefix adds a bias of low rank to each head's output (Eq. 7).", "paper", _p6),
    "P14": ("Any hard prompt is a soft prompt, any soft prompt is a prefix.", "paper", _p14),
}
