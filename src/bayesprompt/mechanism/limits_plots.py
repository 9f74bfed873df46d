"""Figures 1 and 3 of Genewein et al. (2025) in a language model, beside those of a small network."""

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from bayesprompt.lab.plotting import Datasets, add_provenance, common_top, regret_bars, regret_curves, say_missing
from bayesprompt.lab.style import own_style

KINDS = {
    "prompts and prefixes": ("TargetBayes", "NoTuning", "HardPT", "SoftPT", "PrefixTuning"),
    "weights": ("TargetBayes", "NoTuning", "UnembedWT", "LoRAWT", "FullWT"),
}
STEPS = 100  # flips of each evaluation sequence of the language model


@own_style()
def beside_small(language: Datasets, small: Datasets, tuned: int = 50) -> Figure:
    """Draw regret curves by kind of method, and bars at the tuned length: the language model left, the network right.

    Each side has its own results only; curves of one row share their upper end.
    """
    figure, axes = plt.subplots(3, 2, figsize=(9.6, 10.4), height_ratios=[1, 1, 0.9])
    groups = {"SmolLM2": language, "small Transformer": small}
    for row, (kind, methods) in zip(axes, KINDS.items(), strict=False):
        parts = [{m: d for m, d in group.items() if m in methods} for group in groups.values()]
        for ax, title, part in zip(row, groups, parts, strict=True):
            regret_curves(part, ax, STEPS, common_top(*parts, steps=STEPS), tuned).set_title(f"{title}: {kind}")
    shown = {m for methods in KINDS.values() for m in methods}
    for ax, (title, group) in zip(axes[-1], groups.items(), strict=True):
        part = {m: d for m, d in group.items() if m in shown}
        if any(part.values()):
            regret_bars(part, (tuned,), [ax])[0].set_title(f"{title}, n = {tuned}")
        else:
            say_missing(ax)
    return add_provenance(figure, language, small)
