"""Pictures of what a longer prefix's rows do: the range of attention on each (Figure 7)."""

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bayesprompt.lab.plotting import add_provenance, say_missing
from bayesprompt.lab.style import own_style
from bayesprompt.measures.attention import Reading
from bayesprompt.measures.subspaces import prefix_range, up_to
from bayesprompt.mechanism.attention_plots import TASK_COLORS
from bayesprompt.mechanism.digits import DigitExperiment, Tuned, held_out_inputs, load_models
from bayesprompt.models.gpt import make_gpt
from bayesprompt.models.trace import inspect
from bayesprompt.sources.digits import SIZE
from bayesprompt.store import Store

# Inputs that ranges and directions are taken over, as in claim P11 (quick scale has 800).
INPUTS = 1000


def at_last_input(tuned: Tuned, model: int) -> tuple[Int[np.ndarray, "B 10"], list[Reading]]:
    """Return up to 1000 held-out inputs, and what every layer reads at their last digit, where the answer begins."""
    inputs = held_out_inputs(tuned.cell)[:INPUTS]
    params, prefix = tuned.models[model]
    tokens = np.concatenate([inputs, np.zeros_like(inputs)], axis=1)  # that row does not see the answer
    layers = inspect(make_gpt(tuned.sizes), params, tokens, prefix).layers
    return inputs, [up_to(layer.reading, SIZE - 1) for layer in layers]


@own_style()
def range_bars(ax: Axes, ranges: Float[np.ndarray, "3 S"], color: str = "#d33a00") -> Axes:
    """Draw one head's range of attention on each prefix row: a bar from the lowest to the highest, a line between."""
    low, middle, high = ranges
    places = np.arange(1, len(low) + 1)
    ax.bar(places, high - low, bottom=low, width=0.7, color=color, alpha=0.45, linewidth=0)
    ax.hlines(middle, places - 0.35, places + 0.35, color=color, linewidth=1.6)
    ax.set(xlim=(0.3, len(low) + 0.7), ylim=(0, 1), xticks=places[::3])
    return ax


@own_style()
def prefix_ranges(store: Store, of: DigitExperiment, scale: str = "paper") -> Figure:
    """Draw the range of attention on the rows of an experiment's first prefix, a panel a layer and head (Figure 7).

    1st to 99th percentile over held-out inputs, at the last input row; attention within the prefix sums to 1.
    """
    tuned = load_models(of, "PrefixTuning", store, scale)
    sizes = of.largest if tuned is None else tuned.sizes
    shape, width = (sizes.num_layers, sizes.num_heads), 9.0
    figure, grid = plt.subplots(*shape, figsize=(width, 1.7 * shape[0]), sharex=True, sharey=True, squeeze=False)
    if tuned is None:
        for ax in grid.flat:
            say_missing(ax)
        return add_provenance(figure, [None])
    ranges = [prefix_range(reading, 0) for reading in at_last_input(tuned, 0)[1]]
    for (layer, head), ax in np.ndenumerate(grid):
        range_bars(ax, ranges[layer][:, head], TASK_COLORS[of.tasks[0]])
        ax.set_title(f"layer {layer + 1}, head {head + 1}", fontsize=8.5, pad=3)
    for ax in grid[-1]:
        ax.set_xlabel("prefix row")
    figure.supylabel("attention within the prefix", fontsize=10)
    return add_provenance(figure, [tuned.dataset])
