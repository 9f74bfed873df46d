"""Attention against sums written out one by one; prefixes against what the paper says that they cannot do."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import quick_jit

from bayesprompt import catalog
from bayesprompt.lab.cells import load_cell, load_network
from bayesprompt.measures.attention import (
    Head,
    attention,
    attention_block,
    bias_decomposition,
    content_only,
    layers_from_soft,
    next_layer_decomposition,
    outputs,
    read_block,
    read_rows,
    relative_content_attention,
    soft_from_hard,
    spectrum,
)
from bayesprompt.models.predictor import LSTM, Transformer, make_predictor
from bayesprompt.models.prefixes import NO_PREFIX, Prefix, hard_prefix
from bayesprompt.prompting.states import internal_states
from bayesprompt.store import Store

SIZES = {"k": 3, "d_in": 5, "d_out": 4, "p": 6}
TWO_LAYERS = Transformer(num_tokens=3, embed_dim=16, num_heads=4, num_layers=2, mlp_dim=24)


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


@functools.lru_cache
def network(architecture):
    """A random network, nowhere 0 or 1."""
    predictor = make_predictor(architecture)
    shapes = jax.eval_shape(predictor.init, jax.random.key(0))
    random = np.random.default_rng(1)
    return predictor, jax.tree.map(
        lambda x: jnp.asarray(random.normal(size=x.shape) * 0.4 + (x.ndim == 1), jnp.float32), shapes
    )


TOKENS = jnp.asarray(np.random.default_rng(3).integers(3, size=(4, 9)))
PREFIXES = {
    "hard": hard_prefix(np.array([0, 2, 1]), 3),
    "soft": Prefix(embeddings=jnp.asarray(draw(3, 16), jnp.float32)),
    "layers": Prefix(layers=jnp.asarray(draw(2, 3, 16), jnp.float32)),
}


@functools.lru_cache
def read(kind, layer):
    return read_block(*network(TWO_LAYERS), TOKENS, PREFIXES[kind], layer)


@functools.lru_cache
def added(kind):
    """What the attention blocks add to the residual stream at the tokens' rows, computed elsewhere."""
    states = internal_states(*network(TWO_LAYERS), TOKENS, PREFIXES[kind]).states
    return np.asarray(states)[:, 1 + PREFIXES[kind].length :]


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_what_is_read_is_what_the_network_reads(kind, layer):
    _, params = network(TWO_LAYERS)
    reading = read(kind, layer)
    L, width = PREFIXES[kind].length, slice(16 * layer, 16 * (layer + 1))
    assert reading.query.shape == (4, 4, 8, 4) and reading.key.shape == (4, 4, 9, 4)
    assert reading.prefix_value.shape == (4, 4, L, 4)
    heads = outputs(reading).swapaxes(1, 2).reshape(4, 8, 16)
    found = heads @ np.asarray(params["torso"][f"blocks_{layer}"]["attention_output"]["kernel"])
    expected = added(kind)[..., width]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("kind", PREFIXES)
@pytest.mark.parametrize("layer", [0, 1])
def test_any_layer_is_rescaled_and_biased_given_its_inputs(kind, layer):
    reading = read(kind, layer)
    alone = attention(content_only(reading)).content
    np.testing.assert_allclose(relative_content_attention(reading), alone, rtol=0, atol=1e-5)
    parts, whole = bias_decomposition(reading), outputs(reading)
    np.testing.assert_allclose(parts.bias + parts.kept, whole, rtol=0, atol=1e-5 * np.abs(whole).max())


def test_a_layer_prefix_made_from_a_soft_one_is_read_alike_in_every_layer():
    predictor, params = network(TWO_LAYERS)
    layers = layers_from_soft(predictor, params, PREFIXES["soft"])
    for layer in (0, 1):
        for soft, other in zip(read("soft", layer), read_block(predictor, params, TOKENS, layers, layer), strict=True):
            np.testing.assert_allclose(soft, other, rtol=0, atol=1e-4)


def test_hard_prompts_are_soft_ones_and_soft_ones_are_prefixes():
    predictor, params = network(TWO_LAYERS)
    predict = quick_jit(lambda prefix: predictor.apply(params, TOKENS, prefix))
    soft = soft_from_hard(predictor, params, PREFIXES["hard"])
    hard, *others = (
        np.asarray(predict(p)) for p in (PREFIXES["hard"], soft, layers_from_soft(predictor, params, soft))
    )
    for found in others:
        np.testing.assert_allclose(found, hard, rtol=0, atol=1e-5 * np.abs(hard).max())
    # What is reproduced is not what the network does behind any prefix.
    assert np.abs(np.asarray(predict(PREFIXES["soft"])) - hard).max() > 0.01
    direct = layers_from_soft(predictor, params, PREFIXES["hard"])
    np.testing.assert_array_equal(direct.layers, layers_from_soft(predictor, params, soft).layers)


def test_the_trained_coin_transformers_soft_prefixes():
    cell = catalog.cell("single-coin", "transformer", "SoftPT")
    predictor, params = load_network(cell, Store())
    tokens = np.random.default_rng(0).integers(2, size=(2, 30))
    for rows in load_cell(cell, Store()).prefix.values[:2]:
        prefix = Prefix(embeddings=jnp.asarray(rows))
        reading = read_block(predictor, params, tokens, prefix)
        whole, parts = outputs(reading), bias_decomposition(reading)
        alone = attention(content_only(reading)).content
        assert np.abs(relative_content_attention(reading) - alone).max() <= 1e-5 * alone.max()
        assert np.abs(parts.bias + parts.kept - whole).max() <= 1e-5 * np.abs(whole).max()
        assert 0.05 < parts.share.max() <= 1
        values = spectrum((whole - parts.kept).swapaxes(0, 1).reshape(4, -1, 32))
        assert (values[:, 6:] <= 1e-5 * values[:, :1]).all() and len(values) == 4


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: read_rows(head(), draw(6, 5), T=0), "T = 0: must be > 0"),
        (lambda: read_block(*network(TWO_LAYERS), TOKENS, layer=2), "layer = 2: must lie in 0..1"),
        (lambda: read_block(*network(LSTM(2, 4, 8, 1)), TOKENS), "predictor = LSTM: must be a Transformer"),
        (lambda: layers_from_soft(*network(LSTM(2, 4, 8, 1)), PREFIXES["soft"]), "predictor = LSTM: must be"),
        (lambda: layers_from_soft(*network(TWO_LAYERS), NO_PREFIX), "prefix = no inputs or embeddings"),
        (lambda: soft_from_hard(*network(TWO_LAYERS), PREFIXES["soft"]), "prefix = no inputs"),
    ],
)
def test_bad_input_is_told_in_one_line(make, message):
    with pytest.raises(ValueError, match=f"^{message}") as told:
        make()
    assert "\n" not in str(told.value)
