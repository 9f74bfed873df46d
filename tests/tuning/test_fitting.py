"""The training loop: its gradients, its steps, and what it does when it is stopped or spoilt."""

import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from reference import parameters, quick_jit

from bayesprompt.devices import make_mesh
from bayesprompt.models.predictor import LSTM, Transformer, make_predictor
from bayesprompt.sources.coins import Categorical, Coin
from bayesprompt.store import load_arrays
from bayesprompt.tuning import fitting
from bayesprompt.tuning.fitting import TRACES, DivergedError, FitConfig, compiled_loop, depends, fit
from bayesprompt.tuning.tuners import Tuner, make_tuner

KEY = jax.random.key(11)
SMALL = LSTM(num_tokens=2, embed_dim=16, hidden_dim=16)
LSTM3 = LSTM(num_tokens=3, embed_dim=8, hidden_dim=16)
TRANSFORMER = Transformer(num_tokens=2, embed_dim=16, num_heads=4, num_layers=1, mlp_dim=24)
TRANSFORMER3 = Transformer(num_tokens=3, embed_dim=16, num_heads=4, num_layers=1, mlp_dim=24)
REPETITIONS = 3
CONFIG = FitConfig(steps=12, batch=8, length=6, learning_rate=5e-2)
MESH = make_mesh(REPETITIONS, CONFIG.batch)


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Compile quickly, four steps at a time, and keep the compiled programs for all tests of this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "jit", quick_jit)
        patch.setattr(fitting.FitConfig, "max_chunk", 4)
        compiled_loop.cache_clear()
        yield
        compiled_loop.cache_clear()


def run(base=None, source=Coin(0.2), key=KEY, **options):  # noqa: B008
    """Fit a soft prefix of the small LSTM: one program for most tests here."""
    base = parameters(SMALL) if base is None else base
    tuner = make_tuner("SoftPT", SMALL, 2)
    return fit(make_predictor(SMALL), tuner, base, source, CONFIG, key, REPETITIONS, **options)


@pytest.fixture(scope="module")
def uninterrupted(quick):
    return run()


