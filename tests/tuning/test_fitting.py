"""The training loop: its gradients, its steps, and what it does when it is stopped or spoilt."""

import logging
import re
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from reference import parameters, quick_jit
from safetensors import safe_open

from bayesprompt.devices import make_mesh
from bayesprompt.files import OtherRunError, RefusedFileError, load_arrays, save_arrays
from bayesprompt.models.predictor import LSTM, Predictor, Transformer, make_predictor
from bayesprompt.sources import Categorical, Coin, CoinMixture
from bayesprompt.tuning import fitting
from bayesprompt.tuning.checkpoints import run_record
from bayesprompt.tuning.fitting import AdamWConfig, DivergedError, FitConfig, compiled_loop, fit
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


@pytest.mark.parametrize("method", ["SoftPT", "UnembedWT"])
def test_no_gradient_is_computed_for_what_phi_does_not_reach(method):
    """XLA leaves it out: the step costs as many operations as one that is told what is frozen."""
    config = FitConfig(steps=1, batch=32, length=6)
    predictor, base = make_predictor(TRANSFORMER), parameters(TRANSFORMER)

    def flops(tuner):
        run, start = compiled_loop(predictor, tuner, config, make_mesh(1, 32, "nothing"))
        keys = jax.random.split(KEY, 1)
        return run.lower(base, Coin(0.2), start(base, keys), keys, 0).compile().cost_analysis()["flops"]

    tuner = make_tuner(method, TRANSFORMER, 3)

    def frozen(base, phi):
        params, prefix = tuner.inject(base, phi)
        stop = jax.lax.stop_gradient
        still = {k: v if k in (phi if isinstance(phi, dict) else ()) else stop(v) for k, v in params.items()}
        return still, prefix

    assert flops(tuner) == flops(Tuner(tuner.init, frozen)) < 0.8 * flops(make_tuner("FullWT", TRANSFORMER))


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


class Counted(Coin):
    """A coin that counts how often it is traced."""

    traces = 0

    def sample(self, key, batch, length):
        Counted.traces += 1
        return super().sample(key, batch, length)


def traces(steps=CONFIG.steps, **options):
    """How often a fit of so many steps traces its source, after those before it."""
    before, config = Counted.traces, replace(CONFIG, steps=steps)
    usual = {"base": parameters(SMALL), "source": Counted(0.2), "key": KEY}
    fit(make_predictor(SMALL), make_tuner("SoftPT", SMALL, 2), config=config, repetitions=3, **usual | options)
    return Counted.traces - before


def test_one_program_for_all_chunks_repetitions_targets_networks_and_keys():
    once = traces(steps=4)
    assert traces(steps=8) == once > 0, "two chunks, three repetitions"
    doubled = jax.tree.map(lambda x: 2 * x, parameters(SMALL))
    assert traces(steps=8, source=Counted(0.7), key=jax.random.key(3), base=doubled) == 0
    assert traces(steps=13) == 2 * once, "a shorter last chunk is a program of its own"


@pytest.mark.parametrize(("steps", "seen"), [(3, [3]), (8, [4, 8]), (13, [4, 8, 12, 13])])
def test_full_chunks_and_a_shorter_last_one(steps, seen, uninterrupted):
    """A prime number of steps is no reason to look after each; the numbers do not depend on the chunks."""
    told, config = [], replace(CONFIG, steps=steps)
    arguments = (make_predictor(SMALL), make_tuner("SoftPT", SMALL, 2), parameters(SMALL), Coin(0.2), config, KEY)
    found = fit(*arguments, REPETITIONS, progress=lambda step, _: told.append(step))
    assert told == seen and found.loss.shape == (REPETITIONS, steps)
    both = min(steps, CONFIG.steps)
    np.testing.assert_allclose(found.loss[:, :both], uninterrupted.loss[:, :both], rtol=1e-6)


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


