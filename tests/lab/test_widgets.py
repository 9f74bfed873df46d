"""Sliders: every frame drawn once and described in words, turned in the browser, or by the kernel where it must be."""

import base64
import io
import re

import ipywidgets
import matplotlib
import numpy as np
import pytest
from ipywidgets.embed import embed_data
from matplotlib import pyplot as plt
from PIL import Image

from bayesprompt.lab import widgets
from bayesprompt.lab.widgets import explore

matplotlib.use("agg")
in_the_browser = pytest.mark.skipif(not hasattr(ipywidgets, "Stack"), reason="ipywidgets 7 has no Stack")


def bar(height=1, width=1):
    figure, axes = plt.subplots(figsize=(2, 1))
    axes.bar([0], [height], width=width)
    return figure


def pictures(stack) -> list[str]:
    """The HTML of all frames, outer slider first."""
    return [
        html for child in stack.children for html in (pictures(child) if hasattr(child, "children") else [child.value])
    ]


def words(html: str) -> str:
    return re.search(r'alt="([^"]*)"', html)[1]


def pixels(html: str) -> np.ndarray:
    """What a frame shows, (height, width, 4)."""
    data = base64.b64decode(re.search(r'base64,([^"]*)"', html)[1])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))


@in_the_browser
def test_one_slider_turns_its_frames_in_the_browser():
    box = explore(bar, alt="a bar of height {height}", height=[1, 2, 3])
    slider, stack = box.children
    assert slider.description == "height" and [label for label, _ in slider.options] == ["1", "2", "3"]
    assert [words(html) for html in pictures(stack)] == [f"a bar of height {height}" for height in (1, 2, 3)]
    assert len(set(pictures(stack))) == 3 and all('src="data:image/webp;base64,' in html for html in pictures(stack))
    state = embed_data(views=[box])["manager_state"]["state"]  # what a page without Python has to go by
    (link,) = [entry["state"] for entry in state.values() if entry["model_name"] == "LinkModel"]
    assert link["source"] == [f"IPY_MODEL_{slider.model_id}", "index"]
    assert link["target"] == [f"IPY_MODEL_{stack.model_id}", "selected_index"]


@in_the_browser
def test_two_sliders_turn_stacks_in_stacks():
    box = explore(bar, alt=lambda height, width: f"{width} by {height}", height=(1, 2), width=[0.1, 0.25, 1.0])
    height, width, stack = box.children
    assert [label for label, _ in width.options] == ["0.1", "0.25", "1"]
    assert [words(html) for html in pictures(stack)] == [f"{w} by {h}" for h in (1, 2) for w in (0.1, 0.25, 1.0)]
    state = embed_data(views=[box])["manager_state"]["state"]
    links = [entry["state"] for entry in state.values() if entry["model_name"] == "LinkModel"]
    inner = [[f"IPY_MODEL_{child.model_id}", "selected_index"] for child in stack.children]
    assert [link["target"] for link in links if link["source"][0].endswith(height.model_id)] == [
        [f"IPY_MODEL_{stack.model_id}", "selected_index"]
    ]
    assert sorted(link["target"] for link in links if link["source"][0].endswith(width.model_id)) == sorted(inner)


@in_the_browser
def test_sliders_start_where_they_are_told_to(monkeypatch):
    given = {"alt": "{height} {width}", "start": {"height": 2}, "height": [1, 2, 3], "width": [0.5, 1]}
    height, width, stack = explore(bar, **given).children
    assert (height.index, width.index, stack.selected_index) == (1, 0, 1)
    assert [child.selected_index for child in stack.children] == [0, 0, 0]
    monkeypatch.delattr("ipywidgets.Stack")
    assert words(explore(bar, **given).children[-1].value) == "2 0.5"


def test_without_ipywidgets_8_the_kernel_exchanges_the_picture(monkeypatch):
    monkeypatch.delattr(ipywidgets, "Stack", raising=False)
    height, width, picture = explore(bar, alt="{width} by {height}", height=[1, 2], width=[3, 4]).children
    assert words(picture.value) == "3 by 1"
    height.index, width.index = 1, 1
    assert words(picture.value) == "4 by 2"


@in_the_browser
def test_each_frame_is_drawn_once_of_one_size_and_closed():
    drawn = []

    def draw(height):
        drawn.append(height)
        return bar(10.0**height)

    before = plt.get_fignums()
    _, stack = explore(draw, alt="{height}", height=range(4)).children
    assert drawn == [0, 1, 2, 3]
    assert plt.get_fignums() == before
    assert {pixels(html).shape for html in pictures(stack)} == {(150, 300, 4)}


@in_the_browser
def test_a_frame_is_the_figure_pixel_by_pixel():
    _, stack = explore(bar, alt="{height}", height=[2]).children
    figure, buffer = bar(2), io.BytesIO()
    figure.set_layout_engine("constrained")
    figure.savefig(buffer, format="png", dpi=widgets.DOTS_PER_INCH)
    plt.close(figure)
    np.testing.assert_array_equal(pixels(pictures(stack)[0]), np.asarray(Image.open(buffer)))


@in_the_browser
def test_words_are_escaped():
    _, stack = explore(bar, alt='{height} < "2" & more', height=[1]).children
    assert words(pictures(stack)[0]) == "1 &lt; &quot;2&quot; &amp; more"


@pytest.mark.parametrize(
    ("draw", "alt", "parameters", "message"),
    [
        (bar, "a bar", {}, "parameters = none: must be one or two"),
        (bar, "a bar", {"a": [1], "b": [1], "c": [1]}, "parameters = a, b, c: must be one or two"),
        (bar, "a bar", {"height": np.array(2.0)}, r"height = 2.0: must be its values, as \[2.0\]"),
        (bar, "a bar", {"height": []}, r"height = \[\]: must have at least one"),
        (bar, "a bar", {"height": range(25)}, "height = 25 values: must have at most 24 frames, not 25"),
        (
            bar,
            "a bar",
            {"height": range(5), "width": range(5)},
            "height, width = 5 x 5 values: must have at most 24 frames, not 25",
        ),
        (bar, "{tall}", {"height": [1]}, r"alt = '\{tall\}': must have no braces but \{height\}"),
        (bar, "{0}", {"height": [1]}, r"alt = '\{0\}': must have no braces but \{height\}"),
        (bar, " ", {"height": [1]}, "alt = ' ': must be words"),
        (bar, r"$\theta_{12}$ {height}", {"height": [1]}, r"must have no braces but \{height\}; TeX's own are doubled"),
        (
            bar,
            "a bar",
            {"height": [1], "start": {"height": 2}},
            "start = {'height': 2}: must be a parameter and one of",
        ),
        (bar, "a bar", {"height": [1], "start": {"width": 1}}, "start = {'width': 1}: must be a parameter and one of"),
        (lambda height: None, "a bar", {"height": [1]}, "draw = a function returning NoneType: it must return a"),
    ],
)
def test_bad_input_is_named_in_one_line(draw, alt, parameters, message):
    with pytest.raises(ValueError, match=message) as error:
        explore(draw, alt=alt, **parameters)
    assert "\n" not in str(error.value)


def test_values_that_differ_late_have_labels_of_their_own():
    slider = explore(bar, alt="a bar", height=[0.12341, 0.12342, 1.0]).children[0]
    assert slider._options_labels == ("0.12341", "0.12342", "1")


@in_the_browser
def test_as_many_frames_as_allowed():
    assert len(pictures(explore(bar, alt="a bar", height=range(1, widgets.MAX_FRAMES + 1)).children[1])) == 24
