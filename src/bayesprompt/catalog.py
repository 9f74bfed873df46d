"""The papers' claims as tests on stored results; the thresholds were fixed before any result existed.

A claim is judged at paper scale only. It fails as soon as one of its parts does, and holds once all of them do; while a
cell that it needs is missing it is not judged. Claims about exact mathematics are on record, and tests compute them.
"""

import json

from bayesprompt.checks import UserError
from bayesprompt.lab.judging import Judgement, Results
from bayesprompt.mechanism import claims as petrov
from bayesprompt.mechanism import claims_language as language
from bayesprompt.prompting import claims as genewein
from bayesprompt.store import SHIPPED, Store, write_atomically
from bayesprompt.theory import claims as theory

RECORD = SHIPPED / "verdicts.json"
_ALL = genewein.CLAIMS | theory.CLAIMS | petrov.CLAIMS | language.CLAIMS
CLAIMS = {name: _ALL[name] for name in sorted(_ALL, key=lambda x: ("GEP".index(x[0]), int(x[1:].rstrip("b")), x))}


def evaluate(claim: str, store: Store | None = None) -> Judgement:
    """Judge one claim on stored results; raises ValueError for an unknown id."""
    if claim not in CLAIMS:
        raise UserError(f"claim = {claim}: must be one of {', '.join(CLAIMS)}")
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


def table(*ids: str, store: Store | None = None) -> list[dict[str, str]]:
    """Return one row for each claim (default: all of them): what it says, its verdict, and where that comes from."""
    judged = [check(claim, store) for claim in ids or CLAIMS]
    return [
        {"claim": j.id, "says": j.statement, "verdict": j.verdict, "scale": j.scale}
        | {name: getattr(j, name) or "" for name in ("device", "date")}
        for j in judged
    ]


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
