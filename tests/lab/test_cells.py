"""Cells: what belongs to them, that they can be stopped, shared and damaged, and what their numbers mean."""

import logging
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import xarray as xr
from reference import quick_jit

from bayesprompt import catalog
from bayesprompt.catalog import EXPERIMENTS, cells
from bayesprompt.devices import make_mesh
from bayesprompt.files import digest, tree_hash
from bayesprompt.lab.cells import load_cell, load_network, median_repetition
from bayesprompt.lab.experiment import STREAMS
from bayesprompt.lab.run import run_cell
from bayesprompt.measures.regret import best_hard_prompt, cumulative_regret, exact_regret
from bayesprompt.models import predictor as predictors
from bayesprompt.models.predictor import LSTM, Transformer, make_predictor
from bayesprompt.models.prefixes import NO_PREFIX, Prefix, hard_prefix, prompt_compositions
from bayesprompt.prompting import compute as running
from bayesprompt.prompting.compute import SCALES, evaluation_data, predict_all, search_data, tabulate, tuning_source
from bayesprompt.prompting.experiments import RANDOM_COINS, SWEEPS, TWO_COINS
from bayesprompt.sources.coins import Coin
from bayesprompt.store import Store
from bayesprompt.tuning import fitting
from bayesprompt.tuning.fitting import compiled_loop
from bayesprompt.tuning.hard_search import hard_search
from bayesprompt.tuning.tuners import METHODS, make_tuner

searches = sys.modules[hard_search.__module__]  # the function has the module's name
PRETRAINED = catalog.cell("pretraining", "lstm", "Pretrained", "smoke")


def cell(method, architecture="lstm"):
    return catalog.cell("single-coin", architecture, method, "smoke")


# Done to this process and, as text, to those it starts: quick compilation, and a look from the host every five steps.
PREPARE = """
import jax, reference
from bayesprompt.devices import use_every_core
use_every_core()
jax.jit = reference.quick_jit
from bayesprompt.models import predictor as predictors
from bayesprompt.prompting import compute as running
from bayesprompt.tuning import fitting
import sys; searches = sys.modules["bayesprompt.tuning.hard_search"]
fitting.FitConfig.max_chunk = 5
for module, name, fixed in ((searches, "_score", (0, 1)), (predictors, "_predict_parts", 0)):
    setattr(module, name, reference.quick_jit(getattr(module, name).__wrapped__, static_argnums=fixed))
"""


@pytest.fixture(scope="module", autouse=True)
def quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "jit", quick_jit)
        patch.setattr(fitting.FitConfig, "max_chunk", 5)
        for module, name, fixed in ((searches, "_score", (0, 1)), (predictors, "_predict_parts", 0)):
            patch.setattr(module, name, quick_jit(getattr(module, name).__wrapped__, static_argnums=fixed))
        compiled_loop.cache_clear()
        yield
        compiled_loop.cache_clear()


@pytest.fixture(scope="module")
def store(quick, tmp_path_factory):
    """One network and what most tests read of it; nothing here is ever damaged."""
    store = Store(tmp_path_factory.mktemp("cells"), shipped=None)
    for method in ("NoTuning", "RandomPF", "HardPT", "SoftPT", "FullWT"):
        run_cell(cell(method), store)
    for method in ("TargetBayes", "PreBayes", "PreBayesPT"):
        run_cell(cell(method, "bayes"), store)
    return store


@pytest.fixture
def copy(store, tmp_path):
    """A folder of one's own with the same files."""
    for path in store.folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return Store(tmp_path, shipped=None)


def warnings_of(caplog):
    found = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    caplog.clear()
    assert all("\n" not in message for message in found)
    return found


def assert_same_numbers(actual, expected):
    """Bit by bit, whenever and for however long they were computed."""
    xr.testing.assert_equal(actual, expected)
    assert actual.attrs["config_hash"] == expected.attrs["config_hash"]
    assert actual.attrs.get("network") == expected.attrs.get("network")


