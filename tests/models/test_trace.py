"""What `inspect` reads from every network: its predictions, flax's own layers, and the heads' outputs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from reference import parameters, quick_jit

from bayesprompt import catalog
from bayesprompt.checks import UserError
from bayesprompt.lab.cells import load_cell, load_network
from bayesprompt.measures.attention import (
    attention,
    attention_block,
    bias_decomposition,
    content_only,
    outputs,
    read_rows,
    relative_content_attention,
    spectrum,
)
from bayesprompt.measures.subspaces import moved_attention
from bayesprompt.models import trace
from bayesprompt.models.gpt import GPT, make_gpt
from bayesprompt.models.llama import Llama, make_llama
from bayesprompt.models.predictor import LSTM, Predictor, Transformer, make_predictor
from bayesprompt.models.prefixes import NO_PREFIX, Prefix, hard_prefix
from bayesprompt.models.trace import composed_heads, first_rows, inspect, layers_from_soft, soft_from_hard
from bayesprompt.settings import x64
from bayesprompt.store import Store

ONE = Transformer(num_tokens=2, embed_dim=16, num_heads=2, num_layers=1, mlp_dim=32)
TWO = Transformer(num_tokens=3, embed_dim=16, num_heads=4, num_layers=2, mlp_dim=24)
LSTM_ONE = LSTM(num_tokens=2, embed_dim=8, hidden_dim=16, num_layers=1)
LSTM_TWO = LSTM(num_tokens=3, embed_dim=8, hidden_dim=16, num_layers=2)
SORTER = GPT(embed_dim=12, num_heads=3, num_layers=2, pads=4)
LANGUAGE = Llama(num_tokens=9, embed_dim=24, num_heads=4, num_kv_heads=2, num_layers=2, mlp_dim=32, context=64)
quick_inspect = quick_jit(trace._inspect.__wrapped__, static_argnums=0)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(trace, "_inspect", quick_inspect)


@functools.cache
def network(sizes):
    """A predictor and parameters all of which matter: nowhere 0 or 1."""
    if isinstance(sizes, Transformer | LSTM):
        return make_predictor(sizes), parameters(sizes)
    predictor = make_gpt(sizes) if isinstance(sizes, GPT) else make_llama(sizes)
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(predictor.init, jax.random.key(0))
    return predictor, jax.tree.map(lambda x: jnp.asarray(0.4 * rng.normal(size=x.shape), jnp.float32), shapes)


def draw_tokens(sizes, batch=3, length=6):
    length = 20 if isinstance(sizes, GPT) else length
    return np.random.default_rng(2).integers(0, sizes.num_tokens, (batch, length), dtype=np.int32)


def draw_prefix(sizes, kind):
    draw = np.random.default_rng(3)
    return {
        "none": lambda: NO_PREFIX,
        "hard": lambda: hard_prefix(np.array([1, 0, 1]), sizes.num_tokens),
        "real": lambda: Prefix(inputs=jnp.asarray(draw.normal(size=(3, sizes.num_tokens)), jnp.float32)),
        "soft": lambda: Prefix(embeddings=jnp.asarray(draw.normal(size=(3, sizes.embed_dim)), jnp.float32)),
        "layers": lambda: Prefix(
            layers=jnp.asarray(draw.normal(size=(sizes.num_layers, 3, sizes.embed_dim)), jnp.float32)
        ),
    }[kind]()


def written_back(sizes, params, layer, reading):
    """What the heads' outputs, side by side, add to the residual stream."""
    heads = np.asarray(outputs(jax.tree.map(np.asarray, reading))).swapaxes(1, 2)
    heads = heads.reshape(*heads.shape[:2], -1)
    if isinstance(sizes, Llama):
        return heads @ np.asarray(params["torso"]["attention_output"][layer])
    block = params["torso"][f"blocks_{layer}"]["attention_output"]
    return heads @ np.asarray(block["kernel"]) + np.asarray(block.get("bias", 0))