def assert_same(actual, expected):
    """Bit by bit."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


SOME = {
    TRANSFORMER: ["SoftPT", "FullWT", "LoRAWT"],
    LSTM3: ["SimplexPT", "RealPT", "EmbedWT", "UnembedWT", "Un+EmbedWT"],
}
MORE = {
    TRANSFORMER: ["EmbedWT", "RealPT", "UnembedWT", "Un+EmbedWT"],
    TRANSFORMER3: ["SimplexPT"],
    LSTM3: ["SoftPT", "FullWT"],
}


@pytest.mark.parametrize(
    ("architecture", "method"),
    [
        *((a, m) for a, methods in SOME.items() for m in methods),
        *(pytest.param(a, m, marks=pytest.mark.slow) for a, methods in MORE.items() for m in methods),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{type(value).__name__}-{value.num_tokens}",
)
def test_a_step_follows_the_gradient_of_the_plain_loss(architecture, method):
    """From somewhere, in two parts of the batch (Transformer), for two repetitions: Adam's first moment tells.

    The step changes phi, and nothing else is changed.
    """
    config = FitConfig(steps=1, batch=80, length=5, learning_rate=1e-2, clip=1e6)
    predictor, tuner = make_predictor(architecture), make_tuner(method, architecture, 3)
    base, source = (
        parameters(architecture),
        Categorical((0.4, 0.6) if architecture.num_tokens == 2 else (0.2, 0.5, 0.3)),
    )
    before = jax.tree.map(np.array, base)
    loop, start = compiled_loop(predictor, tuner, config, make_mesh(2, config.batch))
    keys = jax.random.split(KEY, 2)
    draw = np.random.default_rng(0)
    (phi, moments) = jax.eval_shape(start, base, keys)
    phi = jax.tree.map(lambda x: jnp.asarray(draw.normal(size=x.shape) * 0.5, jnp.float32), phi)
    moments = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), moments)
    old = jax.tree.map(np.array, phi)
    (new, moments), loss = loop(base, source, (phi, moments), keys, 0)

    def plain(phi, tokens):
        return reference.loss(architecture, *insert(tuner.inject(base, phi), tokens))

    value_and_grad = quick_jit(jax.value_and_grad(plain))
    for repetition, key in enumerate(keys):
        tokens, _ = source.sample(jax.random.fold_in(jax.random.fold_in(key, 1), 0), config.batch, config.length)
        expected_loss, expected = value_and_grad(jax.tree.map(lambda x, r=repetition: x[r], old), tokens)
        np.testing.assert_allclose(loss[repetition, 0], expected_loss, rtol=1e-5)
        found = jax.tree.map(lambda x, r=repetition: x[r] / 0.1, moments[1][0].mu)
        largest = max(float(abs(x).max()) for x in jax.tree.leaves(expected))
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert abs(b).max() > 0
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * largest)
    for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True):
        assert (a != b).any()
    assert_same(base, before)


def insert(model, tokens):
    params, prefix = model
    return params, tokens, prefix


@pytest.mark.parametrize(
    ("architecture", "method", "expected"),
    [
        (LSTM3, "SoftPT", r"1\.first|1\.states\..*"),
        (LSTM3, "SimplexPT", r"1\.first|1\.states\..*"),
        (LSTM3, "UnembedWT", r"0\.unembedding\..*"),
        (LSTM3, "EmbedWT", r"0\.embedding\..*|1\..*"),
        (LSTM3, "FullWT", r".*"),
        (TRANSFORMER, "SoftPT", r"1\.first|1\.memory\..*|1\.table"),
        (TRANSFORMER, "UnembedWT", r"0\.unembedding\..*"),
        (
            TRANSFORMER,
            "LoRAWT",
            r"0\.torso\.\w+\.(query|key|value|attention_output)\.kernel|1\.(first|memory|projected)\b.*",
        ),
    ],
)
def test_depends_finds_what_phi_reaches(architecture, method, expected):
    predictor, tuner, base = make_predictor(architecture), make_tuner(method, architecture, 2), parameters(architecture)

    def prepare(phi):
        params, prefix = tuner.inject(base, phi)
        return params, predictor.prompt(params, prefix, 5)

    phi = tuner.init(KEY, base)
    names = [fitting_name(path) for path, _ in jax.tree.leaves_with_path(jax.eval_shape(prepare, phi))]
    reached = depends(prepare, phi)
    found = [name for name, r in zip(names, reached, strict=True) if r]
    assert found == [name for name in names if re.fullmatch(expected, name)] != []


def fitting_name(path):
    return re.sub(r"[\[\]'.]+", ".", jax.tree_util.keystr(path)).strip(".")


def test_depends_on_simple_functions():
    one, two = jnp.ones(2), jnp.ones(3)
    function = lambda x: (x["a"], one, x["b"] + 1, two.sum(), jnp.float32(3), x["a"].sum() * two)  # noqa: E731
    assert depends(function, {"a": one, "b": two}) == [True, False, True, False, False, True]
    # Inside a scan, a result may depend or not: to keep apart what does not is never wrong, only slower.
    assert depends(lambda x: jax.lax.scan(lambda c, _: (c + x, c), x, None, 3), 1.0) == [True, True]


def test_as_many_steps_as_asked_for_and_as_the_plain_loop_takes(uninterrupted):
    assert uninterrupted.loss.shape == (REPETITIONS, CONFIG.steps)
    tuner = make_tuner("SoftPT", SMALL, 2)
    for repetition in (0, 2):
        key = jax.random.fold_in(KEY, repetition)
        phi, loss = reference.fit(SMALL, tuner, parameters(SMALL), Coin(0.2), CONFIG, key)
        np.testing.assert_allclose(uninterrupted.loss[repetition], loss, rtol=1e-4)
        np.testing.assert_allclose(uninterrupted.phi[repetition], phi, rtol=0, atol=2e-3)


def test_repetitions_differ_and_each_is_as_if_alone(uninterrupted):
    """Start and data of repetition r come from fold_in(key, r); no repetition touches another's."""
    loop, start = compiled_loop(make_predictor(SMALL), make_tuner("SoftPT", SMALL, 2), CONFIG, MESH)
    keys = jnp.stack([jax.random.fold_in(KEY, r) for r in (2, 0, 2)])
    carry, losses = start(parameters(SMALL), keys), []
    for done in range(0, CONFIG.steps, 4):
        carry, loss = loop(parameters(SMALL), Coin(0.2), carry, keys, done)
        losses.append(loss)
    order = [2, 0, 2]
    assert_same(carry[0], uninterrupted.phi[np.array(order)])
    assert_same(np.concatenate(losses, axis=1), uninterrupted.loss[order])
    assert len({tuple(row) for row in uninterrupted.loss.tolist()}) == REPETITIONS


