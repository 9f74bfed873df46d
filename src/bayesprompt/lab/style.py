"""How pictures look: the book's style over Matplotlib's defaults, never over the reader's own settings."""

import contextlib
from typing import Any

import matplotlib.style

STYLE: list[Any] = [
    "default",
    {
        "figure.figsize": (7.0, 3.8),
        "figure.constrained_layout.use": True,
        "font.size": 10.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlepad": 12,  # above the number on a bar that ends at the top
        "lines.linewidth": 2,
    },
]


def own_style() -> contextlib.AbstractContextManager[None]:
    """Draw in the book's style and leave the reader's settings as they were: a context, or a function's decorator."""
    return matplotlib.style.context(STYLE)
