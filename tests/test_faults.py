"""Faults at random: killed runs, damaged files, wrong input, full disks, runs at once. FAULTS=long: many times."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from faults import CELLS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from bayesprompt import catalog, cli
from bayesprompt.checks import UserError
from bayesprompt.lab import widgets
from bayesprompt.lab.cells import load_cell, load_network
from bayesprompt.lab.exchange import merge
from bayesprompt.lab.run import run_cell
from bayesprompt.models.predictor import LSTM, Transformer, make_predictor
from bayesprompt.models.prefixes import NO_PREFIX
from bayesprompt.settings import make_key
from bayesprompt.sources.coins import BetaCoins, Coin, CoinMixture, Markov
from bayesprompt.store import Store
from bayesprompt.tuning.fitting import AdamWConfig, FitConfig, fit
from bayesprompt.tuning.tuners import make_tuner, prefix_from_rows

LONG = os.environ.get("FAULTS") == "long"


def faults(fault, job, times, folder):
    command = [sys.executable, Path(__file__).with_name("faults.py"), fault, job, str(times), folder]
    process = subprocess.run(command, capture_output=True, text=True, timeout=3600 if LONG else 600)
    assert process.returncode == 0, process.stdout + process.stderr
    print(process.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("job", "times"), [("coins", 34 if LONG else 2), ("digits", 33 if LONG else 1), ("language", 33 if LONG else 1)]
)
def test_killed_runs_go_on_to_the_same_numbers(job, times, tmp_path):
    faults("killed", job, times, tmp_path)


@pytest.mark.slow
def test_a_run_that_met_a_full_disk_goes_on_when_there_is_room(tmp_path):
    faults("filled", "coins" if LONG else "network", 20 if LONG else 2, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("times", [2, 4, 8] if LONG else [4])
def test_of_several_runs_of_a_cell_one_computes_it(times, tmp_path):
    faults("together", "network", times, tmp_path)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A cell with a network's arrays beside it."""
    store = Store(tmp_path_factory.mktemp("stored"), shipped=None)
    cell = catalog.cell(*CELLS["network"], "smoke")
    run_cell(cell, store)
    return cell, store


def damage(content: bytes, kind: int, draw: np.random.Generator) -> bytes:
    place = int(draw.integers(len(content)))
    flipped = bytes([content[place] ^ int(draw.integers(1, 256))])
    return (
        content[:place],
        content[:place] + flipped + content[place + 1 :],
        content[:place] + draw.bytes(8) + content[place:],
        draw.bytes(len(content)),
        b"<!doctype html><title>404</title>",
        content[place:],
        b"",
    )[kind % 7]


@pytest.mark.parametrize("suffix", [".nc", ".safetensors"])
def test_damaged_files_are_not_used_and_none_is_deleted(stored, suffix, tmp_path):
    cell, whole = stored
    good = load_cell(cell, whole)
    weights = load_network(cell, whole)[1]
    for number in range(25):
        folder = tmp_path / f"{number}"
        shutil.copytree(whole.folder, folder)
        path, other = folder / f"{cell.name}{suffix}", Store(folder, shipped=None)
        bad = damage(path.read_bytes(), number, np.random.default_rng(number))
        path.write_bytes(bad)
        found = load_cell(cell, other)
        assert found is None or found.identical(good), (number, "another dataset passed")
        network = load_network(cell, other)
        if network is not None:  # the byte said nothing about the numbers
            assert all((a == b).all() for a, b in zip(*map(leaves, (network[1], weights)), strict=True))
        assert path.read_bytes() == bad, "reading changes nothing"
        if number < 7:  # and what is computed anew takes its place, and keeps it
            run_cell(cell, other)
            assert any(p.read_bytes() == bad for p in folder.iterdir() if p.is_file())


def leaves(tree):
    return map(np.asarray, jax.tree.leaves(tree))


def test_renamed_and_foreign_files_are_not_taken_and_none_is_deleted(stored, tmp_path):
    cell, whole = stored
    theirs, mine = tmp_path / "theirs", Store(tmp_path / "mine", shipped=None)
    theirs.mkdir()
    content = (whole.folder / f"{cell.name}.nc").read_bytes()
    stem = cell.name.removesuffix(".0")
    names = [f"{stem}.{end}.nc" for end in ("00", "1", "+0", "x", "-0", "0.0", "99999999999")]
    names += ["pretraining.transformer.Untrained.smoke.0.nc", "a.nc", f"{cell.name}.partial", f"{stem}.1.safetensors"]
    for name in names:
        (theirs / name).write_bytes(content)
    (theirs / f"{stem}.2.nc").symlink_to("nowhere")
    outcomes = merge(theirs, mine, catalog.cell_named)
    assert outcomes and all(outcome.startswith("refused") for _, outcome in outcomes), outcomes
    assert {p.name for p in theirs.iterdir()} == {*names, f"{stem}.2.nc"}
    assert not mine.folder.exists() or not list(mine.folder.iterdir())


