"""What the networks share, against plain NumPy: attention, look-ups, what tokens of a large vocabulary cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from bayesprompt.models import layers
from bayesprompt.models.layers import attend, look_up, one_hot, token_losses

K, D = 90, 12


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.fixture(params=[2**24, 700, 1], ids=["all at once", "in uneven parts", "one by one"])
def parts(request, monkeypatch):
    monkeypatch.setattr(layers, "MOST_LOGITS", request.param)


@pytest.mark.parametrize("n", [1, 65])
def test_losses_and_gradients_are_those_of_all_logits_at_once(n, parts):
    rows, x, cotangent, tokens = draw(K, D), draw(2, n, D, seed=1), draw(2, n, seed=2), None
    tokens = np.random.default_rng(n).integers(0, K, (2, n))
    tokens[0, :: max(2, n // 7)] = -1
    found, pull_back = jax.vjp(lambda rows, x: token_losses(rows, x, jnp.asarray(tokens)), rows, x)
    log_probs = log_softmax(np.float64(x) @ rows.T, axis=-1)
    costs = tokens >= 0
    wanted = -np.take_along_axis(log_probs, np.maximum(tokens, 0)[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(found, np.where(costs, wanted, 0), rtol=1e-5, atol=1e-5)
    slope = np.where(costs, cotangent, 0)[..., None] * (np.exp(log_probs) - np.eye(K)[tokens])  # of each in its logits
    of_rows, of_x = pull_back(cotangent)
    np.testing.assert_allclose(of_x, slope @ rows, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(of_rows, np.einsum("bnk,bnd->kd", slope, x), rtol=1e-4, atol=1e-4)


def test_large_logits_neither_overflow_nor_vanish_and_wrong_tokens_cost_nan(parts):
    rows, x, tokens = draw(K, D), 100 * draw(1, 70, D, seed=1), np.arange(70)[None] % K
    log_probs = log_softmax(np.float64(x) @ rows.T, axis=-1)
    wanted = -np.take_along_axis(log_probs, tokens[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(token_losses(rows, x, jnp.asarray(tokens)), wanted, rtol=1e-5, atol=1e-3)
    tokens[0, :3] = -2, K, K - 1
    found = token_losses(rows, x, jnp.asarray(tokens))
    assert np.isnan(found[0, :3]).tolist() == [True, True, False] and np.isfinite(found[0, 3:]).all()


def test_several_repetitions_side_by_side_are_each_by_itself(parts):
    rows, several, tokens = draw(K, D), draw(2, 1, 70, D, seed=1), jnp.arange(70)[None] % K
    grad = jax.grad(lambda x: token_losses(rows, x, tokens).sum())
    for own, each in zip(several, jax.vmap(grad)(several), strict=True):
        np.testing.assert_allclose(each, grad(own), rtol=1e-5, atol=1e-6)


def test_look_ups_are_rows_of_the_table_and_nan_outside_the_alphabet():
    table, tokens = draw(4, 3, 2, 5), np.array([[0, 2, 1, 1], [2, 2, 0, 1], [0, -1, 3, 2]])
    found = np.asarray(look_up(table, jnp.asarray(tokens)))
    for b, n in np.ndindex(*tokens.shape):
        expected = table[n, tokens[b, n]] if 0 <= tokens[b, n] < 3 else np.nan
        np.testing.assert_array_equal(found[b, n], np.broadcast_to(expected, (2, 5)))
    slope = jax.grad(lambda t: (look_up(t, jnp.asarray(tokens[:2])) ** 2).sum())(table)
    times = np.stack([(tokens[:2] == k).sum(0) for k in range(3)], axis=1)
    np.testing.assert_allclose(slope, 2 * times[..., None, None] * table, rtol=1e-6)
    assert np.isnan(one_hot(jnp.asarray(tokens), 3)).any(-1).tolist() == ((tokens < 0) | (tokens > 2)).tolist()
    np.testing.assert_array_equal(one_hot(jnp.asarray(tokens[:2]), 3), np.eye(3)[tokens[:2]])


@pytest.mark.parametrize(("n", "S", "place"), [(5, 0, None), (5, 3, None), (2, 3, None), (1, 2, 3)])
def test_attention_is_its_sum_written_out(n, S, place):
    """n rows that ask among m = 5 rows behind S shared ones: the last n, or those from `place` on."""
    B, m, H, d = 2, 5, 2, 3
    query, key, value = draw(B, n, H, d), draw(B, m, H, d, seed=1), draw(B, m, H, d, seed=2)
    memory = (draw(H, S, d, seed=3), draw(H, S, d, seed=4)) if S else None
    found = attend(query, key, value, memory, place=None if place is None else jnp.int32(place))
    for b, i, h in np.ndindex(B, n, H):
        last = (m - n if place is None else place) + i
        keys, values = key[b, : last + 1, h], value[b, : last + 1, h]
        if S:
            keys, values = np.concatenate([memory[0][h], keys]), np.concatenate([memory[1][h], values])
        weights = np.exp(keys @ query[b, i, h])
        expected = weights @ values / weights.sum()
        np.testing.assert_allclose(found[b, i, h * d : (h + 1) * d], expected, rtol=1e-5, atol=1e-6)
