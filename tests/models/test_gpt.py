"""The GPT against the same network written out row by row, and what its prefix and its dropout do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayesprompt.checks import UserError
from bayesprompt.models.gpt import GPT, decode, make_gpt
from bayesprompt.models.prefixes import NO_PREFIX, Prefix
from bayesprompt.sources.digits import PRETRAINING_TASKS, one_task
from bayesprompt.tuning.tuners import make_tuner

SIZES = {
    "one head": GPT(embed_dim=12, num_heads=1, num_layers=1, pads=1),
    "no first norm": GPT(embed_dim=16, num_heads=4, num_layers=1, pads=1, first_norm=False),
    "deep": GPT(embed_dim=16, num_heads=2, num_layers=3, pads=4),
}
TOKENS = jax.jit(one_task(*PRETRAINING_TASKS).sample, static_argnums=(1, 2))(jax.random.key(3), 6, 20)[0]


def parameters(sizes):
    """Draw parameters all of which matter: biases and scales too."""
    params = jax.jit(make_gpt(sizes).init)(jax.random.key(0))
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    drawn = [x + 0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, drawn)


def written_out(sizes, params, tokens, layers=None):
    """Log-probabilities of the answer in float64: every sequence by itself, every row, one head after the other."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def norm(x, p):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]

    def dense(x, p):
        return x @ p["kernel"] + p.get("bias", 0)

    rows = np.r_[np.zeros(sizes.pads, int), tokens[:-1]]
    x = params["embedding"]["tokens"][rows] + params["embedding"]["positions"][: len(rows)]
    for i in range(sizes.num_layers):
        p, seen = params["torso"][f"blocks_{i}"], x.copy()
        if layers is not None:
            seen[: layers.shape[1]] = layers[i]
        seen = norm(seen, p["attention_norm"]) if sizes.first_norm else seen
        query, key, value = (dense(seen, p[name]) for name in ("query", "key", "value"))
        out, size = np.zeros_like(x), sizes.embed_dim // sizes.num_heads
        for h in range(sizes.num_heads):
            part = slice(h * size, (h + 1) * size)
            for n in range(len(rows)):
                scores = key[: n + 1, part] @ query[n, part] / np.sqrt(size)
                weights = np.exp(scores - scores.max())
                out[n, part] = weights @ value[: n + 1, part] / weights.sum()
        x = x + dense(out, p["attention_output"])
        hidden = dense(norm(x, p["mlp_norm"]), p["mlp_in"])
        hidden = 0.5 * hidden * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
        x = x + dense(hidden, p["mlp_out"])
    logits = dense(norm(x, params["unembedding"]["norm"]), params["unembedding"]["head"])[-sizes.size :]
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("prefixed", [False, True])
def test_predictions_are_those_of_the_network_written_out(name, prefixed):
    sizes, layers = SIZES[name], None
    params, predictor = parameters(sizes), make_gpt(sizes)
    if prefixed:
        layers = jax.random.normal(jax.random.key(2), (sizes.num_layers, sizes.pads, sizes.embed_dim))
    found = predictor.apply(params, TOKENS, NO_PREFIX if layers is None else Prefix(layers=layers))
    wanted = [
        written_out(sizes, params, row, None if layers is None else np.asarray(layers)) for row in np.array(TOKENS)
    ]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=2e-5)


def test_a_shorter_prefix_leaves_the_other_pads():
    sizes = SIZES["deep"]
    params, layers = parameters(sizes), jax.random.normal(jax.random.key(2), (3, 2, 16))
    found = make_gpt(sizes).apply(params, TOKENS[:2], Prefix(layers=layers))
    wanted = [written_out(sizes, params, row, np.asarray(layers)) for row in np.array(TOKENS[:2])]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=2e-5)


def test_rows_of_input_and_of_embedding_stand_at_the_pads():
    sizes = SIZES["deep"]
    params, predictor = parameters(sizes), make_gpt(sizes)
    rows = jax.nn.one_hot(jnp.zeros(4, int), 10)
    plain = predictor.apply(params, TOKENS)
    np.testing.assert_array_equal(predictor.apply(params, TOKENS, Prefix(inputs=rows)), plain)
    soft = Prefix(embeddings=jnp.broadcast_to(params["embedding"]["tokens"][0], (4, 16)))
    np.testing.assert_array_equal(predictor.apply(params, TOKENS, soft), plain)
    other = predictor.apply(params, TOKENS, Prefix(inputs=rows[:, ::-1]))
    assert np.abs(other - plain).max() > 0.01