DIFFERENT = {
    "source": {"source": Coin(0.3)},
    "source, settings": {"source": CoinMixture((0.2, 0.2), (0.5, 0.5)), "config": replace(CONFIG, clip=2.0)},
    "settings": {"config": AdamWConfig(*vars(CONFIG).values())},
    "key": {"key": jax.random.key(12)},
    "tuner": {"tuner": Tuner(*make_tuner("SoftPT", SMALL, 2)[:2])},
    "network": {"base": jax.tree.map(lambda x: x + 1e-6, parameters(SMALL))},
    "repetitions": {"repetitions": REPETITIONS + 1},
}


@pytest.mark.parametrize("differing", DIFFERENT)
def test_another_runs_checkpoint_is_refused_and_untouched(stopped, differing):
    """Tuner: what `RealPT` starts from has other rows; a tuner without a name is known by its functions."""
    content, given = stopped.read_bytes(), DIFFERENT[differing]
    usual = {"base": parameters(SMALL), "source": Coin(0.2), "config": CONFIG, "key": KEY, "repetitions": REPETITIONS}
    usual["tuner"] = make_tuner("SoftPT", SMALL, 2)
    with pytest.raises(OtherRunError) as error:
        fit(make_predictor(SMALL), **usual | given, checkpoint=stopped)
    message = f"{stopped} = of another run (differs in {differing}): must be of this one; it is kept"
    assert str(error.value) == message and isinstance(error.value, RefusedFileError)
    assert stopped.read_bytes() == content and [path.name for path in stopped.parent.iterdir()] == [stopped.name]


def test_a_network_that_differs_in_no_shape_is_another_run(tmp_path):
    """Heads are cut out of the same matrices, so that only the sizes tell."""
    config = FitConfig(1, 2, 2)
    for heads in (4, 2):
        sizes = replace(TRANSFORMER, num_heads=heads)
        arguments = (make_predictor(sizes), make_tuner("UnembedWT", sizes), parameters(TRANSFORMER), Coin(0.2), config)
        if heads == 4:
            fit(*arguments, KEY, checkpoint=tmp_path / "fit.partial")
        else:
            with pytest.raises(OtherRunError, match=r"differs in network\)"):
                fit(*arguments, KEY, checkpoint=tmp_path / "fit.partial")


def test_a_checkpoint_knows_a_nameless_tuner_by_its_functions(tmp_path):
    """Made anew, as in another process, the tuner is the same; another function is another."""

    def soft(start):
        return Tuner(init=lambda key, base: jnp.full((1, 16), start), inject=make_tuner("SoftPT", SMALL).inject)

    def other():
        return Tuner(init=lambda key, base: jnp.full((1, 16), 0.1), inject=make_tuner("SoftPT", SMALL).inject)

    arguments = (make_predictor(SMALL), soft(0.1), parameters(SMALL), Coin(0.2), FitConfig(1, 2, 2), KEY)
    records = [run_record(arguments[0], t, *arguments[2:], 1)["tuner"] for t in (soft(0.1), soft(0.1), other())]
    assert records[0] == records[1] != records[2]


def test_a_checkpoint_without_a_record_is_refused_like_a_damaged_one(stopped, uninterrupted, caplog):
    save_arrays(stopped, load_arrays(stopped, carry_like()))
    assert_same(run(checkpoint=stopped), uninterrupted)
    assert caplog.records[0].getMessage() == f"{stopped} = without a record of its run: not used; it is kept"
    assert stopped.with_name("fit.partial.refused").exists()


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


def test_a_loss_that_is_not_finite_stops_the_fit_and_loses_nothing(stopped, uninterrupted, monkeypatch):
    content, loop = (
        stopped.read_bytes(),
        compiled_loop(make_predictor(SMALL), make_tuner("SoftPT", SMALL, 2), CONFIG, MESH),
    )

    def spoilt(base, *arguments, **options):
        return loop[0](jax.tree.map(lambda x: x * np.nan, base), *arguments, **options)

    with pytest.raises(DivergedError) as error, monkeypatch.context() as patch:
        patch.setattr(fitting, "compiled_loop", lambda *_: (spoilt, loop[1]))
        run(checkpoint=stopped)
    message = "loss = [nan, nan, nan] at step 9: must stay finite; lower learning_rate = 0.05; the checkpoint of step 8"
    assert str(error.value) == message + " is kept, and the same call resumes there"
    assert stopped.read_bytes() == content
    assert_same(run(checkpoint=stopped), uninterrupted)


