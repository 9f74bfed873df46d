"""The LLaMA network against the same network written out row by row, and what its prompts do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayesprompt.checks import UserError
from bayesprompt.measures.attention import (
    attention,
    bias_decomposition,
    content_only,
    outputs,
    relative_content_attention,
)
from bayesprompt.mechanism.language.tasks import Texts
from bayesprompt.models.llama import Llama, generate, make_llama, shapes
from bayesprompt.models.predictor import nll
from bayesprompt.models.prefixes import NO_PREFIX, Prefix, hard_prefix
from bayesprompt.models.trace import inspect
from bayesprompt.tuning.fitting import FitConfig, fit
from bayesprompt.tuning.tuners import make_tuner

GROUPED = Llama(num_tokens=50, embed_dim=24, num_heads=4, num_kv_heads=2, num_layers=2, mlp_dim=32, context=64)
SIZES = {
    "grouped heads": GROUPED,
    "an unembedding of its own": Llama(50, 24, 2, 2, 3, 40, 64, rope_base=50.0, norm_epsilon=1e-2, tied=False),
    "heads of a size of their own": Llama(50, 22, 3, 1, 1, 32, 64, head_size=6, rope_factors=(1.0, 2.5, 8.0)),
}
TEXTS = np.random.default_rng(0).integers(0, 50, (3, 7)).astype(np.int32)
TOKENS = jnp.asarray(TEXTS)
PROMPTS = ("none", "soft", "hard", "layers")
every_network = pytest.mark.parametrize("name", SIZES)
every_prompt = pytest.mark.parametrize("kind", PROMPTS)


@functools.cache
def parameters(sizes):
    """Draw parameters all of which matter, the norms' scales too, and large enough that attention is uneven."""
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        scale = 0.4 if leaf.ndim > 1 + ("torso" in jax.tree_util.keystr(path)) else 0.2
        return jnp.asarray(scale * rng.normal(size=leaf.shape) + ("norm" in path[-1].key), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes(sizes))


def products(jaxpr):
    """Count the products without a batch axis, those in inner programs too."""
    found = 0
    for equation in jaxpr.eqns:
        found += equation.primitive.name == "dot_general" and not equation.params["dimension_numbers"][1][0]
        inner = (getattr(leaf, "jaxpr", leaf) for leaf in jax.tree.leaves(list(equation.params.values())))
        found += sum(products(program) for program in inner if hasattr(program, "eqns"))
    return found


@functools.partial(jax.jit, static_argnums=(0, 1))
def apply(sizes, answer, params, tokens, prefix=NO_PREFIX):
    return make_llama(sizes, answer).apply(params, tokens, prefix)


def prompt(sizes, kind, rows=3):
    if kind == "hard":
        return hard_prefix(np.array([7, 3, 49])[:rows], sizes.num_tokens)
    drawn = np.random.default_rng(2).normal(size=(sizes.num_layers, 3, sizes.embed_dim)).astype(np.float32)
    if kind == "soft":
        return Prefix(embeddings=jnp.asarray(drawn[0, :rows]))
    if kind == "layers":
        return Prefix(layers=jnp.asarray(drawn[:, :rows]))
    return NO_PREFIX


