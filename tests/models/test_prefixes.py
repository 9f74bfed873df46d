"""Prefixes: what they are made of, and what is no prefix."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from bayesprompt.models.prefixes import (
    MAX_HARD_PREFIXES,
    NO_PREFIX,
    Prefix,
    all_hard_prefixes,
    check_prefix_length,
    hard_prefix,
    prompt_compositions,
    random_hard_prefix,
)


@given(tokens=st.lists(st.integers(0, 4), min_size=1, max_size=6))
def test_a_hard_prefix_is_its_tokens_one_hot(tokens):
    prefix = hard_prefix(np.array(tokens), 5)
    assert prefix.length == len(tokens) and prefix.embeddings is None and prefix.layers is None
    np.testing.assert_array_equal(prefix.inputs, np.eye(5)[tokens])


@given(tokens=st.lists(st.integers(-3, 5), min_size=1, max_size=6), num_tokens=st.integers(2, 4))
def test_tokens_outside_the_alphabet(tokens, num_tokens):
    wrong = [token for token in tokens if not 0 <= token < num_tokens]
    if not wrong:
        assert hard_prefix(np.array(tokens), num_tokens).length == len(tokens)
    else:
        with pytest.raises(ValueError, match=f"tokens = {wrong[0]}: must be integers from 0 to {num_tokens - 1}"):
            hard_prefix(np.array(tokens), num_tokens)


@given(prefix_length=st.integers(1, 6), num_tokens=st.integers(2, 4))
def test_all_hard_prefixes_are_all_of_them_counting_upwards(prefix_length, num_tokens):
    expected = list(itertools.product(range(num_tokens), repeat=prefix_length))
    np.testing.assert_array_equal(all_hard_prefixes(prefix_length, num_tokens), expected)


@given(prefix_length=st.integers(1, 7), num_tokens=st.integers(2, 4))
def test_compositions_are_the_counts_of_all_prefixes(prefix_length, num_tokens):
    prefixes = all_hard_prefixes(prefix_length, num_tokens)
    counts = (prefixes[..., None] == np.arange(num_tokens)).sum(1)
    found = prompt_compositions(prefix_length, num_tokens)
    assert len(found) == len(np.unique(found, axis=0))
    np.testing.assert_array_equal(np.unique(found, axis=0), np.unique(counts, axis=0))


@pytest.mark.parametrize(("num_tokens", "longest"), [(2, 16), (3, 10), (4, 8), (256, 2)])
def test_a_prefix_too_long_to_search(num_tokens, longest):
    assert num_tokens**longest <= MAX_HARD_PREFIXES < num_tokens ** (longest + 1)
    with pytest.raises(ValueError, match=rf"^prefix_length = {longest + 1}: must lie in 1\.\.{longest} "):
        all_hard_prefixes(longest + 1, num_tokens)


@pytest.mark.parametrize("prefix_length", [0, -1])
@pytest.mark.parametrize("function", [check_prefix_length, all_hard_prefixes, prompt_compositions])
def test_a_prefix_has_at_least_one_row(function, prefix_length):
    with pytest.raises(ValueError, match=f"^prefix_length = {prefix_length}: must be a whole number >= 1$"):
        function(prefix_length)


def test_no_prefix_has_no_rows():
    assert NO_PREFIX.length == 0
    assert Prefix(inputs=jnp.zeros((3, 2))).length == 3
    assert Prefix(embeddings=jnp.zeros((4, 16))).length == 4
    assert Prefix(layers=jnp.zeros((2, 5, 16))).length == 5


def test_random_hard_prefixes_are_one_hot_and_use_every_token():
    rows = np.stack([random_hard_prefix(key, 6, 3) for key in jax.random.split(jax.random.key(0), 20)])
    assert rows.shape == (20, 6, 3) and rows.dtype == np.float32
    assert set(rows.ravel()) == {0.0, 1.0} and (rows.sum(-1) == 1).all()
    np.testing.assert_allclose(rows.mean((0, 1)), 1 / 3, atol=4 * np.sqrt(2 / 9 / 120))
    assert len(np.unique(rows.argmax(-1), axis=0)) > 15, "every key draws its own"


def test_shapes_are_checked():
    with pytest.raises(TypeCheckError):
        hard_prefix(np.zeros((2, 2), int))
