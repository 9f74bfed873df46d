"""The figures of Genewein et al. (2025) from the stored results, and the README's picture."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import special

from bayesprompt.lab.cells import load_methods
from bayesprompt.lab.plotting import (
    BAYES_METHODS,
    Datasets,
    PaperFigure,
    add_provenance,
    common_top,
    regret_bars,
    regret_curves,
    tuning_loss,
)
from bayesprompt.lab.style import own_style
from bayesprompt.measures.beliefs import BetaFit
from bayesprompt.prompting.experiments import EXPERIMENTS, MIXTURE, SINGLE_COIN, CoinExperiment
from bayesprompt.prompting.state_plots import NETWORKS, states_under_prefixes, structure_and_prefixes
from bayesprompt.sources.base import Exchangeable
from bayesprompt.store import Store
from bayesprompt.tuning.tuners import PREFIX_METHODS, WEIGHT_METHODS

KINDS = {"not tuned": ("NoTuning", "RandomPF"), "prefixes": PREFIX_METHODS, "weights": WEIGHT_METHODS}


@own_style()
def overview(store: Store, scale: str = "paper") -> Figure:
    """Draw the README's picture: regret on the single coin, both networks."""
    figure, axes = plt.subplots(1, 2, figsize=(10.5, 4.6), sharey=True)
    groups = _both(store, SINGLE_COIN, scale)
    for ax, name in zip(axes, ("lstm", "transformer"), strict=True):
        regret_curves(groups[name], ax, top=common_top(*groups.values())).set_title(NETWORKS[name])
    return add_provenance(figure, *groups.values())


@own_style()
def curves_by_kind(networks: Mapping[str, Datasets]) -> Figure:
    """Draw regret curves, a column for each network: first without tuning, then prefix methods, then weight methods.

    The exact predictors are in every panel, the panels of one kind have one scale, and `networks` maps titles to them.
    """
    figure, axes = plt.subplots(len(KINDS), len(networks), figsize=(8.6, 10.4), squeeze=False)
    _draw_by_kind(axes, networks)
    return add_provenance(figure, *networks.values())


def _draw_by_kind(axes: np.ndarray, networks: Mapping[str, Datasets]) -> None:
    for row, (kind, methods) in zip(axes, KINDS.items(), strict=True):
        parts = [{m: d for m, d in g.items() if m in (*BAYES_METHODS, *methods)} for g in networks.values()]
        for ax, title, part in zip(row, networks, parts, strict=True):
            regret_curves(part, ax, top=common_top(*parts)).set_title(f"{title}: {kind}")


@own_style()
def predictions(
    prediction: Float[np.ndarray, "N N1"],
    target: Exchangeable,
    flips: int,
    ax: Axes,
    color: str,
    fit: BetaFit | None = None,
) -> Axes:
    """Draw P(heads) after so many flips against the share of heads, in dots that are larger where the target is often.

    A line is what a Beta belief predicts, where one is given.
    """
    k = np.arange(flips + 1)
    often = np.exp(target.log_evidence(np.stack([k, flips - k], axis=-1))) * special.comb(flips, k)
    ax.scatter(k / flips, prediction[flips, : flips + 1], 6 + 150 * often, color=color, zorder=3)
    if fit is not None:
        ax.plot(k / flips, (fit.alpha + k) / (fit.alpha + fit.beta + flips), color=color, linewidth=1)
    return ax


@own_style()
def curves_and_bars(store: Store, experiment: CoinExperiment, scale: str = "paper") -> Figure:
    """Draw regret curves of the Transformer, and bars at n = 50 and 200 of both networks (Figures 1 and 3)."""
    groups, layout = _both(store, experiment, scale), [["curves", "curves"], ["t0", "t1"], ["l0", "l1"]]
    figure, axes = plt.subplot_mosaic(layout, height_ratios=[1.2, 1, 1], figsize=(8.4, 12))
    regret_curves(groups["transformer"], axes["curves"]).set_title("Transformer")
    for name, group in groups.items():
        _titled_bars(group, [axes[name[0] + "0"], axes[name[0] + "1"]], NETWORKS[name])
    return add_provenance(figure, *groups.values())


