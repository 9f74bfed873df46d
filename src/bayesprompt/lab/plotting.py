"""Pictures of stored results: one colour per method everywhere, one note of provenance under every picture.

Nothing is computed here but medians and quartiles over repetitions. Figures stand on a white card, so that they read
the same on a light page and on a dark one.
"""

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from scipy.optimize import isotonic_regression

from bayesprompt.checks import UserError
from bayesprompt.lab.cells import scale_of
from bayesprompt.lab.experiment import BAYES_METHODS, SCALES
from bayesprompt.lab.style import own_style
from bayesprompt.measures.regret import quantiles
from bayesprompt.tuning.tuners import METHODS, PREFIX_METHODS

Datasets = Mapping[str, xr.Dataset | None]

FAINT = "#6b6b6b"
# Nine hues that stay apart for colour-blind eyes (after Paul Tol's "muted" scheme); the baselines are greys.
METHOD_COLORS = {
    "HardPT": "#882255",
    "SimplexPT": "#dd7788",
    "RealPT": "#e69f00",
    "SoftPT": "#d33a00",
    "EmbedWT": "#44aa99",
    "UnembedWT": "#8a8a20",
    "Un+EmbedWT": "#117733",
    "FullWT": "#332288",
    "LoRAWT": "#4d9be6",
    "PrefixTuning": "#aa4499",
    "NoTuning": "#777777",
    "RandomPF": "#a0a0a0",
    "TargetBayes": "#000000",
    **dict.fromkeys(("PreBayes", "PreBayesPT"), "#555555"),
}
# Prefix methods are drawn solid, weight methods dashed: colour is never the only sign.
METHOD_LINES = {m: "-" if m in PREFIX_METHODS else "--" for m in METHODS}
METHOD_LINES |= {
    "PrefixTuning": (0, (6, 1.5, 1, 1.5)),
    "NoTuning": ":",
    "RandomPF": (0, (1, 3)),
    "TargetBayes": "-",
    "PreBayes": "-.",
    "PreBayesPT": "--",
}


def stand_ins(datasets: Datasets) -> dict[str, str]:
    """Return the scale of each method whose results are of a lower scale than others of the group."""
    scales = {m: scale_of(d) for m, d in datasets.items() if d is not None}
    top = max(scales.values(), key=SCALES.index, default=None)
    return {m: scale for m, scale in scales.items() if scale != top}


def provenance_line(*datasets: Datasets | Iterable[xr.Dataset | None]) -> str:
    """Return scale, devices, dates and commits of some datasets in words, e.g. for a picture's lower edge."""
    groups = (group.values() if isinstance(group, Mapping) else group for group in datasets)
    found = [dataset for group in groups for dataset in group if dataset is not None]
    if not found:
        return "no stored results"

    def together(values: Iterable[str]) -> str:
        return " / ".join(dict.fromkeys(values))

    attrs = [dataset.attrs for dataset in found]
    dates = sorted(a["date"] for a in attrs)
    days = " to ".join(dict.fromkeys([dates[0], dates[-1]]))
    scales = together(sorted(map(scale_of, found), key=SCALES.index, reverse=True))
    commits = together(a["commit"][:7] + ("+" if a["commit"].endswith("+changes") else "") for a in attrs)
    return f"{scales} scale, {together(a['device'] for a in attrs)}, {days}, commit {commits}"


def add_provenance(figure: Figure, *datasets: Datasets | Iterable[xr.Dataset | None]) -> Figure:
    """Write under a figure which scale it shows, computed where and when; returns the figure.

    Raises ValueError if something stands there already, which would be lost.
    """
    if there := figure.get_supxlabel():
        raise UserError(f"figure = one with the label {there!r} below it: label its axes instead")
    words = textwrap.fill(provenance_line(*datasets), int(figure.get_figwidth() * 16))
    figure.supxlabel(words, fontsize=7.5, color=FAINT, x=0.99, ha="right")
    return figure


def _present(datasets: Datasets, variable: str = "regret") -> dict[str, xr.Dataset]:
    return {m: d for m, d in datasets.items() if d is not None and variable in d}


