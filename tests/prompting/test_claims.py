"""Claims: the arithmetic of verdicts on made-up results, and the thresholds as PAPERS fixed them."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr

from bayesprompt import catalog
from bayesprompt.lab import judging
from bayesprompt.lab.judging import Part
from bayesprompt.prompting import claims as genewein
from bayesprompt.prompting import state_plots
from bayesprompt.store import Store
from bayesprompt.theory import claims as theory


@pytest.fixture
def made_up(monkeypatch):
    """Results that a test writes down: ([experiment,] architecture, method) -> R(50) and R(200), or whole datasets."""
    table = {}

    def load(cell, store):
        value = table.get(
            (cell.experiment.name, cell.architecture, cell.method), table.get((cell.architecture, cell.method))
        )
        if value is None or isinstance(value, xr.Dataset):
            return value
        regret = np.interp(np.arange(1, 201), [1, 50, 200], [0.0, *value])
        # Three repetitions around the value: the median is what counts.
        values = np.stack([regret, regret - 0.05, regret + 5.0])
        attrs = {"device": "cpu: test", "date": "2026-01-01", "commit": "0" * 40}
        return xr.Dataset({"regret": (("repetition", "n"), values)}, {"n": np.arange(1, 201)}, attrs)

    monkeypatch.setattr(judging, "load_cell", load)
    table["bayes", "TargetBayes"] = (0.0, 0.0)
    return table


def both(table, **methods):
    for network in genewein.NETWORKS:
        for method, value in methods.items():
            table[network, method] = value


def verdict(claim):
    return catalog.evaluate(claim, Store(None, None)).verdict


def test_a_part_that_fails_decides_and_a_missing_one_leaves_open():
    def judged(*parts):
        return judging.Judgement("X", "", parts, "paper", None, None, None, ()).verdict

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


PREFIXES = ("HardPT", "SimplexPT", "RealPT", "SoftPT")


def test_g7_wants_every_prefix_method_to_fail(made_up):
    both(made_up, **dict.fromkeys(PREFIXES, (0.3, 0)))
    assert verdict("G7") == "holds"
    made_up["transformer", "RealPT"] = (0.29, 0)
    assert verdict("G7") == "fails"


def test_g8_wants_soft_prompts_to_be_best_and_better_than_none(made_up):
    both(made_up, SoftPT=(1.0, 0), HardPT=(1.1, 0), SimplexPT=(1.2, 0), RealPT=(1.05, 0))
    assert verdict("G8") == "not judged"
    both(made_up, NoTuning=(1.4, 0))
    assert verdict("G8") == "holds"
    made_up["lstm", "RealPT"] = (0.9, 0)
    assert verdict("G8") == "fails"


def test_g9_wants_weights_to_reach_bayes(made_up):
    both(made_up, FullWT=(0.05, 0), LoRAWT=(0.1, 0), EmbedWT=(0.1, 0))
    assert verdict("G9") == "not judged"
    both(made_up, **{"Un+EmbedWT": (0.0, 0)})
    assert verdict("G9") == "holds"
    made_up["transformer", "LoRAWT"] = (0.11, 0)
    assert verdict("G9") == "fails"


def test_g10_compares_prefixes_of_25_and_of_6_rows(made_up):
    both(made_up, SoftPT=(0.5, 0))
    assert verdict("G10") == "holds", "equal gaps are at least a half"
    made_up["two-coins-prefix-25", "lstm", "SoftPT"] = (0.24, 0)
    assert verdict("G10") == "fails"
    both(made_up, SoftPT=(0.1, 0))
    made_up["two-coins-prefix-25", "lstm", "SoftPT"] = (0.1, 0)
    assert verdict("G10") == "fails", "at 0.10 it reaches Bayes"
    both(made_up, SoftPT=(0.5, 0))
    made_up["two-coins-prefix-25", "lstm", "SoftPT"] = (0.5, 0)
    made_up["untrained-two-coins-prefix-25", "transformer", "SoftPT"] = (0.2, 0)
    assert verdict("G10") == "fails"


def test_g11_wants_a_third_of_every_other_excess(made_up):
    others = {"HardPT": (9.0, 0), "SimplexPT": (9.0, 0), "RealPT": (3.0, 0), "NoTuning": (9.0, 0)}
    both(made_up, SoftPT=(1.0, 0), **others)
    assert verdict("G11") == "holds"
    made_up["untrained-random-coins", "transformer", "RealPT"] = (2.9, 0)
    assert verdict("G11") == "fails"


def test_g12_compares_excess_a_step(made_up):
    def late(slope):  # the excess grows by 0.02 a step up to 50, then by `slope`
        made_up["transformer", "SoftPT"] = (0.98, 0.98 + 150 * slope)

    late(0.11)
    assert verdict("G12") == "holds"
    late(0.09)
    assert verdict("G12") == "fails"


def test_g13_and_g14_on_untrained_networks(made_up):
    assert genewein.CONSTANT == pytest.approx(9.64, abs=0.005)
    both(made_up, SoftPT=(4.83, 0), LoRAWT=(0.3, 0))
    assert (verdict("G13"), verdict("G14")) == ("holds", "holds")
    both(made_up, SoftPT=(4.81, 0), LoRAWT=(0.31, 0))
    assert (verdict("G13"), verdict("G14")) == ("fails", "fails")


def test_g16_compares_the_leads_at_two_widths(made_up):
    made_up["lstm", "SoftPT"], made_up["lstm", "RealPT"] = (0.1, 0), (0.4, 0)
    made_up["single-coin-embedding-4", "lstm", "RealPT"] = (0.2, 0)
    assert verdict("G16") == "holds"
    made_up["single-coin-embedding-4", "lstm", "RealPT"] = (0.21, 0)
    assert verdict("G16") == "fails"


def test_g17_is_g2_g7_and_g9_of_larger_networks(made_up):
    both(made_up, **dict.fromkeys(PREFIXES, (0.5, 0)), FullWT=(0.0, 0))
    for network in genewein.NETWORKS:
        made_up["single-coin-large", network, "SoftPT"] = (0.1, 0)
    assert verdict("G17") == "holds"
    made_up["two-coins-large", "lstm", "FullWT"] = (0.2, 0)
    assert verdict("G17") == "fails"


def test_g19_wants_weights_to_forget_and_prefixes_to_leave_the_network(made_up):
    attrs = {"device": "cpu: test", "date": "2026-01-01", "commit": "0" * 40}

    def prefix(network):
        return xr.Dataset(attrs=attrs | {"config": json.dumps({"network": network})})

    base = xr.Dataset({"excess": ("n", np.linspace(0, 0.1, 100))}, {"n": np.arange(1, 101)}, attrs | {"network": "A"})
    tuned = xr.Dataset({"forgetting": (("repetition", "seen_random"), np.full((3, 100), 0.5))}, attrs=attrs)
    both(made_up, Pretrained=base, FullWT=tuned)
    assert verdict("G19") == "not judged"
    both(made_up, **dict.fromkeys(PREFIXES, prefix("A")))
    assert verdict("G19") == "holds"
    made_up["lstm", "SoftPT"] = prefix("B")
    assert verdict("G19") == "fails"
    both(made_up, SoftPT=prefix("A"), FullWT=tuned * 0.99)
    made_up["lstm", "FullWT"].attrs = made_up["transformer", "FullWT"].attrs = attrs
    assert verdict("G19") == "fails"


def test_e8_wants_prefixes_to_fail_and_weights_to_reach(made_up):
    both(made_up, **dict.fromkeys(PREFIXES, (30.0, 0)), FullWT=(0.0, 0))
    assert verdict("E8") == "holds"
    made_up["alternating", "lstm", "SoftPT"] = (0.2, 0)
    assert verdict("E8") == "fails", "a soft prefix that succeeds is a failed claim, and a finding"


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


@pytest.mark.parametrize("claim", theory.CLAIMS)
def test_exact_claims_hold_without_any_result(claim, tmp_path):
    judgement = catalog.evaluate(claim, Store(tmp_path, None))
    assert (judgement.verdict, judgement.scale) == ("holds", "exact")


def test_g15_waits_for_the_networks_and_then_reads_their_states(tmp_path, monkeypatch):
    assert catalog.evaluate("G15", Store(tmp_path, None)).verdict == "not judged"
    order = SimpleNamespace(step_correlation=-0.81, heads_correlation=0.79)
    monkeypatch.setattr(state_plots, "ordering", lambda *_: order)
    assert catalog.evaluate("G15", Store(tmp_path)).verdict == "fails"
    order.heads_correlation = 0.8
    assert catalog.evaluate("G15", Store(tmp_path)).verdict == "holds"


def test_the_table_has_a_row_for_each_claim():
    rows = catalog.table("G2", "E9")
    assert [row["claim"] for row in rows] == ["G2", "E9"] and rows[1]["scale"] == "exact"
    assert {row["verdict"] for row in rows} <= {"holds", "fails", "not judged"}


def test_judgements_are_json_and_html():
    judgement = catalog.evaluate("G2", Store(None, None))
    assert json.loads(json.dumps(judgement.to_dict()))["id"] == "G2"
    assert "&lt;= 0.1" in judgement._repr_html_() and "<script" not in judgement._repr_html_()


def test_unknown_claim_is_one_line():
    with pytest.raises(ValueError, match=r"claim = G99: must be one of G1"):
        catalog.evaluate("G99")


def test_check_raises_only_against_the_record(monkeypatch, tmp_path):
    monkeypatch.setattr(catalog, "RECORD", tmp_path / "verdicts.json")
    assert catalog.check("E9").verdict == "holds"  # nothing on record
    catalog.record([catalog.evaluate("E9")])
    assert catalog.check("E9").verdict == "holds"
    (tmp_path / "verdicts.json").write_text('{"E9": "fails"}')
    with pytest.raises(AssertionError, match="E9 is on record as fails"):
        catalog.check("E9")


def test_the_shipped_results_give_the_recorded_verdicts():
    store = Store()
    assert {claim: catalog.evaluate(claim, store).verdict for claim in catalog.recorded()} == catalog.recorded()
