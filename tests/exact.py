"""Hold what a test computes of an exact claim against the record that the package ships, or write that record."""

import json
import os
from collections.abc import Iterable

import pytest

from bayesprompt.lab.judging import EXACT, Part, recorded


def hold(claim: str, parts: Iterable[Part]) -> None:
    """Fail unless every part holds and is the one on record; with RECORD=1 in the environment, write them down first.

    A value that is mere rounding differs between machines, hence the absolute tolerance; counts are whole numbers.
    """
    found = [part._replace(value=float(part.value), bound=float(part.bound)) for part in parts]
    assert [str(part) for part in found if not part.holds] == []
    if os.environ.get("RECORD"):
        record = json.loads(EXACT.read_text()) if EXACT.exists() else {}
        record[claim] = [part._asdict() for part in found]
        EXACT.write_text(json.dumps(dict(sorted(record.items())), indent=1) + "\n")
    known = recorded(claim)
    assert [(part.label, part.relation) for part in found] == [(part.label, part.relation) for part in known]
    for part, expected in zip(found, known, strict=True):
        assert part.value == pytest.approx(expected.value, rel=1e-6, abs=1e-9), part.label
        assert part.bound == pytest.approx(expected.bound, rel=1e-6), part.label
