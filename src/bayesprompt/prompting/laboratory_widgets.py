"""The laboratory's sliders, buttons and curves: ipywidgets 7 or 8, and a kernel."""

import dataclasses
import html
import threading
import time
from typing import Any

import ipywidgets
from matplotlib.figure import Figure

from bayesprompt.checks import UserError
from bayesprompt.lab.plotting import METHOD_COLORS
from bayesprompt.lab.widgets import data_url
from bayesprompt.prompting import laboratory
from bayesprompt.prompting.laboratory import CHOICES, Outcome, Settings
from bayesprompt.store import Store

# Which of the target's numbers a target reads.
READS = {"one coin": ("bias",), "two coins": ("bias", "other", "weight"), "chain": ("stay",), "die": ("bias", "sides")}
RANGES = {
    "bias": (0.05, 0.95, 0.05),
    "other": (0.05, 0.95, 0.05),
    "weight": (0.1, 0.9, 0.1),
    "stay": (0.1, 0.9, 0.1),
    "sides": (3, 6, 1),
    "alpha": (0.5, 10.0, 0.5),
    "beta": (0.5, 10.0, 0.5),
    "width": (8, 128, 8),
    "pretraining_steps": (100, 2000, 100),
    "prefix_length": (1, 12, 1),
    "steps": (50, 2000, 50),
    "repetitions": (1, 5, 1),
}
EVERY = 0.4  # seconds between two pictures of a curve


class Laboratory(ipywidgets.VBox):
    """Settings, a button to start and one to stop, the training curve while it grows, and what became of it."""

    def __init__(self, store: Store | None = None, **settings: Any) -> None:
        self.store, self.outcome, self.seconds = store or laboratory.own_store(), None, 0.0
        self._stopping, self._thread, self._networks = threading.Event(), threading.Thread(), {}
        first = dataclasses.asdict(Settings(**settings))
        self.fields = {name: _field(name, first[name]) for name in first if name in CHOICES or name in RANGES}
        self.start, self.stop = ipywidgets.Button(description="Start"), ipywidgets.Button(description="Stop")
        self.keep, self.fetch = ipywidgets.Button(description="Save"), ipywidgets.Button(description="Load")
        self.stop.disabled = self.keep.disabled = True
        self.names = ipywidgets.Dropdown(options=laboratory.saved(self.store), description="saved")
        self.status, self.curve, self.result, self.code = (ipywidgets.HTML() for _ in range(4))
        self.start.on_click(self._begin)
        self.stop.on_click(self._halt)
        self.keep.on_click(self._save)
        self.fetch.on_click(self._load)
        for field in self.fields.values():
            field.observe(self._changed, "value")
        grid = ipywidgets.Layout(grid_template_columns="repeat(auto-fit, minmax(19em, 1fr))")
        fields, wrapped = ipywidgets.GridBox(list(self.fields.values()), layout=grid), {"flex_flow": "row wrap"}
        above = ipywidgets.HBox([self.start, self.stop, self.keep], layout=wrapped)
        below = ipywidgets.HBox([self.names, self.fetch], layout=wrapped)
        super().__init__([fields, above, self.status, self.curve, self.result, below, self.code])
        self.add_class("laboratory")
        self._changed()

    def settings(self) -> Settings:
        """Return what is set; raises UserError for what cannot be computed."""
        return Settings(**{name: field.value for name, field in self.fields.items()})

    def wait(self, seconds: float | int | None = None) -> Outcome | None:
        """Wait until what was started has ended, and return what became of it."""
        self._thread.join(seconds)
        return self.outcome

    def _changed(self, _: object = None) -> None:
        """Show the numbers that the target reads, and the code that does what is set."""
        target = self.fields["target"].value
        for name in {each for names in READS.values() for each in names}:
            self.fields[name].layout.display = None if name in READS.get(target, ()) else "none"
        self.fields["beta"].layout.display = "none" if target == "die" else None
        try:
            text = self.settings().code()
        except UserError as error:
            text = str(error)
        self.code.value = f"<details><summary>as code</summary><pre>{html.escape(text)}</pre></details>"

    def _begin(self, _: object) -> None:
        if self._thread.is_alive():
            return
        try:
            settings = self.settings()
        except UserError as error:
            self._say(str(error))
            return
        self._stopping.clear()
        self.start.disabled, self.stop.disabled, self.keep.disabled = True, False, True
        self.curve.value = self.result.value = ""
        self._say("compiling the training of the network")
        self._thread = threading.Thread(target=self._work, args=(settings,), daemon=True)
        self._thread.start()

    def _halt(self, _: object) -> None:
        self._stopping.set()
        self._say("stopping after the steps that are under way")

    def _work(self, settings: Settings) -> None:
        """In a thread of its own, so that the kernel stays free for the stop button."""
        began, losses, drawn = time.monotonic(), {}, 0.0

        def watch(stage: str, step: int, steps: int, loss: float) -> bool:
            nonlocal drawn
            losses.setdefault(stage, []).append((step, loss))
            if time.monotonic() - drawn > EVERY or step == steps:
                drawn = time.monotonic()
                self._say(f"{stage}: step {step} of {steps}")
                self.curve.value = _picture(_losses(losses), f"Loss of {' and '.join(losses)}, {step} of {steps} steps")
            return self._stopping.is_set()

        key = (settings.predictor(), settings.sources()[1], settings.pretraining_steps, settings.seed)
        try:
            self.outcome = laboratory.work(settings, self._networks.get(key), watch)
            stopped = self._stopping.is_set()
            if losses.get("training", [(settings.pretraining_steps, 0.0)])[-1][0] == settings.pretraining_steps:
                self._networks = {key: self.outcome.base}  # another method tunes the same network
            self.seconds = time.monotonic() - began
            self._show(f"{'stopped; what was done is kept' if stopped else 'done'}, in {self.seconds:.0f} s")
        except Exception as error:  # a thread's error would be seen by nobody
            self._say(f"{type(error).__name__}: {error}")
        finally:
            computed = self.outcome is not None and self.outcome.base is not None  # not one that was loaded
            self.start.disabled, self.stop.disabled, self.keep.disabled = False, True, not computed

    def _say(self, words: str) -> None:
        self.status.value = f'<p role="status">{html.escape(words)}</p>'

    def _show(self, words: str) -> None:
        """Show what became of it: regrets beside those of the exact predictors, and the belief that it imitates."""
        dataset = self.outcome.dataset
        last = float(dataset.regret[:, -1].median())
        steps = dataset.sizes["tuning_step"]
        self._say(f"{words}; {steps} tuning steps; regret after {dataset.sizes['n']} tokens {last:.2f} nats")
        held = f"It predicts like {html.escape(laboratory.belief(self.outcome))}."
        method = self.outcome.settings.method
        alt = f"Cumulative regret of {method}, {last:.2f} nats at the end, beside exact predictors"
        self.result.value = _picture(_regrets(self.outcome), alt) + f"<p>{held}</p>"

    def _save(self, _: object) -> None:
        try:
            name = laboratory.save(self.outcome, self.store, self.seconds)
        except OSError as error:
            self._say(f"not saved: {error}")
            return
        self.names.options = laboratory.saved(self.store)
        self.names.value = name
        self._say(f"saved as {name} in {self.store.folder}")

    def _load(self, _: object) -> None:
        if self._thread.is_alive():
            return
        try:
            self.outcome = laboratory.load(self.names.value, self.store)
        except UserError as error:
            self._say(str(error))
            return
        for name, field in self.fields.items():
            field.value = getattr(self.outcome.settings, name)
        self.curve.value, self.keep.disabled = "", True
        self._show(f"loaded {self.names.value}")