def test_the_loss_falls(uninterrupted):
    """From a prefix that says nothing towards one that says `mostly tails`."""
    assert uninterrupted.loss[:, -3:].mean() < uninterrupted.loss[:, :3].mean() - 0.2


def test_the_same_seed_gives_the_same_numbers_and_another_others(uninterrupted):
    assert_same(run(), uninterrupted)
    other = run(key=jax.random.key(12))
    assert (np.asarray(other.phi) != np.asarray(uninterrupted.phi)).any()


def test_one_program_for_all_repetitions_targets_networks_and_keys(uninterrupted):
    before = TRACES["run"]
    run(source=Coin(0.7), key=jax.random.key(3), base=jax.tree.map(lambda x: 2 * x, parameters(SMALL)))
    assert TRACES["run"] == before, "nothing is traced again"
    assert before > 0 and run(source=Coin(0.7)).loss[:, -1].mean() != uninterrupted.loss[:, -1].mean()


def test_traces_are_counted_once_per_program():
    fresh = Tuner(*make_tuner("UnembedWT", SMALL))._replace(init=lambda key, base: {"unembedding": base["unembedding"]})
    before = TRACES["run"]
    fit(make_predictor(SMALL), fresh, parameters(SMALL), Coin(0.2), CONFIG, KEY, REPETITIONS)
    assert TRACES["run"] == before + 1, "three chunks, three repetitions, one trace"


def test_progress_is_told_between_chunks(uninterrupted):
    told = []
    run(progress=lambda step, loss: told.append((step, loss)))
    assert told == [(step, float(np.median(uninterrupted.loss[:, step - 1]))) for step in (4, 8, 12)]


class StopError(Exception):
    pass


def stop_at(step):
    def progress(done, loss):
        if done == step:
            raise StopError

    return progress


@pytest.fixture
def stopped(tmp_path):
    """A checkpoint after 8 of 12 steps."""
    with pytest.raises(StopError):
        run(checkpoint=tmp_path / "fit.partial", progress=stop_at(8))
    return tmp_path / "fit.partial"


def test_a_stopped_fit_goes_on_where_it_was(stopped, uninterrupted):
    steps = []
    resumed = run(checkpoint=stopped, progress=lambda step, _: steps.append(step))
    assert steps == [12], "only what was missing is computed"
    assert_same(resumed, uninterrupted)
    (_, moments), loss = load_arrays(stopped, carry_like())
    assert (np.asarray(moments[1][0].count) == CONFIG.steps).all() and loss.shape[1] == CONFIG.steps


def carry_like():
    _, start = compiled_loop(make_predictor(SMALL), make_tuner("SoftPT", SMALL, 2), CONFIG, MESH)
    keys = jax.random.split(KEY, REPETITIONS)
    return jax.eval_shape(start, parameters(SMALL), keys), jax.ShapeDtypeStruct((REPETITIONS, -1), np.float32)


def truncated(path):
    path.write_bytes(path.read_bytes()[:-7])


