"""Pictures as files: the same pixels and words, sliders with every frame, and nothing else of a notebook changed."""

import base64
import io
import json
import re

import ipywidgets
import matplotlib
import numpy as np
import pictures
import pytest
from ipywidgets import Button, VBox, Widget
from ipywidgets.embed import embed_data
from matplotlib import pyplot as plt
from PIL import Image

from bayesprompt.lab.widgets import explore, thumbnails

matplotlib.use("agg")
in_the_browser = pytest.mark.skipif(not hasattr(ipywidgets, "Stack"), reason="ipywidgets 7 has no Stack")


@pytest.fixture(autouse=True)
def no_widgets_left():
    """Links of widgets that are still open turn up in what other tests embed."""
    yield
    Widget.close_all()


def bar(height=1, width=1):
    figure, axes = plt.subplots(figsize=(2, 1))
    axes.bar([0], [height], width=width)
    return figure


def notebook(*outputs: dict, state: dict | None = None) -> dict:
    """A notebook as it is after its execution, one cell for each output."""
    metadata = {"mystnb": {"image": {"alt": "less < more"}}}
    cells = [
        {"cell_type": "code", "metadata": metadata, "outputs": [{"output_type": "display_data", "data": data}]}
        for data in outputs
    ]
    widgets = {"application/vnd.jupyter.widget-state+json": {"state": state}} if state else {}
    return {
        "metadata": {"kernelspec": {}, "widgets": widgets},
        "cells": [{"cell_type": "markdown", "metadata": {}}, *cells],
    }


def with_slider(box) -> dict:
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": box.model_id}, "text/plain": "VBox(...)"}
    return notebook(view, state=embed_data(views=[box])["manager_state"]["state"])


def pixels(data) -> np.ndarray:
    return np.asarray(Image.open(data).convert("RGBA"))


def frames_of(box) -> list[str]:
    *_, stack = box.children
    leaves = [leaf for child in stack.children for leaf in getattr(child, "children", [child])]
    return [leaf.value for leaf in leaves]


@in_the_browser
def test_a_slider_has_every_frame_with_its_words_and_the_same_pixels(tmp_path):
    box = explore(bar, alt='{height} < {width} & "more"', height=[1, 2], width=[0.25, 1.0, 0.5])
    made = with_slider(box)
    pictures.to_files(made, tmp_path / "chapter", "chapter")
    html = made["cells"][1]["outputs"][0]["data"].pop("text/html")
    assert made["cells"][1]["outputs"][0]["data"] == {} and made["metadata"] == {"kernelspec": {}}
    found = json.loads(re.search(r'<script type="application/json">(.*?)</script>', html, re.DOTALL)[1])
    assert found["words"] == [["1", "2"], ["0.25", "1", "0.5"]]
    assert [words for _, words in found["frames"]] == [f'{h} < {w} & "more"' for h in (1, 2) for w in (0.25, 1.0, 0.5)]
    for (address, _), before in zip(found["frames"], frames_of(box), strict=True):
        data = re.search(r'base64,([^"]*)"', before)[1]
        np.testing.assert_array_equal(pixels(tmp_path / address), pixels(io.BytesIO(base64.b64decode(data))))
    first = re.search(r'<img src="([^"]*)" alt="([^"]*)" width="(\d+)" height="(\d+)"', html)
    assert first.groups() == (found["frames"][0][0], "1 &lt; 0.25 &amp; &quot;more&quot;", "300", "150")


def test_a_slider_is_named_and_announced_by_words(tmp_path):
    made = with_slider(explore(bar, alt="{height}", height=[1, 2, 3]))
    pictures.to_files(made, tmp_path / "chapter", "chapter")
    html = made["cells"][1]["outputs"][0]["data"]["text/html"]
    key, last, word = re.search(r'<input id="(\S+)" type="range" max="(\d)" .*aria-valuetext="(\w+)"', html).groups()
    assert (last, word) == ("2", "1") and f'<label for="{key}">height</label>' in html


@in_the_browser
def test_a_slider_starts_where_it_is_told_to(tmp_path):
    start = {"height": 2, "width": 1.0}
    made = with_slider(explore(bar, alt="{height} {width}", start=start, height=[1, 2, 3], width=[0.5, 1.0]))
    pictures.to_files(made, tmp_path, "x")
    text = made["cells"][1]["outputs"][0]["data"]["text/html"]
    assert re.findall(r'max="(\d)" value="(\d)".*?aria-valuetext="([^"]*)"', text) == [("2", "1", "2"), ("1", "1", "1")]
    assert re.search(r'<img [^>]*alt="([^"]*)"', text)[1] == "2 1.0"


