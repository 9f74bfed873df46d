"""One setting varied: the regret at one step against the setting, read from the stored cells of a sweep."""

import textwrap

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from jaxtyping import Float
from matplotlib.axes import Axes

from bayesprompt.checks import UserError
from bayesprompt.lab.cells import load_cell
from bayesprompt.lab.experiment import Cell, Sweep
from bayesprompt.lab.plotting import METHOD_COLORS, METHOD_LINES
from bayesprompt.lab.style import own_style
from bayesprompt.measures.regret import quantiles
from bayesprompt.store import Store


def sweep_cells(
    store: Store, sweep: Sweep, architecture: str, method: str, scale: str = "quick"
) -> dict[float | int, xr.Dataset | None]:
    """Return a sweep's stored datasets by value of its setting, None where missing."""
    if method not in sweep.methods:
        raise UserError(f"method = {method}: must be one of {', '.join(sweep.methods)}")
    there = {value: e for value, e in sweep.experiments.items() if method in e.methods(architecture)}
    if not there:
        raise UserError(f"architecture = {architecture}: must be one that {method} exists on")
    return {value: load_cell(Cell(e, architecture, method, scale), store) for value, e in there.items()}


@own_style()
def sweep_curves(
    store: Store, sweep: Sweep, architecture: str, ax: Axes | None = None, n: int = 50, scale: str = "quick"
) -> Axes:
    """Draw R(n) (nats) of a sweep's methods: medians joined, repetitions as points, quartiles as a band.

    Settings that are whole numbers stand on a logarithmic axis, infinity one step behind the largest; see `places`.
    """
    ax = ax if ax is not None else plt.subplots()[1]
    words = sweep.title
    for method in sweep.methods:
        found = sweep_cells(store, sweep, architecture, method, scale)
        x, color = places([*found]), METHOD_COLORS[method]
        rows = [(np.nan,) * 3 if d is None else quantiles(d.regret.sel(n=n).values) for d in found.values()]
        low, median, high = np.transpose(rows)
        ax.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
        ax.plot(x, median, linestyle=METHOD_LINES[method], marker="o", markersize=5, color=color, label=method)
        for place, dataset in zip(x, found.values(), strict=True):
            if dataset is not None and dataset.sizes["repetition"] > 1:
                regret = dataset.regret.sel(n=n).values
                ax.plot(np.full(len(regret), place), regret, "o", markersize=3, color=color, alpha=0.4)
        if missing := [_name(value) for value, dataset in found.items() if dataset is None]:
            where = f" at {', '.join(missing)}" if len(missing) < len(found) else ""
            words += "\n" + textwrap.fill(f"not computed: {method}{where}", 44)
    values = [*sweep.experiments]
    if min(values) >= 1:
        ax.set_xscale("log")
        ax.minorticks_off()
    ax.set_xticks(places(values), map(_name, values))
    ax.set(xlabel=words, ylabel=f"R({n}) (nats)")
    return ax


def places(values: list[float | int] | np.ndarray) -> Float[np.ndarray, " V"]:
    """Return where settings stand on a sweep's axis: at themselves, infinity a factor of four behind the largest."""
    values = np.array(values, np.float64)
    return np.where(np.isinf(values), 4 * values[np.isfinite(values)].max(), values)


def _name(value):
    return "\u221e" if np.isinf(value) else f"{value:g}"
