"""Directions, ranges and distances against closed forms and loops."""

import numpy as np
import pytest

from bayesprompt.checks import UserError
from bayesprompt.measures.attention import (
    Head,
    Reading,
    attention,
    attention_block,
    bias_decomposition,
    read_rows,
)
from bayesprompt.measures.subspaces import (
    bias_directions,
    composed_logits,
    moved_attention,
    participation_ratio,
    prefix_range,
    up_to,
)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def random_reading(B=7, H=2, n=5, k=3, d=6, S=4):
    shapes = ((B, H, n, k), (B, H, n, k), (B, H, n, d), (1, H, S, k), (1, H, S, d))
    query, key, value, *past = (draw(*shape, seed=i) for i, shape in enumerate(shapes))
    return Reading(query, key, value, *(np.repeat(rows, B, axis=0) for rows in past))


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
    with pytest.raises(UserError, match="x = 3 equal vectors"):
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
        with pytest.raises(UserError, match=f"row = {row}: must lie in 0..4"):
            up_to(reading, row)


def test_ranges_are_quantiles_of_the_attention():
    reading = random_reading()
    prefix = attention(reading).prefix[:, :, 3]
    shares = prefix / prefix.sum(-1, keepdims=True)
    low, middle, high = prefix_range(reading, 3)
    np.testing.assert_allclose(middle, np.median(shares, 0), rtol=1e-12)
    assert (shares.min(0) <= low).all() and (low < middle).all() and (middle < high).all()
    assert (high <= shares.max(0)).all()


def test_the_attention_within_a_prefix_that_nothing_attends_to():
    """Its share vanishes even in float64, its proportions do not."""
    reading = random_reading()
    longer = [np.concatenate([x, np.ones((*x.shape[:-1], 1))], axis=-1) for x in (reading.query, reading.key)]
    far = np.concatenate([reading.prefix_key, np.full((7, 2, 4, 1), -2000.0)], axis=-1)
    reading = reading._replace(query=longer[0], key=longer[1], prefix_key=far)
    assert attention(reading).prefix[:, :, 3].max() == 0
    np.testing.assert_allclose(prefix_range(reading, 3), prefix_range(random_reading(), 3), rtol=1e-9)


def test_moved_attention_is_the_largest_difference_of_any_event():
    a, b = (x / x.sum(-1, keepdims=True) for x in (np.exp(draw(2, 3, 4, seed=seed)) for seed in (0, 1)))
    events = ((np.arange(16)[:, None] >> np.arange(4)) & 1).astype(bool)  # all subsets of four rows
    largest = np.max([np.abs(a[..., event].sum(-1) - b[..., event].sum(-1)) for event in events], axis=0)
    np.testing.assert_allclose(moved_attention(a, b), largest, rtol=1e-12)
    assert moved_attention(np.eye(2), np.eye(2)[::-1]).tolist() == [1.0, 1.0]
    with pytest.raises(UserError, match="b = rows that sum to 1 up to"):
        moved_attention(np.eye(2), 2 * np.eye(2))


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
