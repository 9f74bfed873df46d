"""Dense layers against flax's own; dropout by hashed bits against the same written out, and what random masks do."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayesprompt.models.kernels import Dense, dropout, hashed_bits

RATE = 0.1


@pytest.mark.parametrize("shape", [(7,), (3, 5, 7), (2, 3, 5, 7), (0, 7)])
def test_a_dense_layer_is_flaxs_own(shape):
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    params = nn.Dense(4).init(jax.random.key(0), x)
    slope = jnp.asarray(np.random.default_rng(1).normal(size=(*shape[:-1], 4)), jnp.float32)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, Dense(4).init(jax.random.key(0), x), params))
    found, expected = (jax.vjp(lambda p, x, d=d: d.apply(p, x), params, x) for d in (Dense(4), nn.Dense(4)))
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    for actual, wanted in zip(*(jax.tree.leaves(pull_back(slope)) for _, pull_back in (found, expected)), strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-6)


def hashed_by_hand(key, size):
    """MurmurHash3's finaliser of start + step * index, an entry after the other, in Python's integers."""
    step, start = (int(x) for x in jax.random.bits(key, (2,)))
    found = []
    for index in range(size):
        h = (start + (step | 1) * index) % 2**32
        h = (h ^ (h >> 16)) * 0x85EBCA6B % 2**32
        h = (h ^ (h >> 13)) * 0xC2B2AE35 % 2**32
        found.append(h ^ (h >> 16))
    return found


def test_values_and_gradients_are_those_of_the_mask_written_out():
    key, x = jax.random.key(3), jnp.asarray(np.random.default_rng(0).normal(size=(7, 11, 5)), jnp.float32)
    bits = np.array(hashed_by_hand(key, x.size), np.uint32).reshape(x.shape)
    np.testing.assert_array_equal(hashed_bits(key, x.shape), bits)
    mask = (bits >= RATE * 2**32) / (1 - RATE)
    found, pull_back = jax.vjp(lambda x: dropout(key, x, RATE), x)
    np.testing.assert_allclose(found, mask * x, rtol=1e-6)
    np.testing.assert_allclose(pull_back(x)[0], mask * x, rtol=1e-6)
    np.testing.assert_array_equal(dropout(key, x, 0.0), x)


def test_masks_are_as_random_as_they_should_be():
    """The share that is dropped, over keys and at each entry; neighbours, and masks of two keys, are uncorrelated."""
    keys = jax.random.split(jax.random.key(0), 400)
    dropped = np.asarray(jax.vmap(lambda key: dropout(key, jnp.ones(500), RATE))(keys)) == 0
    error = np.sqrt(RATE * (1 - RATE))
    assert abs(dropped.mean() - RATE) < 4 * error / np.sqrt(dropped.size)
    for axis, size in ((0, 400), (1, 500)):
        assert np.abs(dropped.mean(axis=axis) - RATE).max() < 5 * error / np.sqrt(size)
    centred = dropped - RATE
    for one, other in ((centred[:, :-1], centred[:, 1:]), (centred[:-1], centred[1:])):
        assert abs((one * other).mean()) < 4 * error**2 / np.sqrt(one.size)
