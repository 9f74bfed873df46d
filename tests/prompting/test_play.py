"""The page `play` in a real browser: its numbers are the package's, and all that a reader can do to it works."""

import functools
import json
import os

import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest
from playwright.sync_api import Page, expect

from bayesprompt.models.predictor import predict_all
from bayesprompt.models.prefixes import NO_PREFIX, Prefix
from bayesprompt.prompting import play
from bayesprompt.sources import BetaCoins
from bayesprompt.store import SHIPPED, Store

WHOLE = 4  # sequences that weights of float32 read

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
    """What the browser computes with weights of twelve bits (False), and of float32 for the first `WHOLE` (True)."""
    found = {}
    for exact in (False, True):
        data = play.data(shipped, exact)
        data["networks"] = {f"{str(exact).lower()}{name}": value for name, value in data["networks"].items()}
        with browser.new_context() as context:
            page = context.new_page()
            text = json.dumps(data)
            name = "exact" if exact else "packed"
            page.set_content(f'<script type="application/json" id="{name}">{text}</script><script>{script()}</script>')
            found[exact] = page.evaluate(PREDICT, [exact, sequences[: WHOLE if exact else None].tolist()])
    return found


def losses(probabilities: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    return -np.log(np.where(tokens == 0, probabilities, 1 - probabilities)).sum(1)


@pytest.mark.slow
def test_every_predictor_says_in_the_browser_what_it_says_in_the_package(computed, shipped, sequences):
    assert len(computed[True]) >= 40
    for one in play.offered(shipped):
        if isinstance(one.model, tuple):
            expected = np.exp(predict_all(*one.model, one.prefix, sequences)[..., 0])
        else:  # by its own function for whole sequences, not by counts
            prompt = np.zeros(0, int) if one.prefix == NO_PREFIX else np.asarray(one.prefix.inputs).argmax(1)
            whole = np.concatenate([np.tile(prompt, (len(sequences), 1)), sequences], axis=1)
            expected = np.exp(one.model.bayes_log_probs(whole)[:, len(prompt) :, 0])
        np.testing.assert_allclose(play.probabilities(one, sequences), expected, rtol=1e-12)
        packed, whole = (np.array(computed[exact][one.name][0]) for exact in (False, True))
        differences = [np.abs(found - expected[: len(found)]).max() for found in (packed, whole)]
        cost = losses(packed, sequences) - losses(expected, sequences)
        milliseconds = min(computed[exact][one.name][1] for exact in (False, True))
        print(
            f"{one.name:45s} {differences[0]:.1e} {differences[1]:.1e}, {milliseconds:.3f} ms a step, "
            f"rounding costs {cost.mean():+.4f} nats in the mean, {np.abs(cost).max():.4f} at most"
        )
        assert differences[0] <= 1e-3 and differences[1] <= 1e-5, one.name
        assert milliseconds <= 2 * max(1, os.getloadavg()[0] / os.cpu_count()), (
            "on a machine used by others, the longer"
        )


def test_twelve_bits_are_the_nearest_of_their_column():
    matrix = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32) * [1, 1e-3, 0]
    whole, scale = play.twelve_bits(matrix)
    assert np.abs(whole).max(0).tolist() == [2047, 2047, 0]
    assert (np.abs(whole * scale - matrix) <= 0.5001 * scale).all()


def said(page: Page, number: int = 0, what: str = "now") -> str:
    return page.locator(f".seat .{what}").nth(number).inner_text()


def test_buttons_and_keys_flip_and_are_taken_back(page):
    assert said(page) == "0.500"
    page.get_by_role("button", name="Heads", exact=True).click()
    page.keyboard.press("t")
    page.keyboard.press("T")
    assert page.locator(".count").inner_text() == "3 flips, 1 head" and said(page) == "0.400"
    page.keyboard.press("Control+h")
    page.locator("#elsewhere").press("h")
    page.locator(".own").press("t")
    page.locator(".seat select").first.press("h")
    assert page.locator(".count").inner_text() == "3 flips, 1 head"
    page.get_by_role("button", name="alternating").click()
    assert page.locator(".count").inner_text() == "13 flips, 6 heads"
    page.get_by_role("button", name="Undo").click()
    assert page.locator(".count").inner_text() == "3 flips, 1 head"
    for _ in range(21):
        page.get_by_role("button", name="0.8 coin").click()
    assert page.locator(".count").inner_text().startswith("200 flips")
    page.get_by_role("button", name="Clear").click()
    assert page.locator(".count").inner_text() == "0 flips, 0 heads" and said(page) == "0.500"
    page.locator(".keys").uncheck()
    page.keyboard.press("h")
    assert page.locator(".count").inner_text() == "0 flips, 0 heads"