def test_every_cell_of_the_single_coin():
    found = cells("single-coin")
    assert [c.method for c in found if c.architecture == "bayes"] == ["TargetBayes", "PreBayes", "PreBayesPT"]
    for architecture, missing in (("lstm", {"LoRAWT"}), ("transformer", set())):
        assert {c.method for c in found if c.architecture == architecture} == {
            "NoTuning",
            "RandomPF",
            *METHODS,
        } - missing
    assert len(set(found)) == len(found) and all(c.scale == "paper" and c.seed == 0 for c in found)


def test_base_networks_come_first_and_have_names():
    assert [c.name for c in cells("pretraining", method="Pretrained", scale="smoke", seed=3)] == [
        "pretraining.lstm.Pretrained.smoke.3",
        "pretraining.transformer.Pretrained.smoke.3",
    ]
    assert cells()[0].experiment is EXPERIMENTS["pretraining"]
    assert cell("SoftPT").base == PRETRAINED
    for c in cells() + [c for sweep in SWEEPS for c in cells(sweep)]:
        if c.base is not None:
            assert c.base in cells(c.base.experiment.name)


def test_experiments_are_the_papers():
    """What each experiment changes, per PAPERS: target, network, prefix length, sizes."""
    for name, network, length, bayes in (
        ("two-coins", "Pretrained", 6, TWO_COINS),
        ("untrained-two-coins", "Untrained", 6, TWO_COINS),
        ("untrained-random-coins", "Untrained", 6, RANDOM_COINS),
        ("two-coins-prefix-25", "Pretrained", 25, TWO_COINS),
        ("untrained-two-coins-prefix-25", "Untrained", 25, TWO_COINS),
    ):
        spec = EXPERIMENTS[name]
        assert (spec.network, spec.prefix_length, spec.target) == (network, length, bayes)
        assert catalog.cell(name, "lstm", "SoftPT").config()["prefix_length"] == length
    assert "HardPT" not in EXPERIMENTS["two-coins-prefix-25"].methods("lstm")
    assert "PreBayesPT" in EXPERIMENTS["two-coins-prefix-25"].methods("bayes")
    sizes = {
        ("single-coin-embedding-4", "lstm"): LSTM(2, 4, 128, 1),
        ("single-coin-embedding-4", "transformer"): Transformer(2, 4, 4, 1, 512),
        ("single-coin-embedding-2", "transformer"): Transformer(2, 2, 2, 1, 512),
        ("two-coins-large", "lstm"): LSTM(2, 256, 256, 2),
        ("two-coins-large", "transformer"): Transformer(2, 256, 4, 2, 1024),
    }
    for (name, architecture), expected in sizes.items():
        assert catalog.cell(name, architecture, "SoftPT").predictor.architecture == expected


@pytest.mark.parametrize("sweep", SWEEPS)
def test_a_sweep_varies_one_setting(sweep):
    title, methods, experiments = SWEEPS[sweep]
    assert {c.method for c in cells(sweep)} == set(methods)
    assert {c.experiment for c in cells(sweep)} == set(experiments.values())
    assert list(experiments) == sorted(experiments)
    known = {
        "prefix-length": "prefix_length",
        "prefix-length-two-coins": "prefix_length",
        "tuning-sequences": "tuning_sequences",
    }
    for value, spec in experiments.items():
        if sweep in known:
            assert getattr(spec, known[sweep]) == (None if value == np.inf else value)
        elif sweep == "bias":
            assert spec.target == Coin(value)
        else:
            assert catalog.cell(spec.name, "lstm", "SoftPT").predictor.architecture.embed_dim == value


def test_a_finite_sample_is_what_tuning_reads():
    few = catalog.cell("single-coin-sequences-16", "lstm", "SoftPT", "smoke")
    source = tuning_source(few)
    kept = {tuple(row) for row in np.asarray(source.sample(jax.random.key(1), 256, 30)[0])}
    again = {tuple(row) for row in np.asarray(source.sample(jax.random.key(2), 256, 30)[0])}
    assert len(kept) == 16 and kept == again
    assert few.config()["tuning_sequences"] == 16 and "tuning_sequences" not in cell("SoftPT").config()
    assert tuning_source(cell("SoftPT")) == EXPERIMENTS["single-coin"].target


