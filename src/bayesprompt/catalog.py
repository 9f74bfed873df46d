"""All that the book has, by name: experiments, sweeps, claims and figures. Only here does a string become an object.

A claim is judged at paper scale only. It fails as soon as one of its parts does, and holds once all of them do; while a
cell that it needs is missing it is not judged. Claims about exact mathematics are on record, and tests compute them.
The thresholds were fixed before any result existed.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import xarray as xr
from matplotlib.figure import Figure

from bayesprompt.checks import UserError, check_integer
from bayesprompt.files import write_atomically
from bayesprompt.lab import judging
from bayesprompt.lab.cells import load_cell, load_methods
from bayesprompt.lab.experiment import ARCHITECTURES, NETWORKS, SCALES, SWEPT, Cell, Experiment
from bayesprompt.lab.judging import Judgement, Results
from bayesprompt.lab.style import own_style
from bayesprompt.mechanism import claims as mechanism_claims
from bayesprompt.mechanism import claims_inside, claims_limits
from bayesprompt.mechanism import figures as mechanism_figures
from bayesprompt.mechanism.digits import DIGIT_EXPERIMENTS
from bayesprompt.mechanism.language.experiments import FLIPS_EXPERIMENTS, LANGUAGE_EXPERIMENTS
from bayesprompt.models.predictor import LSTM
from bayesprompt.prompting import claims as prompting_claims
from bayesprompt.prompting import figures as prompting_figures
from bayesprompt.prompting.experiments import BAYES_METHODS, NETWORK_METHODS, SWEEPS
from bayesprompt.prompting.experiments import EXPERIMENTS as COIN_EXPERIMENTS
from bayesprompt.settings import fixed
from bayesprompt.store import SHIPPED, Store
from bayesprompt.theory import claims as theory_claims
from bayesprompt.tuning.tuners import make_tuner

EXPERIMENTS: dict[str, Experiment] = COIN_EXPERIMENTS | DIGIT_EXPERIMENTS | LANGUAGE_EXPERIMENTS | FLIPS_EXPERIMENTS
METHODS = (*BAYES_METHODS, *NETWORK_METHODS, "PrefixTuning", *NETWORKS)
CHOICES = [*(name for name, experiment in EXPERIMENTS.items() if experiment.figures != SWEPT), *SWEEPS]
_PARTS = (prompting_claims, theory_claims, mechanism_claims, claims_inside, claims_limits)
_CLAIMS = {name: claim for part in _PARTS for name, claim in part.CLAIMS.items()}
CLAIMS = {n: _CLAIMS[n] for n in sorted(_CLAIMS, key=lambda x: ("GEPL".index(x[0]), int(x[1:].rstrip("b")), x))}
FIGURES = prompting_figures.FIGURES | mechanism_figures.FIGURES
# The verdicts that the book was written with.
RECORD = SHIPPED / "verdicts.json"


def choose(argument: str, value: str | None, among: Iterable[str]) -> None:
    """Raise UserError naming the argument unless its value is None or one of those that there are."""
    allowed = list(among)
    if value is not None and not (isinstance(value, str) and value in allowed):
        raise UserError(f"{argument} = {value}: must be one of {', '.join(allowed)}")


def experiment(name: str) -> Experiment:
    """Return an experiment; raises UserError for an unknown name."""
    choose("experiment", str(name), EXPERIMENTS)
    return EXPERIMENTS[name]


def cell(name: str, architecture: str, method: str, scale: str = "paper", seed: int = 0) -> Cell:
    """Return a cell of an experiment; raises UserError for an unknown name or what does not exist together."""
    for field, value in {"architecture": architecture, "method": method}.items():
        if value is None:
            raise UserError(f"{field} = None: must be one of an experiment's")
    (found,) = cells(experiment(name).name, architecture, method, scale, seed)
    return found


def cells(
    experiment: str | None = None,
    architecture: str | None = None,
    method: str | None = None,
    scale: str = "paper",
    seed: int = 0,
) -> list[Cell]:
    """Return the cells that match, of an experiment, of a sweep, or of all experiments but the sweeps' own.

    Raises UserError for an unknown name or a match of none.
    """
    choose("experiment", experiment, (*EXPERIMENTS, *SWEEPS))
    choose("architecture", architecture, ARCHITECTURES)
    choose("method", method, METHODS)
    choose("scale", str(scale), SCALES)
    check_integer("seed", seed, 0, 2**32 - 1)
    among, allowed = [each for each in EXPERIMENTS.values() if each.figures != SWEPT], METHODS
    if experiment in SWEEPS:
        among, allowed = SWEEPS[experiment].experiments.values(), SWEEPS[experiment].methods
    elif experiment is not None:
        among = [EXPERIMENTS[experiment]]
    found = [
        Cell(each, a, m, scale, seed)
        for each in among
        for a in ARCHITECTURES
        if architecture in (a, None)
        for m in each.methods(a)
        if method in (m, None) and m in allowed
    ]
    if not found:
        if method == "LoRAWT" and architecture == "lstm":
            make_tuner("LoRAWT", LSTM())  # raises with the reason
        raise UserError(f"method = {method}: must be part of experiment {experiment} with architecture {architecture}")
    return found


def cell_named(stem: str) -> Cell | None:
    """Return the cell whose files have this stem, or None."""
    name, *rest = stem.split(".")
    if name not in EXPERIMENTS or len(rest) != 4 or not rest[3].isdecimal():
        return None
    found = Cell(EXPERIMENTS[name], *rest[:3], int(rest[3]))
    there = found.scale in SCALES and found.method in found.experiment.methods(found.architecture)
    return found if there and found.name == stem and found.seed < 2**32 else None


def cell_of(dataset: xr.Dataset) -> Cell:
    """Return the cell that a stored dataset is of."""
    config = json.loads(dataset.attrs["config"])
    return cell(*(config[field] for field in Cell._fields))


def load(name: str, architecture: str, method: str, scale: str = "paper", store: Store | None = None, seed: int = 0):
    """Return a stored cell's dataset, or None."""
    return load_cell(cell(name, architecture, method, scale, seed), store or Store())


