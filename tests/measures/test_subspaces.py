"""Directions, ranges and distances against closed forms and loops; composed heads against their network."""

import jax
import numpy as np
import pytest

from bayesprompt.measures.attention import (
    Head,
    Reading,
    attention,
    attention_block,
    bias_decomposition,
    read_rows,
    relative_content_attention,
)
from bayesprompt.measures.subspaces import (
    bias_directions,
    composed_heads,
    composed_logits,
    first_rows,
    participation_ratio,
    prefix_range,
    total_variation,
    up_to,
)
from bayesprompt.models.gpt import GPT, inspect, make_gpt
from bayesprompt.models.prefixes import NO_PREFIX, Prefix

ARCHITECTURE = GPT(embed_dim=12, num_heads=3, num_layers=2, pads=4)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def random_reading(B=7, H=2, n=5, k=3, d=6, S=4):
    shapes = ((B, H, n, k), (B, H, n, k), (B, H, n, d), (1, H, S, k), (1, H, S, d))
    query, key, value, *past = (draw(*shape, seed=i) for i, shape in enumerate(shapes))
    return Reading(query, key, value, *(np.repeat(rows, B, axis=0) for rows in past))


@pytest.fixture(scope="module")
def network():
    """A GPT all of whose parameters matter but for the biases of its dense layers, which are 0; tokens; a prefix."""
    shapes = jax.eval_shape(lambda: make_gpt(ARCHITECTURE).init(jax.random.key(0)))
    rng = np.random.default_rng(1)

    def drawn(path, x):
        dense_bias = path[-1].key == "bias" and not path[-2].key.endswith("norm")
        return (rng.normal(size=x.shape) * (0 if dense_bias else 0.5)).astype(np.float32)

    tokens = rng.integers(8, size=(5, 20)).astype(np.int32)
    prefix = Prefix(layers=draw(2, 4, 12, seed=8).astype(np.float32))
    return jax.tree_util.tree_map_with_path(drawn, shapes), tokens, prefix


@pytest.mark.parametrize("k", [1, 2, 5])
def test_k_alike_directions_count_k(k):
    """The corners of a cross-polytope: k equal variances, wherever its centre is and however it is turned."""
    turned = np.linalg.qr(draw(8, 8))[0]
    x = 1e-3 * np.concatenate([np.eye(k), -np.eye(k)]) @ turned[:k] + 5.0
    assert participation_ratio(x) == pytest.approx(k, rel=1e-9)


def test_participation_ratio_is_its_definition():
    x = draw(50, 4) @ np.diag([5.0, 2.0, 1.0, 0.1])
    eigenvalues = np.linalg.eigvalsh(np.cov(x.T))
    assert participation_ratio(x) == pytest.approx(eigenvalues.sum() ** 2 / (eigenvalues**2).sum(), rel=1e-12)
    # Two variances in the ratio 3 : 1 count (3 + 1)^2 / (9 + 1).
    assert participation_ratio(np.array([[3**0.5, 0], [-(3**0.5), 0], [0, 1.0], [0, -1]])) == pytest.approx(1.6)


def test_what_does_not_vary_has_no_directions():
    with pytest.raises(ValueError, match="x = 3 equal vectors"):
        participation_ratio(np.ones((3, 2)))


def test_bias_directions_are_those_of_the_weighted_values():
    reading, row = random_reading(), 2
    found, expected = bias_directions(reading, row), []
    for head in range(2):
        bias = np.zeros((7, 6))
        for b in range(7):
            query = reading.query[b, head, row]
            own = [np.exp(query @ key) for key in reading.key[b, head, : row + 1]]
            past = [np.exp(query @ key) for key in reading.prefix_key[b, head]]
            bias[b] = sum(
                w / (sum(own) + sum(past)) * v for w, v in zip(past, reading.prefix_value[b, head], strict=True)
            )
        eigenvalues = np.linalg.eigvalsh(np.cov(bias.T))
        expected.append(eigenvalues.sum() ** 2 / (eigenvalues**2).sum())
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_one_prefix_row_is_one_direction():
    np.testing.assert_allclose(bias_directions(random_reading(S=1), 4), 1.0, rtol=1e-12)


def test_a_row_alone_reads_what_it_read_among_the_others():
    reading = random_reading()
    with_start = reading._replace(query=reading.query[:, :, 1:])  # as in the coin Transformer: m = n + 1
    for given in (reading, with_start):
        for row in range(given.query.shape[-2]):
            one, every = bias_decomposition(up_to(given, row)), bias_decomposition(given)
            for found, expected in zip(one, every, strict=True):
                np.testing.assert_allclose(found[:, :, 0], expected[:, :, row], rtol=0, atol=1e-14)
    for row in (-1, 5):
        with pytest.raises(ValueError, match=f"row = {row}: must lie in 0..4"):
            up_to(reading, row)


