"""The built pages in a real browser: whole, described in words, readable small and dark, sliders alive."""

import functools
import http.server
import os
import shutil
import threading
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

HTML = Path(__file__).resolve().parents[1] / "build" / "book" / "_build" / "html"
SPECIAL = {"index.html", "genindex.html", "search.html"}  # made by Sphinx, without text of ours
PAGES = sorted({str(p.relative_to(HTML)) for p in HTML.rglob("*.html") if "_static" not in p.parts} - SPECIAL)
QUIET = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
QUIET = [*QUIET.split(), "--disable-component-update", "--disable-sync"]
every_page = pytest.mark.parametrize("name", PAGES or ["no pages"])

VIEW = "script[type='application/vnd.jupyter.widget-view+json']"
DRAWN = f"""() => document.querySelectorAll(".explore").length === document.querySelectorAll("{VIEW}").length
  && [...document.querySelectorAll(".explore [role=slider]")].every(slider => slider.getAttribute("aria-label"))"""
SETTLED = """async () => {
  await window.MathJax?.startup?.promise;
  await Promise.all([...document.images].map(image => image.decode().catch(() => {})));
}"""

# Every picture with its words, its width and, if it is the output of a cell, its caption.
PICTURES = """[...document.images].map(image => {
  const caption = image.closest("figure")?.querySelector("figcaption")?.textContent ?? "";
  return [image.src.slice(0, 99), image.alt, image.naturalWidth, image.closest(".cell_output") ? caption : "none due"];
})"""

# Every picture, slider and formula that ends beyond a narrow screen or is hidden in part where no scrolling leads.
OUTSIDE = """[...document.querySelectorAll("article :is(img, .widget-slider, mjx-container, .math):not(table *)")]
  .filter(element => {
    const box = element.getBoundingClientRect();
    const hides = element.scrollWidth > element.clientWidth + 1 && getComputedStyle(element).overflowX === "hidden";
    return box.left < 0 || box.right > 400 || (hides && element.clientWidth);
  }).map(element => `${element.className} ${element.textContent.slice(0, 99)}`)"""

# Every piece of text on the page whose contrast with what lies behind it is under 4.5 (WCAG AA).
FAINT = """() => {
  const canvas = Object.assign(document.createElement("canvas"), {width: 1, height: 1}).getContext("2d");
  const luminance = colours => {  // of the last colour over the ones before it, as the browser would show it
    for (const colour of ["white", ...colours]) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map(byte => byte / 255)
      .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const faint = new Set();
  const texts = document.createTreeWalker(document.querySelector("article"), NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const [text, element] = [texts.currentNode.data.trim(), texts.currentNode.parentElement];
    if (!text || element.closest("svg, script, style, noscript, mjx-assistive-mml, .headerlink")) continue;
    if (!element.checkVisibility({checkOpacity: true, checkVisibilityCSS: true})) continue;
    const behind = [];
    for (let e = element; e; e = e.parentElement) behind.unshift(getComputedStyle(e).backgroundColor);
    const both = [luminance(behind), luminance([...behind, getComputedStyle(element).color])];
    const contrast = (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
    if (contrast < 4.5) faint.add(`${contrast.toFixed(1)} ${element.tagName}: ${text.slice(0, 40)}`);
  }
  return [...faint];
}"""


@pytest.fixture(scope="module")
def site():
    """Address of a server of the pages on this machine."""
    if not PAGES:
        missing("the book is not built: `make book`")
    handler = functools.partial(QuietHandler, directory=HTML)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    if not (program := next(filter(None, map(shutil.which, names)), None)):
        missing("no browser: install Chromium, in Debian `apt-get install chromium`")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser, site: str):
    """Open a page, wait until it stands, and see to it that nothing went wrong while it was open."""
    opened, problems = [], []

    def open_page(name: str, **settings) -> Page:
        context = browser.new_context(**settings)
        opened.append(context)
        page = context.new_page()
        page.route(lambda url: not url.startswith((site, "data:")), lambda route: route.abort())
        page.on(
            "request", lambda r: problems.append(f"asks {r.url}") if not r.url.startswith((site, "data:")) else None
        )
        page.on("response", lambda r: problems.append(f"{r.status} for {r.url}") if r.status >= 400 else None)
        page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(site + name)
        page.wait_for_function(DRAWN)
        page.evaluate(SETTLED)
        return page

    yield open_page
    for context in opened:
        context.close()
    assert not problems


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_) -> None:
        pass


def missing(what: str) -> None:
    """A visible skip on a reader's machine, a failure in continuous integration."""
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(what)


@every_page
def test_a_page_is_whole_and_its_pictures_are_explained(visit, name):
    page = visit(name)
    assert page.locator("mjx-merror, [data-mjx-error]").count() == 0
    assert (
        page.locator("script[type='application/vnd.jupyter.widget-view+json']").count()
        == page.locator(".explore").count()
    )
    pictures = page.evaluate(PICTURES)
    assert [source for source, alt, *_ in pictures if not alt.strip()] == [], "without words"
    assert [source for source, _, width, _ in pictures if not width] == [], "not there"
    assert [source for source, *_, caption in pictures if not caption.strip()] == [], "without a caption"


@every_page
def test_a_page_fits_a_width_of_400_pixels(visit, name):
    page = visit(name, viewport={"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert page.evaluate(OUTSIDE) == []


@every_page
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_of_a_page_stands_out(visit, name, scheme):
    page = visit(name, color_scheme=scheme)
    if page.locator("article").count():
        assert page.locator("html").get_attribute("data-theme") == scheme
        assert page.evaluate(FAINT) == []


@every_page
def test_every_slider_moves_its_picture(visit, name):
    page = visit(name)
    for explorer in page.locator(".explore").all():
        picture = explorer.locator("img:visible")
        for slider in explorer.get_by_role("slider").all():
            if slider.get_attribute("aria-valuemax") == slider.get_attribute("aria-valuemin"):
                continue  # one value, nowhere to go
            before = picture.get_attribute("src")
            slider.press("ArrowRight")
            expect(picture).not_to_have_attribute("src", before)