def _missing_note(datasets: Datasets, ax: Axes) -> str:
    """Return further lines for an axis label that name what is not there, or only at a lower scale (or nothing)."""
    lines, width = [], max(24, int(ax.get_position().width * ax.figure.get_figwidth() * 10))
    if names := [m for m, dataset in datasets.items() if dataset is None]:
        lines.append(f"not computed: {', '.join(names)}")
    lower = stand_ins(datasets)
    for scale in dict.fromkeys(lower.values()):
        lines.append(f"at {scale} scale: {', '.join(m for m in lower if lower[m] == scale)}")
    return "".join("\n" + textwrap.fill(line, width) for line in lines)


def _curves(ax: Axes, method: str, x: np.ndarray, values: np.ndarray) -> None:
    """Draw repetitions thin, quartiles as a band, the median thick."""
    color, (low, median, high) = METHOD_COLORS[method], quantiles(values)
    if len(values) > 1:
        ax.plot(x, values.T, color=color, linewidth=0.5, alpha=0.35)
        ax.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
    ax.plot(x, median, color=color, linestyle=METHOD_LINES[method])


def _label_ends(ax: Axes, ends: Mapping[str, float], lower: Mapping[str, str], size: float = 8.5) -> None:
    """Name each curve at its right end, moved apart where curves end close together; off the scale: with its value."""
    names, (low, high) = sorted(ends, key=ends.__getitem__), ax.get_ylim()
    points = ax.get_window_extent().height * 72 / ax.figure.dpi
    steps = np.arange(len(names)) * min(1.2 * size / points, 1 / max(len(names) - 1, 1)) * (high - low)
    wanted = np.array([min(ends[name], high) for name in names])
    # Least squares under a smallest distance: an isotonic regression of what remains without those distances.
    places = np.clip(isotonic_regression(wanted - steps).x, low, high - steps[-1]) + steps if names else []
    across = ax.get_yaxis_transform()
    for name, place, end in zip(names, places, wanted, strict=True):
        words = name + (f" ({lower[name]})" if name in lower else "")
        words += "" if ends[name] <= high else f" \u2191 {ends[name]:.1f}"
        line = {"arrowstyle": "-", "color": METHOD_COLORS[name], "linewidth": 0.6, "shrinkA": 1, "shrinkB": 0}
        line["relpos"] = (0, 0.5)  # from the name's left end: a line from its middle would cross its neighbours
        dark = [0.7 * c for c in to_rgb(METHOD_COLORS[name])]  # small text needs more contrast than lines do
        style = {"va": "center", "fontsize": size, "color": dark, "annotation_clip": False}
        ax.annotate(words, (1, end), (1.05, place), across, across, line, **style)


def common_top(*groups: Datasets, steps: int = 200) -> float:
    """Return an upper end for regret axes (nats) that all but RandomPF, which may be far off, stay below."""
    regrets = [d["regret"].values[:, :steps] for g in groups for m, d in _present(g).items() if m != "RandomPF"]
    return 1.12 * max((float(quantiles(r).q75.max()) for r in regrets), default=1.0)


@own_style()
def regret_curves(datasets: Datasets, ax: Axes | None = None, top: float | None = None, steps: int = 200) -> Axes:
    """Draw cumulative regret (Eq. 10, nats) against step n: median, quartiles and repetitions of every method.

    `top` is the upper end of the axis (default: `common_top`); the tuning length is marked.
    """
    ax = ax if ax is not None else plt.subplots()[1]
    present, ends = _present(datasets), {}
    for method, dataset in present.items():
        regret = dataset["regret"].values[:, :steps]
        _curves(ax, method, np.arange(1, regret.shape[1] + 1), regret)
        ends[method] = float(quantiles(regret[:, -1]).median)
    top = top or common_top(datasets, steps=steps)
    ax.set(xlim=(0, steps), ylim=(-0.03 * top, top), ylabel="cumulative regret (nats)")
    ax.axvline(50, color=FAINT, linewidth=0.8, linestyle=":")
    ax.text(50, top, " tuning length", va="top", fontsize=8, color=FAINT)
    ax.set_xlabel("step n" + _missing_note(datasets, ax))
    _label_ends(ax, ends, stand_ins(datasets))
    return ax


