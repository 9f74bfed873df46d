"""Figures 1 and 3 of Genewein et al. (2025) in a language model, beside those of a small network."""

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from bayesprompt.lab.cells import scale_of
from bayesprompt.lab.experiment import SCALES
from bayesprompt.lab.plotting import Datasets, add_provenance, common_top, regret_bars, regret_curves, say_missing
from bayesprompt.lab.style import own_style

KINDS = {
    "prompts and prefixes": ("TargetBayes", "NoTuning", "HardPT", "SoftPT", "PrefixTuning"),
    "weights": ("TargetBayes", "NoTuning", "UnembedWT", "LoRAWT", "FullWT"),
}
STEPS = 100  # flips of each evaluation sequence of the language model


def scales_of(group: Datasets) -> str:
    """Return the scales of some results in words, e.g. "quick scale"."""
    scales = {scale_of(d) for d in group.values() if d is not None}
    return f"{' and '.join(s for s in SCALES if s in scales) or 'no'} scale"


@own_style()
def beside_small(language: Datasets, small: Datasets, tuned: int = 50) -> Figure:
    """Draw regret curves by kind of method, and bars at the tuned length: the language model left, the network right.

    Each side has its own results only; curves of one row share their upper end.
    """
    figure, axes = plt.subplots(3, 2, figsize=(8.4, 11), height_ratios=[1, 1, 0.9])
    figure.get_layout_engine().set(h_pad=0.12)  # the notes below an axis are no part of the next panel's title
    named = {"SmolLM2": language, "small Transformer": small}
    groups = {f"{name}, {scales_of(group)}": group for name, group in named.items()}
    for row, (kind, methods) in zip(axes, KINDS.items(), strict=False):
        parts = [{m: d for m, d in group.items() if m in methods} for group in groups.values()]
        for ax, title, part in zip(row, groups, parts, strict=True):
            regret_curves(part, ax, common_top(*parts, steps=STEPS), STEPS).set_title(f"{title}:\n{kind}")
    shown = {m for methods in KINDS.values() for m in methods}
    for ax, (title, group) in zip(axes[-1], groups.items(), strict=True):
        part = {m: d for m, d in group.items() if m in shown}
        if any(part.values()):
            regret_bars(part, (tuned,), [ax])[0].set_title(f"{title}:\nn = {tuned}")
        else:
            say_missing(ax)
    return add_provenance(figure, language, small)
