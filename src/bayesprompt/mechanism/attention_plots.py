"""Pictures of attention on ten digits and their answer, and of what a prefix does to it (Petrov et al., Figures 1-3).

A reading has 19 content rows: the input's ten digits, and nine digits of the answer. The last input row and those after
it write the answer. Pads stand in the prefix's place where there is none.
"""

from collections.abc import Mapping, Sequence

import jax
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Array, Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from bayesprompt.checks import UserError
from bayesprompt.lab.plotting import FAINT, add_provenance, say_missing
from bayesprompt.lab.style import own_style
from bayesprompt.measures.attention import Reading, attention, relative_content_attention
from bayesprompt.measures.components import principal_components, project
from bayesprompt.mechanism.digits import DigitExperiment, Tuned, held_out_inputs, load_models
from bayesprompt.models.gpt import GPT, decode, make_gpt
from bayesprompt.models.predictor import Params
from bayesprompt.models.prefixes import NO_PREFIX, Prefix
from bayesprompt.models.trace import inspect
from bayesprompt.sources.digits import PRETRAINING_TASKS, SIZE, TASKS, answer, with_answer
from bayesprompt.store import Store

TASK_COLORS = dict(zip(TASKS, ("#332288", "#e69f00", "#44aa99", "#882255", "#4d9be6", "#8a8a20"), strict=True))
# The input of every attention map: held out of training, all eight digits.
EXAMPLE = np.array([2, 5, 3, 5, 0, 3, 7, 6, 4, 1])
# Attention block outputs are drawn for so many held-out inputs.
POINTS = 100

Digits = Int[Array | np.ndarray, " N"]
Model = tuple[Params, Prefix]


def one_head(reading: Reading, sequence: int = 0, head: int = 0) -> Reading:
    """Return what one head reads of one sequence."""
    return jax.tree.map(lambda x: np.asarray(x[sequence, head]), reading)


