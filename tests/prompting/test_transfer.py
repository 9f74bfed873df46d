"""Prefixes read by other networks: the numbers of a stored cell at home, and those of a plain network everywhere."""

import re
from importlib import import_module

import jax
import numpy as np
import pytest
import xarray as xr
from reference import log_probs, quick_jit

from bayesprompt.lab.cells import (
    Cell,
    architecture_of,
    cell_config,
    evaluation_data,
    load_cell,
    load_network,
    network_cell,
)
from bayesprompt.models.predictor import make_predictor
from bayesprompt.models.prefixes import Prefix
from bayesprompt.prompting import compute as running
from bayesprompt.prompting.compute import run_cell
from bayesprompt.prompting.transfer import transfer_regret
from bayesprompt.store import Store, tree_hash


def cell(method, seed, architecture="lstm"):
    return Cell("single-coin", architecture, method, "smoke", seed)


def put(store, cell, dataset, network, params=None):
    """Store a cell as if it had been computed: its rows and weights may be anything."""
    config = cell_config(cell, None if params is not None else network)
    store.save(cell.name, dataset.assign_attrs(network=network), config, 0.0)
    if params is not None:
        store.save_arrays(cell.name, params)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Two networks of each architecture, three soft prefixes for each and, for the LSTMs, the best hard one."""
    store = Store(tmp_path_factory.mktemp("transfer"), shipped=None)
    draw = np.random.default_rng(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "jit", quick_jit)
        search = import_module("bayesprompt.tuning.hard_search")  # the module, not the function of that name
        for module, name, fixed in ((search, "_score", (0, 1)), (running, "_predict_parts", 0)):
            patch.setattr(module, name, quick_jit(getattr(module, name).__wrapped__, static_argnums=fixed))
        for architecture in ("lstm", "transformer"):
            for seed in (0, 1):
                soft = cell("SoftPT", seed, architecture)
                params = jax.jit(make_predictor(architecture_of(soft)).init)(jax.random.key(10 + seed))
                put(store, network_cell(soft), xr.Dataset(), tree_hash(params), params)
                rows = draw.normal(size=(3, 6, 16)).astype(np.float32)
                put(
                    store,
                    soft,
                    xr.Dataset({"prefix": (("repetition", "position", "feature"), rows)}),
                    tree_hash(params),
                )
        for method in ("HardPT", "NoTuning"):
            run_cell(cell(method, 0), store)
        run_cell(cell("HardPT", 1), store)
        yield store


def test_at_home_a_prefix_has_the_regret_of_its_cell(store):
    found = transfer_regret(store, "lstm", "HardPT", scale="smoke", n=20)
    assert dict(found.sizes) == {"network": 2, "prefix": 2, "repetition": 1}
    stored = {method: load_cell(cell(method, 0), store).regret.sel(n=20) for method in ("HardPT", "NoTuning")}
    np.testing.assert_allclose(found.regret.sel(network=0, prefix=0), stored["HardPT"], rtol=1e-5)
    np.testing.assert_allclose(found.untuned.sel(network=0), stored["NoTuning"][0], rtol=1e-5)


@pytest.mark.parametrize(("architecture", "seeds", "n"), [("lstm", (1, 0), 20), ("transformer", (0, 1), 7)])
def test_every_network_reads_the_same_rows(store, architecture, seeds, n):
    """A plain network over [start, prefix, tokens], losses summed by hand, on the first seed's sequences."""
    found = transfer_regret(store, architecture, "SoftPT", scale="smoke", seeds=seeds, n=n)
    assert dict(found.sizes) == {"network": 2, "prefix": 2, "repetition": 3}
    tokens = evaluation_data(cell("SoftPT", seeds[0]))[0][:, :n]
    oracle = np.where(tokens == 0, np.log(0.2), np.log(0.8))

    @quick_jit
    def predictions(params, rows):
        return log_probs(architecture_of(cell("SoftPT", 0, architecture)), params, tokens, Prefix(embeddings=rows))

    def regret(log_p):
        log_p = np.asarray(log_p, np.float64)
        return (oracle - np.where(tokens == 0, log_p[..., 0], log_p[..., 1])).sum(1).mean()

    for network in seeds:
        _, params = load_network(cell("SoftPT", network, architecture), store)
        untuned = regret(predictions(params, np.zeros((0, 16), np.float32)))
        assert float(found.untuned.sel(network=network)) == pytest.approx(untuned, rel=1e-4)
        for home in seeds:
            rows = load_cell(cell("SoftPT", home, architecture), store).prefix.values
            expected = [regret(predictions(params, each)) for each in rows]
            np.testing.assert_allclose(found.regret.sel(network=network, prefix=home), expected, rtol=1e-4)
    assert len(np.unique(found.regret.values.round(4))) == 12, "else no test could tell the prefixes apart"


@pytest.mark.parametrize(
    "missing", [("lstm", "RealPT", (0, 1)), ("lstm", "SoftPT", (0, 2)), ("transformer", "HardPT", (0, 1))]
)
def test_what_is_not_stored_is_none(store, missing):
    architecture, method, seeds = missing
    assert transfer_regret(store, architecture, method, scale="smoke", seeds=seeds) is None


MESSAGES = {
    "method = FullWT: must be one of HardPT, SimplexPT, RealPT, SoftPT": {"method": "FullWT"},
    "seeds = (0,): at least two, all different": {"seeds": (0,)},
    "seeds = (0, 1, 0): at least two, all different": {"seeds": (0, 1, 0)},
    "n = 0: an integer from 1 to 20": {"n": 0},
    "n = 21: an integer from 1 to 20": {"n": 21},
}


@pytest.mark.parametrize("message", MESSAGES)
def test_bad_input_raises_one_line(store, message):
    options = {"method": "SoftPT", "scale": "smoke"} | MESSAGES[message]
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        transfer_regret(store, "lstm", **options)