def test_a_slider_of_one_value_stays_where_it_is(tmp_path):
    made = with_slider(explore(bar, alt="{height}", height=[1]))
    pictures.to_files(made, tmp_path / "chapter", "chapter")
    assert 'max="0"' in made["cells"][1]["outputs"][0]["data"]["text/html"]


def test_words_cannot_end_the_script_that_holds_them(tmp_path):
    made = with_slider(explore(bar, alt="</script><b>{height}", height=[1]))
    pictures.to_files(made, tmp_path / "chapter", "chapter")
    html = made["cells"][1]["outputs"][0]["data"]["text/html"]
    assert html.count("</script>") == 1 and "<b>" not in html.partition("<script")[0]


def test_a_figure_keeps_its_pixels_and_its_words_and_other_outputs_stay(tmp_path):
    buffer = io.BytesIO()
    figure = bar()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    table = {"text/html": "<table></table>", "text/plain": "a table"}
    made = notebook({"image/png": base64.b64encode(buffer.getvalue()).decode(), "text/plain": "<Figure>"}, dict(table))
    pictures.to_files(made, tmp_path / "chapter", "chapter")
    html = made["cells"][1]["outputs"][0]["data"]["text/html"]
    address, words = re.search(r'src="([^"]*)" alt="([^"]*)"', html).groups()
    assert words == "less &lt; more"
    np.testing.assert_array_equal(pixels(tmp_path / address), pixels(buffer))
    assert made["cells"][2]["outputs"][0]["data"] == table


def test_a_grid_of_small_pictures_becomes_files_and_links_to_pages(tmp_path):
    grid = thumbnails(
        [
            ("Bars < lines", "part/chapter.ipynb", bar(), {"G1": "holds", "P9": "not judged"}),
            ("Elsewhere", "https://example.org/a.ipynb", bar(2), {}),
        ]
    )
    book = notebook({"text/html": grid.data.splitlines(keepends=True), "text/plain": "HTML"})
    pictures.to_files(book, tmp_path / "here", "here")
    text = book["cells"][1]["outputs"][0]["data"]["text/html"]
    assert "base64" not in text and "Bars &lt; lines" in text and "G1 holds" in text and "P9 not judged" in text
    assert 'href="part/chapter.html"' in text and 'href="https://example.org/a.ipynb"' in text
    sources = re.findall(
        r'<img src="here/(\w+\.webp)" alt="the figure, small" width="400" height="\d+" loading="lazy">', text
    )
    assert len(set(sources)) == 2 and all((tmp_path / "here" / name).exists() for name in sources)


def test_widgets_that_compute_say_what_they_need(tmp_path):
    made = with_slider(VBox([Button(description="Start")]))
    pictures.to_files(made, tmp_path / "chapter", "chapter")
    assert "needs Python" in made["cells"][1]["outputs"][0]["data"]["text/html"]


def test_the_page_to_play_has_its_script_and_its_weights_as_files(tmp_path):
    data = {"networks": {"LSTM": {"kind": "lstm", "text": "AAAA.BB"}}, "predictors": ["</script>"]}
    packed = json.dumps(data).replace("</", r"<\/")
    picture = f'<img src="{_picture()}" alt="a figure">'
    script = f'<script type="application/json">{packed}</script><script>run("this")</script>'
    text = f'<div class="play">{picture}{script}</div>'
    made = notebook({"text/html": text.splitlines(keepends=True)})
    pictures.to_files(made, tmp_path / "play", "play")
    html = made["cells"][1]["outputs"][0]["data"]["text/html"]
    packed, script = re.search(r'json">(.*?)</script><script src="(.*?)"></script></div>', html).groups()
    (name, network), predictors = *json.loads(packed)["networks"].items(), json.loads(packed)["predictors"]
    assert predictors == ["</script>"] and (tmp_path / script).read_text() == 'run("this")'
    assert (name, network.keys()) == ("LSTM", {"kind", "file"})
    assert (tmp_path / network["file"]).read_text() == '(globalThis.playWeights ??= {})["LSTM"] = "AAAA.BB";\n'
    assert "base64" not in html and 'src="play/' in html


def _picture() -> str:
    with io.BytesIO() as buffer:
        figure = bar()
        figure.savefig(buffer, format="webp")
        plt.close(figure)
        return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
