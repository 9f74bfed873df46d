"""With the versions that Google Colab has: the package imports, an experiment runs, a slider moves its picture."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import matplotlib
import pytest

COLAB = {
    "jax": "0.7.2",
    "flax": "0.11.2",
    "optax": "0.2.8",
    "numpy": "2.1.3",
    "matplotlib": "3.10.0",
    "ipywidgets": "7.7.1",
}


@pytest.mark.parametrize("name", COLAB)
def test_this_is_colabs_set(name):
    assert version(name) == COLAB[name]


def test_one_cell_of_the_single_coin_experiment(tmp_path, monkeypatch):
    monkeypatch.setenv("BAYESPROMPT_CACHE", str(tmp_path))
    program = Path(sys.executable).with_name("bayesprompt")
    what = ["single-coin", "--scale", "smoke", "--architecture", "lstm", "--method", "SoftPT"]
    done = subprocess.run([program, "run", *what], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(tmp_path.rglob("single-coin.lstm.SoftPT.smoke.*.nc"))


def test_a_slider_without_ipywidgets_8():
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    from bayesprompt.lab.widgets import explore

    def draw(height):
        figure, axes = plt.subplots()
        axes.bar([0], [height])
        return figure

    slider, picture = explore(draw, alt="a bar of height {height}", height=[1, 2]).children
    assert 'alt="a bar of height 1"' in picture.value
    slider.index = 1
    assert 'alt="a bar of height 2"' in picture.value
