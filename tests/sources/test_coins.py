"""Sources against their definition: brute-force sums over latents and sequences, never the package's own formulas."""

import functools
import itertools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from scipy.special import entr, roots_jacobi
from scipy.stats import beta, chisquare, kstest

from bayesprompt.sources.base import Exchangeable, Source
from bayesprompt.sources.coins import (
    BetaCoins,
    Categorical,
    CategoricalMixture,
    Coin,
    CoinMixture,
    DirichletCategorical,
    Markov,
    to_config,
)

KEY = jax.random.key(0)
DICE = ((0.2, 0.3, 0.5), (0.6, 0.4, 0.0), (0.1, 0.1, 0.8))
EXCHANGEABLE = [
    Coin(0.2),
    Coin(0.0),
    Coin(1.0),
    CoinMixture((0.2, 0.8), (0.5, 0.5)),
    CoinMixture((0.0, 0.3, 1.0), (0.2, 0.5, 0.3)),
    BetaCoins(),
    BetaCoins(0.5, 0.5),
    BetaCoins(2.5, 0.7),
    Categorical((0.3, 0.7)),
    Categorical((0.2, 0.3, 0.5)),
    Categorical((0.4, 0.0, 0.6)),
    CategoricalMixture(((0.9, 0.1), (0.5, 0.5)), (0.25, 0.75)),
    CategoricalMixture(DICE, (0.5, 0.2, 0.3)),
    DirichletCategorical((0.7, 1.9)),
    DirichletCategorical((1.0, 1.0, 1.0)),
    DirichletCategorical((0.5, 2.0, 1.3)),
]
CHAINS = [
    Markov((0.3, 0.7), ((0.9, 0.1), (0.4, 0.6))),
    Markov((0.5, 0.25, 0.25), ((0.0, 0.5, 0.5), (0.1, 0.2, 0.7), (1.0, 0.0, 0.0))),
]
each = pytest.mark.parametrize("source", EXCHANGEABLE + CHAINS, ids=str)
each_exchangeable = pytest.mark.parametrize("source", EXCHANGEABLE, ids=str)


def dirichlet_nodes(concentration, num_nodes):
    """Quadrature nodes (Q, K), weights (Q,): exact for polynomials of degree < 2 num_nodes times the density.

    Faces one after the other take a share of what is left; the change of variables raises (1 - share)'s exponent.
    """
    nodes, weights, left = np.empty((1, 0)), np.ones(1), np.ones(1)
    for face in range(len(concentration) - 1):
        # Gauss-Jacobi integrates f(x) (1 - x)^a (1 + x)^b over [-1, 1]; share = (1 + x) / 2
        x, w = roots_jacobi(num_nodes, sum(concentration[face + 1 :]) - 1, concentration[face] - 1)
        share = (1 + x) / 2
        nodes = np.concatenate([np.repeat(nodes, num_nodes, 0), np.outer(left, share).reshape(-1, 1)], axis=1)
        weights, left = np.outer(weights, w / w.sum()).ravel(), np.outer(left, 1 - share).ravel()
    return np.concatenate([nodes, left[:, None]], axis=1), weights


def latents(source, num_nodes=12):
    """Every value of tau (Q, K) and its probability (Q,)."""
    match source:
        case Coin(bias):
            return np.array([[bias, 1 - bias]]), np.ones(1)
        case CoinMixture(biases, weights):
            return np.array([[b, 1 - b] for b in biases]), np.array(weights)
        case Categorical(probs):
            return np.array([probs]), np.ones(1)
        case CategoricalMixture(components, weights):
            return np.array(components), np.array(weights)
        case BetaCoins(a, b):
            return dirichlet_nodes((a, b), num_nodes)
        case DirichletCategorical(concentration):
            return dirichlet_nodes(concentration, num_nodes)


def all_sequences(num_tokens, length):
    return np.array(list(itertools.product(range(num_tokens), repeat=length)))


