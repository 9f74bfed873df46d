"""What attention maps, tables and clusters draw is what was computed; what is missing is said."""

import jax
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from matplotlib.colors import to_hex

from bayesprompt.mechanism import attention_plots
from bayesprompt.mechanism import digits as running
from bayesprompt.mechanism.attention_plots import EXAMPLE, TASK_COLORS, attention_map, one_head
from bayesprompt.mechanism.digits import DIGIT_EXPERIMENTS, Tuned, load_models
from bayesprompt.models.gpt import GPT, make_gpt
from bayesprompt.models.prefixes import NO_PREFIX, Prefix
from bayesprompt.models.trace import inspect
from bayesprompt.sources.digits import PRETRAINING_TASKS, is_held_out, with_answer
from bayesprompt.store import Store

matplotlib.use("Agg")

SIZES = GPT(embed_dim=12, num_heads=3, num_layers=1, pads=2)
PARAMS = jax.tree.map(lambda x: 5 * x, make_gpt(SIZES).init(jax.random.key(0)))
PREFIX = Prefix(layers=jax.random.normal(jax.random.key(1), (1, 2, 12)))
TEXT = with_answer(EXAMPLE, "ascending")


pytestmark = pytest.mark.usefixtures("figures")


def texts(figure) -> str:
    return " ".join(text.get_text() for text in figure.findobj(plt.Text))


def reading(head=1):
    return one_head(inspect(make_gpt(SIZES), PARAMS, TEXT[None], PREFIX).layers[0].reading, 0, head)


def softmax_rows(found) -> np.ndarray:
    """Attention written out, row by row, in float64: prefix, then the content up to the row."""
    weights = np.zeros((19, 21))
    for i, query in enumerate(np.asarray(found.query, np.float64)):
        scores = np.concatenate([found.prefix_key @ query, found.key[: i + 1] @ query])
        weights[i, : i + 3] = np.exp(scores) / np.exp(scores).sum()
    return weights


def test_the_example_is_held_out_and_answered():
    assert bool(is_held_out(EXAMPLE)) and set(EXAMPLE) == set(range(8))
    assert list(TEXT) == [*EXAMPLE, *sorted(EXAMPLE)]
    assert list(with_answer(EXAMPLE[None], "add 2")[0, 10:]) == [digit + 2 for digit in EXAMPLE]


def test_one_head_is_that_head():
    every = inspect(make_gpt(SIZES), PARAMS, TEXT[None], PREFIX).layers[0].reading
    np.testing.assert_array_equal(one_head(every, 0, 2).prefix_key, every.prefix_key[0, 2])


def test_a_map_shows_the_attention():
    expected = softmax_rows(reading())
    image = attention_map(plt.subplots()[1], reading(), TEXT)
    np.testing.assert_allclose(image.get_array(), expected, atol=1e-6)
    content = expected[:, 2:] / expected[:, 2:].sum(1, keepdims=True)
    ax = plt.subplots()[1]
    np.testing.assert_allclose(attention_map(ax, reading(), TEXT, relative=True).get_array(), content, atol=1e-6)
    np.testing.assert_allclose(attention_map(ax, reading(), TEXT, first_row=9).get_array(), expected[9:], atol=1e-6)
    assert abs(expected - np.roll(expected, 1, axis=0)).max() > 0.01, "a map that is shifted would be noticed"


def test_a_map_names_rows_columns_and_regions():
    ax = plt.subplots()[1]
    attention_map(ax, reading(), TEXT)
    rows, columns = ([label.get_text() for label in axis.get_ticklabels()] for axis in (ax.yaxis, ax.xaxis))
    assert rows[:9] == [str(digit) for digit in EXAMPLE[:9]]
    assert rows[9:11] == ["1\u21920", "0\u21921"], "the last input row writes the answer's first digit"
    assert columns == ["", "", *(str(digit) for digit in TEXT[:19])]
    assert {"S", "input", "answer"} <= set(texts(ax.figure).split())
    assert [line.get_xdata()[0] for line in ax.lines[:2]] == [1.5, 11.5]


def test_maps_of_what_is_not_one_head_are_refused():
    ax = plt.subplots()[1]
    with pytest.raises(ValueError, match=r"reading = 4 axes: must be of one sequence and one head"):
        attention_map(ax, inspect(make_gpt(SIZES), PARAMS, TEXT[None], PREFIX).layers[0].reading, TEXT)
    with pytest.raises(ValueError, match=r"tokens = 19: must be 20"):
        attention_map(ax, reading(), TEXT[:19])


def test_maps_side_by_side_and_one_that_is_missing():
    figure = attention_plots.attention_maps([{"here": (reading(), TEXT), "there": None}], ["words"])
    assert texts(figure).count("not computed") == 1
    assert {"here", "there", "words"} <= set(texts(figure).split())
    assert "not computed" in texts(attention_plots.attention_maps([{"nothing": None}]))


def test_an_accuracy_table_writes_its_numbers():
    values = np.array([[0.9519, 0.0], [np.nan, 0.5]])
    ax = attention_plots.accuracy_table(values, ["one", "two"], ["left", "right"])
    written = {(t.get_position()): t.get_text() for t in ax.texts}
    assert written == {(0, 0): "95.2%", (1, 0): "0.0%", (0, 1): "not computed", (1, 1): "50.0%"}
    assert [label.get_text() for label in ax.get_yticklabels()] == ["one", "two"]


def test_block_outputs_are_the_last_input_rows():
    inputs = np.stack([EXAMPLE, EXAMPLE[::-1]])
    for prefix in (NO_PREFIX, PREFIX):
        whole = inspect(make_gpt(SIZES), PARAMS, with_answer(inputs, "descending"), prefix).layers[0].states[:, -10]
        np.testing.assert_allclose(attention_plots.block_outputs(SIZES, (PARAMS, prefix), inputs), whole, atol=1e-6)


