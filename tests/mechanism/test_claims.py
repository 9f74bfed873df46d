"""Claims of the second paper: the tables' arithmetic on made-up accuracies, and the identities on small networks."""

import numpy as np
import pytest
import xarray as xr

from bayesprompt import catalog
from bayesprompt.lab import judging
from bayesprompt.lab.run import run_cell
from bayesprompt.mechanism.digits import load_tuned
from bayesprompt.sources.digits import TASKS
from bayesprompt.store import Store

HOLDING = {
    ("sorting-pretraining", "Pretrained", 0, "ascending"): 0.85,
    ("sorting", "FullWT", 0, "descending"): 0.75,
    ("sorting", "PrefixTuning", 0, "descending"): 0.01,
    **{("eliciting-skills-pretraining", "Pretrained", 0, task): 0.2 for task in TASKS[:4]},
    **{("eliciting-skills", "PrefixTuning", i, TASKS[i]): 0.8 for i in range(4)},
    **{("longer-prefixes", "PrefixTuning", i, TASKS[i]): 0.98 for i in range(4)},
    ("longer-prefixes-new-tasks", "PrefixTuning", 0, "ascending + 1"): 0.25,
    ("longer-prefixes-new-tasks", "PrefixTuning", 1, "double histogram"): 0.02,
    ("lora-control", "LoRAWT", 0, "double histogram"): 0.8,
    ("lora-control", "PrefixTuning", 0, "double histogram"): 0.02,
}


@pytest.fixture
def made_up(monkeypatch):
    """Accuracies that a test writes down; what is not named is 0."""
    table = dict(HOLDING)

    def load(cell, _):
        rows = len(cell.experiment.tasks)
        values = np.zeros((rows, len(TASKS)))
        for (experiment, method, row, task), value in table.items():
            if (experiment, method) == (cell.experiment.name, cell.method):
                values[row, TASKS.index(task)] = value
        attrs = {"device": "cpu: test", "date": "2026-01-01", "commit": "0" * 40}
        return xr.Dataset({"accuracy": (("repetition", "task"), values)}, attrs=attrs)

    monkeypatch.setattr(judging, "load_cell", load)
    return table


@pytest.mark.parametrize("claim", ["P7", "P8", "P9", "P10"])
def test_tables_hold_at_their_thresholds(claim, made_up):
    assert catalog.evaluate(claim, Store(None, None)).verdict == "holds"


@pytest.mark.parametrize(
    ("claim", "experiment", "method", "row", "task", "value"),
    [
        ("P7", "sorting-pretraining", "Pretrained", 0, "ascending", 0.849),
        ("P7", "sorting", "FullWT", 0, "descending", 0.749),
        ("P7", "sorting", "PrefixTuning", 0, "descending", 0.011),
        ("P8", "eliciting-skills-pretraining", "Pretrained", 0, "add 2", 0.049),
        ("P8", "eliciting-skills-pretraining", "Pretrained", 0, "add 2", 0.451),
        ("P8", "eliciting-skills", "PrefixTuning", 1, "descending", 0.799),
        ("P8", "eliciting-skills", "PrefixTuning", 1, "add 1", 0.021),
        ("P9", "longer-prefixes", "PrefixTuning", 3, "add 2", 0.979),
        ("P9", "longer-prefixes-new-tasks", "PrefixTuning", 0, "ascending + 1", 0.249),
        ("P9", "longer-prefixes-new-tasks", "PrefixTuning", 1, "double histogram", 0.021),
        ("P10", "lora-control", "LoRAWT", 0, "double histogram", 0.799),
        ("P10", "lora-control", "PrefixTuning", 0, "double histogram", 0.021),
    ],
)
def test_tables_fail_beyond_their_thresholds(claim, experiment, method, row, task, value, made_up):
    made_up[experiment, method, row, task] = value
    assert catalog.evaluate(claim, Store(None, None)).verdict == "fails"


@pytest.mark.parametrize("claim", ["P5", "P6", "P7", "P8", "P9", "P10", "P11", "P12", "P14"])
def test_without_results_nothing_is_judged(claim, tmp_path):
    assert catalog.evaluate(claim, Store(tmp_path, None)).verdict == "not judged"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A store with a small network of two layers, and its tuned prefixes."""
    store = Store(tmp_path_factory.mktemp("store"), None)
    run_cell(catalog.cell("longer-prefixes", "gpt", "PrefixTuning", "smoke"), store)
    return store


def test_identities_are_read_from_trained_networks(small, monkeypatch):
    def parts_of(claim):
        results = judging.Results(small, catalog.EXPERIMENTS, "smoke")
        return judging.evaluate(claim, catalog.CLAIMS[claim], results).parts

    with monkeypatch.context() as patch:
        patch.setattr(judging.Results, "cell", lambda *_: None)
        for claim in ("P5", "P6"):
            assert {part.value for part in parts_of(claim)} == {None}
    # Only the experiment of Table 3 is there: no coin Transformer, no other sorter.
    for claim, parts in (("P5", 1), ("P6", 3), ("P11", 1), ("P12", 3)):
        found = [part for part in parts_of(claim) if part.value is not None]
        assert len(found) == parts
        # The identities hold before anything is learned; the second layer's attention need not move yet.
        assert all(part.holds for part in found[: 2 if claim == "P12" else parts]), found


def test_a_tuned_cell_gives_back_its_models(small):
    tuned = load_tuned(catalog.cell("longer-prefixes", "gpt", "PrefixTuning", "smoke"), small)
    assert [prefix.layers.shape for _, prefix in tuned.models] == [(2, 10, 16)] * 4
    assert load_tuned(catalog.cell("lora-control", "gpt", "LoRAWT", "smoke"), small) is None
