"""The command line as a person meets it: what it prints, what it refuses, and its exit codes."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import safetensors.numpy
from jax.experimental.compilation_cache import compilation_cache

from bayesprompt import catalog, cli
from bayesprompt.catalog import cells
from bayesprompt.lab.cells import load_cell
from bayesprompt.lab.judging import Part
from bayesprompt.lab.run import run_cell
from bayesprompt.store import Store

SMOKE = catalog.cell("single-coin", "lstm", "SoftPT", "smoke")


@pytest.fixture(autouse=True)
def no_programs_on_disk():
    """The command line keeps compiled programs; other tests do not."""
    yield
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """A folder with one smoke cell and its base network."""
    folder = tmp_path_factory.mktemp("computed")
    run_cell(SMOKE, Store(folder, None))
    return folder


@pytest.mark.parametrize(
    ("words", "argument", "allowed"),
    [
        (["run", "two-dice"], "experiment = two-dice", "single-coin"),
        (["run", "single-coin", "--scale", "huge"], "scale = huge", "smoke, quick, paper"),
        (["run", "single-coin", "--method", "HopePT"], "method = HopePT", "SoftPT"),
        (["run", "single-coin", "--architecture", "mamba"], "architecture = mamba", "lstm"),
        (["run", "single-coin", "--architecture", "lstm", "--method", "LoRAWT"], "LoRAWT", "transformer"),
        (["run", "single-coin", "--seed", "-1"], "seed = -1", "from 0 to"),
        (["run"], "NAMES = none", "--all"),
        (["merge", "no/such/folder"], "DIR = no/such/folder", "folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(command, words, argument, allowed):
    code, _, err = command(*words)
    assert code == 2
    assert len(err.strip().splitlines()) == 1 and err.startswith("error: ")
    assert argument in err and allowed in err


def test_a_folder_below_a_file_is_refused(command, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BAYESPROMPT_CACHE", str(tmp_path / "file" / "cache"))
    code, _, err = command("run", "single-coin", "--scale", "smoke", "--architecture", "bayes")
    assert code == 2 and "must be writable" in err and len(err.strip().splitlines()) == 1
    code, _, err = command("figures", "--out", tmp_path / "file" / "figures")
    assert code == 2 and "must be writable" in err


def test_run_then_list_then_run_again(command):
    code, out, err = command("run", "single-coin", "--scale", "smoke", "--architecture", "bayes")
    assert code == 0 and out.count("nats") == 3 and "single-coin.bayes.PreBayesPT.smoke.0" in out
    code, out, _ = command("list", "single-coin", "--scale", "smoke")
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert list(lines) == [c.name for c in cells("single-coin", scale="smoke")]
    assert "commit" in lines["single-coin.bayes.TargetBayes.smoke.0"]
    assert lines["single-coin.lstm.SoftPT.smoke.0"] == "missing"
    before = load_cell(catalog.cell("single-coin", "bayes", "TargetBayes", "smoke"), Store()).attrs["checksum"]
    command("run", "single-coin", "--scale", "smoke", "--architecture", "bayes")
    assert load_cell(catalog.cell("single-coin", "bayes", "TargetBayes", "smoke"), Store()).attrs["checksum"] == before


def test_claims_as_json_says_what_was_measured(command, monkeypatch):
    some = {name: catalog.CLAIMS[name] for name in ("G1", "G2", "G6", "G18", "E9")}  # tests of the claims judge all
    monkeypatch.setattr(catalog, "CLAIMS", some)
    code, out, _ = command("claims", "--json")
    judged = json.loads(out)
    assert {"id", "verdict", "value", "threshold", "scale", "device", "date", "commit"} <= judged[0].keys()
    assert [j["id"] for j in judged] == [*some]
    assert code == (1 if any(j["verdict"] == "fails" for j in judged) else 0)


def test_a_failed_claim_is_exit_code_1(command, monkeypatch):
    part = Part("made up", 2.0, "<=", 1.0)
    monkeypatch.setattr(catalog, "CLAIMS", {"X1": ("Made up.", "exact", lambda results: iter([part]))})
    code, out, _ = command("claims")
    assert code == 1 and "fails" in out


def test_figures_writes_png_and_pdf(command, monkeypatch, tmp_path):
    names = sorted(catalog.FIGURES)[::12]  # the gallery draws all
    monkeypatch.setattr(cli, "FIGURES", names)
    code, out, _ = command("figures", "--out", tmp_path / "figures")
    written = sorted(p.name for p in (tmp_path / "figures").iterdir())
    assert len(names) > 1 and code == 0 and written == sorted(f"{n}.{s}" for n in names for s in ("png", "pdf"))
    assert (tmp_path / "figures" / f"{names[0]}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_merge_takes_checks_and_refuses(command, computed, tmp_path, monkeypatch):
    code, out, _ = command("merge", computed)
    assert code == 0 and out.count("taken") == 2
    assert load_cell(SMOKE, Store()) is not None
    assert command("merge", computed)[1].count("there already") == 2
    # A store whose base network is another one refuses the tuned cell.
    monkeypatch.setenv("BAYESPROMPT_CACHE", str(tmp_path / "other"))
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / f"{SMOKE.name}.nc").write_bytes((computed / f"{SMOKE.name}.nc").read_bytes())
    code, out, _ = command("merge", alone)
    assert code == 2 and "refused" in out and "base network" in out
    (alone / "notes.nc").write_text("not a cell")
    assert "not the name of a cell" in command("merge", alone)[1]


@pytest.mark.slow
def test_merge_refuses_a_network_whose_arrays_were_changed(command, computed, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in computed.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    weights = next(copy.glob("pretraining*.safetensors"))
    arrays = safetensors.numpy.load_file(weights)
    arrays["embedding.bias"] = arrays["embedding.bias"] + 1
    safetensors.numpy.save_file(arrays, weights)
    code, out, _ = command("merge", copy)
    assert code == 2 and out.count("refused") == 2  # the network, and with it the cell tuned on it


def test_doctor_names_what_is_wrong(command):
    code, out, _ = command("doctor")
    assert code == 0 and "jax" in out and "device" in out and "GiB free" in out
    folder = Store().folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "single-coin.lstm.SoftPT.smoke.0.nc").write_bytes(b"CDF\x01 truncated")
    code, out, _ = command("doctor")
    assert code == 1 and "unreadable" in out


@pytest.mark.slow
def test_a_killed_run_resumes_to_identical_numbers(computed, tmp_path):
    """SIGKILL after the first checkpoint, then the same command again: the result of an undisturbed run."""
    words = [sys.executable, "-m", "bayesprompt.cli", "run", "single-coin", "--scale", "smoke"]
    words += ["--architecture", "lstm", "--method", "SoftPT"]
    environment = {**os.environ, "BAYESPROMPT_CACHE": str(tmp_path / "killed")}
    del environment["JAX_COMPILATION_CACHE_DIR"]  # the command keeps what it compiles in its own folder
    process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed").glob("*.partial")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    again, undisturbed = (load_cell(SMOKE, Store(folder, None)) for folder in (tmp_path / "killed", computed))
    for name in undisturbed.data_vars:
        np.testing.assert_array_equal(again[name], undisturbed[name])
    assert again.attrs["config_hash"] == undisturbed.attrs["config_hash"]
    assert not list((tmp_path / "killed").glob("*.partial"))
    assert list((tmp_path / "killed" / "compiled").iterdir()), "programs for the next process"
