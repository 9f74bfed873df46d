"""JAX's process-wide settings: the numbers, types and errors stay what they are, or the setting is told."""

import functools
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
import xarray as xr

from bayesprompt import catalog, settings
from bayesprompt.files import OtherRunError
from bayesprompt.lab.experiment import Cell
from bayesprompt.lab.run import run_cell
from bayesprompt.models.predictor import LSTM, make_predictor
from bayesprompt.prompting.compute import Sample
from bayesprompt.settings import make_key, told, typed_key
from bayesprompt.sources.coins import BetaCoins, Coin
from bayesprompt.sources.digits import TASKS, one_task
from bayesprompt.store import Store
from bayesprompt.tuning.fitting import FitConfig, fit
from bayesprompt.tuning.tuners import make_tuner

SIZES, COINS, CONFIG = LSTM(2, 4, 8, 1), BetaCoins(1.0, 1.0), FitConfig(3, 8, 6, 1e-3)
CELL = Cell(catalog.EXPERIMENTS["pretraining"], "lstm", "Untrained", "smoke")


@functools.cache
def weights():
    return make_predictor(SIZES).init(make_key(1))


def small_fit(key, config=CONFIG, repetitions=2, **more):
    tuner = make_tuner("SoftPT", SIZES, 2)
    return fit(make_predictor(SIZES), tuner, weights(), COINS, config, key, repetitions, **more)


def everything():
    """What users compute by hand: draws, a network's weights and predictions, and a fit, under their own names."""
    key, predictor = make_key(1), make_predictor(SIZES)
    tokens, latent = COINS.sample(key, 4, 6)
    params = weights()
    kept = Sample(Coin(0.5), np.array([0, 5], np.uint32), 4).sample(key, 3, 5)
    found = tokens, latent, kept, one_task(TASKS[-1]).sample(key, 2), params, predictor.apply(params, tokens)
    return {f"{i:02d}": np.asarray(x) for i, x in enumerate(jax.tree.leaves((found, small_fit(key))))}


def child(code, tmp_path, **environment):
    command = f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r})\nfrom test_settings import *\n" + code
    process = subprocess.run(
        [sys.executable, "-c", command], cwd=tmp_path, env=os.environ | environment, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    return process.stderr


def test_no_setting_of_the_process_changes_numbers_or_types(tmp_path):
    """Another generator, 64 bits, strict promotion, a hunt for NaN: a cell and what is computed by hand stay."""
    hostile = {
        "JAX_DEFAULT_PRNG_IMPL": "rbg",
        "JAX_RANDOM_SEED_OFFSET": "3",
        "JAX_ENABLE_X64": "1",
        "JAX_DEBUG_NANS": "1",
        "JAX_NUMPY_DTYPE_PROMOTION": "strict",
        "JAX_NUMPY_RANK_PROMOTION": "raise",
    }
    code = "run_cell(CELL, Store('cells', shipped=None)); np.savez('found.npz', **everything())"
    child(code, tmp_path, **hostile)
    expected, found = everything(), np.load(tmp_path / "found.npz")
    assert {x.dtype.name for x in expected.values()} == {"int32", "float32"}
    for name, x in expected.items():
        assert found[name].dtype == x.dtype
        # Programs of another number of devices may round otherwise.
        np.testing.assert_allclose(found[name], x, rtol=1e-5, atol=1e-6)
    mine = run_cell(CELL, Store(tmp_path / "mine", shipped=None))
    theirs = Store(tmp_path / "cells", shipped=None).load(CELL.name, CELL.config())
    xr.testing.assert_equal(theirs, mine)
    assert theirs.attrs["network"] == mine.attrs["network"]


def test_how_random_bits_are_laid_out_does_not_reach_a_fit_or_a_cell():
    expected = small_fit(make_key(0))  # and the weights, which are as they are
    with jax.threefry_partitionable(False):
        found = small_fit(make_key(0))
    np.testing.assert_array_equal(found.loss, expected.loss)


@pytest.mark.slow
def test_without_compilation_all_works_and_is_said_to_be_slow(tmp_path):
    code = "np.savez('found.npz', loss=small_fit(make_key(0), FitConfig(1, 1, 2), 1).loss)\nwith settings.fixed(): pass"
    words = child(code, tmp_path, JAX_DISABLE_JIT="1")
    found = np.load(tmp_path / "found.npz")
    np.testing.assert_allclose(found["loss"], small_fit(make_key(0), FitConfig(1, 1, 2), 1).loss, rtol=1e-4)
    assert words.count("JAX_DISABLE_JIT = 1: nothing is compiled") == 1, words


def test_keys_are_those_of_jax_by_default():
    for seed in (0, 7, 2**32 - 1):
        key = make_key(seed)
        assert key.dtype == jax.random.key(0, impl="threefry2x32").dtype
        np.testing.assert_array_equal(jax.random.key_data(key), [0, seed])
        assert (key == jax.random.key(seed)).all()


def test_a_legacy_key_is_the_typed_one_and_another_generator_is_legal():
    assert typed_key(jax.random.PRNGKey(3)) == make_key(3)
    np.testing.assert_array_equal(small_fit(jax.random.PRNGKey(3)).loss, small_fit(make_key(3)).loss)
    other = small_fit(jax.random.key(3, impl="rbg"))
    assert np.isfinite(other.loss).all() and (other.loss != small_fit(make_key(3)).loss).any()


def test_a_checkpoint_under_another_setting_is_refused(tmp_path):
    path = tmp_path / "fit.partial"
    small_fit(make_key(0), checkpoint=path)
    before = path.read_bytes()
    with pytest.raises(OtherRunError, match="differs in key"):
        small_fit(jax.random.key(0, impl="rbg"), checkpoint=path)
    with jax.default_matmul_precision("float32"), pytest.raises(OtherRunError, match="JAX's settings"):
        small_fit(make_key(0), checkpoint=path)
    assert path.read_bytes() == before
    small_fit(make_key(0), checkpoint=path)


def test_settings_that_change_numbers_are_told(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    assert told() == settings.USUAL
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=4 --xla_cpu_enable_fast_math=true")
    with jax.default_matmul_precision("bfloat16"), jax.disable_jit():
        words = "matrix products: bfloat16; disable_jit: True; XLA_FLAGS: --xla_cpu_enable_fast_math=true"
        assert told() == words