def test_a_learning_rate_that_is_too_large(tmp_path):
    config, tuner = FitConfig(8, 4, 3, learning_rate=1e38), make_tuner("FullWT", SMALL)
    with pytest.raises(DivergedError, match=r"^loss = \[(nan|inf)\] at step [2-4]: .* learning_rate = 1e\+38$"):
        fit(make_predictor(SMALL), tuner, parameters(SMALL), Coin(0.2), config, KEY, 1, tmp_path / "fit.partial")
    assert not (tmp_path / "fit.partial").exists(), "there is no last good checkpoint yet"


@pytest.mark.parametrize("method", ["SoftPT", "UnembedWT"])
@pytest.mark.parametrize("steps", [4, 8])
def test_a_step_that_leaves_nothing_finite_behind_is_never_kept(method, steps, tmp_path):
    """The last loss of a chunk is finite, and the gradient of that step is not: phi would be NaN in the checkpoint."""
    with pytest.raises(DivergedError, match=rf"^loss = \[nan\] at step {steps}: must stay finite"):
        fit(
            make_predictor(SMALL), make_tuner(method, SMALL), parameters(SMALL), Coin(0.2), Spoilt(steps, 4, 3), KEY, 1,
            tmp_path / "fit.partial",
        )  # fmt: skip
    if steps == 4:
        assert not (tmp_path / "fit.partial").exists()
    else:
        with safe_open(tmp_path / "fit.partial", "numpy") as file:
            assert all(np.isfinite(file.get_tensor(name)).all() for name in file.keys())


@dataclass(frozen=True)
class Spoilt(FitConfig):
    """The optimiser's last update is infinite."""

    def make_optimizer(self):
        def update(grad, count, params):
            factor = jnp.where(count + 1 == self.steps, jnp.inf, 1e-3)
            return jax.tree.map(lambda g: factor * jnp.ones_like(g), grad), count + 1

        return optax.GradientTransformation(lambda params: jnp.int32(0), update)


@pytest.mark.parametrize("bad", [1, 6, 10])
def test_the_step_that_failed_is_named_on_one_line(bad, monkeypatch, tmp_path):
    """Ten repetitions, of which the fourth fails."""
    losses = np.ones((10, 10), np.float32)
    losses[3, bad - 1 :] = np.inf
    loop = lambda base, source, carry, keys, done, steps: (carry, losses[:, done : done + 5])  # noqa: E731
    monkeypatch.setattr(fitting, "compiled_loop", lambda *_: (loop, lambda *_: {"phi": np.ones(10, np.float32)}))
    with pytest.raises(DivergedError, match=f"1.0, inf, 1.0, .* at step {bad}: ") as error:
        predictor, tuner = make_predictor(SMALL), make_tuner("SoftPT", SMALL)
        fit(predictor, tuner, parameters(SMALL), Coin(0.2), FitConfig(steps=10), KEY, 10, tmp_path / "fit.partial")
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
        must = "an integer >= 1" if wrong[0] in ("steps", "batch", "length") else "a finite number > 0"
        with pytest.raises(ValueError, match=f"^{wrong[0]} = {given_values[wrong[0]]}: must be {must}$"):
            FitConfig(**given_values)


def test_no_weight_decay_is_a_setting():
    assert AdamWConfig(weight_decay=0.0).weight_decay == 0
    with pytest.raises(ValueError, match="^weight_decay = -0.1: must be a finite number >= 0$"):
        AdamWConfig(weight_decay=-0.1)
    with pytest.raises(ValueError, match="^clip = 0.0: must be a finite number > 0$"):
        AdamWConfig(clip=0.0)


class Plain:
    """A source that JAX does not know as a tree."""

    num_tokens = 2

    def sample(self, key, batch, length):
        return jnp.zeros((batch, length), jnp.int32), None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Die:
    """A source of a reader's own, as the contract asks for it."""

    faces: jax.Array
    num_tokens = property(lambda self: self.faces.shape[-1])

    def sample(self, key, batch, length):
        return jax.random.categorical(key, jnp.log(self.faces), shape=(batch, length)), None