@pytest.mark.parametrize("kind", ["none", "hard", "soft", "layers"])
@pytest.mark.parametrize("sizes", [TWO, LSTM_TWO, SORTER, LANGUAGE], ids=lambda sizes: type(sizes).__name__)
def test_every_network_keeps_the_same_promise(sizes, kind):
    if kind == "layers" and isinstance(sizes, LSTM):
        return
    (predictor, params), tokens, prefix = network(sizes), draw_tokens(sizes), draw_prefix(sizes, kind)
    layers, log_probs = inspect(predictor, params, tokens, prefix)
    expected = quick_jit(predictor.apply)(params, tokens, prefix)
    np.testing.assert_allclose(log_probs, expected, rtol=1e-4, atol=1e-4)
    assert np.abs(expected - expected[:1]).max() > 0.02, "the tokens make no difference"
    prompt = {Transformer: 1 + prefix.length, LSTM: 1 + prefix.length, GPT: 4}.get(
        type(sizes), 0 if kind == "layers" else prefix.length
    )
    asking = tokens.shape[1] - 1
    assert len(layers) == sizes.num_layers
    for index, layer in enumerate(layers):
        rows = (3, prompt + asking)
        width = getattr(sizes, "hidden_dim", sizes.embed_dim)
        assert layer.states.shape == (*rows, width) and layer.input.shape[:2] == rows
        assert np.ptp(layer.states[:, :prompt], axis=0).max(initial=0) <= 1e-5, "no token stands before the prompt"
        if isinstance(sizes, LSTM):
            assert layer.reading is None
            continue
        assert layer.reading.query.shape[2] == asking
        assert layer.reading.key.shape[2] == asking + isinstance(sizes, Transformer)
        assert layer.reading.prefix_key.shape[2] == (4 if isinstance(sizes, GPT) else prefix.length)
        expected = written_back(sizes, params, index, layer.reading)
        np.testing.assert_allclose(layer.states[:, prompt:], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["none", "hard", "real", "soft"])
@pytest.mark.parametrize("architecture", [TWO, LSTM_TWO], ids=["transformer", "lstm"])
def test_the_path_through_the_states_ends_in_the_predictors_output(architecture, kind):
    predictor, params = network(architecture)
    tokens, prefix = draw_tokens(architecture), draw_prefix(architecture, kind)
    with x64(True):
        given = jax.tree.map(lambda x: np.asarray(x, np.float64), (params, prefix))
        expected = quick_jit(predictor.apply)(given[0], tokens, given[1])
        found = inspect(predictor, given[0], tokens, given[1]).log_probs
    assert np.abs(found - expected).max() < 1e-12
    assert np.abs(expected - expected[:, :1]).max() > 0.1, "the tokens make no difference"


def test_the_lstms_states_are_those_of_flaxs_own_cells():
    (predictor, params), tokens, prefix = network(LSTM_TWO), draw_tokens(LSTM_TWO), draw_prefix(LSTM_TWO, "soft")
    layers = inspect(predictor, params, tokens, prefix).layers
    kernel, bias = params["embedding"]["kernel"], params["embedding"]["bias"]
    cell, data = nn.OptimizedLSTMCell(16), kernel[tokens[:, :-1]] + bias[None, None]
    rows = [jnp.broadcast_to(row, (3, 8)) for row in (bias, *prefix.embeddings)] + list(data.swapaxes(0, 1))
    carries = [(jnp.zeros((3, 16)), jnp.zeros((3, 16))) for _ in range(2)]
    steps = [quick_jit(functools.partial(cell.apply, {"params": params["torso"][f"cells_{i}"]})) for i in range(2)]
    for r, row in enumerate(rows):
        for index, step in enumerate(steps):
            np.testing.assert_allclose(layers[index].input[:, r], row, atol=1e-5)
            carries[index], row = step(carries[index], row)
            np.testing.assert_allclose(layers[index].states[:, r], carries[index][0], atol=1e-5)
    assert r == 3 + 5


def test_the_transformers_states_are_what_its_attention_adds():
    """Written out with flax's LayerNorm and attention; a 1-layer network, so the block reads embedding + position."""
    (predictor, params), tokens, prefix = network(ONE), draw_tokens(ONE), draw_prefix(ONE, "soft")
    layer = inspect(predictor, params, tokens, prefix).layers[0]
    kernel, bias = params["embedding"]["kernel"], params["embedding"]["bias"]
    block, rows = params["torso"]["blocks_0"], 3 + 6
    angle = np.arange(rows)[:, None] / 1e4 ** (np.arange(0, 16, 2) / 16)[None]
    data = kernel[tokens[:, :-1]] + bias[None, None]
    prompt = jnp.concatenate([bias[None], prefix.embeddings])
    x = jnp.concatenate([jnp.broadcast_to(prompt, (3, 4, 16)), data], axis=1)
    x = x + np.concatenate([np.sin(angle), np.cos(angle)], axis=1)[None]
    np.testing.assert_allclose(layer.input, x, atol=1e-6)

    def norm(name, y, **options):
        return nn.LayerNorm(**options).apply({"params": block[name]}, y)

    def heads(y):
        return y.reshape(3, rows, 2, 8)

    @quick_jit
    def added(x):
        x = norm("attention_norm", x)
        query, key = (norm(f"{n}_norm", x @ block[n]["kernel"], use_bias=False) for n in ("query", "key"))
        mask = nn.make_causal_mask(jnp.ones((3, rows)))
        attended = nn.dot_product_attention(heads(query), heads(key), heads(x @ block["value"]["kernel"]), mask=mask)
        return attended.reshape(3, rows, 16) @ block["attention_output"]["kernel"]

    np.testing.assert_allclose(layer.states, added(x), atol=1e-5)


