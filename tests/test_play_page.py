"""The built page `play`: it works under a strict policy, and all that it fetches is light."""

from playwright.sync_api import expect
from test_pages import site, visit, weight  # noqa: F401 (two are fixtures)


def test_a_reader_plays_under_a_strict_policy(visit):  # noqa: F811
    """Any violation is an error on the console, and `visit` finds it."""
    with visit("strict/play.html") as (page, _):
        said = page.locator(".play .says")
        expect(said).to_contain_text("After 0 flips")
        page.keyboard.press("h")
        page.keyboard.press("t")
        page.get_by_role("button", name="alternating").click()
        expect(said).to_contain_text("After 12 flips, 6 of them heads, P(heads) is: Laplace's rule 0.50")
        page.locator(".play .seat select").nth(3).select_option(label="Transformer SoftPT 0.2")
        expect(said).to_contain_text("Transformer SoftPT 0.2 0.2")
        page.locator(".play .strength").nth(3).press("ArrowLeft")
        assert page.locator(".play .rows output").nth(6).inner_text() == "99 %"
        assert page.url.endswith("play.html"), "an arrow key moved a slider and turned the page too"


def test_everything_on_the_page_to_play_is_light(browser, site):  # noqa: F811
    with browser.new_context() as context:
        page, weights = context.new_page(), {}
        page.on("response", lambda response: weights.update({response.url: weight(response)}))
        page.goto(site + "play.html", wait_until="networkidle")
        for name in ("LSTM untrained", "Transformer", "Transformer untrained"):
            page.locator(".play .seat select").first.select_option(label=name)
            expect(page.locator(".play .says")).to_contain_text(f"{name} 0.")
        page.wait_for_load_state("networkidle")
    print(f"the page to play with everything: {sum(weights.values())} bytes")
    assert sum(weights.values()) <= 1_500_000, weights
