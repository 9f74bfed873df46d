"""The page `play` in a real browser: its numbers are the package's, and all that a reader can do to it works."""

import functools
import json
import os
import shutil

import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest
from playwright.sync_api import Page, expect, sync_playwright

from bayesprompt.models.predictor import predict_all
from bayesprompt.models.prefixes import NO_PREFIX
from bayesprompt.prompting import play
from bayesprompt.sources import BetaCoins
from bayesprompt.store import SHIPPED, Store

QUIET = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
# P(heads) of every predictor before each flip of each sequence, and the mean time of a step of the last sequence, ms.
PREDICT = """async ([exact, sequences]) => {
  const data = JSON.parse(document.getElementById(exact ? "exact" : "packed").textContent);
  const { modelOf, begin } = bayespromptPlay;
  const found = {};
  for (const predictor of data.predictors) {
    // Two forms of one network have one name: here each has its own.
    const model = await modelOf(data, { ...predictor, network: predictor.network && exact + predictor.network });
    const first = begin(model, predictor);
    let began = 0;
    const probabilities = sequences.map(tokens => {
      let state = first;
      began = performance.now();
      return tokens.map(token => {
        const now = model.heads(state);
        state = model.read(state, model.embed(token ? [0, 1] : [1, 0]));
        return now;
      });
    });
    found[predictor.name] = [probabilities, (performance.now() - began) / sequences[0].length];
  }
  return found;
}"""


@pytest.fixture(scope="module")
def browser():
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    if not (program := next(filter(None, map(shutil.which, names)), None)):
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("no browser: install Chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=QUIET.split())
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def shipped(tmp_path_factory) -> Store:
    return Store(tmp_path_factory.mktemp("empty"), SHIPPED)


@pytest.fixture(scope="module")
def html(shipped) -> str:
    figure = plt.figure(figsize=(1, 1))
    made = play.page(figure, 'a "figure"', "what it shows", shipped).data
    plt.close(figure)
    return f'<!doctype html><html lang="en"><title>play</title><body><input id="elsewhere">{made}</body></html>'


@pytest.fixture
def page(browser, html) -> Page:
    with browser.new_context(viewport={"width": 900, "height": 900}) as context:
        page = context.new_page()
        problems = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.set_content(html)
        expect(page.locator(".says")).to_contain_text("After 0 flips")
        yield page
        assert not problems


@pytest.fixture(scope="module")
def sequences() -> np.ndarray:
    """Twenty sequences of 200 flips, each of a coin of its own."""
    return np.asarray(BetaCoins().sample(jax.random.key(22), 20, 200)[0])


@functools.cache
def script() -> str:
    return (play.resources.files("bayesprompt.prompting") / "play.js").read_text("utf-8")


@pytest.fixture(scope="module")
def computed(browser, shipped, sequences) -> dict[bool, dict]:
    """What the browser computes with weights of twelve bits (False) and of float32 (True)."""
    found = {}
    for exact in (False, True):
        data = play.data(shipped, exact)
        data["networks"] = {f"{str(exact).lower()}{name}": value for name, value in data["networks"].items()}
        with browser.new_context() as context:
            page = context.new_page()
            text = json.dumps(data)
            name = "exact" if exact else "packed"
            page.set_content(f'<script type="application/json" id="{name}">{text}</script><script>{script()}</script>')
            found[exact] = page.evaluate(PREDICT, [exact, sequences.tolist()])
    return found


@functools.cache
def reference(shipped: Store, name: str) -> tuple[np.ndarray, play.Offered]:
    """What the package computes for a predictor of the page."""
    (one,) = [each for each in play.offered(shipped) if each.name == name]
    tokens = np.asarray(BetaCoins().sample(jax.random.key(22), 20, 200)[0])
    return probabilities(one, tokens), one


def probabilities(one: play.Offered, tokens: np.ndarray) -> np.ndarray:
    if isinstance(one.model, tuple):
        return np.exp(predict_all(*one.model, one.prefix, tokens)[..., 0])
    prompt = np.zeros(0, int) if one.prefix == NO_PREFIX else np.asarray(one.prefix.inputs).argmax(1)
    whole = np.concatenate([np.tile(prompt, (len(tokens), 1)), tokens], axis=1)
    return np.exp(one.model.bayes_log_probs(whole)[:, len(prompt) :, 0])


@pytest.mark.slow
def test_every_predictor_says_in_the_browser_what_it_says_in_the_package(computed, shipped, sequences):
    assert len(computed[True]) >= 40
    for one in play.offered(shipped):
        expected = probabilities(one, sequences)
        packed, whole = (np.abs(np.array(computed[exact][one.name][0]) - expected).max() for exact in (False, True))
        times = [computed[exact][one.name][1] for exact in (False, True)]
        loss = [
            -np.log(np.where(sequences == 0, p, 1 - p)).sum(1) for p in (expected, np.array(computed[False][one.name][0]))
        ]
        cost = loss[1] - loss[0]
        print(f"{one.name:45s} {packed:.1e} {whole:.1e} {min(times):.3f} ms; regret {cost.mean():+.5f} {np.abs(cost).max():.5f}")
        assert packed <= 1e-3, one.name
        assert whole <= 1e-5, one.name
        assert min(times) <= 2, one.name