FAIR = Die(np.full(4, 0.25, np.float32))
REFUSED = {
    "source.num_tokens = 4: must be 2, as many as the network has": (FAIR, {}),
    "source.num_tokens = 3: must be 2, as many as the network has": (Categorical((0.2, 0.3, 0.5)), {}),
    "source = Plain: must be a tree of arrays, as register_dataclass makes it": (Plain(), {}),
    "source.bias = array of shape (2,): must have 3 rows, one a repetition": (
        jax.tree.map(lambda x: np.stack([x] * 2), Coin(0.2)), {"sources": True}
    ),
    "source.bias = array of shape (4,): must have 3 rows, one a repetition": (
        jax.tree.map(lambda x: np.stack([x] * 4), Coin(0.2)), {"sources": True}
    ),
    "source.bias = array of shape (): must have 3 rows, one a repetition": (Coin(0.2), {"sources": True}),
    "source.num_tokens = 4: must be 2, as many as the network has ": (
        Die(np.full((3, 4), 0.25, np.float32)), {"sources": True}
    ),
    "base.cells_0": (Coin(0.2), {"base": {"cells_0": np.zeros(2)}}),
    "base.embedding.bias = array of shape (8,): must be (16,), as this predictor's network has it": (
        Coin(0.2), {"base": parameters(LSTM3)}
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_what_does_not_fit_together_is_refused_before_anything_is_compiled(message, monkeypatch):
    """At first sight tokens out of range cost nothing: ten draws of a fair four-sided die would cost 3.47 nats."""
    monkeypatch.setattr(fitting, "compiled_loop", None)
    source, options = REFUSED[message]
    with pytest.raises(ValueError, match="^" + re.escape(message.strip())):
        run(source=source, **options)


def test_a_source_of_ones_own_is_tuned_to(tmp_path):
    """On K = 4 tokens; also one for each repetition."""
    sizes = LSTM(4, 8, 8)
    faces = np.float32([[0.7, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7]])
    arguments = (make_predictor(sizes), make_tuner("UnembedWT", sizes), parameters(sizes))
    config = FitConfig(4, 8, 3, 0.5)
    one = fit(*arguments, Die(faces[0]), config, KEY, 2, tmp_path / "fit.partial")
    each = fit(*arguments, Die(faces), config, KEY, 2, sources=True)
    assert_same(each.loss[0], one.loss[0])
    assert (each.loss[1] != one.loss[1]).any()
    assert_same(fit(*arguments, Die(faces[0]), config, KEY, 2, tmp_path / "fit.partial"), one)


@jax.tree_util.register_dataclass
@dataclass
class Table:
    """The weights of a network of a reader's own: logits of the next token, for each token (2: none) before it."""

    weight: jax.Array


def bigrams():
    """A network whose parameters are a list of dataclasses."""

    def predict(params, state, tokens):
        before = jnp.pad(tokens[:, :-1], ((0, 0), (1, 0)), constant_values=2)
        return jax.nn.log_softmax((params[0].weight + params[1].weight)[before])

    return Predictor(
        init=lambda key: [Table(jnp.zeros((3, 2))), Table(jnp.ones((3, 2)))],
        prompt=lambda params, prefix, length: (),
        predict=predict,
        architecture=SMALL,
    )


@pytest.mark.parametrize(("method", "options"), [("FullWT", {}), ("LoRAWT", {"rank": 1, "beside": ("0",)})])
def test_a_network_of_ones_own_is_tuned_by_the_same_tuners(method, options):
    predictor, tuner, config = bigrams(), make_tuner(method, SMALL, **options), FitConfig(40, 32, 4, 0.1)
    base = predictor.init(KEY)
    phi, loss = fit(predictor, tuner, base, Coin(0.2), config, KEY, 2)
    assert loss[:, -5:].mean() < loss[:, 0].mean() - 0.3
    params, _ = tuner.inject(base, jax.tree.map(lambda x: x[0], phi))
    assert isinstance(params[0], Table) and (params[0].weight != base[0].weight).all()
    assert (params[1].weight == base[1].weight).all() == (method == "LoRAWT")


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