def in_float64(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def written_out(sizes, params, tokens, prefix=NO_PREFIX):
    """Log-probabilities after each row that has a next one, in float64: one sequence, one position, one head at a time.

    Rows of a prompt in embedding space predict, too; rows given layer by layer are only read.
    """
    params = in_float64(params)
    size, base, shared = sizes.head_dim, sizes.rope_base, sizes.num_heads // sizes.num_kv_heads
    factors = sizes.rope_factors or (1.0,) * (size // 2)

    def norm(x, scale):
        return x / np.sqrt((x**2).mean() + sizes.norm_epsilon) * scale

    def turn(x, place):
        """Rotate the plane of coordinates i and i + size / 2, as a complex number."""
        half = size // 2
        angles = [place * base ** (-2 * i / size) / factors[i] for i in range(half)]
        z = (x[:half] + 1j * x[half:]) * np.exp(1j * np.array(angles))
        return np.r_[z.real, z.imag]

    x, given = params["embedding"][tokens], 0
    if prefix.inputs is not None:
        x = np.r_[np.asarray(prefix.inputs, np.float64) @ params["embedding"], x]
    elif prefix.embeddings is not None:
        x = np.r_[np.asarray(prefix.embeddings, np.float64), x]
    elif prefix.layers is not None:
        given = prefix.length
    for layer in range(sizes.num_layers):
        p = {name: weights[layer] for name, weights in params["torso"].items()}
        rows = x if not given else np.r_[np.asarray(prefix.layers[layer], np.float64), x]
        seen = [norm(row, p["attention_norm"]) for row in rows]
        out = []
        for place in range(given, len(rows)):
            attended = []
            for head in range(sizes.num_heads):
                own = slice(head * size, (head + 1) * size)
                kept = slice(head // shared * size, (head // shared + 1) * size)
                query = turn((seen[place] @ p["query"])[own], place)
                keys = [turn((row @ p["key"])[kept], j) for j, row in enumerate(seen[: place + 1])]
                weights = np.exp([query @ key / np.sqrt(size) for key in keys])
                values = [(row @ p["value"])[kept] for row in seen[: place + 1]]
                attended.append(sum(w * v for w, v in zip(weights, values, strict=True)) / weights.sum())
            y = x[place - given] + np.concatenate(attended) @ p["attention_output"]
            z = norm(y, p["mlp_norm"])
            gate = z @ p["mlp_gate"]
            out.append(y + (gate / (1 + np.exp(-gate)) * (z @ p["mlp_up"])) @ p["mlp_down"])
        x = np.array(out)
    rows = params["embedding"] if sizes.tied else params["unembedding"]["rows"]
    logits = np.array([norm(row, params["unembedding"]["norm"]) @ rows.T for row in x])
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@every_network
@every_prompt
def test_predictions_are_those_of_the_network_written_out(name, kind):
    sizes = SIZES[name]
    params, prefix = parameters(sizes), prompt(sizes, kind)
    found = apply(sizes, 0, params, TOKENS, prefix)
    behind_rows = kind in ("soft", "hard")
    assert found.shape == (3, 7 if behind_rows else 6, 50)
    wanted = [written_out(sizes, params, row[:-1], prefix)[prefix.length - 1 if behind_rows else 0 :] for row in TEXTS]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_the_written_out_network_heeds_every_row_of_a_prompt():
    """Else the test above could agree on nothing."""
    params = parameters(GROUPED)
    plain = written_out(GROUPED, params, TEXTS[0])
    for kind in PROMPTS[1:]:
        first, second = (written_out(GROUPED, params, TEXTS[0], prompt(GROUPED, kind, rows)) for rows in (2, 3))
        assert np.abs(first[-1] - plain[-1]).max() > 0.01
        assert np.abs(second[-1] - first[-1]).max() > 0.01


def test_a_hard_prompt_is_the_soft_prompt_of_its_rows():
    params, hard = parameters(GROUPED), prompt(GROUPED, "hard")
    soft = Prefix(embeddings=params["embedding"][np.array([7, 3, 49])])
    found, wanted = (apply(GROUPED, 0, params, TOKENS, prefix) for prefix in (hard, soft))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_a_hard_prompt_says_what_its_tokens_say_in_the_text():
    params = parameters(GROUPED)
    longer = jnp.concatenate([jnp.tile(jnp.array([7, 3, 49]), (3, 1)), TOKENS], axis=1)
    found = apply(GROUPED, 0, params, TOKENS, prompt(GROUPED, "hard"))
    np.testing.assert_allclose(found, apply(GROUPED, 0, params, longer)[:, 2:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "answer"), [("soft", 4), ("layers", 1)])
def test_an_answer_is_the_last_tokens_of_a_sequence(kind, answer):
    params, prefix = parameters(GROUPED), prompt(GROUPED, kind)
    whole = apply(GROUPED, 0, params, TOKENS, prefix)
    found = apply(GROUPED, answer, params, TOKENS, prefix)
    assert found.shape == (3, answer, 50)
    np.testing.assert_allclose(found, whole[:, -answer:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "answer"), [("none", 0), ("soft", 0), ("layers", 3)])
def test_a_token_costs_what_its_prediction_says_and_one_below_zero_is_read_as_zero_and_costs_nothing(kind, answer):
    params, predictor = parameters(GROUPED), make_llama(GROUPED, answer)
    state = predictor.prompt(params, prompt(GROUPED, kind), 7)
    padded, zeros = (TOKENS.at[1, 4:].set(token) for token in (-1, 0))
    found = predictor.token_losses(params, state, padded)
    log_probs = predictor.predict(params, state, zeros)
    wanted = np.array(nll(log_probs, zeros[:, -log_probs.shape[1] :]))
    assert wanted.min() > 0
    wanted[1, -3:] = 0
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_gradient_computes_no_product_with_the_weights_twice(monkeypatch):
    params, rows = parameters(GROUPED), prompt(GROUPED, "soft").embeddings

    def in_gradient():
        predictor = make_llama(GROUPED, answer=1)

        def loss(rows):
            return predictor.token_losses(params, predictor.prompt(params, Prefix(embeddings=rows), 7), TOKENS).sum()

        return products(jax.make_jaxpr(jax.grad(loss))(rows).jaxpr)

    policies = jax.checkpoint_policies
    kept = in_gradient()
    monkeypatch.setattr(policies, "save_only_these_names", lambda *_: policies.everything_saveable)
    assert kept == in_gradient()
    monkeypatch.setattr(policies, "save_only_these_names", lambda *_: policies.nothing_saveable)
    assert kept <= in_gradient() - 6  # what is kept: query, key, value, the attention block's output, gate, up


@pytest.mark.parametrize("kind", ["none", "soft", "layers"])
def test_greedy_decoding_repeats_the_most_probable_next_token(kind):
    params, prefix, steps = parameters(GROUPED), prompt(GROUPED, kind), 6
    found = generate(GROUPED, params, TOKENS, steps, prefix)
    assert found.shape == (3, steps)
    for said, row in zip(np.array(found), TEXTS, strict=True):
        row = list(row)
        for token in said:
            log_probs = written_out(GROUPED, params, row, prefix)[-1]
            assert token == log_probs.argmax() and np.diff(np.sort(log_probs)[-2:]) > 1e-3  # no near tie
            row.append(token)
    assert len(np.unique(found)) > 3


@pytest.mark.parametrize(("kind", "rows"), [("soft", 3), ("hard", 1)])
def test_greedy_decoding_starts_behind_a_prompt_alone(kind, rows):
    params, prefix, row = parameters(GROUPED), prompt(GROUPED, kind, rows), []
    found = np.array(generate(GROUPED, params, np.zeros((2, 0), np.int32), 5, prefix))
    for _ in range(5):
        row.append(int(written_out(GROUPED, params, np.array(row, int), prefix)[-1].argmax()))
    np.testing.assert_array_equal(found, [row, row])


def test_a_single_token_can_be_decoded():
    params = parameters(GROUPED)
    wanted = [[written_out(GROUPED, params, row)[-1].argmax()] for row in TEXTS]
    np.testing.assert_array_equal(generate(GROUPED, params, TOKENS, 1), wanted)


@pytest.mark.parametrize("kind", ["soft", "layers"])
def test_a_prompt_leaves_the_contents_relative_attention_and_adds_a_bias_in_every_head(kind):
    """Eq. 6 and 7, on what each block reads behind the prompt."""
    sizes = SIZES["an unembedding of its own"]
    for layer in inspect(make_llama(sizes), parameters(sizes), TOKENS, prompt(sizes, kind)).layers:
        reading = in_float64(layer.reading)
        assert reading.query.shape == (3, sizes.num_heads, 6, sizes.head_dim)
        assert reading.prefix_key.shape == (3, sizes.num_heads, 3, sizes.head_dim)
        wanted = attention(content_only(reading)).content
        np.testing.assert_allclose(relative_content_attention(reading), wanted, rtol=1e-9, atol=1e-15)
        share, bias, kept = bias_decomposition(reading)
        np.testing.assert_allclose(bias + kept, outputs(reading), rtol=1e-9, atol=1e-12)
        assert np.abs(bias).max(axis=(0, 2, 3)).min() > 0.1 and np.median(share) < 0.999  # in every head


@pytest.mark.parametrize("kind", ["none", "soft", "layers"])
def test_what_is_inspected_is_what_the_network_computes(kind):
    """The heads' outputs, put in their places in the rest of the network, give its predictions."""
    sizes = SIZES["an unembedding of its own"]
    params, prefix = parameters(sizes), prompt(sizes, kind)
    layers = inspect(make_llama(sizes), params, TOKENS, prefix).layers
    mixed = [outputs(in_float64(layer.reading)).swapaxes(1, 2).reshape(3, 6, sizes.embed_dim) for layer in layers]
    params64 = in_float64(params)

    def norm(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + sizes.norm_epsilon) * scale

    x = params64["embedding"][TEXTS[:, :-1]]
    for layer in range(sizes.num_layers):
        p = {key: weights[layer] for key, weights in params64["torso"].items()}
        x = x + mixed[layer] @ p["attention_output"]
        y = norm(x, p["mlp_norm"])
        gate = y @ p["mlp_gate"]
        x = x + (gate / (1 + np.exp(-gate)) * (y @ p["mlp_up"])) @ p["mlp_down"]
    rows = params64["embedding"] if sizes.tied else params64["unembedding"]["rows"]
    logits = norm(x, params64["unembedding"]["norm"]) @ rows.T
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    wanted = [written_out(sizes, params, row[:-1], prefix)[-6:] for row in TEXTS]
    np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(jax.__version_info__ < (0, 8), reason="JAX 0.7 maps over placeholders, which have no shape")
def test_repetitions_side_by_side_with_texts_of_their_own_are_fits_by_themselves():
    """Repetition r starts from and draws with fold_in(key, r): each is repeated by the step's mathematics."""
    config = FitConfig(steps=4, batch=2, length=5, learning_rate=0.05)
    params, tuner = parameters(GROUPED), make_tuner("SoftPT", GROUPED, 2)
    texts = jnp.asarray(np.random.default_rng(1).integers(0, 50, (2, 3, 5)), jnp.int32)
    key = jax.random.key(4)
    found = fit(make_llama(GROUPED), tuner, params, Texts(texts), config, key, repetitions=2, sources=True)
    assert found.loss.shape == (2, 4)
    optimizer = config.make_optimizer()

    @jax.jit
    def take_step(phi, moments, tokens):
        def loss(phi):
            log_probs = apply(GROUPED, 0, params, tokens, tuner.inject(params, phi)[1])
            return -jnp.take_along_axis(log_probs, tokens[:, :, None], 2).sum() / config.batch

        value, grad = jax.value_and_grad(loss)(phi)
        updates, moments = optimizer.update(grad, moments, phi)
        return phi + updates, moments, value

    for r in range(2):
        own = jax.random.fold_in(key, r)
        phi = tuner.init(jax.random.fold_in(own, 0), params)
        moments, losses = optimizer.init(phi), []
        for step in range(4):
            drawn, _ = Texts(texts[r]).sample(jax.random.fold_in(jax.random.fold_in(own, 1), step), 2, 5)
            phi, moments, value = take_step(phi, moments, drawn)
            losses.append(value)
        np.testing.assert_allclose(found.loss[r], losses, rtol=1e-4)
        np.testing.assert_allclose(found.phi[r], phi, rtol=1e-4, atol=1e-5)
    assert np.abs(found.loss[0] - found.loss[1]).min() > 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_tokens": 1}, "num_tokens = 1: must be >= 2"),
        ({"num_layers": 0}, "num_layers = 0: must be >= 1"),
        ({"num_heads": 0}, "num_heads = 0: must be >= 1"),
        ({"num_kv_heads": 0}, "num_kv_heads = 0: must be >= 1"),
        ({"context": -3}, "context = -3: must be >= 1"),
        ({"embed_dim": 21}, "embed_dim = 21: must be a multiple of 2 \\* num_heads = 8"),
        ({"num_kv_heads": 3}, "num_heads = 4: must be a multiple of num_kv_heads = 3"),
        ({"head_size": 5}, "head_size = 5: must be even and >= 2"),
        ({"head_size": 0}, "head_size = 0: must be even and >= 2"),
        ({"rope_factors": (2.0, 2.0)}, "rope_factors = 2 of them: must be 3, one an angle"),
        ({"rope_factors": (2.0, 0.0, 1.0)}, "rope_factors = .*: must be > 0 and finite"),
        ({"rope_factors": (2.0, float("nan"), 1.0)}, "rope_factors = .*: must be > 0 and finite"),
        ({"rope_base": 1.0}, "rope_base = 1.0: must be > 1"),
        ({"rope_base": float("nan")}, "rope_base = nan"),
        ({"norm_epsilon": 0.0}, "norm_epsilon = 0.0: must lie in"),
        ({"norm_epsilon": float("nan")}, "norm_epsilon = nan"),
    ],
)
def test_wrong_sizes_are_refused(change, message):
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        Llama(**(vars(GROUPED) | change))
    assert "\n" not in str(caught.value)


def test_more_positions_than_the_context_has_are_refused():
    params, predictor = parameters(GROUPED), make_llama(GROUPED)
    assert jax.eval_shape(lambda: apply(GROUPED, 0, params, jnp.zeros((1, 64), int))).shape == (1, 63, 50)
    with pytest.raises(ValueError, match="^length = 65: prompt and tokens must have at most 64 positions"):
        predictor.prompt(params, NO_PREFIX, 65)
    with pytest.raises(ValueError, match="^length = 62: prompt and tokens must have at most 64 positions"):
        predictor.prompt(params, prompt(GROUPED, "soft"), 62)
    with pytest.raises(ValueError, match="^length = 65: "):
        inspect(predictor, params, np.zeros((1, 65), np.int32))
    with pytest.raises(ValueError, match="^length = 65: "):
        generate(GROUPED, params, np.zeros((1, 60), np.int32), 5)


def test_tokens_that_the_vocabulary_does_not_have():
    params, predictor, wrong = parameters(GROUPED), make_llama(GROUPED), TEXTS.copy()
    wrong[1, 4] = 50
    for call in (predictor.apply, lambda p, x: generate(GROUPED, p, x, 2), lambda p, x: inspect(predictor, p, x)):
        with pytest.raises(UserError, match="^tokens = 50: "):
            call(params, wrong)
    losses = predictor.token_losses(params, predictor.prompt(params, NO_PREFIX, 7), jnp.asarray(wrong))
    assert np.isnan(losses).any(1).tolist() == [False, True, False]
    with pytest.raises(UserError, match=r"^prefix = inputs of shape \(3, 2\): must be \(L, 50\)"):
        predictor.prompt(params, hard_prefix(np.array([0, 1, 1]), 2), 7)


@pytest.mark.parametrize("kind", ["none", "layers"])
def test_decoding_from_nothing_is_refused(kind):
    with pytest.raises(UserError, match=r"^tokens = array of shape \(1, 0\): must be \(B, N\), N >= 1 or behind a"):
        generate(GROUPED, parameters(GROUPED), np.zeros((1, 0), np.int32), 3, prompt(GROUPED, kind))


@pytest.mark.parametrize(
    ("tokens", "steps", "message"),
    [
        ([[3, 50]], 2, "tokens = 50: "),
        ([[3, -1]], 2, "tokens = -1: "),
        ([3], 2, r"tokens = array of shape \(1,\): must be \(B, N\)"),
        ([[3]], -1, "steps = -1: "),
        ([[3]], 2.0, "steps = 2.0: "),
    ],
)
def test_what_cannot_be_decoded_is_refused(tokens, steps, message):
    plain = generate.__wrapped__  # without the checks of shapes that only tests make
    with pytest.raises(UserError, match=f"^{message}") as caught:
        plain(GROUPED, parameters(GROUPED), np.array(tokens), steps)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", PROMPTS)
def test_no_steps_give_no_tokens_and_no_sequences_none(kind):
    params, prefix = parameters(GROUPED), prompt(GROUPED, kind)
    assert generate(GROUPED, params, TOKENS, 0, prefix).shape == (3, 0)
    assert generate(GROUPED, params, TOKENS[:0], 2, prefix).shape == (0, 2)
    if kind in ("soft", "hard"):
        assert generate(GROUPED, params, TOKENS[:, :0], 0, prefix).shape == (3, 0)


def test_an_answer_of_less_than_nothing_is_refused():
    with pytest.raises(UserError, match="^answer = -1: "):
        make_llama(GROUPED, -1)