@pytest.mark.parametrize("experiment", ["two-coins", "alternating", "single-coin-sequences-16"])
def test_other_targets_run(store, tmp_path, experiment):
    """A mixture, a source whose order matters, a finite sample: each gives a cell with finite regrets."""
    mine = Store(tmp_path, shipped=store.folder)
    dataset = run_cell(catalog.cell(experiment, "lstm", "SoftPT", "smoke"), mine)
    assert np.isfinite(dataset.regret.values).all() and dataset.regret.shape == (2, 20)
    if experiment == "alternating":
        tokens, _ = evaluation_data(catalog.cell(experiment, "lstm", "SoftPT", "smoke"))
        assert (tokens == np.arange(20) % 2).all()


def test_forgetting_is_the_excess_over_laplace_on_random_coins(store):
    """Without tuning, what is forgotten is what the base network's own cell says it never knew."""
    network = load_cell(PRETRAINED, store)
    np.testing.assert_allclose(load_cell(cell("NoTuning"), store).forgetting[0], network.excess, rtol=1e-5, atol=1e-6)
    tuned = load_cell(cell("FullWT"), store).forgetting
    assert tuned.shape == (2, 20) and (np.abs(tuned[:, -1] - network.excess.values[-1]) > 1e-3).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experiment": "two"}, "experiment = two: must be one of pretraining, single-coin"),
        ({"architecture": "gru"}, "architecture = gru: must be one of bayes, lstm, transformer"),
        ({"method": "soft"}, "method = soft: must be one of TargetBayes, .*, SoftPT, .*, Pretrained, Untrained"),
        ({"scale": "huge"}, "scale = huge: must be one of smoke, quick, paper"),
        ({"seed": -1}, r"seed = -1: must be an integer from 0 to 4294967295"),
        ({"seed": 2**32}, r"seed = 4294967296: must be an integer from 0 to 4294967295"),
        (
            {"experiment": "pretraining", "method": "SoftPT"},
            "method = SoftPT: must be part of experiment pretraining with architecture",
        ),
        ({"architecture": "bayes", "method": "NoTuning"}, "method = NoTuning: must be part of .* architecture bayes"),
        ({"architecture": "lstm", "method": "LoRAWT"}, "method = LoRAWT: must have architecture transformer"),
    ],
)
def test_what_is_no_cell(options, message):
    with pytest.raises(ValueError, match=f"^{message}") as error:
        cells(**options)
    assert "\n" not in str(error.value)


def test_larger_seeds_would_repeat_smaller_ones():
    """Why they are refused."""
    same = [jax.random.key_data(jax.random.key(seed)).tolist() for seed in (0, 2**32)]
    assert same[0] == same[1]


def test_a_configuration_decides_everything():
    base = cell("SoftPT").config("network")
    others = [
        cell("SoftPT").config("another"),
        cell("SoftPT")._replace(seed=1).config("network"),
        cell("SoftPT")._replace(scale="quick").config("network"),
        cell("SoftPT")._replace(architecture="transformer").config("network"),
        *(cell(method).config("network") for method in METHODS if method not in ("SoftPT", "LoRAWT")),
    ]
    hashes = {digest(config) for config in [base, *others]}
    assert len(hashes) == 1 + len(others)
    assert digest(cell("SoftPT").config("network")) in hashes, "and is the same every time"
    assert base["target"] == {"type": "Coin", "bias": 0.2} and base["prefix_length"] == 6 and base["repetitions"] == 2
    assert base["fit"] == {"steps": 20, "batch": 16, "length": 10, "learning_rate": 5e-3, "clip": 1.0}