@own_style()
def attention_map(ax: Axes, reading: Reading, tokens: Digits, relative: bool = False, first_row: int = 0) -> AxesImage:
    """Draw how one head divides each row's attention over prefix, input and answer, from row `first_row` (0-based) on.

    `relative` draws the attention within the content (Eq. 6). Rows are named by the digit that stands there, and what
    the text has next. Raises ValueError unless the reading is of one head, and the tokens one more than its rows.
    """
    if reading.query.ndim != 2:
        raise UserError(f"reading = {reading.query.ndim} axes: must be of one sequence and one head, see one_head")
    rows = reading.query.shape[0]
    if len(tokens) != rows + 1:
        raise UserError(f"tokens = {len(tokens)}: must be {rows + 1}, the reading's rows and the last digit")
    found = attention(reading)
    parts = [relative_content_attention(reading)] if relative else [found.prefix, found.content]
    weights = np.concatenate(parts, axis=-1)[first_row:]
    size = weights.shape[1] - rows  # columns before the content
    image = ax.imshow(weights, cmap="magma_r", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    for edge in (size - 0.5, size + SIZE - 0.5):
        if edge > 0:
            ax.axvline(edge, color=FAINT, linewidth=0.8)
    if first_row < SIZE - 1:
        ax.axhline(SIZE - 1.5 - first_row, color=FAINT, linewidth=0.8, linestyle=":")
    digits = [str(int(digit)) for digit in tokens]
    shown = [d + (f"\u2192{digits[i + 1]}" if i >= SIZE - 1 else "") for i, d in enumerate(digits[:-1])]
    ax.set_yticks(range(rows - first_row), shown[first_row:], fontsize=8)
    ax.set_xticks(range(size + rows), [""] * size + digits[:-1], fontsize=7.5)
    ax.tick_params(length=0, pad=2)
    for middle, word in ((size / 2 - 0.5, "S" if size else ""), (size + 4.5, "input"), (size + 14, "answer")):
        ax.text(middle, -0.7, word, ha="center", va="bottom", fontsize=8.5, color=FAINT)
    return image


Panel = tuple[Reading, Digits] | None


@own_style()
def attention_maps(
    rows: Sequence[Mapping[str, Panel]],
    labels: Sequence[str] | None = None,
    relative: bool = False,
    first_row: int = 0,
    height: float = 3.2,
) -> Figure:
    """Draw rows of maps side by side, each named, of a reading of one head with its tokens; None: not computed."""
    figure, grid = plt.subplots(len(rows), max(map(len, rows)), figsize=(8.5, height * len(rows)), squeeze=False)
    image = None
    for number, (axes, panels) in enumerate(zip(grid, rows, strict=True)):
        for ax, (title, panel) in zip(axes, panels.items(), strict=True):
            ax.set_title(title, fontsize=9.5, pad=14)
            if panel is None:
                say_missing(ax)
                continue
            image = attention_map(ax, *panel, relative, first_row)
        axes[0].set_ylabel(labels[number] if labels else "row that attends", fontsize=9)
    if image is not None:
        figure.colorbar(image, ax=grid, shrink=0.6, aspect=30, pad=0.01, label="attention")
    return figure


@own_style()
def accuracy_table(
    values: Float[np.ndarray, "rows columns"], rows: Sequence[str], columns: Sequence[str], ax: Axes | None = None
) -> Axes:
    """Draw accuracies (shares) as a table: percentages on cells that are darker for higher ones; NaN: not computed."""
    ax = ax if ax is not None else plt.subplots(figsize=(7, 0.6 + 0.45 * len(rows)))[1]
    ax.imshow(np.ma.masked_invalid(values), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        words, color = ("not computed", FAINT) if np.isnan(value) else (f"{value:.1%}", "white" if value > 0.6 else "k")
        ax.text(j, i, words, ha="center", va="center", color=color, fontsize=9)
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(rows)), rows)
    ax.tick_params(length=0, top=True, bottom=False, labeltop=True, labelbottom=False)
    ax.spines[:].set_visible(False)
    return ax


def block_outputs(sizes: GPT, model: Model, inputs: Int[Array | np.ndarray, "B 10"]) -> Float[np.ndarray, "B D"]:
    """Return the first attention block's outputs at the last input row, where the answer's first digit is chosen."""
    params, prefix = model
    tokens = np.concatenate([inputs, np.zeros_like(inputs)], axis=1)  # that row does not see the answer
    return np.asarray(inspect(make_gpt(sizes), params, tokens, prefix).layers[0].states[:, -SIZE])


def completed_tasks(
    sizes: GPT, model: Model, inputs: Int[Array | np.ndarray, "B 10"], tasks: Sequence[str] = PRETRAINING_TASKS
) -> Int[np.ndarray, " B"]:
    """Return which of these tasks each greedy answer solves, as an index; -1 for none; the first of several."""
    said = np.asarray(decode(sizes, model[0], inputs, model[1]))
    solved = np.stack([(said == np.asarray(answer(inputs, TASKS.index(task)))).all(axis=1) for task in tasks])
    return np.where(solved.any(axis=0), solved.argmax(axis=0), -1)


@own_style()
def sorter_maps(store: Store, of: DigitExperiment, scale: str = "paper") -> Figure:
    """Draw the attention of the pretrained, the fully tuned and the prefix-tuned sorter on one input (Figure 1).

    The fully tuned one reads its own task's answer, the other two the same text.
    """
    cells = {"pretrained": (of.base, "Pretrained"), "fully tuned": (of, "FullWT")}
    cells["prefix-tuned"] = (of, "PrefixTuning")
    panels, datasets = {}, []
    for title, (experiment, method) in cells.items():
        tuned = load_models(experiment, method, store, scale)
        task = (of if method == "FullWT" else of.base).tasks[0]
        panels[title] = tuned and _read(tuned, with_answer(EXAMPLE, task))
        datasets.append(tuned and tuned.dataset)
    return add_provenance(attention_maps([panels], height=4.2), datasets)


