"""Pictures of internal states: a plane in which the pretrained network's states lie, and the paths that prefixes take.

Everything is drawn in the plane of the first two components of random-coin states, turned so that more heads lie to the
right and later steps further up.
"""

from collections.abc import Mapping
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure, SubFigure

from bayesprompt.lab.cells import load_cell, load_network
from bayesprompt.lab.experiment import Cell
from bayesprompt.lab.plotting import METHOD_COLORS, add_provenance, say_missing
from bayesprompt.lab.style import own_style
from bayesprompt.models.predictor import Params, Predictor
from bayesprompt.models.prefixes import Prefix
from bayesprompt.prompting.experiments import PRETRAINING, CoinExperiment
from bayesprompt.prompting.states import STEPS, Ordering, internal_states, ordering, plane, tuned_prefixes
from bayesprompt.settings import make_key
from bayesprompt.store import Store
from bayesprompt.tuning.tuners import PREFIX_METHODS

NETWORKS = {"transformer": "Transformer", "lstm": "LSTM"}
# Sequences drawn under each prefix; with several repetitions each reads its part of them.
SEQUENCES = 20


class Ordered(NamedTuple):
    """A stored network with the order of its states, and the dataset that says where it comes from."""

    predictor: Predictor
    params: Params
    order: Ordering
    dataset: xr.Dataset


Networks = Mapping[str, Ordered | None]


def load_ordered(store: Store, architecture: str, scale: str = "paper", network: str = "Pretrained") -> Ordered | None:
    """Return a base network ("Pretrained" or "Untrained") with its states' order, as claim G15 has it, or None."""
    cell = Cell(PRETRAINING, architecture, network, scale)
    if (found := load_network(cell, store)) is None:
        return None
    return Ordered(*found, ordering(*found, make_key(0)), load_cell(cell, store))


def load_both(store: Store, scale: str = "paper") -> Networks:
    """Return both pretrained networks, as `load_ordered` does."""
    return {name: load_ordered(store, name, scale) for name in NETWORKS}


def paths(network: Ordered, prefixes: list[Prefix], experiment: CoinExperiment) -> Float[np.ndarray, "B rows S"]:
    """Return states of 20 sequences of an experiment's target, read after these prefixes in turn, prefixes included."""
    tokens = np.asarray(experiment.target.sample(make_key(1), SEQUENCES, STEPS)[0])
    parts = []
    for r, prefix in enumerate(prefixes[:SEQUENCES]):
        part = tokens[r :: len(prefixes), : STEPS - prefix.length]
        parts.append(internal_states(network.predictor, network.params, part, prefix))
    states = np.empty((SEQUENCES, *parts[0].shape[1:]))
    for r, part in enumerate(parts):
        states[r :: len(prefixes)] = part
    return states


@own_style()
def states_under_prefixes(
    store: Store, experiment: CoinExperiment, scale: str = "paper", networks: Networks | None = None
) -> Figure:
    """Draw states on the target under each method's prefixes, for both networks (Figures 2 and A7 c, d).

    `networks`: what `load_both` returns, if it is at hand.
    """
    figure, networks = plt.figure(figsize=(10, 6.6)), networks or load_both(store, scale)
    return add_provenance(figure, _under_prefixes(figure, store, experiment, scale, networks))


@own_style()
def structure_and_prefixes(store: Store, experiment: CoinExperiment, scale: str = "paper") -> Figure:
    """Draw the order of the pretrained networks' states above those on the target under prefixes (Figure A7)."""
    figure, networks = plt.figure(figsize=(10, 13.5)), load_both(store, scale)
    above, below = figure.subfigures(2, 1, height_ratios=(7, 6.5))
    drawn = structure(above, networks), _under_prefixes(below, store, experiment, scale, networks)
    return add_provenance(figure, *drawn)


@own_style()
def structure(figure: Figure | SubFigure, networks: Networks) -> list[xr.Dataset | None]:
    """Draw states on random coins, coloured by step and by share of heads (Figure A7 a, b); return their datasets."""
    rows = figure.subplots(len(networks), 2, sharex="row", sharey="row")
    for axes, (name, network) in zip(rows, networks.items(), strict=True):
        for ax, words, column in zip(axes, ("step n", "share of heads"), (1, 2), strict=True):
            ax.set_title(f"{NETWORKS[name]}, by {words}")
            if network is None:
                say_missing(ax)
                continue
            values, points = network.order.visited[column], plane(network.order, network.order.visited.states)
            known = ~np.isnan(values)  # before the first flip there is no share
            _background(ax, network.order)
            style = {"cmap": ("plasma", "viridis")[column - 1], "s": 5, "linewidths": 0, "rasterized": True}
            figure.colorbar(ax.scatter(*points[known].T, c=values[known], **style), ax=ax, label=words, aspect=30)
        if network is not None:
            _name_axes(axes, axes, network.order)
    return [network and network.dataset for network in networks.values()]


def _under_prefixes(
    figure: Figure | SubFigure, store: Store, experiment: CoinExperiment, scale: str, networks: Networks
) -> list[xr.Dataset | None]:
    methods, datasets = ("NoTuning", *PREFIX_METHODS), []
    rows = figure.subplots(len(networks), len(methods), sharex="row", sharey="row", squeeze=False)
    for axes, (name, network) in zip(rows, networks.items(), strict=True):
        prefixes = tuned_prefixes(store, experiment, name, scale)
        for ax, method in zip(axes, methods, strict=True):
            ax.set_title(method)
            if network is None or prefixes[method] is None:
                say_missing(ax)
                continue
            _background(ax, network.order)
            states, length = paths(network, prefixes[method], experiment), prefixes[method][0].length
            _path_lines(ax, plane(network.order, states), length, METHOD_COLORS[method])
            datasets.append(load_cell(Cell(experiment, name, method, scale), store))
        if network is not None:
            _name_axes(axes, axes[2:3], network.order, NETWORKS[name])
            datasets.append(network.dataset)
    return datasets


def _background(ax: Axes, order: Ordering) -> None:
    """Draw the paths of the random-coin sequences that span the plane, in grey."""
    style = {"colors": "#d0d0d0", "linewidths": 0.5, "zorder": 0, "rasterized": True}
    ax.add_collection(LineCollection(plane(order, order.visited.states), **style))
    ax.autoscale_view()


def _path_lines(ax: Axes, points: Float[np.ndarray, "B rows 2"], prefix_length: int, color: str) -> None:
    """Draw paths in the plane: black while the prefix is read, a ring where it ends, then coloured."""
    for path in points:
        ax.plot(*path[prefix_length:].T, color=color, linewidth=0.7, alpha=0.7)
        ax.plot(*path[: prefix_length + 1].T, color="black", linewidth=0.8, marker=".", markersize=3, zorder=3)
        ring = {"marker": "o", "markersize": 7, "markerfacecolor": "none", "markeredgecolor": "black", "zorder": 4}
        ax.plot(*path[prefix_length], linestyle="none", **ring)


def _name_axes(axes: np.ndarray, below: np.ndarray, order: Ordering, title: str = "") -> None:
    """Say under the axes `below`, and left of the first, which component is drawn and its share of the variance."""
    share = order.components.variance / order.components.variance.sum()
    each = (order.heads_component, order.step_component)
    across, up = (f"component {c + 1} ({share[c]:.0%} of variance)" for c in each)
    for ax in axes:
        ax.set(xticks=[], yticks=[])
    for ax in below:
        ax.set_xlabel(across)
    axes[0].set_ylabel(f"{title}\n{up}".strip())