@own_style()
def curves_and_losses(store: Store, experiment: CoinExperiment, scale: str = "paper") -> Figure:
    """Draw regret curves by kind of method, and tuning losses, of both networks (Figures A5, A6, A8 and A9)."""
    groups = {NETWORKS[name]: group for name, group in _both(store, experiment, scale).items()}
    figure, axes = plt.subplots(len(KINDS) + 1, 2, figsize=(8.6, 13.8))
    _draw_by_kind(axes[:-1], groups)
    for ax, (title, group) in zip(axes[-1], groups.items(), strict=True):
        tuning_loss(group, ax).set_title(f"{title}: tuning loss")
    return add_provenance(figure, *groups.values())


@own_style()
def bars(store: Store, rows: dict[str, tuple[CoinExperiment, str]], scale: str = "paper") -> Figure:
    """Draw bars at n = 50 and 200, a row for each title: (experiment, architecture) (Figures 4 and A10)."""
    groups = {title: load_methods(store, experiment, name, scale) for title, (experiment, name) in rows.items()}
    figure, axes = plt.subplots(len(groups), 2, figsize=(8.4, 3.9 * len(groups)), squeeze=False)
    for row, (title, group) in zip(axes, groups.items(), strict=True):
        _titled_bars(group, row, title)
    return add_provenance(figure, *groups.values())


def _both(store, experiment, scale):
    return {name: load_methods(store, experiment, name, scale) for name in NETWORKS}


def _titled_bars(group, axes, title):
    for ax in regret_bars(group, axes=axes):
        ax.set_title(f"{title}, {ax.get_title()}")


_UNTRAINED = {
    "Transformer to two coins": (EXPERIMENTS["untrained-two-coins"], "transformer"),
    "Transformer to random coins": (EXPERIMENTS["untrained-random-coins"], "transformer"),
}
_LONGER = {
    f"{network}, {name}": (EXPERIMENTS[f"{prefix}two-coins-prefix-25"], architecture)
    for architecture, name in NETWORKS.items()
    for network, prefix in (("Pretrained", ""), ("Untrained", "untrained-"))
}


FIGURES = {
    "genewein2025-figure-1": PaperFigure(
        "Regret on the single coin", "prompting/single_coin", ("G2", "G3", "G4", "G5", "G6"),
        curves_and_bars, SINGLE_COIN,
    ),
    "genewein2025-figure-2": PaperFigure(
        "Internal states under each prefix, single coin", "prompting/internal_states", ("G15",),
        states_under_prefixes, SINGLE_COIN,
    ),
    "genewein2025-figure-3": PaperFigure(
        "Regret on the mixture of two coins", "prompting/two_coins", ("G7", "G8", "G9"), curves_and_bars, MIXTURE
    ),
    "genewein2025-figure-4": PaperFigure(
        "Regret of untrained Transformers", "prompting/untrained_networks", ("G11", "G14"), bars, _UNTRAINED
    ),
    "genewein2025-figure-A5": PaperFigure(
        "Regret and tuning loss, single coin", "prompting/single_coin", ("G2", "G3", "G6"),
        curves_and_losses, SINGLE_COIN,
    ),
    "genewein2025-figure-A6": PaperFigure(
        "Regret and tuning loss, two coins", "prompting/two_coins", ("G7", "G8", "G9"), curves_and_losses, MIXTURE
    ),
    "genewein2025-figure-A7": PaperFigure(
        "Internal states: their order, and under each prefix, two coins", "prompting/internal_states", ("G15",),
        structure_and_prefixes, MIXTURE,
    ),
    "genewein2025-figure-A8": PaperFigure(
        "Regret and tuning loss, untrained networks to two coins", "prompting/untrained_networks",
        ("G11", "G12", "G13", "G14"), curves_and_losses, EXPERIMENTS["untrained-two-coins"],
    ),
    "genewein2025-figure-A9": PaperFigure(
        "Regret and tuning loss, untrained networks to random coins", "prompting/untrained_networks", ("G11", "G12"),
        curves_and_losses, EXPERIMENTS["untrained-random-coins"],
    ),
    "genewein2025-figure-A10": PaperFigure(
        "Regret with prefixes of 25 rows", "prompting/prefix_length", ("G10",), bars, _LONGER
    ),
}  # fmt: skip
