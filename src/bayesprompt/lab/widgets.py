"""Sliders that move a picture, also on a built page where no Python runs, and a grid of small pictures with links."""

from __future__ import annotations

import base64
import html
import io
import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

import ipywidgets
import matplotlib.pyplot as plt
from IPython.display import HTML
from matplotlib.figure import Figure

from bayesprompt.checks import UserError

COLOURS = {"holds": "#0b6e3f", "fails": "#a4262c", "not judged": "#5c5c5c"}  # white words on them are legible
MAX_FRAMES = 24  # every frame travels inside the notebook, some 10 to 20 kB each
DOTS_PER_INCH = 150


def explore(
    draw: Callable[..., Figure],
    *,
    alt: str | Callable[..., str],
    start: dict[str, Any] | None = None,
    **parameters: Iterable[Any],
) -> ipywidgets.VBox:
    """One slider per parameter over the pictures of `draw`, working in Jupyter, in Colab and on the built page.

    `draw(**values)` returns a Matplotlib figure. It is called once for each combination of the parameters' values, and
    the figure is closed once its picture is taken. The first value of each parameter is shown first, or its value in
    `start`. `alt` puts a picture into words for those who cannot see it: a text with parameters in braces, or a
    function that takes what `draw` takes.

        explore(posterior, alt="Posterior after {heads} heads", heads=range(11), start={"heads": 3})
        explore(posterior, alt=describe, heads=range(5), tails=[0, 1, 10, 100])

    Raises ValueError unless there are one or two parameters, each with a value, and at most 24 frames in all.
    """
    for name, given in parameters.items():
        if not isinstance(given, Iterable) or getattr(given, "ndim", 1) == 0:
            raise UserError(f"{name} = {given}: must be its values, as [{given}]")
    if not isinstance(alt, str) and not callable(alt):
        raise UserError(f"alt = {alt}: must be a text or a function")
    values = {name: list(given) for name, given in parameters.items()}
    _check(values, start or {})
    width = f"{max(map(len, values)) + 1}ch"
    places = {name: given.index((start or {}).get(name, given[0])) for name, given in values.items()}
    sliders = [_slider(name, given, places[name], width) for name, given in values.items()]
    frames = {}
    for chosen in itertools.product(*(range(len(given)) for given in values.values())):
        frame = {name: given[index] for (name, given), index in zip(values.items(), chosen, strict=True)}
        frames[chosen] = f'<img src="{_picture(draw, frame)}" alt="{_words(alt, frame)}">'
    # Without ipywidgets 8 (Colab has 7) there is no Stack to link in the browser, but there always is a kernel.
    picture = _linked(sliders, frames) if hasattr(ipywidgets, "Stack") else _observed(sliders, frames)
    box = ipywidgets.VBox([*sliders, picture])
    box.add_class("explore")
    return box


def _check(values: dict[str, list[Any]], start: dict[str, Any]) -> None:
    if not 1 <= len(values) <= 2:
        raise UserError(f"parameters = {', '.join(values) or 'none'}: must be one or two, each with its values")
    for name, given in values.items():
        if not given:
            raise UserError(f"{name} = []: must have at least one value")
    for name, value in start.items():
        if value not in values.get(name, []):
            raise UserError(f"start = {{{name!r}: {value!r}}}: must be a parameter and one of its values")
    if (count := math.prod(map(len, values.values()))) > MAX_FRAMES:
        sizes = " x ".join(str(len(given)) for given in values.values())
        raise UserError(f"{', '.join(values)} = {sizes} values: must have at most {MAX_FRAMES} frames, not {count}")


