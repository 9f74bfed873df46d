"""Cells of the sorting experiments: what is stored, resuming, a task for each repetition, and the optimiser."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bayesprompt import catalog
from bayesprompt.catalog import cells
from bayesprompt.lab.cells import load_cell, load_network, stretch
from bayesprompt.lab.run import run_cell
from bayesprompt.mechanism.digits import (
    DIGIT_EXPERIMENTS,
    DIGIT_SCALES,
    STRETCHES,
    accuracy,
    held_out_inputs,
    load_tuned,
)
from bayesprompt.models.gpt import GPT, make_gpt
from bayesprompt.models.predictor import nll
from bayesprompt.models.prefixes import NO_PREFIX
from bayesprompt.sources.digits import TASKS, Digits, answer, one_task
from bayesprompt.store import Store
from bayesprompt.tuning.fitting import AdamWConfig, clip_each, fit
from bayesprompt.tuning.tuners import make_tuner

SIZES = GPT(embed_dim=16, num_heads=2, num_layers=2, pads=3)
PREDICTOR = make_gpt(SIZES)
CONFIG = AdamWConfig(6, 4, 20, 1e-2, weight_decay=0.01)
KEY = jax.random.key(1)


@pytest.fixture(scope="module")
def base():
    return jax.jit(PREDICTOR.init)(jax.random.key(0))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("store"), None)
    for cell in cells("sorting", scale="smoke"):
        run_cell(cell, store)
    return store


def written_out(base, tuner, source, config, key):
    """The loop in plain steps: AdamW in NumPy (Loshchilov & Hutter 2019), the loss on the whole batch."""
    phi = tuner.init(jax.random.fold_in(key, 0), base)
    leaves, structure = jax.tree.flatten(phi)
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_flatten_with_path(phi)[0]]
    phi, losses = [np.asarray(x, np.float64) for x in leaves], []
    m, v = [0 * x for x in phi], [0 * x for x in phi]

    def loss(leaves, tokens):
        params, prefix = tuner.inject(base, jax.tree.unflatten(structure, leaves))
        return nll(PREDICTOR.apply(params, tokens, prefix), tokens[:, 10:]).mean()

    differentiate, sample = jax.jit(jax.value_and_grad(loss)), jax.jit(source.sample, static_argnums=(1, 2))
    for step in range(config.steps):
        tokens = sample(jax.random.fold_in(jax.random.fold_in(key, 1), step), config.batch, 20)[0]
        value, grad = differentiate([jnp.float32(x) for x in phi], tokens)
        grad = [np.asarray(g, np.float64) for g in grad]
        norm = np.sqrt(sum((g**2).sum() for g in grad))
        for i, g in enumerate(grad):
            own = np.sqrt((g**2).sum()) if config.clip_each else norm
            g = g * (config.clip / own if own > config.clip else 1)
            m[i], v[i] = 0.9 * m[i] + 0.1 * g, 0.95 * v[i] + 0.05 * g**2
            change = m[i] / (1 - 0.9 ** (step + 1)) / (np.sqrt(v[i] / (1 - 0.95 ** (step + 1))) + 1e-8)
            linear = not any(name in paths[i] for name in ("bias", "scale", "tokens", "positions"))
            phi[i] = phi[i] - config.learning_rate * (change + config.weight_decay * linear * phi[i])
        losses.append(float(value))
    return jax.tree.unflatten(structure, phi), losses


@pytest.mark.parametrize(
    ("method", "config"),
    [
        ("PrefixTuning", CONFIG),
        ("LoRAWT", AdamWConfig(6, 4, 20, 1e-2, clip=0.01, weight_decay=0.01, clip_each=True)),
        ("FullWT", AdamWConfig(6, 4, 20, 1e-3, clip=0.5, weight_decay=0.5)),
    ],
)
def test_the_loop_is_adamw_written_out(method, config, base):
    tuner, source = make_tuner(method, SIZES, 3, 1, ("attention_output", "mlp_in")), one_task("descending")
    phi, losses = written_out(base, tuner, source, config, jax.random.fold_in(KEY, 0))
    found = fit(PREDICTOR, tuner, base, source, config, KEY)
    np.testing.assert_allclose(found.loss[0], losses, rtol=1e-5)
    for x, y in zip(jax.tree.leaves(found.phi), jax.tree.leaves(phi), strict=True):
        np.testing.assert_allclose(x[0], y, rtol=2e-3, atol=2e-4)


def test_each_repetition_learns_its_own_task(base):
    tuner = make_tuner("PrefixTuning", SIZES, 3)
    tasks = ("add 1", "descending", "double histogram")
    together = Digits(np.stack([one_task(task).weights for task in tasks]))
    found = fit(PREDICTOR, tuner, base, together, CONFIG, KEY, 3, sources=True)
    for r, task in enumerate(tasks):
        phi, losses = written_out(base, tuner, one_task(task), CONFIG, jax.random.fold_in(KEY, r))
        np.testing.assert_allclose(found.loss[r], losses, rtol=1e-5)
        np.testing.assert_allclose(found.phi[r], phi, rtol=1e-4, atol=1e-5)


def test_dropout_has_its_own_masks_at_each_step_and_resumes_with_the_same(base, tmp_path, monkeypatch):
    monkeypatch.setattr(AdamWConfig, "max_chunk", 2)
    config, tuner = AdamWConfig(6, 4, 20, 1e-3, dropout=True), make_tuner("FullWT", SIZES)
    whole = fit(PREDICTOR, tuner, base, one_task("add 2"), config, KEY)
    assert np.abs(whole.loss - fit(PREDICTOR, tuner, base, one_task("add 2"), config, KEY).loss).max() == 0
    dry = fit(PREDICTOR, tuner, base, one_task("add 2"), AdamWConfig(6, 4, 20, 1e-3), KEY)
    assert (np.abs(whole.loss - dry.loss)[0] > 1e-5).all()

    def stop(step, _):
        if step == 4:
            raise KeyboardInterrupt

    for _ in range(2):
        try:
            again = fit(PREDICTOR, tuner, base, one_task("add 2"), config, KEY, 1, tmp_path / "x.partial", stop)
        except KeyboardInterrupt:
            stop = None
    np.testing.assert_array_equal(again.loss, whole.loss)
    jax.tree.map(np.testing.assert_array_equal, again.phi, whole.phi)


def test_clipping_each_array_by_its_own_norm():
    grad = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([0.3, 0.4])}
    clipped, _ = clip_each(1.0).update(grad, clip_each(1.0).init(grad))
    np.testing.assert_allclose(clipped["a"], [0.6, 0.8], rtol=1e-6)
    np.testing.assert_allclose(clipped["b"], [0.3, 0.4], rtol=1e-6)
    assert float(optax.tree.norm(clipped)) > 1


def test_a_cell_stores_accuracies_losses_and_what_was_learned(store):
    network = load_cell(catalog.cell("sorting-pretraining", "gpt", "Pretrained", "smoke"), store)
    assert network.accuracy.shape == (1, len(TASKS)) and network.tuning_loss.shape == (1, 10)
    cell = catalog.cell("sorting", "gpt", "PrefixTuning", "smoke")
    dataset = load_cell(cell, store)
    assert dataset.prefix.shape == (1, 1, 1, 16)
    assert dataset.tuning_loss.attrs["units"] == "nats a token"
    assert 1.5 < float(dataset.tuning_loss.mean()) < 3  # about log 10, before anything is learned
    ((params, prefix),) = load_tuned(cell, store).models
    np.testing.assert_array_equal(prefix.layers, dataset.prefix[0])
    _, base = load_network(cell, store)
    jax.tree.map(np.testing.assert_array_equal, params, base)
    ((tuned, _),) = load_tuned(catalog.cell("sorting", "gpt", "FullWT", "smoke"), store).models
    assert (
        np.abs(tuned["torso"]["blocks_0"]["query"]["kernel"] - base["torso"]["blocks_0"]["query"]["kernel"]).max() > 0
    )


def test_accuracy_counts_whole_answers(store, monkeypatch):
    cell = catalog.cell("sorting", "gpt", "PrefixTuning", "smoke")
    inputs = held_out_inputs(cell)
    said = np.array(answer(inputs, 1))
    said[: len(said) // 4, 9] += 1  # one digit wrong in a quarter of them
    monkeypatch.setattr("bayesprompt.mechanism.digits.decode", lambda *_: said)
    found = accuracy(cell, {}, NO_PREFIX)
    assert found[1] == 0.75
    assert found[[2, 3, 4, 5]].max() == 0


def test_a_stored_cell_is_found_and_a_tampered_one_refused(store):
    cell = catalog.cell("sorting", "gpt", "FullWT", "smoke")
    before = load_cell(cell, store).attrs["date"]
    assert run_cell(cell, store).attrs["date"] == before
    path = store.folder / f"{cell.name}.nc"
    kept = path.read_bytes()
    path.write_bytes(kept[:-40] + b"x" * 40)
    assert load_cell(cell, store) is None
    path.write_bytes(kept)


@pytest.mark.parametrize("steps", [1, 7, 2000, 20_000, 30_000, 500_000])
def test_stored_losses_are_means_over_equal_stretches(steps):
    n = stretch(steps, STRETCHES)
    assert steps % n == 0 and steps // n <= 2000


def test_paper_scale_is_the_papers():
    steps = {
        name: {m: (e.training(m, "paper").steps, e.training(m, "paper").learning_rate) for m in e.methods("gpt")}
        for name, e in DIGIT_EXPERIMENTS.items()
    }
    assert steps == {
        "sorting-pretraining": {"Pretrained": (20_000, 5e-4)},
        "sorting": {"FullWT": (10_000, 5e-4), "PrefixTuning": (40_000, 5e-4)},
        "eliciting-skills-pretraining": {"Pretrained": (20_000, 5e-4)},
        "eliciting-skills": {"PrefixTuning": (30_000, 5e-5)},
        "longer-prefixes-pretraining": {"Pretrained": (40_000, 5e-4)},
        "longer-prefixes": {"PrefixTuning": (20_000, 5e-5)},
        "longer-prefixes-new-tasks": {"PrefixTuning": (500_000, 5e-5)},
        "lora-control-pretraining": {"Pretrained": (40_000, 5e-4)},
        "lora-control": {"PrefixTuning": (100_000, 5e-5), "LoRAWT": (10_000, 5e-3)},
    }
    assert DIGIT_SCALES["paper"].inputs == 3200
    whole = DIGIT_EXPERIMENTS["sorting"].training("FullWT", "paper")
    assert (whole.batch, whole.clip, whole.weight_decay, whole.dropout, whole.clip_each) == (64, 1.0, 0.1, True, False)
    prefix = DIGIT_EXPERIMENTS["sorting"].training("PrefixTuning", "paper")
    assert (prefix.weight_decay, prefix.dropout, prefix.clip_each) == (0.01, False, False)
    assert DIGIT_EXPERIMENTS["lora-control"].training("LoRAWT", "paper").clip_each
