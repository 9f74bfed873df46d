"""Attention against sums written out one by one; prefixes against what the paper says that they cannot do."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayesprompt.checks import UserError
from bayesprompt.measures.attention import (
    Head,
    attention,
    attention_block,
    bias_decomposition,
    next_layer_decomposition,
    outputs,
    read_rows,
    relative_content_attention,
    relative_prefix_attention,
    spectrum,
)

SIZES = {"k": 3, "d_in": 5, "d_out": 4, "p": 6}


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def head(seed=0, k=3, d_out=4):
    return Head(draw(k, 5, seed=seed), draw(k, 5, seed=seed + 1), draw(d_out, 5, seed=seed + 2))


def by_hand(head, x, prefix, T):
    """Eq. 1 and 2 with the prefix before the content, entry by entry: attention (p, S + p) and output (p, d_out)."""
    rows, S, p = np.concatenate([prefix, x]), len(prefix), len(x)
    A, t = np.zeros((p, S + p)), np.zeros((p, head.W_V.shape[0]))
    for i in range(p):
        terms = [
            math.exp(T / math.sqrt(len(head.W_Q)) * (head.W_Q @ x[i]) @ (head.W_K @ rows[j])) for j in range(S + i + 1)
        ]
        for j, term in enumerate(terms):
            A[i, j] = term / sum(terms)
            t[i] += A[i, j] * (head.W_V @ rows[j])
    return A, t


@pytest.mark.parametrize("S", [0, 1, 3])
@pytest.mark.parametrize("T", [1, 0.3, 2.0])
def test_attention_is_equation_1(S, T):
    x, prefix = draw(6, 5), draw(S, 5, seed=9)
    A, t = by_hand(head(), x, prefix, T)
    reading = read_rows(head(), x, prefix, T)
    np.testing.assert_allclose(np.concatenate(attention(reading), axis=1), A, rtol=0, atol=1e-14)
    np.testing.assert_allclose(outputs(reading), t, rtol=0, atol=1e-13)
    assert reading.prefix_key.shape == (S, 3)


def test_a_block_sums_its_heads_one_sequence_or_many():
    heads, x, prefix = (head(0), head(5, k=2)), draw(2, 6, 5), draw(2, 5, seed=9)
    expected = [sum(by_hand(h, rows, prefix, 0.7)[1] for h in heads) for rows in x]
    np.testing.assert_allclose(attention_block(heads, x, prefix, 0.7), expected, rtol=0, atol=1e-13)
    alone = [sum(by_hand(h, rows, prefix[:0], 0.7)[1] for h in heads) for rows in x]
    np.testing.assert_allclose(attention_block(heads, x, T=0.7), alone, rtol=0, atol=1e-13)


@pytest.mark.parametrize("S", [1, 2, 7])
@pytest.mark.parametrize("strength", [0.1, 1.0, 10.0])
def test_a_prefix_rescales_and_biases_and_that_is_all(S, strength):
    x, prefix = draw(6, 5), strength * draw(S, 5, seed=9)
    A, t = by_hand(head(), x, prefix[:0], 1)
    A_pt, t_pt = by_hand(head(), x, prefix, 1)
    reading = read_rows(head(), x, prefix)
    np.testing.assert_allclose(relative_content_attention(reading), A, rtol=1e-10, atol=1e-14)  # Eq. 6
    parts = bias_decomposition(reading)
    np.testing.assert_allclose(parts.share, A_pt[:, :S].sum(1), rtol=0, atol=1e-14)
    np.testing.assert_allclose(parts.bias, A_pt[:, :S] @ prefix @ head().W_V.T, rtol=0, atol=1e-12)
    np.testing.assert_allclose(parts.kept, (1 - A_pt[:, :S].sum(1))[:, None] * t, rtol=0, atol=1e-12)
    np.testing.assert_allclose(parts.bias + parts.kept, t_pt, rtol=0, atol=1e-12)  # Eq. 7


def test_changed_weights_do_what_no_prefix_does():
    """The check of Eq. 6 can fail: full fine-tuning of W_K moves relative attention."""
    x = draw(6, 5)
    tuned = head()._replace(W_K=draw(3, 5, seed=77))
    assert np.abs(relative_content_attention(read_rows(tuned, x)) - attention(read_rows(head(), x)).content).max() > 0.1


@pytest.mark.parametrize("S", [1, 2, 3])
def test_biases_span_as_many_directions_as_the_prefix_has_rows(S):
    x, prefix = draw(40, 5), draw(S, 5, seed=9)
    wide = head(d_out=8)
    bias = by_hand(wide, x, prefix, 1)[1] - (
        (1 - by_hand(wide, x, prefix, 1)[0][:, :S].sum(1))[:, None] * by_hand(wide, x, prefix[:0], 1)[1]
    )
    values = spectrum(bias)
    assert values[S - 1] > 1e-3 * values[0] > 0 and (values[S:] < 1e-12 * values[0]).all()
    np.testing.assert_allclose(spectrum(bias_decomposition(read_rows(wide, x, prefix)).bias)[:S], values[:S])


def test_numpy_and_jax_agree():
    x, prefix = draw(2, 6, 5).astype(np.float32), draw(2, 5, seed=9).astype(np.float32)
    weights = Head(*(W.astype(np.float32) for W in head()))
    on_numpy = bias_decomposition(read_rows(weights, x, prefix))
    on_jax = jax.jit(lambda w, x, s: bias_decomposition(read_rows(w, x, s)))(
        weights, jnp.asarray(x), jnp.asarray(prefix)
    )
    for mine, other in zip(on_numpy, on_jax, strict=True):
        assert mine.dtype == np.float32 and isinstance(other, jax.Array)
        np.testing.assert_allclose(mine, other, rtol=0, atol=2e-5)


@pytest.mark.parametrize("S", [1, 3])
@pytest.mark.parametrize("heads", [1, 2])
def test_the_next_layers_logits_are_four_terms(S, heads):
    first, second, T = [head(10 * h, d_out=5) for h in range(heads)], head(50), 0.8
    x, prefix = draw(6, 5), draw(S, 5, seed=9)
    t = sum(by_hand(h, x, prefix, T)[1] for h in first)
    logits = T / math.sqrt(3) * np.array([[(second.W_Q @ a) @ (second.W_K @ b) for b in t] for a in t])
    parts = [bias_decomposition(read_rows(h, x, prefix, T)) for h in first]
    terms = next_layer_decomposition(sum(p.bias for p in parts), sum(p.kept for p in parts), second, T)
    np.testing.assert_allclose(sum(terms), logits, rtol=0, atol=1e-11)
    if S == heads == 1:  # the paper's formula, letter by letter
        alpha, mu = parts[0].share, first[0].W_V @ prefix[0]
        alone, H = by_hand(first[0], x, prefix[:0], T)[1], second.W_Q.T @ second.W_K
        for i in range(6):
            for j in range(6):
                factor, c = 1 - alpha, T / math.sqrt(3)
                expected = [
                    c * alpha[i] * alpha[j] * mu @ H @ mu,
                    c * alpha[j] * factor[i] * alone[i] @ H @ mu,
                    c * alpha[i] * factor[j] * mu @ H @ alone[j],
                    c * factor[i] * factor[j] * alone[i] @ H @ alone[j],
                ]
                np.testing.assert_allclose([term[i, j] for term in terms], expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("strength", [1, 30, 1000])
def test_what_a_prefix_leaves_of_the_attention_may_be_as_small_as_it_likes(strength):
    """Float32 holds no weights of content hundreds of nats below the prefix, nor the other way round."""
    x, prefix = draw(6, 5), draw(2, 5, seed=9)
    weights = Head(*(W.astype(np.float32) for W in head()))
    alone = attention(read_rows(head(), x)).content
    found = read_rows(weights, x.astype(np.float32), prefix.astype(np.float32))
    # One more coordinate, the same in every query: `shift` nats more for every row of the prefix, or of the content.
    for shift in (strength, -strength):
        query, key, past = (
            np.concatenate([rows, np.full((len(rows), 1), more, np.float32)], axis=1)
            for rows, more in ((found.query, 1), (found.key, 0), (found.prefix_key, shift))
        )
        reading = found._replace(query=query, key=key, prefix_key=past)
        np.testing.assert_allclose(relative_content_attention(reading), alone, rtol=0, atol=1e-7 * (10 + strength))
        within = np.exp(np.float64(found.query) @ np.float64(found.prefix_key).T)
        within /= within.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(relative_prefix_attention(reading), within, rtol=0, atol=1e-7 * (10 + strength))
        parts = bias_decomposition(reading)
        np.testing.assert_allclose(parts.bias + parts.kept, outputs(reading), rtol=0, atol=1e-5)


def test_bad_input_is_told_in_one_line():
    with pytest.raises(UserError, match="^T = 0: must be > 0$"):
        read_rows(head(), draw(6, 5), T=0)