@own_style()
def skill_maps(store: Store, of: DigitExperiment, scale: str = "paper") -> Figure:
    """Draw the attention of every head of a network with several skills, on each skill's answer (Figure 2)."""
    tuned, heads = load_models(of, "Pretrained", store, scale), range(of.largest.num_heads)
    tasks, rows = of.tasks, []
    for number, task in enumerate(tasks):
        names = [f"head {head + 1}" if number == 0 else "" for head in heads]
        text = with_answer(EXAMPLE, task)
        rows.append({name or " " * head: tuned and _read(tuned, text, head) for head, name in enumerate(names)})
    return add_provenance(attention_maps(rows, tasks, first_row=SIZE - 1, height=2.4), [tuned and tuned.dataset])


@own_style()
def prefix_clusters(store: Store, of: DigitExperiment, scale: str = "paper") -> Figure:
    """Draw attention block outputs at the last input row in the plane of their first two components (Figure 3).

    Left: without a prefix, coloured by the task that the answer solves. Right: under each task's prefix, with lines
    from where the same input's output was.
    """
    figure, axes = plt.subplots(1, 2, figsize=(8.5, 4.6))
    tuned = load_models(of, "PrefixTuning", store, scale)
    if tuned is None:
        for ax in axes:
            say_missing(ax)
        return add_provenance(figure, [None])
    inputs, base = held_out_inputs(tuned.cell)[:POINTS], (tuned.models[0][0], NO_PREFIX)
    after = {t: block_outputs(tuned.sizes, model, inputs) for t, model in zip(of.tasks, tuned.models, strict=True)}
    completed, before = completed_tasks(tuned.sizes, base, inputs, of.tasks), block_outputs(tuned.sizes, base, inputs)
    components = principal_components(np.concatenate([before, *after.values()]))
    left, right = axes
    points = project(components, before)
    for index, task in enumerate([*after, "none"]):
        chosen = completed == (index if task != "none" else -1)
        left.plot(*points[chosen].T, ".", color=TASK_COLORS.get(task, "#aaaaaa"), markersize=6, label=task)
    left.legend(fontsize=9, title="its answer solves", title_fontsize=9, loc="best")
    left.set_title("without a prefix", fontsize=10)
    right.plot(*points.T, ".", color="#777777", markersize=3, zorder=3)
    moved = {task: project(components, outputs) for task, outputs in after.items()}
    center = np.mean([*moved.values()], axis=(0, 1))
    for task, there in moved.items():
        lines = np.stack([points, there, np.full_like(there, np.nan)], axis=1).reshape(-1, 2)
        right.plot(*lines.T, color=TASK_COLORS[task], linewidth=0.4, alpha=0.35)
        right.plot(*there.T, ".", color=TASK_COLORS[task], markersize=6)
        card = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": TASK_COLORS[task], "alpha": 0.9}
        middle = there.mean(axis=0)  # the name stands beside its points, away from the others
        away = {"xytext": 26 * np.sign(middle - center), "textcoords": "offset points", "ha": "center", "va": "center"}
        right.annotate(task, middle, **away, fontsize=9, bbox=card, zorder=4)
    right.set_title("under each task's prefix (grey: without)", fontsize=10)
    share = components.variance / components.variance.sum()
    for ax in axes:
        ax.set(xlabel=f"component 1 ({share[0]:.0%} of variance)", ylabel=f"component 2 ({share[1]:.0%})")
    return add_provenance(figure, [tuned.dataset])


def _read(tuned: Tuned, tokens: Digits, head: int = 0) -> tuple[Reading, Digits]:
    params, prefix = tuned.models[0]
    layer = inspect(make_gpt(tuned.sizes), params, np.asarray(tokens)[None], prefix).layers[0]
    return one_head(layer.reading, 0, head), tokens