def _field(name: str, value: Any) -> ipywidgets.DOMWidget:
    words = {"description": name.replace("_", " "), "style": {"description_width": "9em"}}
    words["layout"] = ipywidgets.Layout(width="auto")
    if name in CHOICES:
        return ipywidgets.Dropdown(options=CHOICES[name], value=value, **words)
    low, high, step = RANGES[name]
    kind = ipywidgets.IntSlider if isinstance(step, int) else ipywidgets.FloatSlider
    return kind(value=value, min=low, max=high, step=step, continuous_update=False, **words)


def _losses(losses: dict[str, list[tuple[int, float]]]) -> Figure:
    figure = Figure(figsize=(7, 2.4), layout="constrained")
    for axes, (stage, points) in zip(figure.subplots(1, 2), losses.items(), strict=False):
        axes.plot(*zip(*points, strict=True), marker=".", color=METHOD_COLORS["FullWT"])
        axes.set(title=stage, xlabel="steps", ylabel="loss (nats a sequence)")
    return figure


def _regrets(outcome: Outcome) -> Figure:
    figure, dataset = Figure(figsize=(7, 3), layout="constrained"), outcome.dataset
    axes, method = figure.subplots(), outcome.settings.method
    axes.plot(dataset.n, dataset.regret.values.T, color=METHOD_COLORS[method], linewidth=0.8, alpha=0.6)
    axes.plot(dataset.n, dataset.regret.median("repetition"), color=METHOD_COLORS[method], linewidth=2, label=method)
    others = {"untuned": "NoTuning", "pretraining_bayes": "PreBayes", "target_bayes": "TargetBayes"}
    for (name, color), style in zip(others.items(), (":", "-.", "--"), strict=True):
        words = name.replace("_bayes", "'s Bayes predictor")
        axes.plot(dataset.n, dataset[name], style, color=METHOD_COLORS[color], label=words)
    axes.set(xlabel="tokens", ylabel="cumulative regret (nats)")
    axes.legend(fontsize=8)
    return figure


def _picture(figure: Figure, alt: str) -> str:
    return f'<img src="{data_url(figure, 100)}" alt="{html.escape(alt)}" style="max-width: 100%">'