def test_the_paper_scale_is_the_papers():
    paper = SCALES["paper"]
    tuning = {"steps": 1000, "batch": 256, "length": 50, "learning_rate": 5e-3, "clip": 1.0}
    assert vars(paper.tuning) == tuning
    assert vars(paper.pretraining) == tuning | {"length": 100, "learning_rate": 1e-3}
    assert (paper.repetitions, paper.sequences, paper.length) == (10, 2048, 200)
    single = EXPERIMENTS["single-coin"]
    assert (single.target, single.prefix_length, single.network) == (Coin(0.2), 6, "Pretrained")
    transformer = catalog.cell("single-coin", "transformer", "SoftPT").predictor.architecture
    assert vars(transformer) == dict(num_tokens=2, embed_dim=128, num_heads=4, num_layers=1, mlp_dim=512)
    assert catalog.cell("single-coin", "lstm", "SoftPT").predictor.architecture == LSTM(2, 128, 128, 1)


def test_every_method_is_evaluated_on_the_same_sequences():
    tokens, latent = evaluation_data(cell("SoftPT"))
    assert tokens.shape == (32, 20)
    np.testing.assert_allclose(latent, [[0.2, 0.8]] * 32, rtol=1e-6)
    for other in (cell("PreBayes", "bayes"), cell("FullWT", "transformer")):
        np.testing.assert_array_equal(evaluation_data(other)[0], tokens)
    assert (evaluation_data(cell("SoftPT")._replace(seed=1))[0] != tokens).any()
    assert len({jax.random.key_data(cell("SoftPT").key(use)).tobytes() for use in STREAMS}) == len(STREAMS)


def test_a_network_cell_holds_a_network_and_its_distance_from_laplace(store):
    dataset, (predictor, params) = load_cell(PRETRAINED, store), load_network(PRETRAINED, store)
    assert dataset.attrs["network"] == tree_hash(params)
    assert predictor is make_predictor(PRETRAINED.predictor.architecture)
    assert dict(dataset.sizes) == {"step": 20, "repetition": 1, "n": 20, "seen": 20, "heads": 20}
    tokens, latent = evaluation_data(PRETRAINED)
    assert (tokens == 0).mean(1).std() > 0.15, "random coins, not one"
    log_probs = predict_all(predictor, params, NO_PREFIX, tokens)
    bayes = RANDOM_COINS.bayes_log_probs(tokens)
    chosen = np.take_along_axis(bayes - log_probs, tokens[..., None], -1)[..., 0]
    np.testing.assert_allclose(dataset.excess, chosen.cumsum(1).mean(0), rtol=1e-6)
    np.testing.assert_allclose(dataset.kl, (np.exp(bayes) * (bayes - log_probs)).sum(-1).mean(0), rtol=1e-6)
    assert (dataset.kl > 0).all()
    expected = cumulative_regret(log_probs, tokens, RANDOM_COINS.oracle_log_probs(tokens, latent)).mean
    np.testing.assert_allclose(dataset.regret[0], expected, rtol=1e-6)
    assert dataset.training_loss[-5:].mean() < dataset.training_loss[:5].mean()


@pytest.mark.parametrize(
    ("method", "repetitions", "more"),
    [
        ("NoTuning", 1, set()),
        ("RandomPF", 2, {"prefix"}),
        ("HardPT", 1, {"prefix", "search_loss"}),
        ("SoftPT", 2, {"prefix", "tuning_loss"}),
        ("FullWT", 2, {"tuning_loss"}),
    ],
)
def test_what_a_tuned_cell_holds(store, method, repetitions, more):
    dataset = load_cell(cell(method), store)
    several = {"mean_prediction"} if repetitions > 1 else set()  # of one, it is the prediction
    assert set(dataset.data_vars) == {"regret", "regret_stderr", "prediction", "forgetting"} | several | more
    assert dataset.regret.dims == ("repetition", "n") and dataset.regret.shape == (repetitions, 20)
    assert dataset.n.values.tolist() == list(range(1, 21)) and dataset.regret.attrs["units"] == "nats"
    assert np.isfinite(dataset.regret).all() and (dataset.regret_stderr > 0).all()
    if "tuning_loss" in more:
        assert dataset.tuning_loss.shape == (2, 20)
        assert len(np.unique(dataset.tuning_loss[:, 0])) == 2, "each repetition has data of its own"
    if "prefix" in more:
        assert dataset.prefix.shape == (repetitions, 6, 16 if method == "SoftPT" else 2)
    # Tuned weights lie beside, in the user's folder.
    assert (store.folder / f"{cell(method).name}.safetensors").exists() == (method == "FullWT")
    assert not list(store.folder.glob("*.partial"))