def joint(source, sequences):
    """Probability of each sequence, by its definition: Eq. 1 as a sum, or the product along a chain."""
    if isinstance(source, Markov):
        steps = np.array(source.transition)[sequences[:, :-1], sequences[:, 1:]]
        return np.array(source.initial)[sequences[:, 0]] * steps.prod(axis=1)
    taus, weights = latents(source)
    return sum(weight * tau[sequences].prod(axis=1) for tau, weight in zip(taus, weights, strict=True))


def log(probs):
    with np.errstate(divide="ignore"):
        return np.log(probs)


def brute_force(source, length):
    """All sequences (K^N, N), and from their joint by summing out the future: log xi(x_n = . | x_<n) (K^N, N, K)."""
    num_tokens = source.num_tokens
    sequences = all_sequences(num_tokens, length)
    table = joint(source, sequences).reshape((num_tokens,) * length)
    predictions = []
    for n in range(length):
        upto = table.sum(axis=tuple(range(n + 1, length)))  # P(x_1..x_n+1)
        past = upto.sum(axis=-1, keepdims=True)
        conditional = np.divide(upto, past, out=np.zeros_like(upto), where=past > 0)
        predictions.append(log(conditional)[tuple(sequences[:, :n].T)] * np.ones((len(sequences), 1)))
    return sequences, np.stack(predictions, axis=1)


@each
def test_bayes_predictor_is_the_brute_force_conditional(source):
    sequences, expected = brute_force(source, 8 if source.num_tokens == 2 else 6)
    actual = source.bayes_log_probs(sequences)
    assert actual.dtype == np.float64
    if isinstance(source, Markov):  # a known chain predicts on, even after a token that it had ruled out
        possible = ~np.isneginf(expected).all(axis=-1)
        actual, expected = actual[possible], expected[possible]
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)


