"""Claims of Petrov et al. (2024), Appendix A, about exact mathematics (P1 to P4): each part is computed here."""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from exact import hold

from bayesprompt.lab.judging import Part
from bayesprompt.mechanism import constructions
from bayesprompt.mechanism.constructions import generate


def every(values: int, length: int) -> np.ndarray:
    return np.array(list(itertools.product(range(values), repeat=length)))


def p1() -> Iterator[Part]:
    rng = np.random.default_rng(0)
    for V, N, texts in ((2, 8, every(2, 8)), (4, 4, every(4, 4)), (8, 8, rng.integers(8, size=(200, 8)))):
        network = constructions.unconditional(V, N)
        virtual = constructions.encode_sequence(texts, V)
        written = generate(network, virtual, np.zeros((len(texts), 0), int), N)
        missed = 1 - float((written == texts).all(1).mean())
        yield Part(f"V = {V}, N = {N}: share of {len(texts)} sequences missed", missed, "<=", 0.0)
        real = generate(network, np.zeros((V, 0, virtual.shape[-1])), np.arange(V)[:, None], N)
        yield Part(f"V = {V}, N = {N}: sequences after one real token", float(len(np.unique(real, axis=0))), "<=", V)


def p2() -> Iterator[Part]:
    rng = np.random.default_rng(0)
    for V, maps in ((3, every(3, 3)), (4, every(4, 4)), (10, rng.integers(10, size=(100, 10)))):
        virtual = np.repeat(constructions.encode_map(maps), V, axis=0)
        users = np.tile(np.arange(V), len(maps))[:, None]
        said = generate(constructions.conditional(V), virtual, users, 1).reshape(maps.shape)
        yield Part(f"V = {V}: share of {len(maps)} maps missed", 1 - float((said == maps).all(1).mean()), "<=", 0.0)


def p3() -> Iterator[Part]:
    rng = np.random.default_rng(0)
    for V, N_0 in ((2, 3), (5, 4), (10, 6)):
        network, missed = constructions.longer_responses(V, N_0), 0
        for m in rng.integers(V, size=(20, V, N_0)):
            virtual = np.repeat(constructions.encode_long_map(m)[None], V, axis=0)
            missed += not (generate(network, virtual, np.arange(V)[:, None], N_0) == m).all()
        yield Part(f"V = {V}, N_0 = {N_0}: random maps missed, of 20", float(missed), "<=", 0.0)


def p4() -> Iterator[Part]:
    rng = np.random.default_rng(0)
    for V in (2, 3, 4, 5, 6):
        maps = every(2, 4).reshape(-1, 2, 2) if V == 2 else rng.integers(V, size=(20, V, V))
        network, pairs, missed = constructions.longer_inputs(V), every(V, 2), 0
        for m in maps:
            virtual = np.repeat(constructions.encode_pair_map(m)[None], len(pairs), axis=0)
            missed += not (generate(network, virtual, pairs, 1)[:, 0] == m[tuple(pairs.T)]).all()
        yield Part(f"V = {V}: maps of two tokens missed, of {len(maps)}", float(missed), "<=", 0.0)


@pytest.mark.parametrize("claim, parts", [("P1", p1), ("P2", p2), ("P3", p3), ("P4", p4)])
def test_each_part_holds_and_is_the_one_on_record(claim, parts):
    hold(claim, parts())
