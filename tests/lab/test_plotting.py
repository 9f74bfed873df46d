"""Pictures show the stored numbers, say what is missing and where the numbers come from, and can be read by all."""

import io
import itertools
import json
import subprocess
import sys

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from matplotlib.colors import to_rgb

from bayesprompt import catalog, cli
from bayesprompt.lab import plotting, style
from bayesprompt.prompting.experiments import BAYES_METHODS, NETWORK_METHODS
from bayesprompt.prompting.figures import overview
from bayesprompt.store import Store

matplotlib.use("Agg")


pytestmark = pytest.mark.usefixtures("figures")


def dataset(regret: float, repetitions: int = 4, **attrs) -> xr.Dataset:
    """Regret that grows linearly to `regret` times 1, 2, ... in the repetitions, and a falling tuning loss."""
    times = np.arange(1, repetitions + 1)[:, None]
    stored = {"config": json.dumps({"scale": "paper"}), "device": "cpu: A, 2 cores", "date": "2026-11-22"}
    return xr.Dataset(
        {
            "regret": (("repetition", "n"), times * regret * np.linspace(0, 1, 200)),
            "tuning_loss": (("repetition", "tuning_step"), times * np.linspace(30, 25, 100)),
        },
        coords={"tuning_step": np.arange(1, 101)},
        attrs=stored | {"commit": "7093cc7b841e"} | attrs,
    )


@pytest.fixture
def datasets():
    """Every method but two."""
    bayes = {method: dataset(i, repetitions=1) for i, method in enumerate(BAYES_METHODS)}
    networks = {method: dataset(0.1 * i) for i, method in enumerate(NETWORK_METHODS)}
    return bayes | networks | {"RealPT": None, "FullWT": None}


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(plt.Text) if text.get_text().strip()]


def luminance(color) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def test_every_method_has_a_colour_and_a_line():
    every = {*BAYES_METHODS, *NETWORK_METHODS, "PrefixTuning"}
    assert set(plotting.METHOD_COLORS) == set(plotting.METHOD_LINES) == every


# Linear RGB as two kinds of colour-blind eyes see it (Machado et al. 2009, severity 1).
EYES = {
    "all cones": np.eye(3),
    "no red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
}


@pytest.mark.parametrize("eyes", EYES)
def test_methods_drawn_with_the_same_line_differ_in_colour(eyes):
    def lab(color):
        linear = np.array([c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)])
        seen = np.clip(np.asarray(EYES[eyes]) @ linear, 0, 1)
        xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ seen
        x, y, z = np.cbrt(xyz / [0.9505, 1, 1.089] + 1e-3)
        return np.array([116 * y, 500 * (x - y), 200 * (y - z)])

    for one, other in itertools.combinations((*NETWORK_METHODS, "PrefixTuning"), 2):
        if plotting.METHOD_LINES[one] == plotting.METHOD_LINES[other]:
            colors = plotting.METHOD_COLORS[one], plotting.METHOD_COLORS[other]
            assert np.linalg.norm(lab(colors[0]) - lab(colors[1])) > 15, (one, other)


def test_curves_are_medians_and_missing_methods_are_named(datasets):
    ax = plotting.regret_curves(datasets)
    thick = {line.get_color(): line for line in ax.lines if line.get_linewidth() == 2}
    for method, stored in datasets.items():
        if stored is not None and method not in BAYES_METHODS:
            line = thick[plotting.METHOD_COLORS[method]]
            np.testing.assert_allclose(line.get_ydata(), np.median(stored.regret, axis=0))
    assert "not computed: RealPT, FullWT" in ax.get_xlabel() and "nats" in ax.get_ylabel()


def test_labels_at_the_curves_ends_do_not_overlap(datasets):
    ax = plotting.regret_curves(datasets)
    ax.figure.canvas.draw()
    boxes = [text.get_window_extent() for text in ax.texts if text.get_text() in datasets]
    assert len(boxes) == len(datasets) - 2
    for one, other in itertools.combinations(boxes, 2):
        assert min(one.y1, other.y1) - max(one.y0, other.y0) < 0.35 * one.height


def test_a_curve_far_above_the_others_is_labelled_with_its_value(datasets):
    ax = plotting.regret_curves(datasets | {"RandomPF": dataset(40.0)})
    assert "RandomPF \u2191 100.0" in texts(ax.figure)
    assert ax.get_ylim()[1] < 10


def test_bars_are_medians_and_missing_ones_are_marked(datasets):
    first, second = plotting.regret_bars(datasets, (50, 200))
    heights = [bar.get_height() for bar in second.patches]
    stored = [d for m, d in datasets.items() if d is not None and m not in BAYES_METHODS]
    np.testing.assert_allclose(heights, [np.median(d.regret[:, 199]) for d in stored])
    np.testing.assert_allclose(
        [bar.get_height() for bar in first.patches], [np.median(d.regret[:, 49]) for d in stored]
    )
    assert sum("not computed" in text for text in texts(second)) == 2


def test_tuning_loss_shows_what_was_stored(datasets):
    ax = plotting.tuning_loss(datasets, smooth=1)
    line = next(x for x in ax.lines if x.get_color() == plotting.METHOD_COLORS["SoftPT"] and x.get_linewidth() == 2)
    np.testing.assert_allclose(line.get_ydata(), np.median(datasets["SoftPT"].tuning_loss, axis=0))


