"""The benchmarks run, and the stored measurements are what the chapter on performance expects."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bayesprompt.models.predictor import LSTM, Transformer
from bayesprompt.store import SHIPPED
from bayesprompt.tuning.fitting import step_flops

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem != "harness")


def run(script, *options):
    command = [sys.executable, str(ROOT / "benchmarks" / f"{script}.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=500)


def test_nominal_flops():
    """The papers' Transformer needs about 34 GFLOP a pretraining step: 3 (24 D^2 + 4 N D) B N."""
    assert step_flops(Transformer(), 256, 100) == 3 * (24 * 128**2 + 4 * 100 * 128) * 25600
    assert step_flops(Transformer(), 256, 100) == pytest.approx(34e9, rel=0.01)
    assert step_flops(LSTM(), 256, 100) == 3 * 16 * 128**2 * 25600
    assert step_flops(LSTM(), 256, 100, weights_move=False) == 2 * 16 * 128**2 * 25600
    assert step_flops(Transformer(num_layers=2), 1, 1) == 2 * step_flops(Transformer(), 1, 1)


def test_every_benchmark_has_stored_measurements_with_their_machine():
    saved = json.loads((SHIPPED / "benchmarks.json").read_text())
    assert {name.split(".")[0] for name in saved} == set(SCRIPTS)
    for measured in saved.values():
        assert measured["machine"].keys() == {
            "device", "matrix_rate", "memory_rate", "jax", "python", "commit", "date",
        }  # fmt: skip
        assert measured["rows"] and not measured["machine"]["commit"].endswith("+changes")


@pytest.mark.slow
def test_a_benchmark_prints_what_it_measured():
    done = run("tuning", "--methods", "SoftPT", "--repetitions", "1", "--steps", "1", "--rounds", "1")
    assert done.returncode == 0, done.stderr
    *rows, last = done.stdout.splitlines()
    assert [row.split()[:2] for row in rows] == [["Transformer", "SoftPT"], ["LSTM", "SoftPT"]]
    assert all("GFLOP/s" in row and "of peak" in row and "ratio" not in row for row in rows)
    assert "GFLOP/s in products" in last


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "case", "starts", "says"),
    [
        ("sorting", "sorting-pretraining", "sorting-pretraining", "of peak"),
        ("language_model", "0", "SoftPT 1 x 13", "MiB"),
    ],
)
def test_a_benchmark_beside_other_code_prints_each_case(script, case, starts, says):
    done = run(script, "--cases", case, "--steps", "1", "--rounds", "1")
    assert done.returncode == 0, done.stderr
    row, last = done.stdout.splitlines()
    assert row.startswith(starts) and " ms " in row and says in row and "ratio" not in row
    assert "GFLOP/s in products" in last


def test_a_wrong_folder_of_the_sorting_experiments_code_is_one_line_and_exit_code_2():
    done = run("sorting", "--mingpt", "/nowhere")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "argument --mingpt: /nowhere: must be a folder with mingpt/trainer.py in it"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rounds", "0"], "argument --rounds: 0: must be >= 1"),
        (["--thunnini", "/nowhere"], "argument --thunnini: /nowhere: must be a checkout with src/predictor.py in it"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_2(options, message):
    done = run("tuning", *options)
    assert done.returncode == 2 and message in done.stderr.splitlines()[-1]
