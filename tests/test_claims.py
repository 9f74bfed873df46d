"""Claims: the arithmetic of verdicts on made-up results, and the thresholds as PAPERS fixed them."""

import json

import numpy as np
import pytest
import xarray as xr

from bayesprompt import claims
from bayesprompt.claims import Part
from bayesprompt.store import Store


@pytest.fixture
def made_up(monkeypatch):
    """Results that a test writes down: (architecture, method) -> R(50) and R(200), or whole datasets."""
    table = {}

    def load(cell, store):
        value = table.get((cell.architecture, cell.method))
        if value is None or isinstance(value, xr.Dataset):
            return value
        regret = np.interp(np.arange(1, 201), [1, 50, 200], [0.0, *value])
        # Three repetitions around the value: the median is what counts.
        values = np.stack([regret, regret - 0.05, regret + 5.0])
        attrs = {"device": "cpu: test", "date": "2026-01-01", "commit": "0" * 40}
        return xr.Dataset({"regret": (("repetition", "n"), values)}, {"n": np.arange(1, 201)}, attrs)

    monkeypatch.setattr(claims, "load_cell", load)
    table["bayes", "TargetBayes"] = (0.0, 0.0)
    return table


def both(table, **methods):
    for network in claims.NETWORKS:
        for method, value in methods.items():
            table[network, method] = value


def verdict(claim):
    return claims.evaluate(claim, Store(None, None)).verdict


def test_a_part_that_fails_decides_and_a_missing_one_leaves_open():
    def judged(*parts):
        return claims.Judgement("X", "", parts, "paper", None, None, None, ()).verdict

    good, bad, missing = Part("a", 1.0, "<=", 2.0), Part("b", 3.0, "<=", 2.0), Part("c", None, "<=", 2.0)
    assert judged(good) == "holds"
    assert judged(good, bad) == judged(missing, bad) == "fails"
    assert judged(good, missing) == "not judged"
    assert not Part("at the bound", 2.0, "<", 2.0).holds and Part("at the bound", 2.0, "<=", 2.0).holds


@pytest.mark.parametrize(
    ("claim", "holding", "failing"),
    [
        ("G2", {"SoftPT": (0.10, 1)}, {"SoftPT": (0.11, 1)}),
        (
            "G3",
            {"SoftPT": (0.0, 0), "HardPT": (0.1, 1), "SimplexPT": (0.2, 1), "RealPT": (0.3, 1)},
            {"SoftPT": (0.0, 0), "HardPT": (0.2, 1), "SimplexPT": (0.2, 1), "RealPT": (0.09, 1)},
        ),
        ("G4", {"SoftPT": (0.05, 0), "HardPT": (0.36, 1)}, {"SoftPT": (0.05, 0), "HardPT": (0.34, 1)}),
        ("G5", {"SoftPT": (0, 0.6), "NoTuning": (1, 1.9)}, {"SoftPT": (0, 0.6), "NoTuning": (1, 1.7)}),
        ("G5", {"SoftPT": (0, 0.5), "NoTuning": (1, 1.9)}, {"SoftPT": (0, 0.61), "NoTuning": (1, 9.0)}),
    ],
)
def test_thresholds_of_the_single_coin(made_up, claim, holding, failing):
    assert verdict(claim) == "not judged"
    both(made_up, **holding)
    assert verdict(claim) == "holds"
    both(made_up, **failing)
    assert verdict(claim) == "fails"


def test_g6_counts_methods_and_waits_only_for_cells_that_matter(made_up):
    both(made_up, FullWT=(0.0, 0), EmbedWT=(0.05, 0), LoRAWT=(0.1, 0))
    assert verdict("G6") == "not judged"
    both(made_up, **{"Un+EmbedWT": (0.05, 0)})
    assert verdict("G6") == "holds"  # 3 of 4 and 4 of 5, whatever UnembedWT does
    both(made_up, EmbedWT=(0.3, 0))
    assert verdict("G6") == "not judged"
    both(made_up, UnembedWT=(0.5, 0))
    assert verdict("G6") == "fails"


def test_g1_reads_excess_and_kl(made_up):
    def network(excess, kl):
        n = np.arange(1, 101)
        attrs = {"device": "cpu: test", "date": "2026-01-01", "commit": "0" * 40}
        values = {"excess": ("n", excess * n / 100), "kl": ("n", np.where(n == 7, kl, 0.0))}
        return xr.Dataset(values, {"n": n}, attrs)

    both(made_up, Pretrained=network(0.14, 0.009))
    assert verdict("G1") == "holds"
    made_up["lstm", "Pretrained"] = network(0.16, 0.009)
    assert verdict("G1") == "fails"
    made_up["lstm", "Pretrained"] = network(0.14, 0.011)
    assert verdict("G1") == "fails"


def test_exact_claims_hold_without_any_result(tmp_path):
    judgement = claims.evaluate("E9", Store(tmp_path, None))
    assert (judgement.verdict, judgement.scale) == ("holds", "exact")


def test_judgements_are_json_and_html():
    judgement = claims.evaluate("G2", Store(None, None))
    assert json.loads(json.dumps(judgement.to_dict()))["id"] == "G2"
    assert "&lt;= 0.1" in judgement._repr_html_() and "<script" not in judgement._repr_html_()


def test_unknown_claim_is_one_line():
    with pytest.raises(ValueError, match=r"claim = G99: must be one of G1"):
        claims.evaluate("G99")


def test_check_raises_only_against_the_record(monkeypatch, tmp_path):
    monkeypatch.setattr(claims, "RECORD", tmp_path / "verdicts.json")
    assert claims.check("E9").verdict == "holds"  # nothing on record
    claims.record([claims.evaluate("E9")])
    assert claims.check("E9").verdict == "holds"
    (tmp_path / "verdicts.json").write_text('{"E9": "fails"}')
    with pytest.raises(AssertionError, match="E9 is on record as fails"):
        claims.check("E9")


def test_the_shipped_results_give_the_recorded_verdicts():
    store = Store()
    assert {claim: claims.evaluate(claim, store).verdict for claim in claims.recorded()} == claims.recorded()
