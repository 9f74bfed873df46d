"""The laboratory: its code gives its numbers, its stop button keeps what is done, and what it saves comes back."""

import numpy as np
import pytest

from bayesprompt.checks import UserError
from bayesprompt.prompting import laboratory
from bayesprompt.prompting.laboratory import Settings
from bayesprompt.prompting.laboratory_widgets import CHOICES, RANGES, Laboratory
from bayesprompt.store import Store

SMALL = {"width": 8, "pretraining_steps": 100, "steps": 50, "repetitions": 1}


@pytest.fixture(scope="module")
def outcome() -> laboratory.Outcome:
    return laboratory.work(Settings(**SMALL))


def test_the_code_computes_the_same(outcome):
    made = {}
    exec(outcome.settings.code(), made)
    np.testing.assert_array_equal(made["found"].loss, outcome.dataset.tuning_loss.values)


def test_the_code_of_a_search_computes_the_same(outcome):
    settings = Settings(**SMALL | {"method": "HardPT", "prefix_length": 3})
    made = {}
    exec(settings.code(), made)
    assert made["found"].loss.shape == (8,) and len(settings.code().splitlines()) == 10
    assert laboratory.work(settings, outcome.base).dataset.regret.shape == (1, 50)


@pytest.mark.parametrize("target", laboratory.TARGETS)
def test_every_target_has_its_exact_predictors(target, outcome):
    settings = Settings(target, **SMALL)
    found = laboratory.work(settings, None if target == "die" else outcome.base)
    assert np.isfinite(found.dataset.to_array("name").values[:, :1]).any()
    assert found.dataset.target_bayes[-1] <= found.dataset.pretraining_bayes[-1]
    assert ("Beta(" in laboratory.belief(found)) == (target in ("one coin", "two coins"))


def test_a_stop_keeps_the_steps_that_are_done(outcome):
    seen = []

    def watch(stage, step, steps, loss):
        seen.append((stage, step))
        return stage == "tuning" and step >= 50

    found = laboratory.work(Settings(**SMALL | {"steps": 200}), outcome.base, watch)
    assert found.dataset.sizes["tuning_step"] == 50 and seen == [("tuning", 25), ("tuning", 50)]
    # The same as if no more had been asked for.
    np.testing.assert_array_equal(found.dataset.tuning_loss, outcome.dataset.tuning_loss)
    np.testing.assert_array_equal(found.dataset.regret, outcome.dataset.regret)


def test_what_is_saved_comes_back(outcome, tmp_path):
    store = Store(tmp_path)
    name = laboratory.save(outcome, store)
    assert laboratory.saved(store) == [name] and (tmp_path / f"{name}.safetensors").exists()
    loaded = laboratory.load(name, store)
    assert loaded.settings == outcome.settings
    np.testing.assert_array_equal(loaded.dataset.regret, outcome.dataset.regret)
    with pytest.raises(UserError, match="must be one of laboratory-"):
        laboratory.load("laboratory-other", store)


def test_what_is_saved_is_no_cell_and_not_taken_for_a_damaged_one(outcome, cache, command):
    laboratory.save(outcome, laboratory.own_store())
    assert laboratory.saved(laboratory.own_store())
    code, said, _ = command("doctor")
    assert code == 0 and "laboratory-" not in said
    assert command("export", cache / "packed")[0] == 2  # nothing of the book is there


@pytest.mark.parametrize("wrong", [{"target": "coin"}, {"method": "Tuning"}, {"architecture": "gpt"}, {"sides": 1}])
def test_what_is_not_there_is_refused(wrong):
    with pytest.raises(UserError, match=f"{next(iter(wrong))} = .*: must"):
        Settings(**wrong)


def test_the_widgets_start_stop_save_and_load(tmp_path):
    view = Laboratory(Store(tmp_path), **SMALL | {"steps": 2000})
    assert {*CHOICES, *RANGES} == {*view.fields} and view.stop.disabled
    view.start.click()
    assert view.start.disabled and not view.stop.disabled

    def press(change):  # once the curve of the tuning is there
        if "tuning" in change["new"]:
            view.stop.click()

    view.curve.observe(press, "value")
    found = view.wait(300)
    assert 25 <= found.dataset.sizes["tuning_step"] < 2000
    assert "stopped; what was done is kept" in view.status.value and "<img" in view.result.value
    view.keep.click()
    assert "saved as laboratory-" in view.status.value
    view.fields["width"].value = 16
    assert "LSTM(num_tokens=2, embed_dim=16" in view.code.value
    view.fetch.click()
    assert view.fields["width"].value == 8 and "loaded laboratory-" in view.status.value


def test_a_wrong_choice_is_said_in_one_line(tmp_path):
    view = Laboratory(Store(tmp_path), **SMALL)
    view.fields["method"].value = "LoRAWT"
    view.start.click()
    view.wait(300)
    assert "method = LoRAWT: must have architecture transformer" in view.status.value and not view.start.disabled


def test_what_was_loaded_is_not_saved_again_without_its_arrays(outcome, tmp_path):
    laboratory.save(outcome, Store(tmp_path))
    lab = Laboratory(Store(tmp_path))
    lab.fetch.click()
    lab.fields["method"].value = "LoRAWT"  # none on an LSTM
    lab.start.click()
    lab.wait(60)
    assert "LoRAWT" in lab.status.value and lab.keep.disabled
