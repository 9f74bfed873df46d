"""Chapters as Google Colab runs them: its Python, its versions, a published copy whose setup cell does the installing.

`CHAPTERS` names chapters, as `prompting/single_coin theory/entropy`, or says `all`. Without it the shortest four run.
"""

import os
import subprocess
import sys
from datetime import datetime
from importlib.metadata import distributions
from pathlib import Path

import nbformat
import published
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
SHORTEST = "intro mechanism/language_model mechanism/virtual_tokens practice/performance"
EVERY = sorted(path.relative_to(ROOT / "book").with_suffix("").as_posix() for path in (ROOT / "book").rglob("*.ipynb"))
ASKED = os.environ.get("CHAPTERS") or SHORTEST
CHAPTERS = [name for name in EVERY if ".ipynb_checkpoints" not in name] if ASKED == "all" else ASKED.split()
COLAB = dict(
    line.split("==") for line in (ROOT / "requirements" / "colab.txt").read_text().splitlines() if line[0] != "#"
)
ADDED = ["bayesprompt", "jaxtyping", "wadler_lindig"]  # what Colab lacks
# A stand-in for what tells that this is Colab; jax looks for its part `output` too.
IN_COLAB = """
import sys
from types import ModuleType
sys.modules["google.colab"] = ModuleType("google.colab")
sys.modules["google.colab"].output = ModuleType("google.colab.output")
"""


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """The chapters of a copy that was published from this repository as it lies here."""
    return published.write_tree(f"file://{ROOT}", tmp_path_factory.mktemp("published")) / "book"


@pytest.fixture
def colab(tmp_path, monkeypatch):
    """A fresh runtime: nothing of ours is installed or stored, and each kernel knows that it is in Colab."""
    startup = tmp_path / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "00-colab.py").write_text(IN_COLAB)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("BAYESPROMPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.chdir(tmp_path)
    subprocess.run([sys.executable, "-m", "pip", "uninstall", "--quiet", "--yes", *ADDED], check=True)


def installed() -> dict[str, str]:
    return {found.name: found.version for found in distributions()}


def seconds(cell: nbformat.NotebookNode) -> float:
    """How long a cell ran."""
    times = cell.metadata.execution
    begin, end = (datetime.fromisoformat(times[f"iopub.{when}"]) for when in ("execute_input", "status.idle"))
    return (end - begin).total_seconds()


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_runs_in_colab(book, colab, name):
    notebook = nbformat.read(book / f"{name}.ipynb", as_version=4)
    where = nbformat.v4.new_code_cell("import bayesprompt\nbayesprompt.__file__")
    notebook.cells.append(where)
    before = installed()
    assert {package: before[package] for package in COLAB} == COLAB
    NotebookClient(notebook, timeout=1800, kernel_name="python3").execute()
    assert "site-packages" in where.outputs[0]["data"]["text/plain"]
    after = installed()
    assert {package: version for package, version in after.items() if package in before} == before
    setup, *rest = [seconds(cell) for cell in notebook.cells if cell.cell_type == "code" and cell.source]
    print(f"{name}: {setup:.0f} s to install, {sum(rest):.0f} s to run")
    assert setup <= 60 * max(1, os.getloadavg()[0] / os.cpu_count()), "on a machine that others use too, the longer"


RUNS = """
from bayesprompt.prompting.laboratory_widgets import Laboratory
view = Laboratory(width=8, pretraining_steps=100, steps=50)
view.start.click()
assert view.wait(600).dataset.sizes["tuning_step"] == 50
assert "done, in" in view.status.value and "<img" in view.curve.value and "<img" in view.result.value
"""


def test_the_laboratory_runs_on_colabs_widgets(book, colab):
    notebook = nbformat.read(book / "practice" / "laboratory.ipynb", as_version=4)
    setup = next(cell for cell in notebook.cells if cell.cell_type == "code")
    notebook.cells = [setup, nbformat.v4.new_code_cell(RUNS)]
    NotebookClient(notebook, timeout=1800, kernel_name="python3").execute()
