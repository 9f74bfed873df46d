"""Tuners: where each starts, what each may change, and the exhaustive search over hard prefixes."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import parameters, quick_jit

from bayesprompt.models.predictor import LSTM, Transformer, make_predictor
from bayesprompt.models.prefixes import NO_PREFIX, Prefix, hard_prefix
from bayesprompt.tuning import tuners
from bayesprompt.tuning.tuners import METHODS, PREFIX_METHODS, WEIGHT_METHODS, hard_search, make_tuner

TRANSFORMER = Transformer(num_tokens=2, embed_dim=16, num_heads=4, num_layers=2, mlp_dim=24)
LSTM3 = LSTM(num_tokens=3, embed_dim=8, hidden_dim=16)
GRADIENT_PREFIXES = [method for method in PREFIX_METHODS if method != "HardPT"]
KEY = jax.random.key(5)


def tuners_of(architecture):
    return [method for method in METHODS if method != "HardPT" and (method != "LoRAWT" or architecture == TRANSFORMER)]


each = pytest.mark.parametrize(
    ("architecture", "method"),
    [(a, m) for a in (TRANSFORMER, LSTM3) for m in tuners_of(a)],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
both = pytest.mark.parametrize("architecture", [TRANSFORMER, LSTM3], ids=["transformer", "lstm"])


def leaves(tree):
    return {tuners.jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def moved(phi, by=0.1):
    """Other values of what is learned, each of its numbers changed."""
    draw = np.random.default_rng(0)
    return jax.tree.map(lambda x: x + by * (0.5 + draw.random(x.shape, np.float32)), phi)


@each
def test_a_tuner_changes_what_it_names_and_nothing_else(architecture, method):
    base, tuner = parameters(architecture), make_tuner(method, architecture)
    before = jax.tree.map(np.array, base)
    params, prefix = tuner.inject(base, moved(tuner.init(KEY, base)))
    old, new = leaves(base), leaves(params)
    assert old.keys() == new.keys()
    changed = {name for name in old if not np.array_equal(old[name], new[name])}
    named = {
        "EmbedWT": r"\['embedding'\]",
        "UnembedWT": r"\['unembedding'\]",
        "Un+EmbedWT": r"\['(un)?embedding'\]",
        "FullWT": "",
        "LoRAWT": r"\['torso'\]\['blocks_\d'\]\['(query|key|value|attention_output)'\]\['kernel'\]",
    }
    if method in WEIGHT_METHODS:
        assert changed == {name for name in old if re.match(named[method], name)} != set()
        assert prefix == NO_PREFIX
    else:
        assert params is base and prefix.length == 6
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(base), strict=True))


@each
def test_where_a_tuner_starts(architecture, method):
    base, tuner = parameters(architecture), make_tuner(method, architecture, prefix_length=3)
    phi = tuner.init(KEY, base)
    if method in WEIGHT_METHODS:
        params, prefix = tuner.inject(base, phi)
        assert prefix == NO_PREFIX
        for name, leaf in leaves(params).items():
            np.testing.assert_array_equal(leaf, leaves(base)[name], err_msg="nothing has changed yet")
    else:
        width = architecture.embed_dim if method == "SoftPT" else architecture.num_tokens
        assert phi.shape == (3, width) and set(np.unique(phi)) == {0, 1}
        np.testing.assert_array_equal(phi.sum(-1), 1)
        others = [np.asarray(tuner.init(key, base)).tolist() for key in jax.random.split(KEY, 8)]
        assert any(other != others[0] for other in others), "every repetition has its own start"


def test_lora_starts_at_random_factors_of_its_rank():
    base = parameters(TRANSFORMER)
    phi = make_tuner("LoRAWT", TRANSFORMER, rank=2).init(KEY, base)
    factors = [layer for block in phi.values() for layer in block.values()]
    assert len(factors) == 2 * 4
    assert all(f["A"].shape == (16, 2) and f["B"].shape == (2, 16) and not f["B"].any() for f in factors)
    assert len({float(f["A"][0, 0]) for f in factors}) == 8, "each layer draws its own"


def test_lora_adds_a_product():
    base, tuner = parameters(TRANSFORMER), make_tuner("LoRAWT", TRANSFORMER)
    phi = moved(tuner.init(KEY, base))
    params, _ = tuner.inject(base, phi)
    added = params["torso"]["blocks_1"]["key"]["kernel"] - base["torso"]["blocks_1"]["key"]["kernel"]
    np.testing.assert_allclose(added, phi["blocks_1"]["key"]["A"] @ phi["blocks_1"]["key"]["B"], atol=1e-6)
    assert np.linalg.matrix_rank(added, tol=1e-4) <= 4


@both
@pytest.mark.parametrize("method", GRADIENT_PREFIXES)
def test_a_prefix_that_is_a_token_is_that_token(architecture, method):
    """A vertex of the simplex, a real one-hot row, and a soft row equal to a token's embedding."""
    base, tokens = parameters(architecture), np.array([architecture.num_tokens - 1, 0, 0])
    one_hot = jnp.eye(architecture.num_tokens)[tokens]
    embedding = base["embedding"]
    phi = {
        "SimplexPT": 200 * one_hot,
        "RealPT": one_hot,
        "SoftPT": one_hot @ embedding["kernel"] + embedding["bias"][None],
    }[method]
    params, prefix = make_tuner(method, architecture, 3).inject(base, phi)
    data = jnp.asarray(np.random.default_rng(2).integers(0, architecture.num_tokens, (4, 5)), jnp.int32)
    run = applied(architecture)
    expected = run(base, data, hard_prefix(tokens, architecture.num_tokens))
    np.testing.assert_allclose(run(params, data, prefix), expected, rtol=1e-5, atol=1e-6)
    assert np.abs(run(base, data, hard_prefix(tokens[::-1], architecture.num_tokens)) - expected).max() > 1e-3


