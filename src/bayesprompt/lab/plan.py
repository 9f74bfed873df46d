"""What is still to be computed, in which order, and about how long it takes."""

from collections.abc import Iterable

import numpy as np

from bayesprompt.lab.cells import load_cell
from bayesprompt.lab.experiment import Cell
from bayesprompt.lab.judging import Judgement
from bayesprompt.store import Store
from bayesprompt.tuning.fitting import step_flops
from bayesprompt.tuning.tuners import PREFIX_METHODS

# Where nothing like it is stored: about what two cores do in a second.
_OPERATIONS_A_SECOND = 4e10


def work(cell: Cell) -> int:
    """Return the optimisation steps of all repetitions of a cell; 1 for a cell without any."""
    return cell.config().get("fit", {}).get("steps", 0) * cell.repetitions or 1


def operations(cell: Cell) -> float:
    """Return the nominal floating-point operations of all steps of a cell; 0 for a cell without any."""
    fit = cell.config().get("fit")
    if not fit:
        return 0.0
    learned = cell.method not in PREFIX_METHODS
    return work(cell) * step_flops(cell.predictor.architecture, fit["batch"], fit["length"], learned)


def expected_seconds(cell: Cell, known: Iterable[Cell], store: Store) -> float:
    """Return about how long a cell takes: as long an operation as in stored cells of its kind, the median of them."""
    alike = [c for c in known if (c.architecture, c.method, c.scale) == (cell.architecture, cell.method, cell.scale)]
    stored = [(c, load_cell(c, store)) for c in alike]
    rates = [float(dataset.attrs["seconds"]) / (operations(c) or 1) for c, dataset in stored if dataset is not None]
    rate = float(np.median(rates)) if rates else 1 / _OPERATIONS_A_SECOND
    return rate * (operations(cell) or 1)


def with_bases(cells: Iterable[Cell]) -> list[Cell]:
    """Return cells after the base networks that they need, each once."""
    cells = list(cells)
    return list(dict.fromkeys([*(cell.base for cell in cells if cell.base is not None), *cells]))


def missing(cells: Iterable[Cell], store: Store) -> list[Cell]:
    """Return those of some cells, and of their base networks, that are not stored."""
    return [cell for cell in with_bases(cells) if load_cell(cell, store) is None]


def for_claims(wanted: dict[str, list[Cell]], seconds: dict[Cell, float]) -> list[Cell]:
    """Return the cells that undecided claims wait for: the claim that is decided soonest comes first, again and again.

    `wanted` maps claims to their missing cells, `seconds` says how long each takes.
    """
    order: dict[Cell, None] = {}
    left = dict(wanted)
    while left:
        cost = {claim: sum(seconds[c] for c in cells if c not in order) for claim, cells in left.items()}
        first = min(cost, key=cost.__getitem__)
        order |= dict.fromkeys(sorted(left.pop(first), key=lambda c: (not c.makes_network, seconds[c])))
    return list(order)


def undecided(judgements: Iterable[Judgement]) -> dict[str, tuple[str, ...]]:
    """Return the names of the missing cells of each claim that is not judged."""
    return {j.id: j.missing for j in judgements if j.verdict == "not judged"}


def in_words(seconds: float | int) -> str:
    """Return a time in words, e.g. "1.5 h"."""
    if seconds < 5400:
        return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