@pytest.mark.parametrize("prefixed", [False, True])
def test_cached_decoding_writes_what_the_whole_network_prefers(prefixed):
    sizes = SIZES["deep"]
    params, prefix = parameters(sizes), NO_PREFIX
    if prefixed:
        prefix = Prefix(layers=3 * jax.random.normal(jax.random.key(2), (3, 4, 16)))
    tokens = np.array(TOKENS)
    tokens[:, 10:] = 0
    apply = jax.jit(make_gpt(sizes).apply)
    for i in range(10):
        tokens[:, 10 + i] = apply(params, tokens, prefix)[:, i].argmax(-1)
    np.testing.assert_array_equal(decode(sizes, params, tokens[:, :10], prefix), tokens[:, 10:])


def test_dropout_needs_a_key_and_keeps_the_mean():
    sizes = SIZES["deep"]
    params, predictor = parameters(sizes), make_gpt(sizes)
    state = predictor.prompt(params, NO_PREFIX, 20)
    one, other = (predictor.predict(params, state, TOKENS, key=jax.random.key(k)) for k in (1, 2))
    assert np.abs(one - other).max() > 0.01
    np.testing.assert_array_equal(one, predictor.predict(params, state, TOKENS, key=jax.random.key(1)))
    with_masks = predictor.prompt(params, NO_PREFIX, 20, key=jax.random.key(1))["choices"]
    changed = np.asarray(with_masks / state["choices"])
    np.testing.assert_allclose(np.unique(changed.round(4)), [0, round(1 / 0.9, 4)])
    assert abs((changed == 0).mean() - 0.1) < 0.02


def test_lora_of_rank_one_has_as_many_parameters_as_a_prefix_of_twelve_rows():
    sizes = GPT(pads=12)
    base = jax.eval_shape(make_gpt(sizes).init, jax.random.key(0))
    sizes_of = {}
    for method in ("LoRAWT", "PrefixTuning"):
        tuner = make_tuner(method, sizes, 12, 1, ("attention_output", "mlp_in", "mlp_out"))
        phi = jax.eval_shape(tuner.init, jax.random.key(0), base)
        sizes_of[method] = sum(x.size for x in jax.tree.leaves(phi))
    assert sizes_of == {"LoRAWT": 12_288, "PrefixTuning": 12_288}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embed_dim": 15, "num_heads": 2}, "embed_dim = 15"),
        ({"pads": 0}, "pads = 0"),
        ({"dropout": 1.0}, "dropout = 1.0"),
        ({"num_layers": 0}, "num_layers = 0"),
    ],
)
def test_wrong_sizes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        GPT(**change)


def test_a_prefix_longer_than_the_pads_is_refused():
    sizes = SIZES["one head"]
    with pytest.raises(ValueError, match="prefix = 2 rows: must be at most the 1 pads"):
        make_gpt(sizes).apply(parameters(sizes), TOKENS, Prefix(layers=jnp.zeros((1, 2, 12))))
    with pytest.raises(ValueError, match="length = 12: must be 20"):
        make_gpt(sizes).prompt(parameters(sizes), NO_PREFIX, 12)


def test_digits_and_prefixes_of_another_network_are_refused():
    sizes, inputs = SIZES["one head"], np.array(TOKENS[:, :10])
    inputs[2, 3] = 10
    for call in (lambda x: decode(sizes, parameters(sizes), x), lambda x: make_gpt(sizes).apply(parameters(sizes), x)):
        with pytest.raises(UserError, match="^tokens = 10: "):
            call(inputs)
    with pytest.raises(UserError, match=r"^prefix = layers of shape \(3, 1, 12\): must be \(1, L, 12\)"):
        decode(sizes, parameters(sizes), TOKENS[:, :10], Prefix(layers=jnp.zeros((3, 1, 12))))
    whole = np.concatenate([inputs, inputs], axis=1)
    log_probs = jax.jit(make_gpt(sizes).apply)(parameters(sizes), whole)
    assert np.isnan(log_probs).any((1, 2)).tolist() == [False, False, True, False, False, False], "inside jit"