def test_provenance_in_one_line():
    assert plotting.provenance_line({"SoftPT": None}) == "no stored results"
    line = "paper scale, cpu: A, 2 cores, 2026-11-22, commit 7093cc7"
    assert plotting.provenance_line([dataset(1.0), None, dataset(2.0)]) == line
    later = dataset(1.0, date="2026-11-24", commit="0123456789+changes", device="gpu: B")
    both = "paper scale, cpu: A, 2 cores / gpu: B, 2026-11-22 to 2026-11-24, commit 7093cc7 / 0123456+"
    assert plotting.provenance_line({"SoftPT": dataset(1.0), "FullWT": later}) == both


def test_figures_of_an_empty_store_say_so(tmp_path):
    empty = Store(tmp_path, shipped=None)
    exact = {"petrov2024-figure-4"}
    for name in ["overview", *(catalog.FIGURES.keys() - exact)]:
        figure = overview(empty) if name == "overview" else catalog.figure(name, empty)
        figure.savefig(tmp_path / f"{name}.png", dpi=30)
        shown = " ".join(" ".join(texts(figure)).split())
        assert "no stored results" in shown and "not computed" in shown
        plt.close(figure)
    with pytest.raises(ValueError, match="name = figure 1: must be one of genewein2025-figure-1, "):
        catalog.figure("figure 1", empty)


def test_tangents_touch_the_parabola_at_their_codes(tmp_path):
    (ax,) = catalog.figure("petrov2024-figure-4", Store(tmp_path, shipped=None)).axes
    for u, line in enumerate(ax.lines[1:11]):
        x, y = line.get_data()
        np.testing.assert_allclose((x - 0.5) ** 2 - y, (x - u / 10) ** 2, atol=1e-12)


def test_the_quick_scale_stands_in_where_it_must_and_says_so(datasets):
    datasets["SoftPT"] = dataset(0.2, config=json.dumps({"scale": "quick"}))
    assert plotting.stand_ins(datasets) == {"SoftPT": "quick"}
    assert plotting.stand_ins({"SoftPT": datasets["SoftPT"], "FullWT": None}) == {}, "nothing of a higher scale here"
    ax = plotting.regret_curves(datasets)
    assert "SoftPT (quick)" in texts(ax.figure) and "at quick scale: SoftPT" in ax.get_xlabel()
    bars = plotting.regret_bars(datasets, at=[50])[0]
    assert "SoftPT (quick)" in [label.get_text() for label in bars.get_xticklabels()]
    assert sum(patch.get_hatch() is not None for patch in bars.patches) == 1
    assert plotting.provenance_line(datasets).startswith("paper / quick scale")


def test_all_text_stands_out_from_the_card(datasets):
    figure = plotting.add_provenance(plotting.regret_curves(datasets).figure, datasets)
    plotting.regret_bars(datasets)
    assert to_rgb(figure.get_facecolor()) == (1.0, 1.0, 1.0), "text is dark, so the card is white on any page"
    for text in itertools.chain(figure.findobj(plt.Text), plt.gcf().findobj(plt.Text)):
        if text.get_text().strip():
            assert 1.05 / (luminance(text.get_color()) + 0.05) >= 4.5, (text.get_text(), text.get_color())


def test_provenance_takes_no_other_words_place():
    figure = plt.figure()
    figure.supxlabel("prefix row")
    with pytest.raises(ValueError, match="^figure = one with the label 'prefix row' below it: label its axes instead$"):
        plotting.add_provenance(figure, [dataset(1.0)])


HOSTILE = {
    "savefig.facecolor": "black",
    "figure.facecolor": "black",
    "axes.facecolor": "navy",
    "text.usetex": True,  # without LaTeX, an error
    "font.size": 30,
    "lines.linewidth": 9,
    "axes.prop_cycle": matplotlib.cycler(color=["red"]),
    "legend.facecolor": "red",
}


def pixels(figure) -> np.ndarray:
    buffer = io.BytesIO()
    with style.own_style():
        figure.savefig(buffer, dpi=40, format="raw", bbox_inches="tight")
    return np.frombuffer(buffer.getvalue(), np.uint8)


def test_the_readers_own_settings_change_no_picture_and_stay_theirs(datasets, tmp_path):
    def draw():
        empty = Store(tmp_path, shipped=None)
        found = [catalog.figure("petrov2024-figure-4", empty), catalog.figure("genewein2025-figure-1", empty)]
        return [*found, plotting.regret_curves(datasets).figure, plotting.tuning_loss(datasets).figure]

    expected = [pixels(figure) for figure in draw()]
    with matplotlib.rc_context(HOSTILE):
        before = dict(plt.rcParams)
        found = [pixels(figure) for figure in draw()]
        assert dict(plt.rcParams) == before
    for mine, theirs in zip(expected, found, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_the_command_line_draws_as_the_book_whatever_the_readers_settings(tmp_path, monkeypatch):
    monkeypatch.setattr(catalog, "FIGURES", {"tangents": catalog.FIGURES["petrov2024-figure-4"]})
    monkeypatch.setattr(cli, "FIGURES", catalog.FIGURES)
    with matplotlib.rc_context(HOSTILE):
        cli.figures(tmp_path)
    assert (plt.imread(tmp_path / "tangents.png")[0, 0, :3] == 1).all(), "a white card"


def test_an_import_leaves_the_readers_settings_alone(tmp_path):
    (tmp_path / "matplotlibrc").write_text("savefig.facecolor: black\ntext.usetex: True\n")
    code = "import matplotlib; before = dict(matplotlib.rcParams); import bayesprompt, bayesprompt.cli; "
    code += "assert dict(matplotlib.rcParams) == before and before['text.usetex']"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