APPLIED = {}


def applied(architecture):
    return APPLIED.setdefault(architecture, quick_jit(make_predictor(architecture).apply))


@given(
    phi=st.lists(st.lists(st.floats(-50, 50), min_size=3, max_size=3), min_size=1, max_size=4).map(
        lambda rows: jnp.asarray(rows, jnp.float32)
    )
)
def test_simplex_rows_are_distributions_and_real_rows_anything(phi):
    base = parameters(LSTM3)
    _, prefix = make_tuner("SimplexPT", LSTM3).inject(base, phi)
    np.testing.assert_allclose(prefix.inputs.sum(-1), 1, rtol=1e-5)
    assert (prefix.inputs >= 0).all()
    _, prefix = make_tuner("RealPT", LSTM3).inject(base, phi)
    np.testing.assert_array_equal(prefix.inputs, phi)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("LoRAWT", {}, "method = LoRAWT: needs architecture transformer"),
        (
            "HardPT",
            {},
            r"method = HardPT: must be one of SimplexPT, .*LoRAWT, PrefixTuning \(HardPT is a search: hard_search\)",
        ),
        ("softpt", {}, "method = softpt: must be one of SimplexPT, "),
        ("SoftPT", {"prefix_length": 0}, "prefix_length = 0: must be a whole number >= 1"),
        ("RealPT", {"prefix_length": -2}, "prefix_length = -2: must be a whole number >= 1"),
    ],
)
def test_what_is_no_tuner(method, options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make_tuner(method, LSTM3, **options)


def test_a_rank_is_at_least_one():
    with pytest.raises(ValueError, match="^rank = 0: must be >= 1$"):
        make_tuner("LoRAWT", TRANSFORMER, rank=0)


def test_methods_are_named_once():
    assert METHODS == (*PREFIX_METHODS, *WEIGHT_METHODS) and len(set(METHODS)) == len(METHODS) == 9


@pytest.fixture
def quick_search(monkeypatch):
    monkeypatch.setattr(tuners, "_score", quick_jit(tuners._score.__wrapped__, static_argnums=(0, 1)))


@pytest.mark.parametrize(("architecture", "length"), [(LSTM3, 2), (TRANSFORMER, 3)], ids=["lstm", "transformer"])
def test_hard_search_is_a_brute_force(architecture, length, quick_search, monkeypatch):
    """Twelve sequences: three parts of four."""
    base, num_tokens = parameters(architecture), architecture.num_tokens
    data = jnp.asarray(np.random.default_rng(3).integers(0, num_tokens, (12, 5)), jnp.int32)
    losses = {}
    for prompt in itertools.product(range(num_tokens), repeat=length):
        log_probs = applied(architecture)(base, data, Prefix(inputs=jnp.eye(num_tokens)[np.array(prompt)]))
        losses[prompt] = -np.take_along_axis(np.asarray(log_probs), np.asarray(data)[..., None], -1).sum((1, 2)).mean()
    found = hard_search(make_predictor(architecture), base, length, data)
    np.testing.assert_allclose(found.loss, list(losses.values()), rtol=1e-5)
    assert np.ptp(found.loss) > 0.01
    assert tuple(found.prefix) == min(losses, key=losses.get)
    monkeypatch.setattr(tuners, "part_size", lambda *_: 4)
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
