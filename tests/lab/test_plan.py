"""What comes first, how long it takes, and stopping in time."""

import os
import signal

import pytest

from bayesprompt import catalog
from bayesprompt.lab import plan
from bayesprompt.lab.cells import load_cell
from bayesprompt.lab.judging import Judgement, Part
from bayesprompt.lab.run import Stop, Stopped, run_cell
from bayesprompt.store import Store


def cell(method, architecture="lstm", experiment="single-coin"):
    return catalog.cell(experiment, architecture, method, "smoke")


def test_the_claim_that_is_decided_soonest_comes_first_and_shared_cells_once():
    a, b, c, d = (cell(method) for method in ("SoftPT", "RealPT", "FullWT", "EmbedWT"))
    seconds = {a: 10.0, b: 1.0, c: 2.0, d: 30.0}
    # Once c and b are computed for "second", "first" lacks only a.
    wanted = {"first": [a, b], "second": [c, b], "third": [d], "fourth": [d, a]}
    assert plan.for_claims(wanted, seconds) == [b, c, a, d]
    assert plan.for_claims({}, {}) == []


def test_base_networks_come_before_what_is_tuned_on_them(tmp_path):
    store = Store(tmp_path, None)
    soft = cell("SoftPT")
    assert plan.with_bases([soft, cell("RealPT")]) == [soft.base, soft, cell("RealPT")]
    exact = cell("PreBayes", "bayes")
    run_cell(exact, store)
    assert plan.missing([exact, soft], store) == [soft.base, soft]
    assert plan.for_claims({"x": plan.missing([soft], store)}, {soft: 1.0, soft.base: 9.0}) == [soft.base, soft]


def test_a_cell_takes_as_long_an_operation_as_those_like_it():
    store, known = Store(), catalog.cells("single-coin") + catalog.cells("two-coins")
    soft = catalog.cell("two-coins-prefix-25", "lstm", "SoftPT")
    there = [catalog.load(name, "lstm", "SoftPT").attrs["seconds"] for name in ("single-coin", "two-coins")]
    assert plan.expected_seconds(soft, known, store) == pytest.approx(sum(there) / 2, rel=1e-6)
    # Steps of four layers do not take as long as those of one.
    known = catalog.cells("sorting") + catalog.cells("eliciting-skills") + catalog.cells("longer-prefixes")
    deep = catalog.cell("longer-prefixes", "gpt", "PrefixTuning")
    one = catalog.cell("eliciting-skills", "gpt", "PrefixTuning")
    ratio = plan.operations(deep) / plan.operations(one)
    assert ratio > 3 * plan.work(deep) / plan.work(one)
    assert plan.operations(catalog.cell("single-coin", "bayes", "PreBayes")) == 0
    measured = catalog.load("eliciting-skills", "gpt", "PrefixTuning").attrs["seconds"]
    assert plan.expected_seconds(deep, known, store) == pytest.approx(measured * ratio, rel=0.5)
    # A cell with many texts is as many fits.
    texts, coin = (catalog.cell(f"language-model-{name}", "llama", "SoftPT") for name in ("one-token", "coin"))
    rates = [load_cell(c, store).attrs["seconds"] / plan.operations(c) for c in (texts, coin)]
    assert 1 / 5 < rates[0] / rates[1] < 5
    nothing = Store(shipped=None)
    assert plan.expected_seconds(soft, known, nothing) > 0, "a guess where nothing is stored"


def test_what_undecided_claims_wait_for():
    part = Part("a", None, "<=", 1.0)
    open_ = Judgement("X", "", (part,), "paper", None, None, None, ("a.b.c.paper.0",))
    done = Judgement("Y", "", (part._replace(value=2.0),), "paper", None, None, None, ("d.e.f.paper.0",))
    assert plan.undecided([open_, done]) == {"X": ("a.b.c.paper.0",)}


def test_times_in_words():
    assert [plan.in_words(x) for x in (5, 600, 7200)] == ["5 s", "10 min", "2.0 h"]


@pytest.fixture
def handlers():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_heard_at_the_next_checkpoint_and_a_second_one_at_once(handlers, number, capsys):
    stop = Stop()
    stop.check()
    os.kill(os.getpid(), number)
    assert capsys.readouterr().err == "stopping after the next checkpoint; once more stops at once\n"
    with pytest.raises(Stopped) as stopped:
        stop.check()
    assert stopped.value.signal == number
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)


def test_the_clock_stops_too(handlers):
    Stop(hours=1).check()
    with pytest.raises(Stopped) as stopped:
        Stop(hours=0).check()
    assert stopped.value.signal == 0
