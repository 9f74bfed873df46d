"""The exhaustive search over hard prefixes, against brute force."""

import itertools
from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import parameters, quick_jit

from bayesprompt.models.predictor import LSTM, Transformer, make_predictor
from bayesprompt.models.prefixes import Prefix
from bayesprompt.tuning.hard_search import hard_search

search = import_module("bayesprompt.tuning.hard_search")  # the module, not the function of that name
TRANSFORMER = Transformer(num_tokens=2, embed_dim=16, num_heads=4, num_layers=2, mlp_dim=24)
LSTM3 = LSTM(num_tokens=3, embed_dim=8, hidden_dim=16)


@pytest.fixture
def quick_search(monkeypatch):
    monkeypatch.setattr(search, "_score", quick_jit(search._score.__wrapped__, static_argnums=(0, 1)))


@pytest.mark.parametrize(("architecture", "length"), [(LSTM3, 2), (TRANSFORMER, 3)], ids=["lstm", "transformer"])
def test_hard_search_is_a_brute_force(architecture, length, quick_search, monkeypatch):
    """Twelve sequences: three parts of four."""
    base, num_tokens = parameters(architecture), architecture.num_tokens
    data = jnp.asarray(np.random.default_rng(3).integers(0, num_tokens, (12, 5)), jnp.int32)
    losses, predict = {}, quick_jit(make_predictor(architecture).apply)
    for prompt in itertools.product(range(num_tokens), repeat=length):
        log_probs = predict(base, data, Prefix(inputs=jnp.eye(num_tokens)[np.array(prompt)]))
        losses[prompt] = -np.take_along_axis(np.asarray(log_probs), np.asarray(data)[..., None], -1).sum((1, 2)).mean()
    found = hard_search(make_predictor(architecture), base, length, data)
    np.testing.assert_allclose(found.loss, list(losses.values()), rtol=1e-5)
    assert np.ptp(found.loss) > 0.01
    assert tuple(found.prefix) == min(losses, key=losses.get)
    monkeypatch.setattr("bayesprompt.models.predictor.part_size", lambda *_: 4)
    again = hard_search(make_predictor(architecture), base, length, data)
    np.testing.assert_allclose(again.loss, found.loss, rtol=1e-5)


def test_hard_search_takes_the_first_of_equals(quick_search):
    indifferent = jax.tree.map(jnp.zeros_like, parameters(LSTM3))
    found = hard_search(make_predictor(LSTM3), indifferent, 2, jnp.zeros((12, 5), jnp.int32))
    np.testing.assert_allclose(found.loss, 5 * np.log(3), rtol=1e-6)
    assert len(set(found.loss)) == 1 and found.prefix.tolist() == [0, 0]


@pytest.mark.parametrize("length", [0, 11])
def test_hard_search_names_the_length_it_cannot_search(length):
    with pytest.raises(ValueError, match=f"^prefix_length = {length}: must "):
        hard_search(make_predictor(LSTM3), parameters(LSTM3), length, jnp.zeros((4, 5), jnp.int32))


@pytest.mark.parametrize(
    ("params", "tokens", "message"),
    [
        (parameters(LSTM3), [[0, 3]], "tokens = 3: "),
        (parameters(LSTM3), [[-1, 0]], "tokens = -1: "),
        (parameters(TRANSFORMER), [[0, 1]], "base.embedding.bias = array of shape"),
    ],
)
def test_another_alphabet_or_network_is_refused(params, tokens, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        hard_search(make_predictor(LSTM3), params, 2, np.array(tokens))
