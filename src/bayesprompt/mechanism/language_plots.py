"""Pictures of the language model: attention behind a prefix, texts that a token commands, flips written as text."""

from collections.abc import Callable
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from jaxtyping import Float
from matplotlib.figure import Figure

from bayesprompt.lab.cells import load_cell
from bayesprompt.lab.experiment import Cell
from bayesprompt.lab.plotting import FAINT, METHOD_COLORS, add_provenance, say_missing
from bayesprompt.lab.style import own_style
from bayesprompt.measures.attention import (
    Reading,
    attention,
    bias_decomposition,
    content_only,
    outputs,
    relative_content_attention,
)
from bayesprompt.mechanism.attention_plots import one_head
from bayesprompt.mechanism.language.coin import COINS, beside_laplace, flips_excess
from bayesprompt.mechanism.language.experiments import LANGUAGE_EXPERIMENTS
from bayesprompt.mechanism.language.labels import read_layers
from bayesprompt.mechanism.language.one_token import reached
from bayesprompt.mechanism.language.tasks import KINDS
from bayesprompt.mechanism.subspace_plots import range_bars
from bayesprompt.models.gguf import packaged_file, the_model
from bayesprompt.models.prefixes import NO_PREFIX
from bayesprompt.store import Store
from bayesprompt.tuning.tuners import prefix_from_rows

# What the model reads in every picture of its attention: a review that no prefix was tuned on.
SENTENCE = "The hotel was disappointing. Class:"


class Read(NamedTuple):
    """A sentence behind a stored prefix: its tokens as text, what each layer's attention read, the prefix's cell."""

    words: list[str]
    readings: list[Reading]
    dataset: xr.Dataset


def read_sentence(
    store: Store, experiment: str, scale: str = "paper", text: str = SENTENCE, tuned: bool = True
) -> Read | None:
    """Let the model read a text behind a stored prefix; None where the model's package or the prefix is missing.

    With `tuned` False it reads the text alone.
    """
    cell = Cell(LANGUAGE_EXPERIMENTS[experiment], "llama", "PrefixTuning", scale)
    dataset = load_cell(cell, store)
    if dataset is None or packaged_file() is None:
        return None
    prefix = prefix_from_rows(cell.method, dataset.prefix.values) if tuned else NO_PREFIX
    model = the_model()
    tokens = model.encode(text)
    return Read([model.decode([token]) for token in tokens], read_layers(model, tokens[None], prefix), dataset)


@own_style()
def behind_one_row(store: Store, draw: Callable[..., Figure], scale: str = "paper") -> Figure:
    """Draw what a prefix of one row does to a head (Figures 5 and 6), by `attention_panels` or `output_panels`.

    The head is that of the first layer, whose text nothing has biased, with the most attention on the row.
    """
    read = read_sentence(store, "language-model-labels-1", scale)
    return add_provenance(draw(read, layer=0, head=5), [read and read.dataset])


def _missing() -> Figure:
    figure, ax = plt.subplots(figsize=(7, 2))
    say_missing(ax)
    return figure


@own_style()
def attention_panels(read: Read | None, layer: int, head: int) -> Figure:
    """Draw one head's attention with the prefix, the same within the content, and without the prefix (Figure 5)."""
    if read is None:
        return _missing()
    words, reading = read.words, one_head(read.readings[layer], 0, head)
    found, size = attention(reading), reading.prefix_key.shape[0]
    panels = {
        "with the prefix": np.concatenate(found, axis=-1),
        "its content, renormalised": relative_content_attention(reading),
        "without the prefix": attention(content_only(reading)).content,
    }
    figure, axes = plt.subplots(1, 3, figsize=(9, 3.3), width_ratios=[size + len(words), len(words), len(words)])
    for ax, (title, weights) in zip(axes, panels.items(), strict=True):
        picture = ax.imshow(weights, cmap="magma_r", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        ax.set_title(title, fontsize=9.5)
    axes[0].axvline(size - 0.5, color="black", linewidth=1)
    axes[0].set_yticks(range(len(words)), words, fontsize=8)
    axes[0].set_xlabel(f"{size} prefix row{'s'[: size - 1]}, then the text")
    figure.colorbar(picture, ax=axes, shrink=0.8, label="attention")
    figure.suptitle(f"layer {layer + 1}, head {head + 1}", fontsize=10.5)
    return figure


@own_style()
def output_panels(read: Read | None, layer: int, head: int) -> Figure:
    """Draw one head's outputs with the prefix, and bias plus what is kept of those without it (Figure 6)."""
    if read is None:
        return _missing()
    words, reading = read.words, one_head(read.readings[layer], 0, head)
    whole, parts = outputs(reading), bias_decomposition(reading)
    panels = {
        "output with the prefix": whole,
        "bias + kept": parts.bias + parts.kept,
        "the bias alone": parts.bias,
        "without the prefix": outputs(content_only(reading)),
    }
    limit = max(float(np.abs(x).max()) for x in panels.values())
    figure, axes = plt.subplots(1, 4, figsize=(9, 2.9), sharey=True)
    for ax, (title, values) in zip(axes, panels.items(), strict=True):
        picture = ax.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
        ax.set_title(title, fontsize=9.5)
        ax.set_xticks([])
        ax.set_xlabel(f"{whole.shape[1]} coordinates", fontsize=9)
    axes[0].set_yticks(range(len(words)), words, fontsize=8)
    figure.colorbar(picture, ax=axes, shrink=0.8, label="output of the head")
    return figure


@own_style()
def reached_bars(soft: xr.Dataset | None, hard: xr.Dataset | None) -> Figure:
    """Draw the share of targets that are reached, by kind and length: one soft token, any hard one, the own first."""
    figure, axes = plt.subplots(1, 3, figsize=(9, 3.1), sharey=True)
    bars = {
        "one soft token": (soft, "reached", METHOD_COLORS["SoftPT"], ""),
        "any of all tokens": (hard, "reached", METHOD_COLORS["HardPT"], "//"),
        "its own first token": (hard, "own_first", METHOD_COLORS["NoTuning"], ".."),
    }
    for kind, ax in enumerate(axes):
        for place, (label, (dataset, name, color, hatch)) in enumerate(bars.items()):
            if dataset is None:
                continue
            lengths = np.unique(dataset.length.values)
            mine = [(dataset.length.values == n) & (dataset.kind.values == kind) for n in lengths]
            share = [reached(dataset, name)[chosen].mean() for chosen in mine]
            at = np.arange(len(lengths)) + 0.27 * (place - 1)
            ax.bar(at, share, 0.25, color=color, hatch=hatch, edgecolor="white", label=label)
            ax.plot(at, [0] * len(at), ".", color=color, markersize=4, clip_on=False)  # so that nothing shows, too
            ax.set_xticks(range(len(lengths)), lengths)
        ax.set(title=f"{KINDS[kind]} text", ylim=(0, 1), xlabel="tokens in the target")
    if soft is None and hard is None:
        say_missing(axes[1])
    else:
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=9)
    axes[0].set_ylabel("share of targets reached")
    return add_provenance(figure, [soft, hard])