def test_completed_tasks(monkeypatch):
    said = np.stack([np.sort(EXAMPLE), EXAMPLE + 2, EXAMPLE, np.full(10, 3)])
    monkeypatch.setattr(attention_plots, "decode", lambda *_: said)
    inputs = np.stack([EXAMPLE, EXAMPLE, EXAMPLE, np.full(10, 3)])
    found = attention_plots.completed_tasks(SIZES, (PARAMS, NO_PREFIX), inputs)
    assert list(found) == [0, 3, -1, 0], "ten equal digits are sorted both ways"


@pytest.fixture
def stored(monkeypatch):
    """Random networks as cells at quick scale: pretrained, and with a prefix for each task; no full tuning."""
    attrs = {"config": '{"scale": "quick"}', "device": "cpu", "date": "2026-11-22", "commit": "7093cc7b841e"}
    models = {"Pretrained": [(PARAMS, NO_PREFIX)], "PrefixTuning": [(PARAMS, PREFIX)] * 4}

    def load(cell, store):
        there = cell.scale == "quick" and cell.method in models
        return Tuned(cell, SIZES, models[cell.method], xr.Dataset(attrs=attrs)) if there else None

    monkeypatch.setattr(running, "load_tuned", load)


def test_clusters_draw_every_output_in_its_tasks_colour(stored, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    before, completed = rng.normal(size=(6, 5)), np.array([0, 0, 1, -1, -1, -1])
    after = {task: rng.normal(size=(6, 5)) + 10 * i for i, task in enumerate(PRETRAINING_TASKS)}
    outputs = iter([*after.values(), before])
    monkeypatch.setattr(attention_plots, "block_outputs", lambda *_: next(outputs))
    monkeypatch.setattr(attention_plots, "completed_tasks", lambda *_: completed)
    monkeypatch.setattr(attention_plots, "held_out_inputs", lambda _: np.zeros((6, 10), int))
    figure = attention_plots.prefix_clusters(Store(tmp_path, shipped=None), DIGIT_EXPERIMENTS["eliciting-skills"])
    left, right = figure.axes
    assert [len(line.get_xdata()) for line in left.lines] == [2, 1, 0, 0, 3]
    everything = np.concatenate([before, *after.values()])
    u, s, _ = np.linalg.svd(everything - everything.mean(0), full_matrices=False)
    expected = np.abs((u * s)[:, :2])
    for number, task in enumerate(after):
        lines, points = right.lines[1 + 2 * number : 3 + 2 * number]
        assert to_hex(points.get_color()) == TASK_COLORS[task]
        rows = slice(6 * (number + 1), 6 * (number + 2))
        np.testing.assert_allclose(np.abs(points.get_xydata()), expected[rows])
        np.testing.assert_allclose(np.abs(lines.get_xydata()[::3]), expected[:6])
        assert task in texts(right.figure)


def test_the_quick_scale_stands_in_for_what_is_missing(stored, tmp_path):
    store = Store(tmp_path, shipped=None)
    assert load_models(DIGIT_EXPERIMENTS["sorting"], "PrefixTuning", store).cell.scale == "quick"
    assert load_models(DIGIT_EXPERIMENTS["sorting"], "FullWT", store) is None


def test_the_sorters_maps_show_what_is_stored(stored, tmp_path):
    figure = attention_plots.sorter_maps(Store(tmp_path, shipped=None), DIGIT_EXPERIMENTS["sorting"])
    assert texts(figure).count("not computed") == 1 and "quick scale" in texts(figure)
    drawn = [image.get_array() for ax in figure.axes for image in ax.images]
    assert [image.shape for image in drawn] == [(19, 21), (19, 21)]
    np.testing.assert_allclose(drawn[1], softmax_rows(reading(head=0)), atol=1e-6)
    assert abs(drawn[0] - drawn[1]).max() > 0.01
    np.testing.assert_allclose(*(image[:, 2:] / image[:, 2:].sum(1, keepdims=True) for image in drawn), atol=1e-5)


def test_prefix_clusters_show_the_block_outputs(stored, tmp_path, monkeypatch):
    inputs = np.stack([np.roll(EXAMPLE, i) for i in range(5)])
    monkeypatch.setattr(attention_plots, "held_out_inputs", lambda _: inputs)
    monkeypatch.setattr(attention_plots, "decode", lambda *_: np.sort(inputs))
    figure = attention_plots.prefix_clusters(Store(tmp_path, shipped=None), DIGIT_EXPERIMENTS["eliciting-skills"])
    points = [line for line in figure.axes[1].lines if line.get_linestyle() == "None"]
    assert [len(line.get_xdata()) for line in points] == [5] * 5, "without a prefix, and under four"
    np.testing.assert_array_equal(points[1].get_xydata(), points[4].get_xydata(), "four times the same prefix")


@pytest.mark.parametrize("draw", [attention_plots.sorter_maps, attention_plots.prefix_clusters])
def test_what_is_not_stored_is_said(draw, tmp_path):
    of = {"sorter_maps": "sorting", "prefix_clusters": "eliciting-skills"}[draw.__name__]
    assert "not computed" in texts(draw(Store(tmp_path, shipped=None), DIGIT_EXPERIMENTS[of]))


def test_skill_maps_have_a_panel_for_each_head_and_task(tmp_path):
    figure = attention_plots.skill_maps(
        Store(tmp_path, shipped=None), DIGIT_EXPERIMENTS["eliciting-skills-pretraining"]
    )
    assert texts(figure).count("not computed") == 16
    assert all(word in texts(figure) for word in (*PRETRAINING_TASKS, "head 1", "head 4"))