@pytest.mark.parametrize("architecture", [ONE, LSTM_ONE], ids=["transformer", "lstm"])
def test_a_state_depends_on_the_rows_so_far_only(architecture):
    (predictor, params), tokens = network(architecture), draw_tokens(architecture)
    tokens[1] = tokens[0]
    tokens[1, 3] = 1 - tokens[0, 3]
    found = inspect(predictor, params, tokens, draw_prefix(architecture, "hard")).layers[0].states
    same = np.abs(found[0] - found[1]).max(axis=1) == 0
    assert same.tolist() == [True] * (1 + 3 + 3) + [False] * 2  # start, prefix, three tokens; then they part
    assert np.ptp(found[:, :4], axis=0).max() == 0  # what the prefix leaves is the same for every sequence


@functools.cache
def readings(kind):
    predictor, params = network(TWO)
    return [layer.reading for layer in inspect(predictor, params, draw_tokens(TWO), draw_prefix(TWO, kind)).layers]


@pytest.mark.parametrize("kind", ["hard", "soft", "layers"])
@pytest.mark.parametrize("layer", [0, 1])
def test_any_layer_is_rescaled_and_biased_given_its_inputs(kind, layer):
    reading = readings(kind)[layer]
    alone = attention(content_only(reading)).content
    np.testing.assert_allclose(relative_content_attention(reading), alone, rtol=0, atol=1e-5)
    parts, whole = bias_decomposition(reading), outputs(reading)
    np.testing.assert_allclose(parts.bias + parts.kept, whole, rtol=0, atol=1e-5 * np.abs(whole).max())


@pytest.mark.parametrize("sizes", [TWO, LANGUAGE], ids=lambda sizes: type(sizes).__name__)
def test_a_layer_prefix_made_from_a_soft_one_is_read_alike_in_every_layer(sizes):
    (predictor, params), soft = network(sizes), draw_prefix(sizes, "soft")
    layers = layers_from_soft(predictor, params, soft)
    assert layers.layers.shape == (2, 3, sizes.embed_dim)
    both = [inspect(predictor, params, draw_tokens(sizes), prefix) for prefix in (soft, layers)]
    for one, other in zip(*(found.layers for found in both), strict=True):
        for expected, found in zip(one.reading, other.reading, strict=True):
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    n = both[1].log_probs.shape[1]  # a prompt of rows predicts the first token too, in the language model
    np.testing.assert_allclose(both[1].log_probs, both[0].log_probs[:, -n:], rtol=0, atol=1e-4)


def test_hard_prompts_are_soft_ones_and_soft_ones_are_prefixes():
    (predictor, params), tokens, hard = network(TWO), draw_tokens(TWO), draw_prefix(TWO, "hard")
    predict = quick_jit(lambda prefix: predictor.apply(params, tokens, prefix))
    soft = soft_from_hard(predictor, params, hard)
    expected, *others = (np.asarray(predict(p)) for p in (hard, soft, layers_from_soft(predictor, params, soft)))
    for found in others:
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    # What is reproduced is not what the network does behind any prefix.
    assert np.abs(np.asarray(predict(draw_prefix(TWO, "soft"))) - expected).max() > 0.01
    direct = layers_from_soft(predictor, params, hard)
    np.testing.assert_array_equal(direct.layers, layers_from_soft(predictor, params, soft).layers)


def test_the_trained_coin_transformers_soft_prefixes():
    cell = catalog.cell("single-coin", "transformer", "SoftPT")
    predictor, params = load_network(cell, Store())
    tokens = np.random.default_rng(0).integers(2, size=(2, 30))
    for rows in load_cell(cell, Store()).prefix.values[:2]:
        reading = inspect(predictor, params, tokens, Prefix(embeddings=jnp.asarray(rows))).layers[0].reading
        reading = jax.tree.map(np.asarray, reading)
        whole, parts = outputs(reading), bias_decomposition(reading)
        alone = attention(content_only(reading)).content
        assert np.abs(relative_content_attention(reading) - alone).max() <= 1e-5 * alone.max()
        assert np.abs(parts.bias + parts.kept - whole).max() <= 1e-5 * np.abs(whole).max()
        assert 0.05 < parts.share.max() <= 1
        values = spectrum((whole - parts.kept).swapaxes(0, 1).reshape(4, -1, 32))
        assert (values[:, 6:] <= 1e-5 * values[:, :1]).all() and len(values) == 4