def test_ranges_are_quantiles_of_the_attention():
    reading = random_reading()
    low, middle, high = prefix_range(reading, 3, (0.0, 0.5, 1.0), relative=False)
    prefix = attention(reading).prefix[:, :, 3]
    for found, expected in ((low, prefix.min(0)), (middle, np.median(prefix, 0)), (high, prefix.max(0))):
        np.testing.assert_allclose(found, expected, rtol=1e-12)
    shares = prefix / prefix.sum(-1, keepdims=True)
    np.testing.assert_allclose(prefix_range(reading, 3)[1], np.median(shares, 0), rtol=1e-12)


def test_total_variation_is_the_largest_difference_of_any_event():
    a, b = (x / x.sum(-1, keepdims=True) for x in (np.exp(draw(2, 3, 4, seed=seed)) for seed in (0, 1)))
    events = ((np.arange(16)[:, None] >> np.arange(4)) & 1).astype(bool)  # all subsets of four rows
    largest = np.max([np.abs(a[..., event].sum(-1) - b[..., event].sum(-1)) for event in events], axis=0)
    np.testing.assert_allclose(total_variation(a, b), largest, rtol=1e-12)
    assert total_variation(np.eye(2), np.eye(2)[::-1]).tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="b = rows that sum to 1 up to"):
        total_variation(np.eye(2), 2 * np.eye(2))


def test_composed_heads_are_the_first_block_of_the_network(network):
    params, tokens, prefix = network
    x, s = first_rows(ARCHITECTURE, params, tokens, prefix)
    layer = inspect(ARCHITECTURE, params, tokens, prefix)[0]
    heads = composed_heads(ARCHITECTURE, params, 0)
    np.testing.assert_allclose(attention_block(heads, x, s), layer.attended, rtol=0, atol=2e-4)
    for h, head in enumerate(heads):
        given, own = attention(layer.reading), attention(read_rows(head, x, s))
        np.testing.assert_allclose(own.prefix, given.prefix[:, h], rtol=0, atol=1e-5)
        np.testing.assert_allclose(own.content, given.content[:, h], rtol=0, atol=1e-5)


def test_the_second_blocks_heads_are_its_own(network):
    params, *_ = network
    first, second = (composed_heads(ARCHITECTURE, params, layer)[2] for layer in (0, 1))
    block = params["torso"]["blocks_1"]
    np.testing.assert_allclose(second.W_Q, np.asarray(block["query"]["kernel"])[:, 8:].T, rtol=1e-6)
    out = np.asarray(block["attention_output"]["kernel"], float)[8:]
    np.testing.assert_allclose(second.W_V, (np.asarray(block["value"]["kernel"], float)[:, 8:] @ out).T, rtol=1e-6)
    assert np.abs(first.W_K - second.W_K).max() > 0.1
    with pytest.raises(ValueError, match=r"layer = 2: must lie in 0\.\.1"):
        composed_heads(ARCHITECTURE, params, 2)


def test_the_first_rows_need_a_prefix_for_every_pad(network):
    params, tokens, prefix = network
    for wrong in (NO_PREFIX, Prefix(layers=prefix.layers[:, :3])):
        with pytest.raises(ValueError, match="must be given layer by layer, 4 rows"):
            first_rows(ARCHITECTURE, params, tokens, wrong)


def test_four_terms_are_the_next_layers_scores_row_by_row():
    first = tuple(Head(*(draw(3, 5, seed=3 * h + i) for i in range(2)), draw(4, 5, seed=3 * h + 2)) for h in (0, 1))
    second, x, s = Head(draw(2, 4, seed=6), draw(2, 4, seed=7), draw(4, 4, seed=8)), draw(6, 5, seed=9), draw(2, 5)
    terms, logits = composed_logits(first, second, x, s)
    t = attention_block(first, x, s)
    H = second.W_Q.T @ second.W_K
    expected = np.array([[t[i] @ H @ t[j] for j in range(6)] for i in range(6)]) / 2**0.5
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(sum(terms), expected, rtol=0, atol=1e-12)
    # What no prefix changes, but for the shares: the last term's rows and columns scaled back.
    alone = attention_block(first[:1], x)
    one, _ = composed_logits(first[:1], second, x, s)
    kept = 1 - bias_decomposition(read_rows(first[0], x, s)).share
    expected = np.array([[kept[i] * kept[j] * (alone[i] @ H @ alone[j]) for j in range(6)] for i in range(6)]) / 2**0.5
    np.testing.assert_allclose(one.content_content, expected, rtol=0, atol=1e-12)


def test_a_prefix_moves_the_second_layers_attention_and_not_the_first_ones(network):
    params, tokens, prefix = network
    with_prefix, without = (inspect(ARCHITECTURE, params, tokens, rows) for rows in (prefix, NO_PREFIX))
    moved = [
        total_variation(relative_content_attention(a.reading), relative_content_attention(b.reading)).mean()
        for a, b in zip(with_prefix, without, strict=True)
    ]
    assert moved[0] < 1e-5 and moved[1] > 0.01
