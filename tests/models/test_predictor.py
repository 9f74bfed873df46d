"""Both networks against plain ones that read the whole sequence, and what every sequential predictor must keep to."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from reference import parameters, quick_jit

from bayesprompt.models import transformer
from bayesprompt.models.layers import product
from bayesprompt.models.predictor import LSTM, Network, Transformer, log_loss, make_predictor
from bayesprompt.models.prefixes import NO_PREFIX, Prefix, hard_prefix
from bayesprompt.models.transformer import sinusoids

ONE = Transformer(num_tokens=2, embed_dim=16, num_heads=2, num_layers=1, mlp_dim=32)
TWO = Transformer(num_tokens=3, embed_dim=16, num_heads=4, num_layers=2, mlp_dim=24)
LSTM_ONE = LSTM(num_tokens=2, embed_dim=16, hidden_dim=16, num_layers=1)
LSTM_TWO = LSTM(num_tokens=3, embed_dim=8, hidden_dim=16, num_layers=2)
ARCHITECTURES = [ONE, TWO, LSTM_ONE, LSTM_TWO]
each = pytest.mark.parametrize("architecture", ARCHITECTURES, ids=["transformer", "transformer-2", "lstm", "lstm-2"])
# One network of each kind, with two layers and three tokens: whatever could go wrong can go wrong there.
deepest = pytest.mark.parametrize("architecture", [TWO, LSTM_TWO], ids=["transformer-2", "lstm-2"])
BATCH, LENGTH, ROWS = 3, 6, 2
TABLE, PAIRWISE = transformer.TABLE_PAIRS, 0


@functools.lru_cache
def compiled(architecture, length):
    """`apply` for sequences of one length: the small tests below share its program for each kind of prefix."""
    del length
    return quick_jit(make_predictor(architecture).apply)


def apply(architecture, tokens, prefix=NO_PREFIX):
    return np.asarray(compiled(architecture, tokens.shape[1])(parameters(architecture), jnp.asarray(tokens), prefix))


def draw_tokens(architecture, batch=BATCH, length=LENGTH, seed=2):
    return np.random.default_rng(seed).integers(0, architecture.num_tokens, (batch, length), dtype=np.int32)


def draw_prefix(architecture, kind, rows=ROWS):
    draw = np.random.default_rng(3)
    shapes = {
        "inputs": (rows, architecture.num_tokens),
        "embeddings": (rows, architecture.embed_dim),
        "layers": (architecture.num_layers, rows, architecture.embed_dim),
    }
    return Prefix(**{kind: jnp.asarray(draw.normal(size=shapes[kind]), jnp.float32)}) if kind != "none" else NO_PREFIX


@functools.lru_cache
def output_and_gradients(architecture, kind, pairs):
    """Log-probabilities, and the gradients of a random combination of them for parameters and prefix; in float64."""
    tokens = draw_tokens(architecture)
    weights = np.random.default_rng(4).normal(size=(*tokens.shape, architecture.num_tokens))

    def total(params, prefix):
        if pairs is None:
            log_probs = reference.log_probs(architecture, params, tokens, prefix)
        else:
            log_probs = make_predictor(architecture).apply(params, jnp.asarray(tokens), prefix)
        return (weights * log_probs).sum(), log_probs

    arguments = (parameters(architecture), draw_prefix(architecture, kind))
    with jax.enable_x64(True):
        run = quick_jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))
        (_, log_probs), gradients = run(*jax.tree.map(lambda x: np.asarray(x, np.float64), arguments))
    return jax.tree.map(np.asarray, (log_probs, gradients))


def assert_close(actual, expected):
    """Each array within 1e-9 of the largest value of the expected one."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, value), found in zip(jax.tree.leaves_with_path(expected), jax.tree.leaves(actual), strict=True):
        assert value.dtype == found.dtype == np.float64
        assert np.abs(value).max() > 1e-6, f"{path}: the comparison says nothing"
        difference = np.abs(found - value).max() / np.abs(value).max()
        assert difference <= 1e-9, f"{path}: relative difference {difference}"


