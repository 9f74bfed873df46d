"""What tokens cost, and its gradients, against float64 on the whole vocabulary at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from bayesprompt.models import vocabulary
from bayesprompt.models.vocabulary import token_losses

K, D = 90, 12


@pytest.fixture(autouse=True, params=[(90, 2**21), (32, 2**21), (90, 700), (1, 1)], ids=str)
def blocks(request, monkeypatch):
    """All tokens at once, in evenly and unevenly divided blocks, and each by itself."""
    for name, value in zip(("_BLOCK", "_LOGITS"), request.param, strict=True):
        monkeypatch.setattr(vocabulary, name, value)


def drawn(n):
    rng = np.random.default_rng(n)
    tokens = rng.integers(0, K, n)
    tokens[:: max(2, n // 7)] = -1
    numbers = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in [(K, D), (n, D), (n,)])
    return *numbers, jnp.asarray(tokens, jnp.int32)


@pytest.mark.parametrize("n", [2, 65, 200])
def test_losses_and_gradients_are_those_of_all_logits_at_once(n):
    rows, x, cotangent, tokens = drawn(n)
    found, pull_back = jax.vjp(lambda rows, x: token_losses(rows, x, tokens), rows, x)
    log_probs = log_softmax(np.asarray(x, np.float64) @ rows.T, axis=-1)
    costs = tokens >= 0
    np.testing.assert_allclose(found, np.where(costs, -log_probs[np.arange(n), tokens], 0), rtol=1e-5, atol=1e-5)
    slope = np.where(costs, cotangent, 0)[:, None] * (np.exp(log_probs) - np.eye(K)[tokens])  # of each loss in logits
    of_rows, of_x = pull_back(cotangent)
    np.testing.assert_allclose(of_x, slope @ rows, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(of_rows, slope.T @ x, rtol=1e-4, atol=1e-4)


def test_large_logits_neither_overflow_nor_vanish():
    rows, x, _, tokens = drawn(70)
    log_probs = log_softmax(100 * np.asarray(x, np.float64) @ rows.T, axis=-1)
    wanted = np.where(tokens >= 0, -log_probs[np.arange(70), tokens], 0)
    np.testing.assert_allclose(token_losses(rows, 100 * x, tokens), wanted, rtol=1e-5, atol=1e-3)


def test_several_repetitions_side_by_side_are_each_by_itself():
    rows, x, _, tokens = drawn(70)
    several = jnp.stack([x, 2 * x])
    found = jax.vmap(jax.grad(lambda x: token_losses(rows, x, tokens).sum()))(several)
    for own, each in zip(several, found, strict=True):
        wanted = jax.grad(lambda x: token_losses(rows, x, tokens).sum())(own)
        np.testing.assert_allclose(each, wanted, rtol=1e-5, atol=1e-6)
