"""What every chapter of the book does first."""

from bayesprompt.devices import use_every_core
from bayesprompt.lab.style import use_style


def start() -> None:
    """Compute on every core, and draw in the book's style."""
    use_every_core()
    use_style()