@own_style()
def layer_ranges(dataset: xr.Dataset | None, head: int = 0) -> Figure:
    """Draw the range of attention on each prefix row in every layer, for one head (in place of Figure 7)."""
    if dataset is None:
        return add_provenance(_missing(), [None])
    layers = dataset.sizes["layer"]
    figure, axes = plt.subplots(-(-layers // 6), 6, figsize=(9, 1.35 * -(-layers // 6)), sharex=True, sharey=True)
    for layer, ax in enumerate(axes.flat):
        range_bars(ax, dataset.range.values[layer, :, head], METHOD_COLORS["SoftPT"])
        ax.set_title(f"layer {layer + 1}", fontsize=8.5, pad=3)
    for ax in axes[-1]:
        ax.set_xlabel("prefix row", fontsize=8.5)
    figure.supylabel("attention within the prefix", fontsize=10)
    return add_provenance(figure, [dataset])


@own_style()
def by_layer(
    values: Float[np.ndarray, "layers H"] | None, label: str, dataset: xr.Dataset | None, highest: float = 1.0
) -> Figure:
    """Draw a quantity of each head against the layer, with the heads' mean."""
    if values is None:
        return add_provenance(_missing(), [None])
    figure, ax = plt.subplots(figsize=(7, 2.8))
    layers = np.arange(1, len(values) + 1)
    ax.plot(layers, values, ".", color="#aaaaaa", markersize=5)
    ax.plot(layers, values.mean(axis=1), color=METHOD_COLORS["SoftPT"])
    ax.set(xlabel="layer", ylabel=label, xlim=(0.5, len(values) + 0.5), ylim=(-0.02 * highest, highest))
    return add_provenance(figure, [dataset])


@own_style()
def coin_panels(before: xr.Dataset | None, after: xr.Dataset | None) -> Figure:
    """Draw beliefs against Laplace's rule on random coins, and cumulative log-loss over it, without and with prompt."""
    figure, axes = plt.subplots(1, 3, figsize=(9, 3.2))
    given = {"without a prompt": (before, "NoTuning", ":"), "after the soft prompt": (after, "SoftPT", "-")}
    if before is not None:
        for n, color in ((10, "#4d9be6"), (50, "#332288")):
            axes[0].plot(*beside_laplace(before, "random coins", n), ".", color=color, label=f"after {n} flips")
        axes[0].plot([0, 1], [0, 1], color=FAINT, linewidth=0.8)
        axes[0].legend(fontsize=8, loc="lower right")
    else:
        say_missing(axes[0])
    axes[0].set(xlim=(0, 1), ylim=(0, 1), xlabel="Laplace's rule", ylabel="model's probability of heads")
    axes[0].set_title("random coins, no prompt", fontsize=10)
    for name, ax in zip(COINS, axes[1:], strict=True):
        for label, (dataset, method, line) in given.items():
            if dataset is not None:
                curve = flips_excess(dataset, name)
                steps = np.arange(1, len(curve) + 1)
                ax.plot(steps, curve, color=METHOD_COLORS[method], linestyle=line, label=label)
        ax.axhline(0, color="black", linewidth=0.8)
        ax.set_title(f"log-loss on {name}", fontsize=10)
        ax.set(xlabel="flips", ylabel="nats more than Laplace's rule")
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside upper right", ncols=2, fontsize=9)
    return add_provenance(figure, [before, after])