def test_losses_regrets_and_the_leader(page):
    for key in "tth":
        page.keyboard.press(key)
    loss = -np.log(1 / 2 * 2 / 3 * 1 / 4)
    assert said(page, what="loss") == f"{loss:.2f}"
    assert said(page, what="regret") == f"{loss + np.log(0.8 * 0.8 * 0.2):.2f}"
    page.locator(".truth").select_option("own")
    page.locator(".own").fill("0.4")
    page.locator(".own").press("Tab")
    assert said(page, what="regret") == f"{loss + np.log(0.6 * 0.6 * 0.4):.2f}"
    all_losses = [float(said(page, i, "loss")) for i in range(4)]
    leaders = [i for i, text in enumerate(page.locator(".seat legend").all_inner_texts()) if "leads" in text]
    assert leaders == [int(np.argmin(all_losses))]


def test_beliefs_are_exact_for_betas_and_a_dash_where_there_is_none(page):
    for key in "tth":
        page.keyboard.press(key)
    assert said(page, what="belief") == "Beta(2.00, 3.00)"
    choose(page, 0, "Laplace best prompt 0.2")
    assert said(page, what="belief") == "Beta(3.00, 8.00)"
    choose(page, 0, "Bayes for 0.2")
    assert said(page, what="belief") == "–"


def choose(page: Page, number: int, name: str) -> None:
    page.locator(".seat select").nth(number).select_option(label=name)
    expect(page.locator(".seat").nth(number)).not_to_have_attribute("aria-busy", "true")


def test_a_prompts_tokens_are_turned(page):
    choose(page, 0, "Laplace best prompt 0.2")
    assert said(page) == "0.250"
    first = page.locator(".seat").first.get_by_role("button", name="prompt token")
    turned = [i for i, text in enumerate(first.all_inner_texts()) if text == "T"][0]
    first.nth(turned).click()
    assert said(page) == "0.375" and first.nth(turned).inner_text() == "H"
    first.nth(turned).press("Enter")  # it kept the focus
    assert said(page) == "0.250"


def test_a_soft_prompt_between_neutral_and_tuned_and_with_noise(page, shipped):
    (one,) = [each for each in play.offered(shipped) if each.name == "LSTM SoftPT 0.2"]
    embedding = one.model[1]["embedding"]
    neutral = np.asarray(embedding["bias"] + embedding["kernel"].mean(0))
    half = one._replace(prefix=Prefix(embeddings=(neutral + np.asarray(one.prefix.embeddings)) / 2))
    tuned, expected = (play.probabilities(each, np.zeros((1, 2), int))[0, 0] for each in (one, half))
    assert abs(float(said(page, 3)) - tuned) < 2e-3
    page.locator(".strength").nth(3).fill("50")
    assert abs(float(said(page, 3)) - expected) < 2e-3
    page.locator(".strength").nth(3).fill("100")
    page.locator(".noise").nth(3).fill("100")
    noisy = said(page, 3)
    page.locator(".draw").nth(3).click()
    assert said(page, 3) != noisy
    page.locator(".noise").nth(3).fill("0")
    assert abs(float(said(page, 3)) - tuned) < 2e-3


def test_what_it_says_is_said_at_once_then_only_the_last_of_many(page):
    said = page.locator(".says")
    page.evaluate("""window.told = 0; new MutationObserver(() => told++).observe(
      document.querySelector(".says"), {childList: true, characterData: true, subtree: true})""")
    for key in "hhhhhhhhtt":
        page.keyboard.press(key)
    expect(said).to_contain_text("After 10 flips, 8 of them heads, P(heads) is: Laplace's rule 0.75")
    assert page.evaluate("told") <= 4
    assert said.get_attribute("aria-live") == "polite"


def test_no_script_and_paper_show_the_figure(browser, html):
    with browser.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        page.set_content(html)
        expect(page.get_by_role("img", name='a "figure"')).to_be_visible()
        expect(page.locator(".live")).to_be_hidden()
    with browser.new_context() as context:
        page = context.new_page()
        page.set_content(html)
        expect(page.locator(".live")).to_be_visible()
        expect(page.locator(".still")).to_be_hidden()
        page.emulate_media(media="print")
        expect(page.locator(".live")).to_be_hidden()
        expect(page.locator(".still")).to_be_visible()