@pytest.mark.parametrize("method", ["NoTuning", "RandomPF", "HardPT", "SoftPT"])
def test_a_cells_regret_is_that_of_its_model(store, method):
    dataset, (predictor, params) = load_cell(cell(method), store), load_network(cell(method), store)
    tokens, latent = evaluation_data(cell(method))
    oracle = Coin(0.2).oracle_log_probs(tokens, latent)
    for repetition in range(dataset.sizes["repetition"]):
        prefix = NO_PREFIX
        if "prefix" in dataset:
            rows = jax.numpy.asarray(dataset.prefix.values[repetition], np.float32)
            prefix = Prefix(embeddings=rows) if method == "SoftPT" else Prefix(inputs=rows)
        regret = cumulative_regret(predict_all(predictor, params, prefix, tokens), tokens, oracle)
        np.testing.assert_array_equal(dataset.regret[repetition], regret.mean)


def test_the_random_prefix_is_where_the_real_one_starts(store):
    network = load_network(cell("RealPT"), store)
    predictor, params = network
    config = SCALES["smoke"].tuning
    mesh = make_mesh(2, config.batch)
    _, start = compiled_loop(predictor, make_tuner("RealPT", predictor.architecture, 6), config, mesh)
    key = cell("RealPT").key("tune")
    phi, _ = start(params, jax.numpy.stack([jax.random.fold_in(key, r) for r in range(2)]))
    np.testing.assert_array_equal(load_cell(cell("RandomPF"), store).prefix, phi)


def test_the_hard_prefix_is_the_best_on_fresh_sequences(store):
    dataset, (predictor, params) = load_cell(cell("HardPT"), store), load_network(cell("HardPT"), store)
    fresh = search_data(cell("HardPT"))
    assert fresh.shape == (32, 10) and dataset.search_loss.shape == (64,)
    best = int(dataset.search_loss.values.argmin())
    prompt = [int(digit) for digit in f"{best:06b}"]
    np.testing.assert_array_equal(dataset.prefix[0], hard_prefix(np.array(prompt)).inputs)
    again = hard_search(predictor, params, 6, fresh)
    np.testing.assert_array_equal(again.loss, dataset.search_loss)


def test_exact_predictors_are_within_their_error_of_the_closed_forms(store):
    target, steps = Coin(0.2), 20
    bayes = {m: load_cell(cell(m, "bayes"), store) for m in ("TargetBayes", "PreBayes", "PreBayesPT")}
    np.testing.assert_allclose(bayes["TargetBayes"].regret, 0, atol=1e-12)
    expected = exact_regret(RANDOM_COINS, target, steps)
    assert (np.abs(bayes["PreBayes"].regret[0] - expected) <= 4 * bayes["PreBayes"].regret_stderr[0] + 1e-9).all()
    prompted = bayes["PreBayesPT"]
    counts = prompted.prompt_counts.values
    assert counts.sum() == 6 and prompted.search_loss.shape == (7,)
    assert counts.tolist() == prompt_compositions(6)[int(prompted.search_loss.values.argmin())].tolist()
    expected = exact_regret(RANDOM_COINS, target, steps, tuple(map(int, counts)))
    assert (np.abs(prompted.regret[0] - expected) <= 4 * prompted.regret_stderr[0] + 1e-9).all()
    best, _ = best_hard_prompt(RANDOM_COINS, target, 6, 10)
    assert abs(int(best[0]) - int(counts[0])) <= 1, "what is best on 32 sequences is about what is best"


