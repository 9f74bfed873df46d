"""The figures of Genewein et al. (2025) and of Petrov et al. (2024), from the stored results; the README's picture."""

from collections.abc import Callable
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from bayesprompt.checks import UserError
from bayesprompt.lab.plotting import (
    add_provenance,
    common_top,
    regret_bars,
    regret_curves,
    stored,
    tuning_loss,
    use_style,
)
from bayesprompt.mechanism.attention_plots import prefix_clusters, skill_maps, sorter_maps
from bayesprompt.mechanism.constructions import tangents
from bayesprompt.mechanism.language_plots import one_row_attention, one_row_outputs
from bayesprompt.mechanism.subspace_plots import prefix_ranges
from bayesprompt.prompting.state_plots import states_under_prefixes, structure_and_prefixes
from bayesprompt.store import Store

NETWORKS = {"transformer": "Transformer", "lstm": "LSTM"}


def overview(store: Store, scale: str = "paper") -> Figure:
    """Draw the README's picture: regret on the single coin, both networks."""
    figure, axes = plt.subplots(1, 2, figsize=(10.5, 4.6), sharey=True)
    groups = _both(store, "single-coin", scale)
    for ax, name in zip(axes, ("lstm", "transformer"), strict=True):
        regret_curves(groups[name], ax, top=common_top(*groups.values())).set_title(NETWORKS[name])
    return add_provenance(figure, *groups.values())


def curves_and_bars(store: Store, experiment: str, scale: str = "paper") -> Figure:
    """Draw regret curves of the Transformer, and bars at n = 50 and 200 of both networks (Figures 1 and 3)."""
    groups, layout = _both(store, experiment, scale), [["curves", "curves"], ["t0", "t1"], ["l0", "l1"]]
    figure, axes = plt.subplot_mosaic(layout, height_ratios=[1.2, 1, 1], figsize=(8.4, 12))
    regret_curves(groups["transformer"], axes["curves"]).set_title("Transformer")
    for name, group in groups.items():
        _titled_bars(group, [axes[name[0] + "0"], axes[name[0] + "1"]], NETWORKS[name])
    return add_provenance(figure, *groups.values())


def curves_and_losses(store: Store, experiment: str, scale: str = "paper") -> Figure:
    """Draw regret curves and tuning losses of both networks (Figures A5, A6, A8 and A9)."""
    groups = _both(store, experiment, scale)
    figure, rows = plt.subplots(2, 2, figsize=(9.6, 8.4))
    for column, (name, group) in enumerate(groups.items()):
        regret_curves(group, rows[0, column]).set_title(NETWORKS[name])
        tuning_loss(group, rows[1, column])
    return add_provenance(figure, *groups.values())


def bars(store: Store, rows: dict[str, tuple[str, str]], scale: str = "paper") -> Figure:
    """Draw bars at n = 50 and 200, a row for each title: (experiment, architecture) (Figures 4 and A10)."""
    groups = {title: stored(store, name, experiment, scale) for title, (experiment, name) in rows.items()}
    figure, axes = plt.subplots(len(groups), 2, figsize=(8.4, 3.9 * len(groups)), squeeze=False)
    for row, (title, group) in zip(axes, groups.items(), strict=True):
        _titled_bars(group, row, title)
    return add_provenance(figure, *groups.values())


def tangent_lines(_store: Store, V: int, _scale: str = "paper") -> Figure:
    """Draw the last layer of the constructions: a tangent of the parabola for each of V tokens (Petrov's Figure 4)."""
    M, b, _ = tangents(V)
    x, codes = np.linspace(0, 1, 201), np.arange(V) / V
    figure, ax = plt.subplots(figsize=(7, 3.6))
    ax.plot(x, (x - 0.5) ** 2, color="black", linewidth=3, alpha=0.25)
    for u, line in enumerate((x[:, None] @ M.T + b).T):
        ax.plot(x, line, color=plt.cm.viridis(u / V), linewidth=1.2)
        ax.annotate(str(u), (codes[u], (codes[u] - 0.5) ** 2), (0, 6), textcoords="offset points", ha="center")
    ax.plot(codes, (codes - 0.5) ** 2, "k.", markersize=6, zorder=3)
    ax.set(xlim=(-0.03, 1), ylim=(-0.12, 0.3), xlabel="input x of the last layer", ylabel="confidence")
    return figure


def _both(store, experiment, scale):
    return {name: stored(store, name, experiment, scale) for name in NETWORKS}


def _titled_bars(group, axes, title):
    for ax in regret_bars(group, axes=axes):
        ax.set_title(f"{title}, {ax.get_title()}")