@pytest.mark.parametrize(
    ("architecture", "kind", "pairs"),
    [
        (ONE, "inputs", TABLE),
        (ONE, "layers", PAIRWISE),
        (TWO, "none", TABLE),
        (TWO, "layers", TABLE),
        (TWO, "embeddings", PAIRWISE),
        (LSTM_ONE, "embeddings", TABLE),
        (LSTM_TWO, "none", TABLE),
        (LSTM_TWO, "inputs", TABLE),
        *(pytest.param(ONE, kind, TABLE, marks=pytest.mark.slow) for kind in ("none", "embeddings", "layers")),
        *(pytest.param(ONE, kind, PAIRWISE, marks=pytest.mark.slow) for kind in ("none", "inputs", "embeddings")),
        *(pytest.param(TWO, kind, TABLE, marks=pytest.mark.slow) for kind in ("inputs", "embeddings")),
        *(pytest.param(TWO, kind, PAIRWISE, marks=pytest.mark.slow) for kind in ("none", "inputs", "layers")),
        *(pytest.param(LSTM_ONE, kind, TABLE, marks=pytest.mark.slow) for kind in ("none", "inputs")),
        pytest.param(LSTM_TWO, "embeddings", TABLE, marks=pytest.mark.slow),
    ],
    ids=lambda value: f"{type(value).__name__}-{value.num_layers}" if hasattr(value, "num_layers") else str(value),
)
def test_outputs_and_gradients_are_the_plain_networks(architecture, kind, pairs, monkeypatch):
    monkeypatch.setattr(transformer, "TABLE_PAIRS", pairs)
    log_probs, gradients = output_and_gradients(architecture, kind, pairs)
    expected, expected_gradients = output_and_gradients(architecture, kind, None)
    assert_close(log_probs, expected)
    params, prefix = gradients
    expected_params, expected_prefix = expected_gradients
    if kind == "none":
        assert prefix == NO_PREFIX
    else:
        assert_close(prefix, expected_prefix)
    assert_close(params, expected_params)


@each
def test_probabilities_sum_to_one(architecture):
    log_probs = apply(architecture, draw_tokens(architecture))
    assert log_probs.shape == (BATCH, LENGTH, architecture.num_tokens)
    np.testing.assert_allclose(np.exp(log_probs).sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "pairs"),
    [(TWO, TABLE), (TWO, PAIRWISE), (LSTM_TWO, TABLE)],
    ids=["transformer-table", "transformer-pairwise", "lstm"],
)
def test_causal_by_gradients(architecture, pairs, monkeypatch):
    """Output n depends on every input before n, and on no other."""
    monkeypatch.setattr(transformer, "TABLE_PAIRS", pairs)
    network, prefix = Network(architecture), draw_prefix(architecture, "inputs")
    inputs = jax.nn.one_hot(draw_tokens(architecture, batch=1, length=LENGTH), architecture.num_tokens)

    def outputs(inputs):
        def read(network):
            first, later = network.torso.predict(network.prompt(prefix, LENGTH), inputs[:, :-1])
            return jax.nn.log_softmax(network.unembedding(jnp.concatenate([first[None], later[0]])))

        return network.apply({"params": parameters(architecture)}, method=read)

    jacobian = np.asarray(quick_jit(jax.jacrev(outputs))(inputs))[:, :, 0]  # (N outputs, K, N inputs, K)
    size = np.abs(jacobian).max((1, 3))
    assert (size[np.triu_indices(LENGTH)] == 0).all()
    assert (size[np.tril_indices(LENGTH, -1)] > 1e-6).all()