def altered(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(bytes(content))


def foreign(path):
    path.write_text("nothing of ours")


@pytest.mark.parametrize("damage", [truncated, altered, foreign])
def test_a_damaged_checkpoint_is_refused_kept_and_started_anew(stopped, damage, uninterrupted, caplog):
    damage(stopped)
    content = stopped.read_bytes()
    assert_same(run(checkpoint=stopped), uninterrupted)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "\n" not in record.getMessage()
    assert re.match(rf"{re.escape(str(stopped))} = (unreadable|altered)\b.*not used; it is kept$", record.getMessage())
    assert stopped.with_name("fit.partial.refused").read_bytes() == content


def test_a_checkpoint_of_something_else_is_refused(stopped, uninterrupted, caplog):
    tuner = make_tuner("SoftPT", SMALL, 1)
    options = {"repetitions": REPETITIONS, "checkpoint": stopped, "progress": stop_at(4)}
    with pytest.raises(StopError):
        fit(make_predictor(SMALL), tuner, parameters(SMALL), Coin(0.2), CONFIG, KEY, **options)
    assert "= other arrays than expected" in caplog.records[0].getMessage()


def test_a_loss_that_is_not_finite_stops_the_fit_and_loses_nothing(stopped, uninterrupted):
    spoilt = jax.tree.map(lambda x: x * np.nan, parameters(SMALL))
    content = stopped.read_bytes()
    with pytest.raises(DivergedError) as error:
        run(base=spoilt, checkpoint=stopped)
    message = "loss = [nan, nan, nan] at step 9: must stay finite; lower learning_rate = 0.05; the checkpoint of step 8"
    assert str(error.value) == message + " is kept, and the same call resumes there"
    assert stopped.read_bytes() == content
    assert_same(run(checkpoint=stopped), uninterrupted)


def test_a_learning_rate_that_is_too_large(tmp_path):
    config, tuner = FitConfig(8, 4, 3, learning_rate=1e38), make_tuner("FullWT", SMALL)
    with pytest.raises(DivergedError, match=r"^loss = \[(nan|inf)\] at step [2-4]: .* learning_rate = 1e\+38$"):
        fit(make_predictor(SMALL), tuner, parameters(SMALL), Coin(0.2), config, KEY, 1, tmp_path / "fit.partial")
    assert not (tmp_path / "fit.partial").exists(), "there is no last good checkpoint yet"


@pytest.mark.parametrize("bad", [1, 6, 10])
def test_the_step_that_failed_is_named_on_one_line(bad, monkeypatch, tmp_path):
    """Ten repetitions, of which the fourth fails."""
    losses = np.ones((10, 10), np.float32)
    losses[3, bad - 1 :] = np.inf
    loop = lambda base, source, carry, keys, done: (carry, losses[:, done : done + 5])  # noqa: E731
    monkeypatch.setattr(fitting, "compiled_loop", lambda *_: (loop, lambda *_: {"phi": np.ones(10, np.float32)}))
    with pytest.raises(DivergedError, match=f"1.0, inf, 1.0, .* at step {bad}: ") as error:
        predictor, tuner = make_predictor(SMALL), make_tuner("SoftPT", SMALL)
        fit(predictor, tuner, {}, Coin(0.2), FitConfig(steps=10), KEY, 10, tmp_path / "fit.partial")
    assert "\n" not in str(error.value)
    assert (f"the checkpoint of step {5 * ((bad - 1) // 5)} is kept" in str(error.value)) == (bad > 5)


@given(
    steps=st.integers(-1, 3),
    batch=st.integers(-1, 3),
    length=st.integers(-1, 3),
    rate=st.sampled_from([-1.0, 0.0, 1e-3, float("nan")]),
    clip=st.sampled_from([0.0, 1.0, float("nan")]),
)
def test_settings_are_positive(steps, batch, length, rate, clip):
    given_values = {"steps": steps, "batch": batch, "length": length, "learning_rate": rate, "clip": clip}
    wrong = [name for name, value in given_values.items() if not value > 0]
    if not wrong:
        assert vars(FitConfig(**given_values)) == given_values
    else:
        with pytest.raises(ValueError, match=f"^{wrong[0]} = {given_values[wrong[0]]}: must be > 0$"):
            FitConfig(**given_values)


@pytest.mark.parametrize("method", ["SoftPT", pytest.param("LoRAWT", marks=pytest.mark.slow)])
def test_an_accelerators_loop_takes_the_same_steps(method, monkeypatch):
    """Off the CPU all repetitions run side by side and no batch is cut into parts: same numbers within rounding."""
    config, tuner = FitConfig(steps=4, batch=128, length=5), make_tuner(method, TRANSFORMER, 2, 2)

    def losses():
        compiled_loop.cache_clear()
        return fit(make_predictor(TRANSFORMER), tuner, parameters(TRANSFORMER), Coin(0.2), config, KEY, 2).loss

    here = losses()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    np.testing.assert_allclose(losses(), here, rtol=1e-5)
    compiled_loop.cache_clear()
