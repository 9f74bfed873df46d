"""What every chapter of the book does first."""

import matplotlib.style
import pandas as pd

from bayesprompt.devices import use_every_core
from bayesprompt.lab.style import STYLE


def start() -> None:
    """Compute on every core, draw in the book's style, and show whole sentences in tables."""
    use_every_core()
    matplotlib.style.use(STYLE)
    pd.set_option("display.max_colwidth", None)
