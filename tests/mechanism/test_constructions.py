"""The hand-built Transformers against the maps that they are asked to be: all of them where V is small."""

import itertools
from fractions import Fraction

import numpy as np
import pytest

from bayesprompt.mechanism.constructions import (
    LARGEST_V,
    AttentionLayer,
    LinearLayer,
    conditional,
    encode_long_map,
    encode_map,
    encode_pair_map,
    encode_sequence,
    forward,
    generate,
    longer_inputs,
    longer_responses,
    tangents,
    unconditional,
    unpack,
)


def every(V, length):
    return np.array(list(itertools.product(range(V), repeat=length)), int).reshape(-1, length)


def nothing(batch, width=None):
    return np.zeros((batch, 0), int) if width is None else np.zeros((batch, 0, width))


def answers(network, virtual, inputs, steps=1):
    """What every map (B, rows, d) answers to every input (I, n_X): (B, I, steps)."""
    shape = (len(virtual), len(inputs))
    virtual = np.broadcast_to(virtual[:, None], (*shape, *virtual.shape[1:]))
    return generate(network, virtual, np.broadcast_to(inputs, (*shape, inputs.shape[-1])), steps)


@pytest.mark.parametrize("V, N", [(1, 3), (2, 1), (2, 2), (2, 8), (3, 3), (4, 4), (5, 3), (8, 2)])
def test_one_virtual_token_writes_every_sequence(V, N):
    wanted = every(V, N)
    written = generate(unconditional(V, N), encode_sequence(wanted, V), nothing(len(wanted)), N)
    np.testing.assert_array_equal(written, wanted)


@pytest.mark.parametrize("V, N", [(8, 8), (100, 3), (3, 40), (2**17, 2)])
def test_one_virtual_token_writes_long_sequences_and_large_vocabularies(V, N):
    wanted = np.random.default_rng(0).integers(V, size=(3 if V > 100 else 100, N))
    wanted[0], wanted[1] = 0, V - 1
    written = generate(unconditional(V, N), encode_sequence(wanted, V), nothing(len(wanted)), N)
    np.testing.assert_array_equal(written, wanted)


@pytest.mark.parametrize("V, N", [(2, 2), (3, 4), (8, 8)])
def test_one_real_token_reaches_as_many_sequences_as_there_are_tokens(V, N):
    network = unconditional(V, N)
    written = generate(network, nothing(V, N), np.arange(V)[:, None], N)
    assert len(np.unique(written, axis=0)) == V
    # Whatever the embeddings are: here two tokens share theirs.
    same = network._replace(E=np.repeat(network.E[:, :1], V, axis=1))
    assert len(np.unique(generate(same, nothing(V, N), np.arange(V)[:, None], N), axis=0)) == 1


@pytest.mark.parametrize("V", [1, 2, 3, 4])
def test_every_map_is_a_virtual_token(V):
    maps = every(V, V)
    found = answers(conditional(V), encode_map(maps), np.arange(V)[:, None])
    np.testing.assert_array_equal(found[..., 0], maps)


@pytest.mark.parametrize("V", [5, 7, 10, 200])
def test_random_maps_are_virtual_tokens(V):
    maps = np.random.default_rng(V).integers(V, size=(50 if V < 100 else 2, V))
    maps[0] = V - 1
    found = answers(conditional(V), encode_map(maps), np.arange(V)[:, None])
    np.testing.assert_array_equal(found[..., 0], maps)


def test_the_printed_codes_decode_one_too_high():
    """With 1-based tokens as printed, s_1 = (m(1)/V, ...), the answer is min(m(x) + 1, V)."""
    V = 4
    maps = 1 + every(V, V)
    found = 1 + answers(conditional(V), maps[:, None] / V, np.arange(V)[:, None])[..., 0]
    np.testing.assert_array_equal(found, np.minimum(maps + 1, V))


def test_the_printed_first_head_mixes_all_rows():
    network = unconditional(3, 4)
    (fst, pos), T = network.layers[0]
    printed = fst._replace(W_K=np.r_[np.zeros(4), np.ones(4)][None])
    wrong = network._replace(layers=(AttentionLayer((printed, pos), T), *network.layers[1:]))
    wanted = every(3, 4)
    right, mixed = (generate(n, encode_sequence(wanted, 3), nothing(81), 4) for n in (network, wrong))
    assert (right == wanted).all() and not (mixed == wanted).all()


@pytest.mark.parametrize("V, N_0", [(2, 1), (2, 2), (2, 3)])
def test_every_map_to_longer_responses(V, N_0):
    maps = every(V, V * N_0).reshape(-1, V, N_0)
    found = answers(longer_responses(V, N_0), encode_long_map(maps), np.arange(V)[:, None], N_0)
    np.testing.assert_array_equal(found, maps)


@pytest.mark.parametrize("V, N_0", [(3, 2), (5, 7), (10, 10)])
def test_random_maps_to_longer_responses(V, N_0):
    maps = np.random.default_rng(V).integers(V, size=(50, V, N_0))
    found = answers(longer_responses(V, N_0), encode_long_map(maps), np.arange(V)[:, None], N_0)
    np.testing.assert_array_equal(found, maps)


def test_every_map_of_pairs_of_two_tokens():
    maps = every(2, 4).reshape(-1, 2, 2)
    found = answers(longer_inputs(2), encode_pair_map(maps), every(2, 2))
    np.testing.assert_array_equal(found.reshape(maps.shape), maps)