@own_style()
def regret_bars(
    datasets: Datasets, at: Sequence[int] = (50, 200), axes: Iterable[Axes] | None = None, top: float | None = None
) -> list[Axes]:
    """Draw regret (nats) at the steps `at`: bars are medians, whiskers quartiles, lines the exact Bayes predictors."""
    axes = list(plt.subplots(1, len(at), squeeze=False)[1][0] if axes is None else axes)
    bars = [m for m in datasets if m not in BAYES_METHODS]
    present, lower, given = _present(datasets), stand_ins(datasets), top
    ticks = [f"{m} ({lower[m]})" if m in lower else m for m in bars]
    room = 1.2 if len(bars) > 8 else 1  # for the numbers above the bars, which stand upright where there are many
    card = {"facecolor": "white", "edgecolor": "none", "boxstyle": "square,pad=0.05"}  # hides the lines behind words
    for ax, n in zip(axes, at, strict=True):
        top, levels = given or common_top(datasets, steps=n), {}
        for place, method in enumerate(bars):
            if method not in present:
                style = {"rotation": 90, "fontsize": 8, "color": FAINT, "bbox": card}
                ax.text(place, 0, " not computed", ha="center", va="bottom", zorder=4, **style)
                continue
            low, median, high = quantiles(present[method]["regret"].values[:, n - 1])
            style = {"hatch": "///", "edgecolor": "white"} if method in lower else {}
            error = [[median - low], [high - median]]
            ax.bar(place, median, color=METHOD_COLORS[method], yerr=error, width=0.75, **style)
            digits = 2 if abs(median) < 9.995 else 1 if abs(median) < 99.95 else 0
            words = f"{median:.{digits}f}".replace("-0.00", "0.00")
            style = {"fontsize": 8, "ha": "center", "bbox": card, "va": "bottom"}
            style["rotation"] = 90 if len(bars) > 8 else 0
            ax.annotate(words, (place, min(high, top)), (0, 2), textcoords="offset points", zorder=4, **style)
        for method in (m for m in BAYES_METHODS if m in present):
            levels[method] = float(present[method]["regret"].values[0, n - 1])
            ax.axhline(levels[method], color=METHOD_COLORS[method], linestyle=METHOD_LINES[method], linewidth=1.2)
        ax.set_xticks(range(len(bars)), ticks, rotation=90, fontsize=8.5)
        ax.set(xlim=(-0.6, len(bars) - 0.4), ylim=(min(ax.get_ylim()[0], 0), room * top), title=f"n = {n}")
        _label_ends(ax, levels, {}, 7.5)
    axes[0].set_ylabel("cumulative regret (nats)")
    return axes


@own_style()
def tuning_loss(datasets: Datasets, ax: Axes | None = None, smooth: int = 25, top: float | None = None) -> Axes:
    """Draw the tuning loss (nats a sequence), averaged over `smooth` steps: repetitions thin, their median thick."""
    ax = ax if ax is not None else plt.subplots()[1]
    wanted = {m: d for m, d in datasets.items() if m in METHODS and m != "HardPT"}
    ends = {}
    for method, dataset in _present(wanted, "tuning_loss").items():
        loss, steps = dataset["tuning_loss"].values, dataset["tuning_step"].values
        part = max(1, min(smooth // int(steps[0]), loss.shape[1] // 10))  # stored losses in one point
        mean = loss[:, : loss.shape[1] // part * part].reshape(len(loss), -1, part).mean(-1)
        _curves(ax, method, part * int(steps[0]) * (np.arange(mean.shape[1]) + 0.5), mean)
        ends[method] = float(np.median(mean[:, -1]))
        ax.set_xlim(0, max(int(steps[-1]), ax.get_xlim()[1] if len(ends) > 1 else 0))
    ax.set_ylim(top=top)
    _label_ends(ax, ends, stand_ins(datasets))
    ax.set(xlabel="tuning step" + _missing_note(wanted, ax), ylabel="log-loss (nats a sequence)")
    return ax


def say_missing(ax: Axes) -> None:
    """Write on an empty panel that it was not computed."""
    ax.text(0.5, 0.5, "not computed", transform=ax.transAxes, ha="center", va="center", color=FAINT)
    ax.set(xticks=[], yticks=[])


class PaperFigure(NamedTuple):
    """A figure of the papers: how it is drawn, where it is explained, and the claims that it supports."""

    shows: str
    chapter: str
    claims: tuple[str, ...]
    draw: Callable[..., Figure]
    of: Any  # the second argument of `draw`