SIZES, COIN = LSTM(2, 4, 8, 1), Coin(0.3)
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from(
        [2**31, -(2**40), 0.5, -1.0, float("nan"), float("inf"), 1e300, "", "SoftPT", "\x00", "é", "smoke"]
    ),
    st.lists(st.floats(width=16), max_size=3),
    st.sampled_from(
        [np.zeros(()), np.zeros((2, 3)), np.ones((1, 2), np.int8), np.array(["a"]), {}, {"a": 1}, object()]
    ),
)


def call_fit(**wrong):
    predictor = make_predictor(SIZES)
    right = {
        "predictor": predictor,
        "tuner": make_tuner("SoftPT", SIZES, 2),
        "base": predictor.init(make_key(0)),
        "source": COIN,
        "config": FitConfig(1, 2, 3),
        "key": make_key(0),
        "repetitions": 1,
    }
    return fit(**(right | wrong))


def call_apply(**wrong):
    predictor = make_predictor(SIZES)
    right = {"params": predictor.init(make_key(0)), "tokens": np.array([[0, 1]]), "prefix": NO_PREFIX}
    return predictor.apply(**(right | wrong))


# Whatever is given for one argument: a result, or UserError with one line.
CALLS = [
    (call_fit, ("tuner", "source", "config", "key", "repetitions", "base")),
    (call_apply, ("tokens", "prefix")),
    (FitConfig, ("steps", "batch", "length", "learning_rate", "clip")),
    (AdamWConfig, ("weight_decay", "clip_each", "dropout")),
    (Coin, ("bias",)),
    (lambda alpha=1.0, beta=1.0: BetaCoins(alpha, beta), ("alpha", "beta")),
    (lambda biases=(0.2, 0.8), weights=(0.5, 0.5): CoinMixture(biases, weights), ("biases", "weights")),
    (lambda initial=(0.5, 0.5): Markov(initial, ((0.5, 0.5), (0.5, 0.5))), ("initial",)),
    (LSTM, ("num_tokens", "embed_dim", "hidden_dim", "num_layers")),
    (Transformer, ("num_tokens", "embed_dim", "num_heads", "mlp_dim")),
    (lambda method="SoftPT", prefix_length=2: make_tuner(method, SIZES, prefix_length), ("method", "prefix_length")),
    (lambda method="SoftPT": prefix_from_rows(method, np.zeros((1, 4))), ("method",)),
    (lambda tokens=((0, 1),): COIN.bayes_log_probs(tokens), ("tokens",)),
    (lambda counts=(1, 2): COIN.predictive_log_probs(counts), ("counts",)),
    (catalog.experiment, ("name",)),
    (catalog.cells, ("experiment", "architecture", "method", "scale", "seed")),
    (catalog.evaluate, ("claim",)),
    (lambda v=(1,), alt="x": widgets.explore(lambda v: None, alt=alt, v=v), ("v",)),
]


@settings(max_examples=300, suppress_health_check=list(HealthCheck), derandomize=not LONG, database=None)
@given(st.data())
def test_wrong_input_is_refused_in_one_line(data):
    function, names = data.draw(st.sampled_from(CALLS))
    name = data.draw(st.sampled_from(names))
    try:
        function(**{name: data.draw(JUNK)})
    except TypeCheckError:  # what the shape checks of the tests refuse before the package does; FAULTS=long has none
        assert not LONG
    except UserError as error:
        assert "\n" not in str(error)


def refuse(*_):
    raise UserError("this = not computed: must be tried elsewhere")


WORDS = st.sampled_from(
    "run list claims figures merge export doctor --scale --seed --hours --all --claims --method --architecture --out "
    "--json --debug --version --help --cluster local single-coin smoke paper lstm SoftPT 0 -1 1e9 nan \x00 é "
    "/dev/null /dev/full nowhere /proc/1 -- -x".split(" ")
)


@settings(max_examples=300, suppress_health_check=list(HealthCheck), derandomize=not LONG, database=None)
@given(st.lists(WORDS, max_size=5))
def test_wrong_commands_end_in_one_line_and_lose_no_file(tmp_path_factory, stored, words):
    folder = tmp_path_factory.mktemp("commands")
    kept = folder / "cache" / f"{stored[0].name}.nc"
    kept.parent.mkdir()
    kept.write_bytes((stored[1].folder / kept.name).read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BAYESPROMPT_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["bayesprompt", *words])
        # What a right command would do is not what is tried here.
        patch.setattr(cli, "run_cells", refuse)
        patch.setattr(cli, "run_on_cluster", refuse)
        patch.setattr(cli, "use_every_core", lambda: None)
        patch.setattr(cli, "keep_compiled", lambda folder: None)
        patch.setattr(cli, "FIGURES", {})
        patch.setattr(catalog, "evaluate", refuse)
        patch.setattr(catalog, "record", lambda _: None)
        patch.setattr(cli, "_state", lambda *_: "")
        patch.setattr(cli, "problem_with", lambda *_: None)
        with pytest.raises(SystemExit) as ended:
            cli.main()
    assert ended.value.code in (0, 1, 2)
    assert kept.read_bytes() == (stored[1].folder / kept.name).read_bytes()
