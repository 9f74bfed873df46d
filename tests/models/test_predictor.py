"""Both networks against plain ones that read the whole sequence, and what every sequential predictor must keep to."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from reference import parameters, quick_jit

from bayesprompt.checks import UserError
from bayesprompt.models.predictor import LSTM, Network, Predictor, Transformer, make_predictor, nll, predict_all
from bayesprompt.models.prefixes import NO_PREFIX, Prefix, hard_prefix
from bayesprompt.models.transformer import sinusoids
from bayesprompt.settings import x64
from bayesprompt.sources.coins import DirichletCategorical
from bayesprompt.tuning.fitting import FitConfig, fit
from bayesprompt.tuning.hard_search import hard_search
from bayesprompt.tuning.tuners import make_tuner

ONE = Transformer(num_tokens=2, embed_dim=16, num_heads=2, num_layers=1, mlp_dim=32)
TWO = Transformer(num_tokens=3, embed_dim=16, num_heads=4, num_layers=2, mlp_dim=24)
LSTM_ONE = LSTM(num_tokens=2, embed_dim=16, hidden_dim=16, num_layers=1)
LSTM_TWO = LSTM(num_tokens=3, embed_dim=8, hidden_dim=16, num_layers=2)
ARCHITECTURES = [ONE, TWO, LSTM_ONE, LSTM_TWO]
each = pytest.mark.parametrize("architecture", ARCHITECTURES, ids=["transformer", "transformer-2", "lstm", "lstm-2"])
# One network of each kind, with two layers and three tokens: whatever could go wrong can go wrong there.
deepest = pytest.mark.parametrize("architecture", [TWO, LSTM_TWO], ids=["transformer-2", "lstm-2"])
BATCH, LENGTH, ROWS = 3, 6, 2


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
def output_and_gradients(architecture, kind, plain):
    """Log-probabilities, and the gradients of a random combination of them for parameters and prefix; in float64."""
    tokens = draw_tokens(architecture)
    weights = np.random.default_rng(4).normal(size=(*tokens.shape, architecture.num_tokens))

    def total(params, prefix):
        if plain:
            log_probs = reference.log_probs(architecture, params, tokens, prefix)
        else:
            log_probs = make_predictor(architecture).apply(params, jnp.asarray(tokens), prefix)
        return (weights * log_probs).sum(), log_probs

    arguments = (parameters(architecture), draw_prefix(architecture, kind))
    with x64(True):
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
    ("architecture", "kind"),
    [
        (ONE, "inputs"),
        (TWO, "none"),
        (TWO, "layers"),
        (LSTM_ONE, "embeddings"),
        (LSTM_TWO, "none"),
        (LSTM_TWO, "inputs"),
        *(pytest.param(ONE, kind, marks=pytest.mark.slow) for kind in ("none", "embeddings", "layers")),
        *(pytest.param(TWO, kind, marks=pytest.mark.slow) for kind in ("inputs", "embeddings")),
        *(pytest.param(LSTM_ONE, kind, marks=pytest.mark.slow) for kind in ("none", "inputs")),
        pytest.param(LSTM_TWO, "embeddings", marks=pytest.mark.slow),
    ],
    ids=lambda value: f"{type(value).__name__}-{value.num_layers}" if hasattr(value, "num_layers") else str(value),
)
def test_outputs_and_gradients_are_the_plain_networks(architecture, kind):
    log_probs, gradients = output_and_gradients(architecture, kind, plain=False)
    expected, expected_gradients = output_and_gradients(architecture, kind, plain=True)
    assert_close(log_probs, expected)
    params, prefix = gradients
    expected_params, expected_prefix = expected_gradients
    if kind == "none":
        assert prefix == NO_PREFIX
    else:
        assert_close(prefix, expected_prefix)
    assert_close(params, expected_params)


@pytest.mark.parametrize("width", [8, pytest.param(128, marks=pytest.mark.slow)])
def test_weights_of_any_size_are_read_as_they_are(width):
    """Attention scores grow with the square of the weights: to some thousands of nats here."""
    architecture = Transformer(2, width, 4, 1, width)
    tokens, prefix = draw_tokens(architecture, length=12), draw_prefix(architecture, "embeddings")

    def total(log_probs):
        return lambda params, prefix: (nll(log_probs(params, prefix), jnp.asarray(tokens)).sum(),) * 2

    fast = lambda params, prefix: make_predictor(architecture).apply(params, jnp.asarray(tokens), prefix)  # noqa: E731
    plain = lambda params, prefix: reference.log_probs(architecture, params, tokens, prefix)  # noqa: E731
    run, expected = (quick_jit(jax.value_and_grad(total(f), argnums=(0, 1), has_aux=True)) for f in (fast, plain))
    for scale in (1, 3, 10, 30, 100):
        given = jax.tree.map(lambda x, scale=scale: np.asarray(scale * x), (parameters(architecture), prefix))
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(run(*given))), "in float32"
        with x64(True):
            wide = jax.tree.map(lambda x: np.asarray(x, np.float64), given)
            for found, wanted in zip(*map(jax.tree.leaves, (run(*wide), expected(*wide))), strict=True):
                np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-7 * (1e-6 + np.abs(wanted).max()))


@each
def test_probabilities_sum_to_one(architecture):
    log_probs = apply(architecture, draw_tokens(architecture))
    assert log_probs.shape == (BATCH, LENGTH, architecture.num_tokens)
    np.testing.assert_allclose(np.exp(log_probs).sum(-1), 1, rtol=1e-5)


@deepest
def test_causal_by_gradients(architecture):
    """The output of row i depends on every row up to i, and on no other."""
    rows = jnp.asarray(np.random.default_rng(3).normal(size=(LENGTH, architecture.embed_dim)), jnp.float32)

    def outputs(rows):
        def read(network):
            return network.torso.inspect(rows[None], 1 + ROWS, None)[1][0]

        return Network(architecture).apply({"params": parameters(architecture)}, method=read)

    size = np.abs(quick_jit(jax.jacrev(outputs))(rows)).max((1, 3))  # (rows of output, rows of input)
    assert (size[np.triu_indices(LENGTH, 1)] == 0).all()
    assert (size[np.tril_indices(LENGTH)] > 1e-6).all()


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


@deepest
def test_a_hard_prefix_is_the_same_tokens_as_data(architecture):
    prompt, tokens = np.array([2, 0]), draw_tokens(architecture)
    data = np.concatenate([np.tile(prompt, (len(tokens), 1)), tokens], axis=1).astype(np.int32)
    actual = apply(architecture, tokens, hard_prefix(prompt, architecture.num_tokens))
    expected = np.asarray(reference_apply(architecture, data))[:, len(prompt) :]
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(apply(architecture, data)[:, len(prompt) :], expected, rtol=1e-5, atol=1e-6)


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
    with pytest.raises(UserError, match="^prefix = layers: must be inputs or embeddings for an LSTM"):
        make_predictor(LSTM_ONE).prompt(parameters(LSTM_ONE), Prefix(layers=jnp.zeros((1, 2, 16))), 3)


def test_equal_sizes_share_one_predictor():
    assert make_predictor(LSTM(2, 16, 16)) is make_predictor(LSTM(2, 16, 16, 1))


def test_a_loss_is_that_of_the_tokens():
    log_probs = jnp.log(jnp.array([[[0.2, 0.8], [0.5, 0.5]]]))
    np.testing.assert_allclose(nll(log_probs, jnp.array([[1, 0]])), [[-np.log(0.8), -np.log(0.5)]], rtol=1e-6)


@each
@pytest.mark.parametrize("wrong", [-1, 7])
def test_a_token_outside_the_alphabet_never_passes(architecture, wrong):
    """Where tokens are known it is refused; inside jit all that it touches is NaN, and so is every training loss."""
    params, predictor, tokens = parameters(architecture), make_predictor(architecture), draw_tokens(architecture)
    tokens[1, 3] = wrong
    for call in (predictor.apply, lambda *given: predict_all(predictor, given[0], NO_PREFIX, given[1])):
        with pytest.raises(UserError, match=f"^tokens = {wrong}: "):
            call(params, tokens)
    wrong_after = np.isnan(apply(architecture, tokens)).any(-1)
    assert wrong_after[1, 4:].all() and not wrong_after[[0, 2]].any()
    state = predictor.prompt(params, NO_PREFIX, LENGTH)
    losses = np.asarray(predictor.token_losses(params, state, jnp.asarray(tokens)))
    assert np.isnan(losses[1, 3:]).all() and np.isfinite(losses[[0, 2]]).all()
    tokens[1, 3], tokens[0, -1] = 0, wrong  # the last token is read by nothing but its own loss
    assert np.isnan(predictor.token_losses(params, state, jnp.asarray(tokens))).sum() == 1


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        (Prefix(inputs=jnp.zeros((2, 2))), r"inputs of shape \(2, 2\): must be \(L, 3\)"),
        (Prefix(embeddings=jnp.zeros((2, 3))), r"embeddings of shape \(2, 3\): must be \(L, 16\)"),
        (Prefix(layers=jnp.zeros((1, 2, 16))), r"layers of shape \(1, 2, 16\): must be \(2, L, 16\)"),
        (Prefix(jnp.zeros((2, 3)), jnp.zeros((2, 16))), "inputs and embeddings: must have one field at most"),
    ],
)
def test_a_prefix_of_another_network_is_refused(prefix, message):
    params, predictor, tokens = parameters(TWO), make_predictor(TWO), draw_tokens(TWO)
    for call in (
        lambda: predictor.apply(params, tokens, prefix),
        lambda: jax.jit(predictor.apply)(params, tokens, prefix),
        lambda: predictor.prompt(params, prefix, LENGTH),
    ):
        with pytest.raises(UserError, match=f"^prefix = {message}"):
            call()


class Sizes(NamedTuple):
    num_tokens: int = 3
    embed_dim: int = 4
    num_layers: int = 1


def own_predictor():
    """Predictions from the mean embedding of all rows so far: a network of one's own, that keeps only the prefix."""

    def init(key):
        return {"embedding": jax.random.normal(key, (3, 4)), "unembedding": jax.random.normal(key, (4, 3))}

    def predict(params, prefix, tokens):
        rows = params["embedding"][tokens[:, :-1]]
        given = jnp.zeros((1, 4)) if prefix.embeddings is None else prefix.embeddings
        rows = jnp.concatenate([jnp.broadcast_to(given, (len(tokens), *given.shape)), rows], axis=1)
        means = jnp.cumsum(rows, axis=1) / jnp.arange(1, rows.shape[1] + 1)[None, :, None]
        return jax.nn.log_softmax(means[:, len(given) - 1 :] @ params["unembedding"])

    return Predictor(init, lambda params, prefix, length: prefix, predict, Sizes())


def test_a_network_of_ones_own_needs_four_fields():
    predictor, source = own_predictor(), DirichletCategorical((4.0, 1.0, 1.0))
    params = predictor.init(jax.random.key(0))
    tokens = draw_tokens(predictor.architecture, batch=6)
    np.testing.assert_allclose(
        predict_all(predictor, params, NO_PREFIX, tokens), predictor.apply(params, tokens), rtol=1e-6
    )
    with pytest.raises(UserError, match="^tokens = 3: "):
        predictor.apply(params, tokens + 1)
    config = FitConfig(steps=40, batch=32, length=8, learning_rate=0.05)
    for method in ("SoftPT", "EmbedWT", "UnembedWT", "FullWT"):
        found = fit(predictor, make_tuner(method, predictor.architecture, 2), params, source, config, jax.random.key(1))
        assert found.loss[0, -5:].mean() < found.loss[0, 0] - 0.3
    assert hard_search(predictor, params, 2, jnp.asarray(tokens)).loss.shape == (9,)


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