@pytest.mark.parametrize("V", [1, 3, 4, 5, 6, 9, 13])
def test_random_maps_of_pairs(V):
    maps = np.random.default_rng(V).integers(V, size=(12, V, V))
    maps[0], maps[1], maps[2] = 0, V - 1, np.arange(V)  # the smallest and the largest numbers that there are
    found = answers(longer_inputs(V), encode_pair_map(maps), every(V, 2))
    np.testing.assert_array_equal(found.reshape(maps.shape), maps)


def run(layers, x):
    for M, b, relu in layers:
        x = np.maximum(x @ M.T + b, 0) if relu else x @ M.T + b
    return x


@pytest.mark.parametrize("V", [1, 2, 3, 4])
def test_unpack_reads_every_digit_of_every_number(V):
    k = np.arange(V**V)
    digits = k[:, None] // V ** np.arange(V) % V
    kept = np.random.default_rng(0).random((len(k), V))
    for place in range(V):  # wherever the number stands
        x = np.concatenate([np.zeros((len(k), V)), kept], axis=1)
        x[:, place] = k / V**V
        np.testing.assert_allclose(run(unpack(V), x), np.concatenate([digits / V, kept], axis=1), rtol=0, atol=1e-15)


@pytest.mark.parametrize("V", [5, 8, 13])
def test_unpack_reads_digits_where_most_of_them_carry(V):
    """Numbers next to multiples of powers of V, from exact fractions, after the 1 that L_ex takes off again."""
    powers = [V**i for i in range(V + 1)]
    numbers = sorted({d * p + e for p in powers for d in range(V) for e in (-1, 0, 1) if 0 <= d * p + e < V**V})
    x = np.zeros((len(numbers), 2 * V))
    x[:, 0] = [float(1 + float(Fraction(k, V**V))) - 1 for k in numbers]
    digits = [[k // p % V for p in powers[:V]] for k in numbers]
    np.testing.assert_allclose(run(unpack(V), x)[:, :V] * V, digits, rtol=0, atol=1e-12)


@pytest.mark.parametrize("V", [1, 2, 6, 13])
def test_unpack_is_as_large_as_stated(V):
    *hidden, last = unpack(V)
    assert len(hidden) == 2 * V and all(layer.relu for layer in hidden) and not last.relu
    widths = [len(layer.b) for layer in hidden]
    assert sum(widths) == 5 * V**2 - V and max(widths) == 3 * V - 1


@pytest.mark.parametrize("V", [1, 2, 10, 1000, LARGEST_V])
def test_tangents_touch_the_parabola_and_name_their_token(V):
    M, b, relu = tangents(V)
    assert not relu
    chosen = np.unique(np.linspace(0, V - 1, 1000).astype(int)) if V <= 1000 else np.array([0, 1, V // 3, V - 2, V - 1])
    for u in chosen:
        lines = M[:, 0] * (u / V) + b
        assert lines.argmax() == u
        assert lines[u] == pytest.approx((u / V - 0.5) ** 2, abs=1e-15)


def test_attention_is_hard():
    """Rows that are to be ignored get attention 0 exactly, so values pass unchanged."""
    x = np.random.default_rng(0).random((1, 4, 4))
    network = unconditional(5, 4)
    first = network._replace(layers=network.layers[:1])
    np.testing.assert_array_equal(forward(first, x), np.broadcast_to(x[:, :1], x.shape) + np.eye(4))


def test_layers_are_those_of_the_paper():
    def kinds(network):
        return ["A" if isinstance(x, AttentionLayer) else "LR"[x.relu] for x in network.layers]

    assert kinds(unconditional(3, 2)) == kinds(conditional(3)) == kinds(longer_responses(3, 2)) == list("ARRL")
    assert "".join(kinds(longer_inputs(3))) == "AR" + "RRRRRR" + "L" + "ARRL"
    assert [len(x.heads) for x in longer_inputs(3).layers if isinstance(x, AttentionLayer)] == [3, 2]
    assert all(x.M.shape[0] == len(x.b) for x in longer_inputs(5).layers if isinstance(x, LinearLayer))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: unconditional(0, 2), "V = 0: "),
        (lambda: unconditional(LARGEST_V + 1, 2), "V = 16777217: "),
        (lambda: unconditional(2, 0), "N = 0: "),
        (lambda: longer_responses(2, 0), "N_0 = 0: "),
        (lambda: longer_inputs(14), "V = 14: "),
        (lambda: encode_pair_map(np.zeros((14, 14), int)), "V = 14: "),
        (lambda: encode_sequence(np.array([0, 3]), 3), "tokens = 3: must be integers from 0 to 2"),
        (lambda: encode_map(np.array([0, 1, -1])), "m = -1: must be integers from 0 to 2"),
        (lambda: encode_long_map(np.full((2, 3), 2)), "m = 2: must be integers from 0 to 1"),
        (lambda: encode_pair_map(np.full((2, 2), 2)), "m = 2: must be integers from 0 to 1"),
        (lambda: generate(conditional(2), encode_map(np.array([0, 1])), np.array([2]), 1), "user = 2: must be "),
        (
            lambda: generate(unconditional(2, 3), np.zeros((1, 3)), np.zeros(0, int), 4),
            "embeddings = 4 rows: must be at most 3",
        ),
    ],
)
def test_bad_input_is_told_in_one_line(make, message):
    with pytest.raises(ValueError, match=f"^{message}") as told:
        make()
    assert "\n" not in str(told.value)
