"""The geometry of internal states against closed forms; what is drawn of them against the states themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import parameters, quick_jit

from bayesprompt.measures.components import Components, principal_components, project
from bayesprompt.models import trace
from bayesprompt.models.predictor import LSTM, Transformer, make_predictor
from bayesprompt.models.prefixes import NO_PREFIX, Prefix, hard_prefix
from bayesprompt.prompting import state_plots, states
from bayesprompt.prompting.experiments import MIXTURE, SINGLE_COIN
from bayesprompt.prompting.state_plots import (
    NETWORKS,
    load_both,
    states_under_prefixes,
    structure,
    structure_and_prefixes,
)
from bayesprompt.prompting.states import (
    Ordering,
    Visited,
    internal_states,
    ordering,
    plane,
    random_coin_states,
    tuned_prefixes,
)
from bayesprompt.settings import make_key
from bayesprompt.store import Store

ONE = Transformer(num_tokens=2, embed_dim=16, num_heads=2, num_layers=1, mlp_dim=32)
LSTM_ONE = LSTM(num_tokens=2, embed_dim=8, hidden_dim=16, num_layers=1)
LSTM_TWO = LSTM(num_tokens=3, embed_dim=8, hidden_dim=16, num_layers=2)
quick_inspect = quick_jit(trace._inspect.__wrapped__, static_argnums=0)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(trace, "_inspect", quick_inspect)


class Coins:
    """Random coins that need no compiling."""

    def sample(self, key, batch, length):
        draw = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        bias = draw.uniform(size=(batch, 1))
        return (draw.uniform(size=(batch, length)) >= bias).astype(np.int32), None


@pytest.fixture
def coins(monkeypatch):
    monkeypatch.setattr(states, "RANDOM_COINS", Coins())


def draw_prefix(architecture, kind):
    draw = np.random.default_rng(3)
    return {
        "none": NO_PREFIX,
        "hard": hard_prefix(np.array([1, 0, 1]), architecture.num_tokens),
        "real": Prefix(inputs=jnp.asarray(draw.normal(size=(3, architecture.num_tokens)), jnp.float32)),
        "soft": Prefix(embeddings=jnp.asarray(draw.normal(size=(3, architecture.embed_dim)), jnp.float32)),
    }[kind]


def draw_tokens(architecture, batch=3, length=6):
    return np.random.default_rng(2).integers(0, architecture.num_tokens, (batch, length), dtype=np.int32)


def test_the_states_of_several_layers_lie_side_by_side():
    predictor, params, tokens = make_predictor(LSTM_TWO), parameters(LSTM_TWO), draw_tokens(LSTM_TWO)
    found = internal_states(predictor, params, tokens, draw_prefix(LSTM_TWO, "hard"))
    layers = trace.inspect(predictor, params, tokens, draw_prefix(LSTM_TWO, "hard")).layers
    assert found.shape == (3, 4 + 5, 2 * 16)
    np.testing.assert_array_equal(found[..., :16], layers[0].states)
    np.testing.assert_array_equal(found[..., 16:], layers[1].states)


def test_states_on_random_coins_come_with_step_and_share_of_heads(coins):
    predictor, params = make_predictor(LSTM_ONE), parameters(LSTM_ONE)
    visited = random_coin_states(predictor, params, jax.random.key(3), 5, 7)
    tokens, _ = Coins().sample(jax.random.key(3), 5, 7)
    assert np.ptp(tokens) == 1
    for b in range(5):
        for n in range(1, 8):
            assert visited.step[b, n - 1] == n
            seen = tokens[b, : n - 1].tolist()
            assert np.isnan(visited.heads[b, 0]) if n == 1 else visited.heads[b, n - 1] == seen.count(0) / (n - 1)
    np.testing.assert_array_equal(visited.states, internal_states(predictor, params, tokens))


def cloud(size=400, seed=0):
    """Points of known principal components: exactly uncorrelated coordinates with variances 9, 4, 1/4, turned."""
    draw = np.random.default_rng(seed)
    scores = np.linalg.qr(np.c_[np.ones(size), draw.normal(size=(size, 3))])[0][:, 1:]
    turn = np.linalg.qr(draw.normal(size=(3, 3)))[0]
    return scores * np.sqrt(size) * np.array([3.0, 2.0, 0.5]) @ turn + np.array([5.0, -2.0, 1.0]), turn


def ranks(x):
    """Average ranks, by comparing every pair."""
    x = np.asarray(x)
    return (x[:, None] > x[None]).sum(1) + (x[:, None] == x[None]).sum(1) / 2


def made_up(monkeypatch, embed):
    """A network whose state is `embed` of (step, share of heads or 1/2), turned in four dimensions."""
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(4, 4)))[0]

    def read(predictor, params, tokens, prefix=NO_PREFIX):
        seen = np.arange(tokens.shape[1])[None]
        heads = np.cumsum(tokens == 0, axis=1) - (tokens == 0)
        share = np.where(seen > 0, heads / np.maximum(seen, 1), 0.5)
        state = np.stack(embed(np.broadcast_to(seen + 1, tokens.shape), share), axis=-1)
        return np.pad(state, [(0, 0), (0, 0), (0, 4 - state.shape[-1])]) @ turn

    monkeypatch.setattr(states, "internal_states", read)
    monkeypatch.setattr(states, "HELD_OUT", 40)


@pytest.mark.parametrize(("step_scale", "step_component"), [(-1.0, 0), (-0.001, 1)])
def test_ordering_finds_which_component_goes_with_what(monkeypatch, coins, step_scale, step_component):
    made_up(monkeypatch, lambda n, share: (step_scale * n, share**3))
    found = ordering(make_predictor(ONE), parameters(ONE), jax.random.key(0))
    assert (found.step_component, found.heads_component) == (step_component, 1 - step_component)
    assert abs(found.step_correlation) == pytest.approx(1, abs=0.02)
    assert abs(found.heads_correlation) == pytest.approx(1, abs=0.02)
    # In the plane, more heads lie to the right, later steps further up, whatever the signs of the components.
    across, up = np.moveaxis(plane(found, found.visited.states), -1, 0)
    assert (np.diff(up, axis=1) > 0).mean() > 0.9
    known = ~np.isnan(found.visited.heads)
    assert np.corrcoef(across[known], found.visited.heads[known])[0, 1] > 0.8


def test_ordering_of_a_bent_fan_is_spearmans_over_all_sequences_together(monkeypatch, coins):
    """Step and share are both there, yet the second component, a horseshoe, mixes them."""
    made_up(monkeypatch, lambda n, share: (60 * (share - 0.5), 0.3 * n + 90 * (share - 0.5) ** 2))
    predictor, params, key = make_predictor(ONE), parameters(ONE), jax.random.key(0)
    found = ordering(predictor, params, key)
    both = random_coin_states(predictor, params, key, 140)
    late = Visited(*(x[100:, 9:] for x in both))
    scores = project(principal_components(both.states[:100]), late.states).reshape(-1, 2)
    for component, values, value in (
        (found.step_component, late.step, found.step_correlation),
        (found.heads_component, late.heads, found.heads_correlation),
    ):
        expected = np.corrcoef(ranks(scores[:, component]), ranks(values.ravel()))[0, 1]
        assert value == pytest.approx(expected, abs=1e-12)
    assert 0.3 < abs(found.step_correlation) < 0.95 < abs(found.heads_correlation)


def test_sequences_are_read_after_the_prefixes_in_turn(monkeypatch):
    monkeypatch.setattr(state_plots, "SEQUENCES", 5)
    monkeypatch.setattr(state_plots, "STEPS", 10)
    network = state_plots.Ordered(make_predictor(LSTM_ONE), parameters(LSTM_ONE), None, None)
    tokens, kinds = MIXTURE.target.sample(make_key(1), 5, 10)[0], [draw_prefix(LSTM_ONE, k) for k in ("hard", "real")]
    found = state_plots.paths(network, kinds, MIXTURE)
    assert found.shape == (5, 10, 16)
    for i in range(5):
        expected = internal_states(*network[:2], np.asarray(tokens[i : i + 1]), kinds[i % 2])[0, :10]
        np.testing.assert_allclose(found[i], expected, atol=1e-6)


def test_the_stored_prefixes():
    prefixes = tuned_prefixes(Store(), SINGLE_COIN, "lstm")
    assert list(prefixes) == ["NoTuning", "HardPT", "SimplexPT", "RealPT", "SoftPT"]
    assert prefixes["NoTuning"] == [NO_PREFIX]
    assert [len(prefixes[m]) for m in ("HardPT", "SimplexPT", "RealPT", "SoftPT")] == [1, 10, 10, 10]
    assert all(prefix.embeddings.shape == (6, 128) and prefix.inputs is None for prefix in prefixes["SoftPT"])
    np.testing.assert_allclose([prefix.inputs.sum(1) for prefix in prefixes["SimplexPT"]], 1.0, rtol=1e-6)
    assert set(np.unique(prefixes["HardPT"][0].inputs)) == {0.0, 1.0}
    missing = tuned_prefixes(Store(shipped=None), SINGLE_COIN, "lstm")
    assert [m for m, found in missing.items() if found is None] == ["HardPT", "SimplexPT", "RealPT", "SoftPT"]


def texts(figure):
    return [text.get_text() for text in figure.findobj(state_plots.plt.Text) if text.get_text()]


@pytest.fixture
def small(monkeypatch, coins):
    """Two small networks in place of the stored ones, with made-up prefixes for all methods but one."""

    def load(store, architecture, scale="paper", network="Pretrained"):
        sizes = ONE if architecture == "transformer" else LSTM_ONE
        predictor, params = make_predictor(sizes), parameters(sizes)
        components = Components(np.zeros(16), np.eye(16), 2.0 ** -np.arange(16))
        visited = random_coin_states(predictor, params, jax.random.key(0), 4, 10)
        return state_plots.Ordered(predictor, params, Ordering(visited, components, 1, 0, -1.0, 1.0), None)

    def prefixes(store, experiment, architecture, scale="paper"):
        sizes = ONE if architecture == "transformer" else LSTM_ONE
        hard, soft = draw_prefix(sizes, "hard"), draw_prefix(sizes, "soft")
        return {"NoTuning": [NO_PREFIX], "HardPT": [hard], "SimplexPT": None, "RealPT": [hard], "SoftPT": [soft] * 2}

    monkeypatch.setattr(state_plots, "STEPS", 8)
    monkeypatch.setattr(state_plots, "SEQUENCES", 4)
    monkeypatch.setattr(state_plots, "load_ordered", load)
    monkeypatch.setattr(state_plots, "tuned_prefixes", prefixes)
    yield
    state_plots.plt.close("all")


def test_each_prefix_gets_a_panel_with_its_end_marked_or_is_said_to_be_missing(small):
    axes = states_under_prefixes(Store(shipped=None), MIXTURE).axes[5:]  # below the Transformer's
    assert [ax.get_title() for ax in axes] == ["NoTuning", "HardPT", "SimplexPT", "RealPT", "SoftPT"]
    network = state_plots.load_ordered(None, "lstm")
    for ax, prefix in zip(axes, tuned_prefixes_of(network), strict=True):
        rings = [line for line in ax.lines if line.get_markerfacecolor() == "none"]
        if prefix is None:
            assert [text.get_text() for text in ax.texts] == ["not computed"] and not ax.lines
            continue
        assert len(rings) == 4  # one a sequence
        found = internal_states(network.predictor, network.params, np.zeros((1, 2), int), prefix)
        # Heads are component 0, to the right; steps component 1, turned, as it falls with the step.
        place = found[:, prefix.length, :2] * np.array([[1.0, -1.0]])
        np.testing.assert_allclose([ring.get_xydata() for ring in rings], [place] * 4, atol=1e-5)


def tuned_prefixes_of(network):
    return [found and found[0] for found in state_plots.tuned_prefixes(None, MIXTURE, "lstm").values()]


def test_both_networks_and_all_parts_are_drawn(small):
    assert len(states_under_prefixes(Store(shipped=None), MIXTURE).axes) == 10
    words = texts(structure_and_prefixes(Store(shipped=None), MIXTURE))
    for name in NETWORKS.values():
        assert f"{name}, by step n" in words and f"{name}, by share of heads" in words
    assert words.count("not computed") == 2 and "SoftPT" in words


def test_without_stored_networks_every_panel_says_so():
    empty, figure = Store(shipped=None), state_plots.plt.figure()
    assert structure(figure, load_both(empty)) == [None, None] and texts(figure).count("not computed") == 4
    words = texts(states_under_prefixes(empty, SINGLE_COIN))
    assert words.count("not computed") == 10 and "no stored results" in words
    state_plots.plt.close("all")