def _slider(name: str, given: list[Any], place: int, width: str) -> ipywidgets.SelectionSlider:
    """A slider over positions in the list of values, so that any kind of value can be chosen."""
    labels = [str(value) for value in given]
    for digits in range(17, 3, -1):  # as few as tell floats apart
        short = [f"{value:.{digits}g}" if isinstance(value, float) else str(value) for value in given]
        labels = short if len(set(short)) == len(set(labels)) else labels
    slider = ipywidgets.SelectionSlider(
        options=list(zip(labels, range(len(given)), strict=True)),
        index=place,
        description=name.replace("_", " "),
        style={"description_width": width},
        layout=ipywidgets.Layout(width="100%", max_width="32em"),
    )
    slider.tooltip = f"{slider.description}: {labels[0]} to {labels[-1]}"
    return slider


def data_url(figure: Figure, dpi: float | int = DOTS_PER_INCH) -> str:
    """Return the URL of a lossless picture that holds it: nothing to fetch, so it shows wherever the notebook goes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="webp", dpi=dpi, pil_kwargs={"lossless": True})  # a third of a PNG's size
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _picture(draw: Callable[..., Figure], frame: dict[str, Any]) -> str:
    figure = draw(**frame)
    if not isinstance(figure, Figure):
        raise UserError(f"draw = a function returning {type(figure).__name__}: it must return a Matplotlib figure")
    if figure.get_layout_engine() is None:  # fit the labels in without changing the size from frame to frame
        figure.set_layout_engine("constrained")
    url = data_url(figure)
    plt.close(figure)
    return url


def _words(alt: str | Callable[..., str], frame: dict[str, Any]) -> str:
    try:
        words = alt(**frame) if callable(alt) else alt.format(**frame)
    except (KeyError, IndexError, ValueError) as error:
        if callable(alt):
            raise
        names = " ".join(f"{{{name}}}" for name in frame)
        words = f"must have no braces but {names}; TeX's own are doubled: {{{{ and }}}}"
        raise UserError(f"alt = {alt!r}: {words}") from error
    if not words.strip():
        raise UserError(f"alt = {alt!r}: must be words that describe the picture")
    return html.escape(words)


def _linked(
    sliders: list[ipywidgets.SelectionSlider], frames: dict[tuple[int, ...], str], chosen: tuple[int, ...] = ()
) -> ipywidgets.DOMWidget:
    """Stacks of frames, one inside the other, each turned by its slider in the browser."""
    if len(chosen) == len(sliders):
        return ipywidgets.HTML(frames[chosen])
    slider = sliders[len(chosen)]
    children = [_linked(sliders, frames, (*chosen, index)) for index in range(len(slider.options))]
    stack = ipywidgets.Stack(children, selected_index=slider.index)
    ipywidgets.jslink((slider, "index"), (stack, "selected_index"))
    return stack


def _observed(sliders: list[ipywidgets.SelectionSlider], frames: dict[tuple[int, ...], str]) -> ipywidgets.DOMWidget:
    """One frame, exchanged by the kernel whenever a slider moves."""
    picture = ipywidgets.HTML()

    def show(_: object = None) -> None:
        picture.value = frames[tuple(slider.index for slider in sliders)]

    show()
    for slider in sliders:
        slider.observe(show, "index")
    return picture


def thumbnails(entries: Iterable[tuple[str, str, Figure, dict[str, str]]]) -> HTML:
    """Return a grid of small pictures; an entry is a title, the page it links to, a figure, and verdicts by claim."""
    cards = []
    for title, link, figure, verdicts in entries:
        picture = data_url(figure, 400 / figure.get_figwidth())
        words = " ".join(_verdict(claim, verdict) for claim, verdict in verdicts.items())
        cards.append(
            f'<div><a href="{html.escape(link)}"><img src="{picture}" alt="the figure, small">'
            f"<br>{html.escape(title)}</a><br>{words}</div>"
        )
    style = "display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: 1.5rem"
    return HTML(f'<div class="thumbnails" style="{style}">{"".join(cards)}</div>')


def _verdict(claim: str, verdict: str) -> str:
    style = f"background: {COLOURS[verdict]}; color: white; padding: 0 0.4em; border-radius: 0.4em; white-space: nowrap"
    return f'<span style="{style}">{html.escape(claim)} {html.escape(verdict)}</span>'
