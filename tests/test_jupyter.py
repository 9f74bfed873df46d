"""JupyterLab, as Binder, Codespaces and `make` bring it: a chapter opens, runs, and its slider moves its picture."""

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from playwright.sync_api import Browser, expect

ROOT = Path(__file__).resolve().parents[1]
SLIDER = """
from matplotlib import pyplot as plt
from bayesprompt.lab.widgets import explore
def bar(height):
    figure, axes = plt.subplots()
    axes.bar([0], [height])
    return figure
explore(bar, alt="a bar of height {height}", height=[1, 2, 3])
"""
PLAY = """
from matplotlib import pyplot as plt
from bayesprompt.prompting import play
play.page(plt.figure(), "a figure", "what it shows")
"""
LABORATORY = """
from bayesprompt.prompting.laboratory_widgets import Laboratory
Laboratory(width=8, pretraining_steps=100, steps=2000)
"""


@contextlib.contextmanager
def jupyter(folder: Path):
    """The address of a JupyterLab of this environment that serves a folder."""
    command = [
        Path(sys.executable).with_name("jupyter-lab"),
        "--no-browser",
        "--ip=127.0.0.1",
        "--port=0",
        "--allow-root",
    ]
    options = [
        "--IdentityProvider.token=",
        "--ServerApp.password=",
        "--LabApp.news_url=",
        f"--ServerApp.root_dir={folder}",
    ]
    environment = os.environ | {"JUPYTER_CONFIG_DIR": str(folder / "config"), "JUPYTER_DATA_DIR": str(folder / "data")}
    with subprocess.Popen([*command, *options], env=environment, stderr=subprocess.PIPE, text=True) as server:
        try:
            yield next(found[0] for line in server.stderr if (found := re.search(r"http://127\.0\.0\.1:\d+/lab", line)))
        finally:
            server.terminate()


@contextlib.contextmanager
def opened(browser: Browser, folder: Path, source: str):
    """A page of JupyterLab on which a chapter of one cell, after the setup cell, has been run."""
    setup = nbformat.v4.new_code_cell((ROOT / "book" / "_setup_cell.py").read_text())
    notebook = nbformat.v4.new_notebook(cells=[setup, nbformat.v4.new_code_cell(source)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, folder / "chapter.ipynb")
    with jupyter(folder) as address, browser.new_context(viewport={"width": 1200, "height": 900}) as context:
        page = context.new_page()
        page.set_default_timeout(240_000)
        page.goto(f"{address}/tree/chapter.ipynb")
        # JupyterLab drops a cell that is run before its kernel has answered.
        page.get_by_role("button", name="Python 3 (ipykernel) | Idle").wait_for()
        page.locator(".jp-Notebook .jp-Cell").first.click()
        for cell in range(2):
            page.keyboard.press("Shift+Enter")
            expect(page.locator(".jp-InputArea-prompt").nth(cell)).to_have_text(re.compile(r"\[(\*|\d+)\]:"))
        yield page


@pytest.mark.slow
def test_a_slider_works_in_jupyterlab(browser, tmp_path):
    with opened(browser, tmp_path, SLIDER) as page:
        picture = page.locator(".explore img:visible")
        expect(picture).to_have_attribute("alt", "a bar of height 1", timeout=240_000)
        page.locator(".explore [role=slider]").press("ArrowRight")
        expect(page.locator(".explore img:visible")).to_have_attribute("alt", "a bar of height 2")


@pytest.mark.slow
def test_a_reader_plays_in_jupyterlab(browser, tmp_path):
    with opened(browser, tmp_path, PLAY) as page:
        said = page.locator(".play .says")
        expect(said).to_contain_text("After 0 flips", timeout=240_000)
        page.locator(".play [data-flip='0']").click()
        page.keyboard.press("t")
        expect(said).to_contain_text("After 2 flips, 1 of them heads, P(heads) is: Laplace's rule 0.50")
        assert page.evaluate("document.activeElement.closest('.play') !== null")


@pytest.mark.slow
def test_the_laboratory_runs_and_stops_in_jupyterlab(browser, tmp_path):
    with opened(browser, tmp_path, LABORATORY) as page:
        page.locator(".laboratory").get_by_role("button", name="Start").click(timeout=240_000)
        curve = page.locator(".laboratory img[alt^='Loss of training and tuning']")
        expect(curve).to_be_visible(timeout=240_000)
        page.locator(".laboratory").get_by_role("button", name="Stop").click()
        said = page.locator(".laboratory [role=status]")
        expect(said).to_contain_text("stopped; what was done is kept", timeout=240_000)
        expect(page.locator(".laboratory img[alt^='Cumulative regret of SoftPT']")).to_be_visible()
        page.locator(".laboratory").get_by_role("button", name="Save").click()
        expect(said).to_contain_text("saved as laboratory-")
