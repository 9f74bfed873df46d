"""The papers' claims as tests on stored results; the thresholds were fixed before any result existed.

A claim is judged at paper scale only. It fails as soon as one of its parts does, and holds once all of them do; while a
cell that it needs is missing it is not judged. Claims about exact mathematics are computed on the spot.
"""

import html
import json
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from bayesprompt.cells import Cell, load_cell
from bayesprompt.experiments import EXPERIMENTS, RANDOM_COINS
from bayesprompt.regret import best_hard_prompt, exact_regret
from bayesprompt.sources import Coin, CoinMixture
from bayesprompt.store import SHIPPED, Store, write_atomically
from bayesprompt.tuners import WEIGHT_METHODS

RECORD = SHIPPED / "verdicts.json"
NETWORKS = ("lstm", "transformer")
# "Reaches Bayes": R(n) - R_TargetBayes(n) at n = 50, in nats.
REACHES = 0.10
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
            "scale": self.scale,
            "device": self.device,
            "date": self.date,
            "commit": self.commit,
        }

    def __str__(self) -> str:
        """Show the claim, its parts and where the numbers come from, as lines of text."""
        lines = [f"{self.id}  {self.verdict}: {self.statement}"]
        for part in self.parts:
            value = "missing" if part.value is None else f"{part.value:.4f}"
            lines.append(f"    {part.label:44s} {value:>9s}  {part.threshold}")
        return "\n".join([*lines, f"    {self.provenance}"])

    @property
    def provenance(self) -> str:
        """Scale, device, date and commit in one line."""
        if self.scale == "exact":
            return "exact: computed on the spot"
        known = [x for x in (f"{self.scale} scale", self.device, self.date, self.commit and self.commit[:12]) if x]
        waiting = f"; missing: {', '.join(self.missing)}" if self.missing else ""
        return ", ".join(known) + waiting

    def _repr_html_(self) -> str:
        def row(tag: str, *cells: str) -> str:
            style = 'style="text-align:left;padding:0.2em 1.2em 0.2em 0"'
            return "<tr>" + "".join(f"<{tag} {style}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        rows = [row("td", p.label, "missing" if p.value is None else f"{p.value:.4f}", p.threshold) for p in self.parts]
        return (
            f"<p><strong>{self.id} {self.verdict}.</strong> {html.escape(self.statement)}</p>"
            f"<table><thead>{row('th', 'quantity', 'value', 'threshold')}</thead><tbody>{''.join(rows)}</tbody></table>"
            f"<p><small>{html.escape(self.provenance)}</small></p>"
        )


class Results:
    """Paper-scale results as a claim reads them; remembers which cells were used and which are missing."""

    def __init__(self, store: Store) -> None:
        """Read from `store`."""
        self.store, self.used, self.missing = store, {}, {}

    def cell(self, experiment: str, architecture: str, method: str) -> xr.Dataset | None:
        """Return a paper-scale cell of seed 0, or None."""
        cell = Cell(experiment, architecture, method, "paper", 0)
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


def _g1(results: Results) -> Iterator[Part]:
    for network in NETWORKS:
        cell = results.cell("pretraining", network, "Pretrained")
        excess = cell if cell is None else float(cell.excess.sel(n=100))
        yield Part(f"{network}: excess log-loss over Laplace, 100 steps", excess, "<=", 0.15)
        yield Part(f"{network}: largest mean KL of a step", cell if cell is None else float(cell.kl.max()), "<=", 0.01)


def _g2(results: Results) -> Iterator[Part]:
    for network in NETWORKS:
        yield Part(f"{network}: SoftPT above TargetBayes", results.gap("single-coin", network, "SoftPT"), "<=", REACHES)


def _g3(results: Results) -> Iterator[Part]:
    for network in NETWORKS:
        soft = results.regret("single-coin", network, "SoftPT")
        for method in ("HardPT", "SimplexPT", "RealPT"):
            worse = minus(results.regret("single-coin", network, method), soft)
            yield Part(f"{network}: {method} above SoftPT", worse, ">=", 0.10)


def _g4(results: Results) -> Iterator[Part]:
    for network in NETWORKS:
        soft, hard = (results.regret("single-coin", network, method) for method in ("SoftPT", "HardPT"))
        yield Part(f"{network}: HardPT above SoftPT", minus(hard, soft), ">", 0.30)


def _g5(results: Results) -> Iterator[Part]:
    for network in NETWORKS:
        soft, none = (results.regret("single-coin", network, method, 200) for method in ("SoftPT", "NoTuning"))
        yield Part(f"{network}: SoftPT at n = 200", soft, "<=", 0.60)
        yield Part(f"{network}: SoftPT against NoTuning / 3, n = 200", soft, "<", None if none is None else none / 3)


def _g6(results: Results) -> Iterator[Part]:
    for network, methods, enough in (("lstm", WEIGHT_METHODS[:4], 3), ("transformer", WEIGHT_METHODS, 4)):
        gaps = {method: results.gap("single-coin", network, method) for method in methods}
        for method in {"FullWT", "LoRAWT"} & gaps.keys():
            yield Part(f"{network}: {method} above TargetBayes", gaps[method], "<=", REACHES)
        reached = sum(gap is not None and gap <= REACHES for gap in gaps.values())
        open_ = sum(gap is None for gap in gaps.values())
        # Cells that are still missing decide only if they could.
        known = reached if reached >= enough or reached + open_ < enough else None
        yield Part(f"{network}: weight methods that reach Bayes", known, ">=", enough)


def _g18(results: Results) -> Iterator[Part]:
    mixture = CoinMixture((0.2, 0.8), (0.5, 0.5))
    final = abs(exact_regret(mixture, mixture, 200)[-1] - np.log(2))
    yield Part("two-coin mixture: R_TargetBayes(200) against ln 2", float(final), "<=", 1e-3)
    target = EXPERIMENTS["single-coin"].target
    for method in ("TargetBayes", "PreBayes", "PreBayesPT"):
        cell = results.cell("single-coin", "bayes", method)
        worst = None
        if cell is not None:
            predictor = target if method == "TargetBayes" else RANDOM_COINS
            prompt = tuple(cell.prompt_counts.values.tolist()) if method == "PreBayesPT" else (0, 0)
            exact = exact_regret(predictor, target, 200, prompt)
            difference = np.abs(cell.regret.values[0] - exact)[[49, 199]]
            # The known coin has no regret at all, sampled or exact: leave rounding aside.
            error = np.maximum(cell.regret_stderr.values[0][[49, 199]], 1e-9)
            worst = float((difference / error).max())
        yield Part(f"single coin: {method}, standard errors from exact", worst, "<=", 3.0)


def _e9(_: Results) -> Iterator[Part]:
    for length, regret in ((0, 1.477), (6, 0.571), (50, 0.096)):
        best = float(best_hard_prompt(RANDOM_COINS, Coin(0.2), length, 50).regret[-1])
        yield Part(f"best hard prompt of {length} tokens: R(50) against {regret}", abs(best - regret), "<=", 5e-4)


CLAIMS: dict[str, tuple[str, str, Callable[[Results], Iterator[Part]]]] = {
    "G1": ("Meta-training makes both networks Bayes predictors (Eq. 6).", "paper", _g1),
    "G2": ("Six soft vectors make both pretrained networks optimal on the single coin.", "paper", _g2),
    "G3": ("No other prefix method does on the single coin.", "paper", _g3),
    "G4": ("Six soft vectors beat the best six tokens.", "paper", _g4),
    "G5": ("The soft prompt holds to n = 50 and degrades little to n = 200.", "paper", _g5),
    "G6": ("Most weight tuning is optimal on the single coin.", "paper", _g6),
    "G18": ("The sampled regrets of the exact Bayes predictors agree with their closed forms.", "paper", _g18),
    "E9": ("For one coin in the support, long enough hard prompts become optimal (Eq. 8-9).", "exact", _e9),
}


def evaluate(claim: str, store: Store | None = None) -> Judgement:
    """Judge one claim on stored results; raises ValueError for an unknown id."""
    if claim not in CLAIMS:
        raise ValueError(f"claim = {claim}: must be one of {', '.join(CLAIMS)}")
    statement, scale, judge = CLAIMS[claim]
    results = Results(store or Store())
    parts = tuple(judge(results))
    origin = {
        name: ", ".join(sorted({cell.attrs[name] for cell in results.used.values()})) or None
        for name in ("device", "date", "commit")
    }
    return Judgement(claim, statement, parts, scale, **origin, missing=tuple(results.missing))


def evaluate_all(store: Store | None = None) -> list[Judgement]:
    """Judge every claim."""
    return [evaluate(claim, store) for claim in CLAIMS]


def recorded() -> dict[str, str]:
    """Return the verdicts that the book was written with."""
    return json.loads(RECORD.read_text()) if RECORD.exists() else {}


def record(judgements: list[Judgement]) -> None:
    """Write down today's verdicts, for the book to be held against; what is not judged yet may still become either."""
    verdicts = json.dumps({j.id: j.verdict for j in judgements if j.verdict != "not judged"}, indent=1) + "\n"

    def write(path: str) -> None:
        with open(path, "w") as file:
            file.write(verdicts)

    write_atomically(RECORD, write)


def check(claim: str, store: Store | None = None) -> Judgement:
    """Return a claim's judgement for display; raises AssertionError if it is not the verdict on record.

    An explained failure is content: it is on record as "fails", and the chapter that explains it builds.
    """
    judgement = evaluate(claim, store)
    expected = recorded().get(claim)
    if store is None and expected is not None and judgement.verdict != expected:
        raise AssertionError(f"claim {claim} is on record as {expected}, but the stored results say:\n{judgement}")
    return judgement