@each
def test_causal_by_changing_tokens(architecture):
    tokens = draw_tokens(architecture)
    log_probs = apply(architecture, tokens)
    for n in range(LENGTH):
        changed = tokens.copy()
        changed[:, n:] = (changed[:, n:] + 1) % architecture.num_tokens
        other = apply(architecture, changed)
        np.testing.assert_array_equal(other[:, : n + 1], log_probs[:, : n + 1])
        assert n == LENGTH - 1 or (np.abs(other - log_probs)[:, n + 1 :].max((0, 2)) > 1e-4).all()


@deepest
def test_the_last_token_is_never_read_and_one_token_is_enough(architecture):
    first = draw_tokens(architecture, length=1)
    log_probs = apply(architecture, first)
    assert (log_probs == log_probs[:1]).all(), "nothing distinguishes the sequences yet"
    expected = apply(architecture, draw_tokens(architecture))[:, :1]
    np.testing.assert_allclose(log_probs, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "pairs"),
    [(TWO, TABLE), (TWO, PAIRWISE), (LSTM_TWO, TABLE)],
    ids=["transformer-table", "transformer-pairwise", "lstm"],
)
def test_a_hard_prefix_is_the_same_tokens_as_data(architecture, pairs, monkeypatch):
    monkeypatch.setattr(transformer, "TABLE_PAIRS", pairs)
    compiled.cache_clear()  # its programs were traced with the other path
    prompt, tokens = np.array([2, 0]), draw_tokens(architecture)
    data = np.concatenate([np.tile(prompt, (len(tokens), 1)), tokens], axis=1).astype(np.int32)
    actual = apply(architecture, tokens, hard_prefix(prompt, architecture.num_tokens))
    compiled.cache_clear()
    expected = np.asarray(reference_apply(architecture, data))[:, len(prompt) :]
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(apply(architecture, data)[:, len(prompt) :], expected, rtol=1e-5, atol=1e-6)
    compiled.cache_clear()


@functools.lru_cache
def _reference(architecture):
    return quick_jit(lambda params, data: reference.log_probs(architecture, params, data, NO_PREFIX))


def reference_apply(architecture, data):
    return _reference(architecture)(parameters(architecture), data)


@deepest
def test_a_soft_prefix_equal_to_a_tokens_embedding_is_that_token(architecture):
    prompt, params = np.array([2, 0]), parameters(architecture)
    rows = params["embedding"]["kernel"][prompt] + params["embedding"]["bias"][None]
    tokens = draw_tokens(architecture)
    expected = apply(architecture, tokens, hard_prefix(prompt, architecture.num_tokens))
    np.testing.assert_allclose(apply(architecture, tokens, Prefix(embeddings=rows)), expected, rtol=1e-5, atol=1e-6)
    other = apply(architecture, tokens, hard_prefix(prompt[::-1], architecture.num_tokens))
    assert np.abs(other - expected).max() > 1e-3, "order and tokens of a prefix matter"


def test_positions_move_on_behind_a_prefix():
    """All rows are the same; only their positions, and with them the outputs, differ."""
    params = parameters(TWO) | {"embedding": jax.tree.map(jnp.zeros_like, parameters(TWO)["embedding"])}
    tokens, run = jnp.asarray(draw_tokens(TWO)), compiled(TWO, LENGTH)
    longer = run(params, tokens, Prefix(inputs=jnp.zeros((ROWS, 3))))
    shorter = run(params, tokens, NO_PREFIX)
    np.testing.assert_allclose(longer[:, :-ROWS], shorter[:, ROWS:], rtol=1e-5, atol=1e-6)
    assert np.abs(longer - shorter).max() > 1e-4
    position = sinusoids(3, 4)
    np.testing.assert_allclose(position[2], [np.sin(2), np.sin(0.02), np.cos(2), np.cos(0.02)], rtol=1e-6)