def stored(
    architecture: str, name: str = "single-coin", scale: str = "paper", store: Store | None = None
) -> dict[str, xr.Dataset | None]:
    """Return every method's stored dataset for one network, and the exact predictors'; None where a cell is missing.

    Where a cell is not there at `scale`, the quick one stands in, and is drawn as such.
    """
    return load_methods(store or Store(), experiment(name), architecture, scale)


@fixed()
def evaluate(claim: str, store: Store | None = None) -> Judgement:
    """Judge one claim on stored results; raises UserError for an unknown id."""
    choose("claim", str(claim), CLAIMS)
    return judging.evaluate(claim, CLAIMS[claim], Results(store or Store(), EXPERIMENTS))


def table(*ids: str, store: Store | None = None) -> list[dict[str, str]]:
    """Return one row for each claim (default: all of them): what it says, its verdict, and where that comes from."""
    judged = [check(claim, store) for claim in ids or CLAIMS]
    columns = {"claim": "id", "says": "statement"} | {n: n for n in ("verdict", "scale", "device", "date")}
    return [{column: getattr(j, name) or "" for column, name in columns.items()} for j in judged]


def recorded() -> dict[str, str]:
    """Return the verdicts that the book was written with."""
    return json.loads(RECORD.read_text()) if RECORD.exists() else {}


def record(judgements: list[Judgement]) -> None:
    """Write down today's verdicts, for the book to be held against; what is not judged yet may still become either."""
    verdicts = {j.id: j.verdict for j in judgements if j.verdict != "not judged"}
    write_atomically(RECORD, lambda path: Path(path).write_text(json.dumps(verdicts, indent=1) + "\n"))


def check(claim: str, store: Store | None = None) -> Judgement:
    """Return a claim's judgement for display; raises AssertionError if it is not the verdict on record.

    An explained failure is content: it is on record as "fails", and the chapter that explains it builds.
    """
    judgement = evaluate(claim, store)
    expected = recorded().get(claim)
    if store is None and expected is not None and judgement.verdict != expected:
        raise AssertionError(f"claim {claim} is on record as {expected}, but the stored results say:\n{judgement}")
    return judgement


@fixed()
def figure(name: str, store: Store | None = None, scale: str = "paper") -> Figure:
    """Draw one of FIGURES; raises UserError for another name."""
    choose("name", str(name), FIGURES)
    with own_style():
        drawn = FIGURES[name].draw(store or Store(), FIGURES[name].of, scale)
        drawn.draw_without_rendering()  # ticks and their labels come into being here, not under the reader's settings
    return drawn
