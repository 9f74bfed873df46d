"""The figures of Petrov et al. (2024) from the stored results."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from bayesprompt.lab.plotting import PaperFigure
from bayesprompt.lab.style import own_style
from bayesprompt.mechanism.attention_plots import prefix_clusters, skill_maps, sorter_maps
from bayesprompt.mechanism.constructions import tangents
from bayesprompt.mechanism.digits import DIGIT_EXPERIMENTS
from bayesprompt.mechanism.language_plots import attention_panels, behind_one_row, output_panels
from bayesprompt.mechanism.subspace_plots import prefix_ranges
from bayesprompt.store import Store


@own_style()
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


FIGURES = {
    "petrov2024-figure-1": PaperFigure(
        "Attention of a sorter: pretrained, fully tuned, prefix-tuned", "mechanism/sorting", ("P5", "P7"),
        sorter_maps, DIGIT_EXPERIMENTS["sorting"],
    ),
    "petrov2024-figure-2": PaperFigure(
        "Heads of a network with four skills", "mechanism/eliciting_skills", ("P8",),
        skill_maps, DIGIT_EXPERIMENTS["eliciting-skills-pretraining"],
    ),
    "petrov2024-figure-3": PaperFigure(
        "Attention block outputs under four prefixes", "mechanism/eliciting_skills", ("P6", "P8"),
        prefix_clusters, DIGIT_EXPERIMENTS["eliciting-skills"],
    ),
    "petrov2024-figure-4": PaperFigure(
        "Confidences that decode a number", "mechanism/virtual_tokens", ("P1", "P2", "P3", "P4"), tangent_lines, 10
    ),
    "petrov2024-figure-5": PaperFigure(
        "Attention in a language model behind a prefix of one row", "mechanism/language_model", ("P5b",),
        behind_one_row, attention_panels,
    ),
    "petrov2024-figure-6": PaperFigure(
        "Outputs of a head in a language model behind a prefix of one row", "mechanism/language_model", ("P6b",),
        behind_one_row, output_panels,
    ),
    "petrov2024-figure-7": PaperFigure(
        "Range of attention over a prefix of ten rows (a substitute for GPT-2)", "mechanism/longer_prefixes", ("P11",),
        prefix_ranges, DIGIT_EXPERIMENTS["longer-prefixes"],
    ),
}  # fmt: skip
