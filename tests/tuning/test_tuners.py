"""Tuners: where each starts, what each may change, and the exhaustive search over hard prefixes."""

import re
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import parameters, quick_jit

from bayesprompt.models.gpt import GPT, make_gpt
from bayesprompt.models.llama import Llama, make_llama
from bayesprompt.models.predictor import LSTM, Transformer, make_predictor
from bayesprompt.models.prefixes import NO_PREFIX, hard_prefix
from bayesprompt.tuning import tuners
from bayesprompt.tuning.tuners import (
    METHODS,
    PREFIX_METHODS,
    WEIGHT_METHODS,
    make_tuner,
    prefix_from_rows,
)

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
    factors = list(phi.values())
    assert len(factors) == 2 * 4
    assert all(f["A"].shape == (16, 2) and f["B"].shape == (2, 16) and not f["B"].any() for f in factors)
    assert len({float(f["A"][0, 0]) for f in factors}) == 8, "each layer draws its own"


def test_lora_adds_a_product():
    base, tuner = parameters(TRANSFORMER), make_tuner("LoRAWT", TRANSFORMER)
    phi = moved(tuner.init(KEY, base))
    params, _ = tuner.inject(base, phi)
    added = params["torso"]["blocks_1"]["key"]["kernel"] - base["torso"]["blocks_1"]["key"]["kernel"]
    factors = phi["torso.blocks_1.key.kernel"]
    np.testing.assert_allclose(added, factors["A"] @ factors["B"], atol=1e-6)
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
        ("LoRAWT", {}, "method = LoRAWT: must have architecture transformer"),
        (
            "HardPT",
            {},
            r"method = HardPT: must be one of SimplexPT, .*LoRAWT, PrefixTuning \(HardPT is a search: hard_search\)",
        ),
        ("softpt", {}, "method = softpt: must be one of SimplexPT, "),
        ("PrefixTuning", {}, "method = PrefixTuning: must have architecture transformer"),
        ("SoftPT", {"prefix_length": 0}, "prefix_length = 0: must be a whole number >= 1"),
        ("RealPT", {"prefix_length": -2}, "prefix_length = -2: must be a whole number >= 1"),
    ],
)
def test_what_is_no_tuner(method, options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make_tuner(method, LSTM3, **options)


def test_a_rank_is_at_least_one():
    with pytest.raises(ValueError, match="^rank = 0: "):
        make_tuner("LoRAWT", TRANSFORMER, rank=0)


def test_methods_are_named_once():
    assert METHODS == (*PREFIX_METHODS, *WEIGHT_METHODS) and len(set(METHODS)) == len(METHODS) == 9


def test_equal_settings_are_the_same_tuner_however_they_are_written():
    """Each tuner made anew would be compiled anew. What a method does not read makes no difference to it."""
    assert make_tuner("SoftPT", LSTM3) is make_tuner("SoftPT", LSTM3, 6) is make_tuner("SoftPT", LSTM3, prefix_length=6)
    assert make_tuner("SoftPT", LSTM3) is make_tuner("SoftPT", LSTM3, 6, rank=2)
    assert make_tuner("FullWT", LSTM3) is make_tuner("FullWT", TRANSFORMER, 3)
    assert make_tuner("EmbedWT", LSTM3) is make_tuner("EmbedWT", TRANSFORMER)
    assert make_tuner("LoRAWT", TRANSFORMER) is make_tuner("LoRAWT", TRANSFORMER, 9, 4, tuners.LORA_LAYERS)


def test_different_settings_are_different_tuners_of_different_names():
    wanted = [
        *(make_tuner(method, TRANSFORMER) for method in METHODS if method != "HardPT"),
        make_tuner("SoftPT", TRANSFORMER, 3),
        make_tuner("SoftPT", replace(TRANSFORMER, embed_dim=32)),
        make_tuner("LoRAWT", TRANSFORMER, rank=1),
        make_tuner("LoRAWT", TRANSFORMER, beside=("query",)),
        make_tuner("PrefixTuning", TRANSFORMER),
    ]
    assert len({tuner.name for tuner in wanted}) == len(set(wanted)) == len(wanted)


def test_rows_fill_the_field_of_their_method():
    rows = np.ones((2, 4), np.float32)
    for method, field in {
        "HardPT": "inputs",
        "SimplexPT": "inputs",
        "RealPT": "inputs",
        "SoftPT": "embeddings",
    }.items():
        prefix = prefix_from_rows(method, rows)
        np.testing.assert_array_equal(getattr(prefix, field), rows)
        assert sum(x is not None for x in prefix) == 1
    assert prefix_from_rows("PrefixTuning", rows[None]).layers.shape == (1, 2, 4)
    with pytest.raises(ValueError, match="^method = FullWT: must be one of HardPT, "):
        prefix_from_rows("FullWT", rows)


LLAMA = Llama(num_tokens=12, embed_dim=16, num_heads=2, num_kv_heads=1, num_layers=3, mlp_dim=24)


@pytest.mark.parametrize("method", ["EmbedWT", "UnembedWT"])
def test_one_half_of_a_tied_pair_is_refused(method):
    """The unembedding is the embedding: neither can be learned alone."""
    with pytest.raises(ValueError, match=f"^method = {method}: must be Un\\+EmbedWT here"):
        make_tuner(method, LLAMA)
    params = make_llama(LLAMA).init(KEY)
    assert make_tuner("Un+EmbedWT", LLAMA).init(KEY, params).keys() == {"embedding", "unembedding"}
    assert make_tuner(method, replace(LLAMA, tied=False)) is make_tuner(method, LSTM3)


def test_a_part_that_a_network_does_not_have_is_named():
    for base in ({"encoder": jnp.zeros(2), "head": jnp.zeros(2)}, [jnp.zeros(2)]):
        with pytest.raises(ValueError, match=r"^base = parts (encoder, head|): must have embedding for EmbedWT$"):
            make_tuner("EmbedWT", LSTM3).init(KEY, base)


@jax.tree_util.register_dataclass
@dataclass
class Linear:
    """A layer as Equinox or NNX have them."""

    weight: jax.Array
    bias: jax.Array


ANY = {
    "layers": [
        {
            "attention": (Linear(jnp.ones((4, 6)), jnp.ones(6)), Linear(jnp.ones((6, 4)), jnp.ones(4))),
            "scale": jnp.ones(3),
        }
        for _ in range(2)
    ],
    "head": Linear(jnp.full((4, 5), 2.0), jnp.ones(5)),
}


def test_full_tuning_starts_from_any_tree_and_is_it():
    tuner = make_tuner("FullWT", LSTM3)
    assert tuner.init(KEY, ANY) is ANY and tuner.inject(None, ANY) == (ANY, NO_PREFIX)


def test_lora_runs_beside_what_patterns_choose_in_any_tree():
    phi = make_tuner("LoRAWT", LSTM3, rank=2, beside=("attention", "head")).init(KEY, ANY)
    shapes = {name: (f["A"].shape, f["B"].shape) for name, f in phi.items()}
    assert shapes == {
        "head.weight": ((4, 2), (2, 5)),
        **{f"layers.{i}.attention.0.weight": ((4, 2), (2, 6)) for i in (0, 1)},
        **{f"layers.{i}.attention.1.weight": ((6, 2), (2, 4)) for i in (0, 1)},
    }, "matrices only"
    assert len({float(f["A"][0, 0]) for f in phi.values()}) == 5, "each draws its own"
    tuner = make_tuner("LoRAWT", LSTM3, rank=2, beside=("attention", "head"))
    params, prefix = tuner.inject(ANY, moved(phi))
    assert prefix == NO_PREFIX and jax.tree.structure(params) == jax.tree.structure(ANY)
    changed = {name for name, leaf in leaves(params).items() if not np.array_equal(leaf, leaves(ANY)[name])}
    assert {re.sub(r"[\[\]'.]+", ".", name).strip(".") for name in changed} == set(phi)


def test_lora_on_stacked_matrices_is_lora_on_each():
    base = make_llama(LLAMA).init(KEY)
    tuner = make_tuner("LoRAWT", LLAMA, rank=2)
    phi = tuner.init(KEY, base)
    assert phi["torso.key"]["A"].shape == (3, 16, 2) and phi["torso.key"]["B"].shape == (3, 2, 8)
    assert abs(float(phi["torso.query"]["A"].std()) - 16**-0.5) < 0.05, "as for one matrix of 16 rows"
    phi = moved(phi)
    added = tuner.inject(base, phi)[0]["torso"]["value"] - base["torso"]["value"]
    for layer in range(3):
        product = phi["torso.value"]["A"][layer] @ phi["torso.value"]["B"][layer]
        np.testing.assert_allclose(added[layer], product, atol=1e-6)


@pytest.mark.parametrize("method", ["transformer", "gpt"])
def test_lora_draws_block_by_block_and_layer_by_layer(method):
    """Stored results were tuned from these draws: fold_in(key, block), split over the names as they are listed."""
    sizes = TRANSFORMER if method == "transformer" else GPT(embed_dim=16, num_heads=2, num_layers=2, pads=2)
    base = (make_predictor(sizes) if method == "transformer" else make_gpt(sizes)).init(KEY)
    names = tuners.LORA_LAYERS if method == "transformer" else ("attention_output", "mlp_in", "mlp_out")
    phi = make_tuner("LoRAWT", sizes, rank=1, beside=names).init(KEY, base)
    assert len(phi) == 2 * len(names)
    for block in range(2):
        keys = jax.random.split(jax.random.fold_in(KEY, block), len(names))
        for key, name in zip(keys, names, strict=True):
            path = f"torso.blocks_{block}.{name}.kernel"
            rows = base["torso"][f"blocks_{block}"][name]["kernel"].shape[0]
            np.testing.assert_array_equal(phi[path]["A"], jax.nn.initializers.lecun_normal()(key, (rows, 1)))


@pytest.mark.parametrize(("architecture", "beside"), [(TRANSFORMER, ("query", "gate")), (LSTM3, ("gate",))])
def test_lora_beside_nothing_is_refused(architecture, beside):
    with pytest.raises(
        ValueError, match="^beside = gate: must match matrices of the network, which has none so named$"
    ):
        make_tuner("LoRAWT", architecture, beside=beside).init(KEY, parameters(architecture))


def test_lora_runs_beside_an_lstms_gates_where_patterns_name_them():
    phi = make_tuner("LoRAWT", LSTM3, beside=("h[ifgo]",)).init(KEY, parameters(LSTM3))
    assert phi.keys() == {f"torso.cells_0.h{gate}.kernel" for gate in "ifgo"}
