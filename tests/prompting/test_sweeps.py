"""Sweeps read the cell of each value and show its numbers where they belong."""

import matplotlib
import numpy as np
import pytest
import xarray as xr

from bayesprompt.checks import UserError
from bayesprompt.prompting import sweeps
from bayesprompt.prompting.experiments import SWEEPS
from bayesprompt.prompting.sweeps import places, sweep_cells, sweep_curves
from bayesprompt.store import Store

matplotlib.use("Agg")


@pytest.fixture
def stored(monkeypatch):
    """Cells whose regret at step n is n times the prefix length, in repetitions x 1, 2, 4; none at prefix length 3."""
    lengths = {e.name: value for value, e in SWEEPS["prefix-length"].experiments.items()}

    def load(cell, store):
        assert (cell.architecture, cell.method, cell.scale) == ("lstm", "SoftPT", "quick")
        if (length := lengths[cell.experiment.name]) == 3:
            return None
        regret = np.outer([1.0, 2.0, 4.0], np.arange(1, 201)) * length
        return xr.Dataset({"regret": (("repetition", "n"), regret)}, {"n": np.arange(1, 201)})

    monkeypatch.setattr(sweeps, "load_cell", load)


@pytest.mark.usefixtures("stored")
def test_a_picture_shows_medians_and_names_what_is_missing():
    ax = sweep_curves(Store(), SWEEPS["prefix-length"], "lstm", n=10)
    curve, *repetitions = ax.lines
    np.testing.assert_allclose(curve.get_xydata()[[0, 1, 3]], [(1, 20), (2, 40), (6, 120)])
    assert np.isnan(curve.get_ydata()[2])
    band = ax.collections[0].get_datalim(ax.transData)
    assert (band.ymin, band.ymax) == (10 * 1.5, 10 * 25 * 3), "quartiles"
    np.testing.assert_allclose(repetitions[-1].get_xydata(), [(25, 250), (25, 500), (25, 1000)])
    assert ax.get_xscale() == "log" and ax.get_ylabel() == "R(10) (nats)"
    assert ax.get_xlabel() == "prefix length L\nnot computed: SoftPT at 3"
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1", "2", "3", "6", "12", "25"]


@pytest.mark.parametrize("sweep", SWEEPS.values(), ids=SWEEPS)
@pytest.mark.parametrize("architecture", ["lstm", "transformer"])
def test_an_empty_store_has_a_picture_of_nothing(sweep, architecture, tmp_path):
    empty = Store(tmp_path, shipped=None)
    ax = sweep_curves(empty, sweep, architecture)
    for method in sweep.methods:
        assert set(sweep_cells(empty, sweep, architecture, method)) == set(sweep.experiments)
        assert f"not computed: {method}" in ax.get_xlabel().splitlines()
    matplotlib.pyplot.close(ax.figure)


def test_infinitely_many_have_a_place_behind_the_others():
    np.testing.assert_array_equal(places([4, 16, np.inf]), [4, 16, 64])
    np.testing.assert_array_equal(places([0.05, 0.5]), [0.05, 0.5])


def test_what_is_no_sweep():
    with pytest.raises(UserError, match="^method = FullWT: must be one of HardPT, SoftPT$"):
        sweep_cells(Store(), SWEEPS["bias"], "lstm", "FullWT")
    with pytest.raises(UserError, match="^architecture = gru: must be one that SoftPT exists on$"):
        sweep_cells(Store(), SWEEPS["bias"], "gru", "SoftPT")
