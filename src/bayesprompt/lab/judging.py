"""What a claim is made of: comparisons, and the stored results or the record that they read."""

import html
import json
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import xarray as xr

from bayesprompt.lab.cells import load_cell
from bayesprompt.lab.experiment import Cell, Experiment
from bayesprompt.store import SHIPPED, Store

EXACT = SHIPPED / "exact.json"  # the parts of claims about exact mathematics; tests compute and compare them
_RELATIONS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}


class Part(NamedTuple):
    """One comparison within a claim; value None where a cell is missing."""

    label: str
    value: float | None
    relation: str
    bound: float | None

    @property
    def holds(self) -> bool | None:
        """Whether the comparison holds; None where it cannot be made."""
        if self.value is None or self.bound is None:
            return None
        return bool(_RELATIONS[self.relation](self.value, self.bound))

    @property
    def shown(self) -> str:
        """The value in words."""
        if self.value is None:
            return "missing"
        return f"{self.value:.1e}" if 0 < abs(self.value) < 1e-3 else f"{self.value:.4f}"

    @property
    def threshold(self) -> str:
        """The bound in words, e.g. "<= 0.1"."""
        return f"{self.relation} {'?' if self.bound is None else f'{self.bound:.4g}'}"


@dataclass(frozen=True)
class Judgement:
    """What became of a claim; `verdict` is "holds", "fails" or "not judged"."""

    id: str
    statement: str
    parts: tuple[Part, ...]
    scale: str
    device: str | None
    date: str | None
    commit: str | None
    missing: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """The verdict that the parts add up to."""
        outcomes = [part.holds for part in self.parts]
        if False in outcomes:
            return "fails"
        return "not judged" if None in outcomes else "holds"

    def to_dict(self) -> dict[str, Any]:
        """Return the judgement as JSON values."""
        return {
            "id": self.id,
            "verdict": self.verdict,
            "value": {part.label: part.value for part in self.parts},
            "threshold": {part.label: part.threshold for part in self.parts},
        } | {name: getattr(self, name) for name in ("scale", "device", "date", "commit")}

    def __str__(self) -> str:
        """Show the claim, its parts and where the numbers come from, as lines of text."""
        lines = [f"{self.id}  {self.verdict}: {self.statement}"]
        width = max((len(part.label) for part in self.parts), default=0)
        for part in self.parts:
            lines.append(f"    {part.label:{width}s} {part.shown:>9s}  {part.threshold}")
        return "\n".join([*lines, f"    {self.provenance}"])

    @property
    def provenance(self) -> str:
        """Scale, device, date and commit in one line."""
        if self.scale == "exact":
            return "exact: as recorded; the tests compute it again"
        known = [x for x in (f"{self.scale} scale", self.device, self.date, self.commit and self.commit[:12]) if x]
        more = f" and {len(self.missing) - 3} more" if len(self.missing) > 3 else ""
        waiting = f"; missing: {', '.join(self.missing[:3])}{more}" if self.missing else ""
        return ", ".join(known) + waiting

    def _repr_html_(self) -> str:
        def row(tag: str, *cells: str) -> str:
            style = 'style="text-align:left;padding:0.2em 1.2em 0.2em 0"'
            return "<tr>" + "".join(f"<{tag} {style}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        rows = [row("td", part.label, part.shown, part.threshold) for part in self.parts]
        return (
            f"<p><strong>{self.id} {self.verdict}.</strong> {html.escape(self.statement)}</p>"
            f"<table><thead>{row('th', 'quantity', 'value', 'threshold')}</thead><tbody>{''.join(rows)}</tbody></table>"
            f"<p><small>{html.escape(self.provenance)}</small></p>"
        )


class Results:
    """Results as a claim reads them; remembers which cells were used and which are missing."""

    def __init__(self, store: Store, experiments: Mapping[str, Experiment], scale: str = "paper") -> None:
        """Read cells of these experiments, by their names, from `store`; claims are judged at paper scale."""
        self.store, self.experiments, self.scale, self.used, self.missing = store, experiments, scale, {}, {}

    def cell(self, experiment: str, architecture: str, method: str) -> xr.Dataset | None:
        """Return a cell of seed 0, or None."""
        cell = Cell(self.experiments[experiment], architecture, method, self.scale)
        dataset = load_cell(cell, self.store)
        (self.missing if dataset is None else self.used)[cell.name] = dataset
        return dataset

    def regret(self, experiment: str, architecture: str, method: str, n: int = 50) -> float | None:
        """Return R(n), the median over repetitions, nats; None if the cell is missing."""
        dataset = self.cell(experiment, architecture, method)
        return None if dataset is None else float(dataset.regret.sel(n=n).median())

    def gap(self, experiment: str, architecture: str, method: str, n: int = 50) -> float | None:
        """Return R(n) - R_TargetBayes(n), nats."""
        return minus(
            self.regret(experiment, architecture, method, n), self.regret(experiment, "bayes", "TargetBayes", n)
        )


def minus(a: float | None, b: float | None) -> float | None:
    """Return a - b, or None where one is missing."""
    return None if a is None or b is None else a - b


# A claim: what it says, the scale it is judged at ("paper" or "exact"), and its comparisons.
Claim = tuple[str, str, Callable[[Results], Iterator[Part]]]


def recorded(claim: str) -> list[Part]:
    """Return the parts of a claim about exact mathematics from the record; KeyError for any other claim."""
    return [Part(**part) for part in json.loads(EXACT.read_text())[claim]]


def exact_claims(statements: dict[str, str]) -> dict[str, Claim]:
    """Return claims about exact mathematics, given what they say; their parts are read from the record."""
    return {
        claim: (statement, "exact", lambda _, claim=claim: iter(recorded(claim)))
        for claim, statement in statements.items()
    }


def evaluate(name: str, claim: Claim, results: Results) -> Judgement:
    """Judge one claim on stored results."""
    statement, scale, judge = claim
    parts = tuple(judge(results))
    origin = {
        field: ", ".join(sorted({cell.attrs[field] for cell in results.used.values()})) or None
        for field in ("device", "date", "commit")
    }
    return Judgement(name, statement, parts, scale, **origin, missing=tuple(results.missing))