@each
def test_probabilities_sum_to_one_and_their_product_is_the_joint(source):
    sequences = all_sequences(source.num_tokens, 5)
    log_probs, probs = source.bayes_log_probs(sequences), joint(source, sequences)
    of_tokens = np.take_along_axis(log_probs, sequences[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(np.exp(of_tokens.sum(axis=1)), probs, rtol=1e-12, atol=0)
    np.testing.assert_allclose(np.exp(log_probs[probs > 0]).sum(axis=-1), 1, rtol=0, atol=1e-14)


@each_exchangeable
def test_evidence_is_the_joint(source):
    sequences = all_sequences(source.num_tokens, 6)
    counts = (sequences[..., None] == np.arange(source.num_tokens)).sum(axis=1)
    np.testing.assert_allclose(source.log_evidence(counts), log(joint(source, sequences)), rtol=0, atol=1e-12)
    assert source.log_evidence((0,) * source.num_tokens) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("concentration", [(1.0, 1.0), (0.5, 2.0, 1.3)])
def test_dirichlet_takes_fractional_counts(concentration):
    counts = np.array([1.7, 0.4, 2.5])[: len(concentration)]
    taus, weights = dirichlet_nodes(np.add(concentration, counts), 4)
    source = DirichletCategorical(concentration)
    np.testing.assert_allclose(np.exp(source.predictive_log_probs(counts)), weights @ taus, rtol=1e-12)


@pytest.mark.parametrize(
    "source",
    [
        Coin(0.2),
        CoinMixture((0.2, 0.8), (0.5, 0.5)),
        BetaCoins(),
        BetaCoins(0.5, 0.5),
        Categorical((0.2, 0.3, 0.5)),
        CategoricalMixture(((0.2, 0.3, 0.5), (0.6, 0.3, 0.1)), (0.5, 0.5)),
        DirichletCategorical((1.0, 2.0, 0.3)),
        Markov((0.3, 0.7), ((0.9, 0.1), (0.4, 0.6))),
    ],
    ids=str,
)
@pytest.mark.parametrize("law", ["constant", "cyclic", "random"])
def test_no_overflow_at_length_100_000(source, law):
    length, num_tokens = 100_000, source.num_tokens
    tokens = {
        "constant": np.zeros(length, int),
        "cyclic": np.arange(length) % num_tokens,
        "random": np.random.default_rng(0).integers(0, num_tokens, length),
    }[law]
    log_probs = source.bayes_log_probs(tokens)
    assert np.isfinite(log_probs).all()
    np.testing.assert_allclose(np.exp(log_probs).sum(axis=-1), 1, rtol=0, atol=1e-9)
    if isinstance(source, Exchangeable):
        product = log_probs[np.arange(length), tokens].sum()
        assert product == pytest.approx(source.log_evidence(np.bincount(tokens, minlength=num_tokens)), rel=1e-11)


@pytest.mark.parametrize("source", [Coin(0.0), CoinMixture((0.0, 0.0), (0.5, 0.5)), Categorical((0.0, 1.0))], ids=str)
def test_impossible_evidence_is_minus_infinity_and_never_nan(source):
    assert source.log_evidence((1, 4)) == -np.inf
    assert source.log_evidence((0, 4)) == 0
    np.testing.assert_array_equal(source.predictive_log_probs((0, 4)), [-np.inf, 0])
    np.testing.assert_array_equal(source.predictive_log_probs((1, 4)), [-np.inf, -np.inf])
    oracle = source.oracle_log_probs(np.array([[0, 1]]), np.array([[0.0, 1.0]]))
    np.testing.assert_array_equal(oracle, [[[-np.inf, 0]] * 2])


draw_samples = jax.jit(lambda source: source.sample(KEY, 20_000, 4))


@functools.cache
def samples(source):
    return [np.asarray(drawn) for drawn in draw_samples(source)]


@each
def test_samples_follow_the_law(source):
    tokens, _ = samples(source)
    assert tokens.dtype == np.int32
    expected = joint(source, all_sequences(source.num_tokens, 4)) * len(tokens)
    position = tokens @ source.num_tokens ** np.arange(4)[::-1]  # of each sequence among all of them
    observed = np.bincount(position, minlength=len(expected))
    assert observed[expected == 0].sum() == 0
    likely = expected >= 5
    if likely.sum() > 1:
        cells = [np.append(count[likely], count[~likely].sum() + 1e-9) for count in (observed, expected)]
        assert chisquare(*cells, sum_check=False).pvalue > 1e-4


@each_exchangeable
def test_the_oracle_knows_the_latent_and_loses_the_mean_entropy(source):
    tokens, latent = samples(source)
    log_probs = source.oracle_log_probs(tokens, latent)
    np.testing.assert_allclose(np.exp(log_probs).sum(axis=-1), 1, rtol=0, atol=1e-14)
    np.testing.assert_allclose(np.exp(log_probs), np.tile(latent[:, None], (1, 4, 1)), atol=1e-6)
    loss = -np.take_along_axis(log_probs, tokens[..., None], axis=-1).mean(axis=(1, 2))
    assert abs(loss.mean() - source.mean_entropy()) <= 4 * loss.std() / np.sqrt(len(loss)) + 1e-7


@pytest.mark.parametrize("source", [source for source in EXCHANGEABLE if hasattr(source, "concentration")], ids=str)
def test_dirichlet_latents_have_beta_marginals(source):
    _, latent = samples(source)
    for face, a in enumerate(source.concentration):
        assert kstest(latent[:, face], beta(a, sum(source.concentration) - a).cdf).pvalue > 1e-4


@each_exchangeable
def test_mean_entropy_is_the_integral(source):
    taus, weights = latents(source, num_nodes=150)
    assert source.mean_entropy() == pytest.approx(weights @ entr(taus).sum(axis=1), abs=1e-5)


def test_one_compilation_serves_all_parameters():
    traces = []

    @jax.jit
    def sample(source, key):
        traces.append(source)
        return source.sample(key, 64, 20)

    low, latent = sample(Coin(0.1), KEY)
    high, _ = sample(Coin(0.9), KEY)
    assert len(traces) == 1
    assert low.mean() > 0.8 and high.mean() < 0.2  # the mean counts tails
    np.testing.assert_allclose(latent, np.tile([[0.1, 0.9]], (64, 1)), rtol=1e-6)
    np.testing.assert_array_equal(low, Coin(0.1).sample(KEY, 64, 20)[0])


@each
def test_sources_are_pytrees_of_their_parameters(source):
    leaves, structure = jax.tree.flatten(source)
    assert [leaf.tolist() for leaf in leaves] == [value for name, value in to_config(source).items() if name != "type"]
    assert all(leaf.dtype == np.float64 for leaf in leaves), "known parameters stay exact"
    again = jax.tree.unflatten(structure, leaves)
    assert to_config(again) == to_config(source)
    tokens = np.array([[0, 1, 0]])
    np.testing.assert_array_equal(again.bayes_log_probs(tokens), source.bayes_log_probs(tokens))
    jax.tree.map(lambda leaf: None, source)  # JAX builds trees of placeholders: nothing that could be validated


def test_a_large_chain_is_two_arguments_of_a_compiled_function():
    transition = np.full((64, 64), 1 / 64)
    chain = Markov(transition[0], transition)
    traced = jax.make_jaxpr(lambda source: source.sample(KEY, 2, 3))(chain)
    assert [v.aval.shape for v in traced.jaxpr.invars] == [(64,), (64, 64)]


@each
def test_sources_fulfil_the_protocol_and_say_their_alphabet(source):
    assert isinstance(source, Source)
    assert source.bayes_log_probs(np.array([0, 0])).shape == (2, source.num_tokens)


def test_parameters_may_be_traced_one_by_one():
    draw = jax.jit(
        lambda low, high: jax.jit(lambda source: source.sample(KEY, 4, 6))(CoinMixture((low, high), (0.5, 0.5)))
    )
    for a, b in zip(draw(0.2, 0.8), CoinMixture((0.2, 0.8), (0.5, 0.5)).sample(KEY, 4, 6), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_vmap_over_sources():
    pair = CoinMixture((0.0, 0.0), (0.5, 0.5)), CoinMixture((1.0, 1.0), (0.5, 0.5))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *jax.tree.map(jnp.float32, pair))
    tokens, _ = jax.vmap(lambda source: source.sample(KEY, 4, 6))(stacked)
    np.testing.assert_array_equal(tokens, np.stack([np.ones((4, 6)), np.zeros((4, 6))]))


def test_sources_can_be_made_inside_jit():
    tokens = jax.vmap(lambda bias: Coin(bias).sample(KEY, 4, 6)[0])(jnp.array([0.0, 1.0]))
    np.testing.assert_array_equal(tokens, np.stack([np.ones((4, 6)), np.zeros((4, 6))]))


def floats(low, high):
    return st.floats(low, high, allow_nan=False)


def distributions(size):
    return st.lists(floats(1e-3, 1), min_size=size, max_size=size).map(lambda ws: tuple(w / sum(ws) for w in ws))


@st.composite
def configs(draw):
    k, c = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    rows, weights = [list(draw(distributions(k))) for _ in range(max(c, k))], list(draw(distributions(c)))
    biases = draw(st.lists(floats(0, 1), min_size=c, max_size=c))
    concentration = draw(st.lists(floats(1e-3, 1e3), min_size=k, max_size=k))
    return draw(
        st.sampled_from(
            [
                {"type": "Coin", "bias": biases[0]},
                {"type": "CoinMixture", "biases": biases, "weights": weights},
                {"type": "BetaCoins", "alpha": concentration[0], "beta": concentration[-1]},
                {"type": "Categorical", "probs": rows[0]},
                {"type": "CategoricalMixture", "components": rows[:c], "weights": weights},
                {"type": "DirichletCategorical", "concentration": concentration},
                {"type": "Markov", "initial": rows[0], "transition": rows[:k]},
            ]
        )
    )


def made(config):
    classes = {type(source).__name__: type(source) for source in EXCHANGEABLE + CHAINS}
    return classes[config["type"]](**{name: value for name, value in config.items() if name != "type"})


@given(configs())
def test_a_configuration_is_json_and_sources_compare_by_value(config):
    source = made(config)
    assert to_config(source) == config == json.loads(json.dumps(config))
    assert made(config) == source and hash(made(config)) == hash(source)


@given(configs(), st.data())
def test_every_source_predicts_a_distribution(config, data):
    source = made(config)
    tokens = np.array([data.draw(st.lists(st.integers(0, source.num_tokens - 1), min_size=1, max_size=30))])
    log_probs = source.bayes_log_probs(tokens)
    assert log_probs.shape == (*tokens.shape, source.num_tokens) and not np.isnan(log_probs).any()
    ruled_out = np.isneginf(log_probs).all(axis=-1)  # coins that never (always) show heads, after heads (tails)
    np.testing.assert_allclose(np.exp(log_probs).sum(axis=-1)[~ruled_out], 1, atol=1e-12)
    assert not ruled_out.any() or config["type"] in ("Coin", "CoinMixture")


def test_parameters_may_be_lists_arrays_and_integers():
    assert CoinMixture([0.2, 0.8], np.array([0.5, 0.5])) == CoinMixture((0.2, 0.8), (0.5, 0.5))
    assert CategoricalMixture(np.eye(2), jnp.array([0.5, 0.5])) == CategoricalMixture(((1, 0), (0, 1)), (0.5, 0.5))
    assert type(Coin(0).bias) is float and Coin(np.float64(0.5)) == Coin(0.5)
    assert BetaCoins() == BetaCoins(1, 1)


ANY = st.floats(allow_nan=True, allow_infinity=True)


@given(ANY.filter(lambda bias: not 0 <= bias <= 1))
def test_bias_outside_0_1_raises(bias):
    with pytest.raises(ValueError, match=re.escape(f"bias = {bias}: must be a number in [0, 1]") + "$"):
        Coin(bias)
    with pytest.raises(ValueError, match=re.escape(f"biases = [0.5, {bias}]: must be 2 numbers in [0, 1]") + "$"):
        CoinMixture((0.5, bias), (0.5, 0.5))


@given(ANY.filter(lambda value: not 0 < value < np.inf))
def test_concentration_that_is_not_positive_raises(value):
    for name, make in {
        "alpha": lambda: BetaCoins(value, 1),
        "beta": lambda: BetaCoins(1, value),
        "concentration": lambda: DirichletCategorical((1, value)),
    }.items():
        with pytest.raises(ValueError, match=rf"^{name} = .*: .*numbers? finite and > 0$"):
            make()


@given(distributions(3), floats(-1, 1).filter(lambda error: abs(error) > 2e-6))
def test_weights_that_do_not_sum_to_one_raise(probs, error):
    wrong = (probs[0], probs[1], probs[2] + error)
    right = (1 / 3, 1 / 3, 1 / 3)
    for name, make in {
        "probs": lambda: Categorical(wrong),
        "weights": lambda: CoinMixture((0.1, 0.2, 0.3), wrong),
        "components": lambda: CategoricalMixture((right, wrong), (0.5, 0.5)),
        "initial": lambda: Markov(wrong, (right, right, right)),
        "transition": lambda: Markov(right, (right, wrong, right)),
    }.items():
        with pytest.raises(ValueError, match=rf"^{name} = .*: .*3 numbers in \[0, 1\], summing to 1$"):
            make()


def test_weights_may_miss_one_by_rounding_and_still_give_distributions():
    source = CoinMixture((0.2, 0.8), (0.5, 0.5 + 5e-7))
    assert source.weights[1] == 0.5 + 5e-7
    np.testing.assert_allclose(np.exp(source.bayes_log_probs(np.array([0, 1, 0]))).sum(axis=-1), 1, atol=1e-15)


def unchecked(cls, **parameters):
    """Make a source as a reader does, without the type checks that run in tests."""
    source = object.__new__(cls)
    vars(source).update(parameters)
    source.__post_init__()


TOKENS = np.array([[0, 1]])
MESSAGES = {
    "bias = x: must be a number in [0, 1]": lambda: unchecked(Coin, bias="x"),
    "bias = [0.1, 0.2]: must be a number in [0, 1]": lambda: unchecked(Coin, bias=(0.1, 0.2)),
    "bias = None: must be a number in [0, 1]": lambda: unchecked(Coin, bias=None),
    "bias = True: must be a number in [0, 1]": lambda: unchecked(Coin, bias=True),
    "probs = 1.0: must be K numbers in [0, 1], summing to 1": lambda: unchecked(Categorical, probs=1.0),
    "biases = []: must be C numbers in [0, 1]": lambda: CoinMixture((), ()),
    "weights = [1.0]: must be 2 numbers in [0, 1], summing to 1": lambda: CoinMixture((0.1, 0.2), (1.0,)),
    "components = [[0.5, 0.5], [1]]: must be C x K numbers in [0, 1], summing to 1": lambda: CategoricalMixture(
        [[0.5, 0.5], [1]], (0.5, 0.5)
    ),
    "weights = [1]: must be 2 numbers in [0, 1], summing to 1": lambda: CategoricalMixture(np.eye(2), [1]),
    "transition = [[1, 0]]: must be 2 x 2 numbers in [0, 1], summing to 1": lambda: Markov((0.5, 0.5), ((1, 0),)),
    "batch = 0: must be an integer >= 1": lambda: Coin(0.2).sample(KEY, 0, 5),
    "length = -1: must be an integer >= 1": lambda: Coin(0.2).sample(KEY, 5, -1),
    "length = 0: must be an integer >= 1": lambda: Markov((1.0,), ((1.0,),)).sample(KEY, 5, 0),
    "tokens = 2: must be integers from 0 to 1": lambda: Coin(0.2).bayes_log_probs(TOKENS + 1),
    "tokens = -1: must be integers from 0 to 1": lambda: BetaCoins().bayes_log_probs(TOKENS - 1),
    "tokens = 3: must be integers from 0 to 2": lambda: DirichletCategorical((1, 1, 1)).bayes_log_probs(TOKENS + 2),
    "tokens = 9: must be integers from 0 to 1": lambda: CHAINS[0].bayes_log_probs(TOKENS * 9),
    "tokens = 5: must be integers from 0 to 1": lambda: Coin(0.2).oracle_log_probs(TOKENS * 5, np.array([[0.2, 0.8]])),
    "latent = array of shape (1, 3): must have shape (1, 2)": lambda: Coin(0.2).oracle_log_probs(
        TOKENS, np.ones((1, 3))
    ),
    "counts = array of shape (3,): must have 2 entries on the last axis": lambda: Coin(0.2).log_evidence((1, 2, 3)),
    "counts = -1.0: must be finite numbers >= 0": lambda: BetaCoins().predictive_log_probs((3, -1)),
    "counts = inf: must be finite numbers >= 0": lambda: BetaCoins().log_evidence((np.inf, 0.0)),
    "counts = nan: must be finite numbers >= 0": lambda: Coin(0.2).log_evidence((np.nan, 0.0)),
}


@pytest.mark.parametrize("message", MESSAGES)
def test_bad_input_raises_one_line_naming_argument_value_and_range(message):
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        MESSAGES[message]()


def test_shapes_are_checked_in_tests():
    with pytest.raises(TypeCheckError):
        Coin(0.2).bayes_log_probs(np.array([[0.0, 1.0]]))