_UNTRAINED = {
    "Transformer to two coins": ("untrained-two-coins", "transformer"),
    "Transformer to random coins": ("untrained-random-coins", "transformer"),
}
_ONE_ROW_HEAD = (0, 5)  # layer, head: of the first layer, whose text nothing has biased, the most attention on the row
_LONGER = {
    f"{network}, {name}": (f"{prefix}two-coins-prefix-25", architecture)
    for architecture, name in NETWORKS.items()
    for network, prefix in (("Pretrained", ""), ("Untrained", "untrained-"))
}


class PaperFigure(NamedTuple):
    """A figure of the papers: how it is drawn, where it is explained, and the claims that it supports."""

    shows: str
    chapter: str
    claims: tuple[str, ...]
    draw: Callable[..., Figure]
    of: Any  # the second argument of `draw`


PAPER_FIGURES = {
    "genewein2025-figure-1": PaperFigure(
        "Regret on the single coin", "prompting/single_coin", ("G2", "G3", "G4", "G5", "G6"),
        curves_and_bars, "single-coin",
    ),
    "genewein2025-figure-2": PaperFigure(
        "Internal states under each prefix, single coin", "prompting/internal_states", ("G15",),
        states_under_prefixes, "single-coin",
    ),
    "genewein2025-figure-3": PaperFigure(
        "Regret on the mixture of two coins", "prompting/two_coins", ("G7", "G8", "G9"), curves_and_bars, "two-coins"
    ),
    "genewein2025-figure-4": PaperFigure(
        "Regret of untrained Transformers", "prompting/untrained_networks", ("G11", "G14"), bars, _UNTRAINED
    ),
    "genewein2025-figure-A5": PaperFigure(
        "Regret and tuning loss, single coin", "prompting/single_coin", ("G2", "G3", "G6"),
        curves_and_losses, "single-coin",
    ),
    "genewein2025-figure-A6": PaperFigure(
        "Regret and tuning loss, two coins", "prompting/two_coins", ("G7", "G8", "G9"), curves_and_losses, "two-coins"
    ),
    "genewein2025-figure-A7": PaperFigure(
        "Internal states: their order, and under each prefix, two coins", "prompting/internal_states", ("G15",),
        structure_and_prefixes, "two-coins",
    ),
    "genewein2025-figure-A8": PaperFigure(
        "Regret and tuning loss, untrained networks to two coins", "prompting/untrained_networks",
        ("G11", "G12", "G13", "G14"), curves_and_losses, "untrained-two-coins",
    ),
    "genewein2025-figure-A9": PaperFigure(
        "Regret and tuning loss, untrained networks to random coins", "prompting/untrained_networks", ("G11", "G12"),
        curves_and_losses, "untrained-random-coins",
    ),
    "genewein2025-figure-A10": PaperFigure(
        "Regret with prefixes of 25 rows", "prompting/prefix_length", ("G10",), bars, _LONGER
    ),
    "petrov2024-figure-1": PaperFigure(
        "Attention of a sorter: pretrained, fully tuned, prefix-tuned", "mechanism/sorting", ("P5", "P7"),
        sorter_maps, "sorting",
    ),
    "petrov2024-figure-2": PaperFigure(
        "Heads of a network with four skills", "mechanism/eliciting_skills", ("P8",),
        skill_maps, "eliciting-skills-pretraining",
    ),
    "petrov2024-figure-3": PaperFigure(
        "Attention block outputs under four prefixes", "mechanism/eliciting_skills", ("P6", "P8"),
        prefix_clusters, "eliciting-skills",
    ),
    "petrov2024-figure-4": PaperFigure(
        "Confidences that decode a number", "mechanism/virtual_tokens", ("P1", "P2", "P3", "P4"), tangent_lines, 10
    ),
    "petrov2024-figure-5": PaperFigure(
        "Attention in a language model behind a prefix of one row", "mechanism/language_model", ("P5b",),
        one_row_attention, _ONE_ROW_HEAD,
    ),
    "petrov2024-figure-6": PaperFigure(
        "Outputs of a head in a language model behind a prefix of one row", "mechanism/language_model", ("P6b",),
        one_row_outputs, _ONE_ROW_HEAD,
    ),
    "petrov2024-figure-7": PaperFigure(
        "Range of attention over a prefix of ten rows (a substitute for GPT-2)", "mechanism/longer_prefixes", ("P11",),
        prefix_ranges, "longer-prefixes",
    ),
}  # fmt: skip


def paper_figure(name: str, store: Store, scale: str = "paper") -> Figure:
    """Draw one of PAPER_FIGURES; raises ValueError for another name."""
    if name not in PAPER_FIGURES:
        raise UserError(f"name = {name}: one of {', '.join(PAPER_FIGURES)}")
    figure = PAPER_FIGURES[name]
    use_style()
    return figure.draw(store, figure.of, scale)