@pytest.fixture(scope="module")
def sorter():
    """A GPT all of whose parameters matter but for the biases of its dense layers, which are 0; tokens; a prefix."""
    shapes = jax.eval_shape(lambda: make_gpt(SORTER).init(jax.random.key(0)))
    rng = np.random.default_rng(1)

    def drawn(path, x):
        dense_bias = path[-1].key == "bias" and not path[-2].key.endswith("norm")
        return (rng.normal(size=x.shape) * (0 if dense_bias else 0.5)).astype(np.float32)

    tokens = rng.integers(8, size=(5, 20)).astype(np.int32)
    prefix = Prefix(layers=rng.normal(size=(2, 4, 12)).astype(np.float32))
    return jax.tree_util.tree_map_with_path(drawn, shapes), tokens, prefix


@pytest.mark.parametrize("rows", [4, 2, 0])
def test_composed_heads_are_the_first_block_of_the_network(sorter, rows):
    params, tokens, prefix = sorter
    prefix = Prefix(layers=prefix.layers[:, :rows]) if rows else NO_PREFIX
    x, s = first_rows(SORTER, params, tokens, prefix)
    layer = inspect(make_gpt(SORTER), params, tokens, prefix).layers[0]
    heads = composed_heads(SORTER, params, 0)
    np.testing.assert_allclose(attention_block(heads, x, s), layer.states[:, 4:], rtol=0, atol=2e-4)
    for h, head in enumerate(heads):
        given, own = attention(layer.reading), attention(read_rows(head, x, s))
        np.testing.assert_allclose(own.prefix, given.prefix[:, h], rtol=0, atol=1e-5)
        np.testing.assert_allclose(own.content, given.content[:, h], rtol=0, atol=1e-5)


def test_the_second_blocks_heads_are_its_own(sorter):
    params, *_ = sorter
    first, second = (composed_heads(SORTER, params, layer)[2] for layer in (0, 1))
    block = params["torso"]["blocks_1"]
    np.testing.assert_allclose(second.W_Q, np.asarray(block["query"]["kernel"])[:, 8:].T, rtol=1e-6)
    out = np.asarray(block["attention_output"]["kernel"], float)[8:]
    np.testing.assert_allclose(second.W_V, (np.asarray(block["value"]["kernel"], float)[:, 8:] @ out).T, rtol=1e-6)
    assert np.abs(first.W_K - second.W_K).max() > 0.1


def test_a_prefix_moves_the_second_layers_attention_and_not_the_first_ones(sorter):
    params, tokens, prefix = sorter
    with_prefix, without = (inspect(make_gpt(SORTER), params, tokens, rows).layers for rows in (prefix, NO_PREFIX))
    moved = [
        moved_attention(relative_content_attention(a.reading), relative_content_attention(b.reading)).mean()
        for a, b in zip(with_prefix, without, strict=True)
    ]
    assert moved[0] < 1e-5 and moved[1] > 0.01


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: inspect(*network(TWO), draw_tokens(TWO) + 1), "tokens = 3: "),
        (lambda: inspect(*network(TWO), draw_tokens(TWO), draw_prefix(SORTER, "soft")), "prefix = embeddings of shape"),
        (lambda: inspect(Predictor(*network(TWO)[0][:4]), {}, draw_tokens(TWO)), "predictor = Transformer: must have"),
        (
            lambda: inspect(*network(LSTM_TWO), draw_tokens(LSTM_TWO), Prefix(layers=jnp.zeros((2, 3, 8)))),
            "prefix = layers: must be inputs or embeddings",
        ),
        (lambda: inspect(*network(SORTER), draw_tokens(TWO)), "length = 6: must be 20"),
        (lambda: layers_from_soft(*network(LSTM_TWO), draw_prefix(LSTM_TWO, "soft")), "predictor = LSTM: must have"),
        (lambda: layers_from_soft(*network(TWO), NO_PREFIX), "prefix = no inputs or embeddings: must be"),
        (lambda: soft_from_hard(*network(TWO), draw_prefix(TWO, "soft")), "prefix = no inputs: must be"),
        (lambda: composed_heads(SORTER, {}, 2), "layer = 2: must lie in 0..1"),
    ],
)
def test_bad_input_is_told_in_one_line(make, message):
    with pytest.raises(UserError, match=f"^{message}") as told:
        make()
    assert "\n" not in str(told.value)