def test_predictions_are_tabulated_by_step_and_heads():
    tokens = np.array([[0, 1, 1], [1, 0, 0]])
    probs = np.array([[0.5, 0.6, 0.3], [0.7, 0.2, 0.1]])
    table = tabulate(np.log(np.stack([probs, 1 - probs], axis=-1)), tokens)
    nan = np.nan
    np.testing.assert_allclose(table, [[0.6, nan, nan], [0.2, 0.6, nan], [nan, 0.2, nan]], rtol=1e-6)


def test_predict_all_is_the_predictor_whatever_the_parts(store, monkeypatch):
    predictor, params = load_network(PRETRAINED, store)
    tokens, _ = evaluation_data(PRETRAINED)
    whole = predict_all(predictor, params, NO_PREFIX, tokens)
    monkeypatch.setattr(predictors, "part_size", lambda *_: 8)
    np.testing.assert_allclose(predict_all(predictor, params, NO_PREFIX, tokens), whole, rtol=1e-5)
    assert whole.dtype == np.float64 and whole.shape == (32, 20, 2)


def test_a_finished_cell_is_read_not_computed(copy, monkeypatch):
    for function in ("network", "tuned", "bayes"):
        monkeypatch.setattr(running, function, None)
    for wanted in (PRETRAINED, cell("SoftPT"), cell("PreBayes", "bayes")):
        xr.testing.assert_identical(run_cell(wanted, copy), load_cell(wanted, copy))


def test_a_cell_of_another_network_is_not_used(copy, caplog):
    assert load_cell(cell("SoftPT"), copy) is not None
    other = load_cell(PRETRAINED, copy).copy()
    other.attrs["network"] = "0" * 64
    copy.save(PRETRAINED.name, other, PRETRAINED.config(), 0.0)
    assert load_cell(cell("SoftPT"), copy) is None
    (warning,) = warnings_of(caplog)
    assert "SoftPT.smoke.0.nc = another configuration (differs in network)" in warning
    assert load_network(cell("SoftPT"), copy) is None
    (warning,) = warnings_of(caplog)
    assert "Pretrained.smoke.0.safetensors = other arrays than the cell's: not used; it is kept" in warning
    (copy.folder / f"{PRETRAINED.name}.nc").unlink()
    assert load_cell(cell("SoftPT"), copy) is None and load_network(cell("SoftPT"), copy) is None


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def altered(path):
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(bytes(content))


def foreign(path):
    path.write_text("something else")


@pytest.mark.parametrize("damage", [truncated, altered, foreign])
def test_a_damaged_cell_is_refused_recomputed_and_kept(copy, store, damage, caplog):
    wanted = cell("PreBayes", "bayes")
    path = copy.folder / f"{wanted.name}.nc"
    damage(path)
    content = path.read_bytes()
    assert_same_numbers(run_cell(wanted, copy), load_cell(wanted, store))
    (warning,) = set(warnings_of(caplog))  # looked at before and after the lock
    assert warning.startswith(f"{path} = ") and warning.endswith("not used; it is kept")
    assert path.with_name(path.name + ".refused").read_bytes() == content
    assert_same_numbers(load_cell(wanted, copy), load_cell(wanted, store))


@pytest.mark.parametrize("damage", [truncated, altered])
def test_damaged_networks_are_refused_recomputed_and_kept(copy, store, damage, caplog):
    """With the network back, what was tuned on it is as good as before."""
    path = copy.folder / f"{PRETRAINED.name}.safetensors"
    damage(path)
    content = path.read_bytes()
    assert load_network(PRETRAINED, copy) is None
    assert_same_numbers(run_cell(PRETRAINED, copy), load_cell(PRETRAINED, store))
    warnings = warnings_of(caplog)
    assert warnings and all(re.match(rf"{re.escape(str(path))} = .*; it is kept$", line) for line in warnings)
    assert path.with_name(path.name + ".refused").read_bytes() == content
    assert tree_hash(load_network(PRETRAINED, copy)[1]) == tree_hash(load_network(PRETRAINED, store)[1])
    assert load_cell(cell("SoftPT"), copy) is not None