def test_the_parts_of_the_parameters_have_names():
    for architecture in ARCHITECTURES:
        params = jax.eval_shape(make_predictor(architecture).init, jax.random.key(0))
        assert set(params) == {"embedding", "torso", "unembedding"}
        assert params["embedding"]["kernel"].shape == (architecture.num_tokens, architecture.embed_dim)
        assert set(params["unembedding"]) == {"kernel", "bias"}
        assert len(params["torso"]) == architecture.num_layers
    assert {n for n in params["torso"]["cells_0"]} == {a + b for a in "ih" for b in "ifgo"}


def test_a_prefix_in_every_layer_needs_a_transformer():
    with pytest.raises(ValueError, match="^prefix = layers: .* Transformer"):
        make_predictor(LSTM_ONE).prompt(parameters(LSTM_ONE), Prefix(layers=jnp.zeros((1, 2, 16))), 3)


def test_equal_sizes_share_one_predictor():
    assert make_predictor(LSTM(2, 16, 16)) is make_predictor(LSTM(2, 16, 16, 1))


def test_a_product_has_the_usual_gradients():
    draw = np.random.default_rng(0)
    x, kernel, dy = (jnp.asarray(draw.normal(size=s), jnp.float32) for s in ((5, 3), (3, 4), (5, 4)))
    value, pull_back = jax.vjp(product, x, kernel)
    np.testing.assert_allclose(value, x @ kernel, rtol=1e-6)
    for actual, expected in zip(pull_back(dy), (dy @ kernel.T, x.T @ dy), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_log_loss_is_that_of_the_tokens():
    log_probs = jnp.log(jnp.array([[[0.2, 0.8], [0.5, 0.5]]]))
    np.testing.assert_allclose(log_loss(log_probs, jnp.array([[1, 0]])), [[-np.log(0.8), -np.log(0.5)]], rtol=1e-6)


sizes, few = st.integers(1, 6), st.integers(1, 2)  # programs are only traced, but even that takes its time


@settings(max_examples=3)
@given(tokens=st.integers(2, 5), pairs=sizes, heads=sizes, layers=few, mlp=sizes, length=sizes, rows=sizes)
def test_any_transformer_predicts(tokens, pairs, heads, layers, mlp, length, rows):
    check_shapes(Transformer(tokens, 2 * pairs * heads, heads, layers, mlp), length, rows)


@settings(max_examples=5)
@given(tokens=st.integers(2, 5), embed=sizes, hidden=sizes, layers=few, length=sizes, rows=sizes)
def test_any_lstm_predicts(tokens, embed, hidden, layers, length, rows):
    check_shapes(LSTM(tokens, embed, hidden, layers), length, rows)


def check_shapes(architecture, length, rows):
    predictor = make_predictor.__wrapped__(architecture)
    params = jax.eval_shape(predictor.init, jax.random.key(0))
    prefix = Prefix(embeddings=jnp.zeros((rows, architecture.embed_dim)))
    shape = jax.eval_shape(predictor.apply, params, jnp.zeros((2, length), jnp.int32), prefix).shape
    assert shape == (2, length, architecture.num_tokens)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LSTM(num_tokens=1), "num_tokens = 1: must be >= 2"),
        (lambda: LSTM(hidden_dim=0), "hidden_dim = 0: must be >= 1"),
        (lambda: LSTM(num_layers=-1), "num_layers = -1: must be >= 1"),
        (lambda: Transformer(mlp_dim=0), "mlp_dim = 0: must be >= 1"),
        (lambda: Transformer(num_heads=0), "num_heads = 0: must be >= 1"),
        (
            lambda: Transformer(embed_dim=10, num_heads=4),
            "embed_dim = 10: must be even and a multiple of num_heads = 4",
        ),
        (lambda: Transformer(embed_dim=3, num_heads=3), "embed_dim = 3: must be even and a multiple of num_heads = 3"),
    ],
)
def test_impossible_sizes(make, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        make()


def test_shapes_are_checked():
    with pytest.raises(TypeCheckError):
        make_predictor(LSTM_ONE).apply(parameters(LSTM_ONE), jnp.zeros((3,), jnp.int32))