def test_a_folder_below_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"^folder = .*/file/cells: must be writable \(Not a directory\)$"):
        run_cell(cell("TargetBayes", "bayes"), Store(tmp_path / "file" / "cells", shipped=None))


def start(script, *arguments):
    """Start another process that prepares itself like this one."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", PREPARE + textwrap.dedent(script), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_killed_run_goes_on_to_the_same_numbers(store, tmp_path):
    """SIGKILL after ten of twenty steps, in the middle of the next."""
    killed = start(
        """
        import os, signal, sys
        from bayesprompt import catalog
        from bayesprompt.lab.run import run_cell
        from bayesprompt.store import Store

        def progress(step, loss):
            if step == 10:
                os.kill(os.getpid(), signal.SIGKILL)

        run_cell(catalog.cell("pretraining", "lstm", "Pretrained", "smoke"), Store(sys.argv[1], shipped=None), progress)
        """,
        tmp_path,
    )
    _, errors = killed.communicate(timeout=300)
    assert killed.returncode == -signal.SIGKILL, errors
    mine = Store(tmp_path, shipped=None)
    assert load_cell(PRETRAINED, mine) is None
    checkpoint = mine.checkpoint(PRETRAINED.name, PRETRAINED.config())
    assert checkpoint.exists()
    steps = []
    dataset = run_cell(PRETRAINED, mine, lambda step, _: steps.append(step))
    assert steps == [15, 20], "only what was missing is computed"
    assert_same_numbers(dataset, load_cell(PRETRAINED, store))
    assert not checkpoint.exists()
    assert load_network(PRETRAINED, mine) is not None


def test_two_processes_on_one_cell(tmp_path, monkeypatch):
    """The second waits for the first, and computes nothing."""
    first = start(
        """
        import sys, time
        from pathlib import Path
        from bayesprompt import catalog
        from bayesprompt.lab.run import run_cell
        from bayesprompt.store import Store

        folder, compute = Path(sys.argv[1]), running.bayes

        def slow(experiment, cell):
            (folder / "computing").touch()
            while not (folder / "go").exists():
                time.sleep(0.02)
            return compute(experiment, cell)

        running.bayes = slow
        store = Store(folder, shipped=None)
        print(run_cell(catalog.cell("single-coin", "bayes", "PreBayes", "smoke"), store).attrs["checksum"])
        """,
        tmp_path,
    )
    while not (tmp_path / "computing").exists():
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    computed, results = [], []
    compute = running.bayes
    monkeypatch.setattr(running, "bayes", lambda e, wanted: computed.append(wanted) or compute(e, wanted))
    mine = Store(tmp_path, shipped=None)
    second = threading.Thread(target=lambda: results.append(run_cell(cell("PreBayes", "bayes"), mine)))
    second.start()
    second.join(timeout=0.5)
    assert second.is_alive(), "it waits for the lock"
    (tmp_path / "go").touch()
    output, errors = first.communicate(timeout=300)
    assert first.returncode == 0, errors
    second.join(timeout=300)
    assert not computed and [dataset.attrs["checksum"] for dataset in results] == [output.strip()]
    assert len(list(tmp_path.glob("*.nc*"))) == 1


def test_the_median_repetition_is_one_of_them_and_a_short_cell_is_read_at_its_end():
    regret = xr.DataArray([[1.0, 4.0], [3.0, 1.0], [2.0, 3.0], [2.0, 2.0]], {"n": [1, 2]}, ("repetition", "n"))
    dataset = xr.Dataset({"regret": regret})
    assert [median_repetition(dataset, n) for n in (1, 2, 50)] == [3, 2, 2]
    assert median_repetition(dataset.isel(repetition=[1])) == 0
