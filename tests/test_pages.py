"""The built pages in a real browser: whole, described in words, readable small and dark, sliders alive."""

import contextlib
import functools
import gzip
import http.server
import json
import re
import threading
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
import yaml
from axe_playwright_python.sync_playwright import Axe
from needs import missing
from playwright.sync_api import Browser, Response, expect

ROOT = Path(__file__).resolve().parents[1]
BOOK, HTML = ROOT / "book", ROOT / "build" / "book" / "_build" / "html"
SPECIAL = {"404.html", "genindex.html", "index.html", "search.html"}  # made by Sphinx, without text of ours
PAGES = sorted({str(p.relative_to(HTML)) for p in HTML.rglob("*.html") if "_static" not in p.parts} - SPECIAL)
STRICT = "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'"  # no script inside a page

SETTLED = """async () => {
  if (document.querySelector(".math")) {
    while (!window.MathJax?.startup?.promise) await new Promise(next => setTimeout(next, 20));
    await MathJax.startup.promise;
    await new Promise(next => setTimeout(next));
    dispatchEvent(new Event("beforeprint"));
  }
  for (const image of document.images) image.loading = "eager";
  await Promise.all([...document.images].map(image => image.decode().catch(() => {})));
}"""

# Every picture with its words, its width and, if it is the output of a cell, its caption.
PICTURES = """[...document.images].map(image => {
  const caption = image.closest("figure")?.querySelector("figcaption")?.textContent ?? "";
  const due = image.closest(".cell_output") && !image.closest("a");
  return [image.src.slice(0, 99), image.alt, image.naturalWidth, due ? caption : "none due"];
})"""

# Every picture, slider and formula that ends beyond a narrow screen or is hidden in part where no scrolling leads.
OUTSIDE = """[...document.querySelectorAll("article :is(img, .explore input, mjx-container, .math):not(table *)")]
  .filter(element => {
    const box = (element.closest("span.math") ?? element).getBoundingClientRect();  // a formula scrolls within its line
    const hides = element.scrollWidth > element.clientWidth + 1 && getComputedStyle(element).overflowX === "hidden";
    return box.left < 0 || box.right > 400 || (hides && element.clientWidth);
  }).map(element => `${element.className} ${element.textContent.slice(0, 99)}`)"""

# How many formulas stop a reader who moves by the Tab key, though nothing is there to scroll.
STOPS = """[...document.querySelectorAll("mjx-container[tabindex]")]
  .filter(formula => getComputedStyle(formula).overflowX === "visible").length"""

# Every displayed formula and every table of which a part, a formula's number say, lies beyond the column of text.
CUT = """[...document.querySelectorAll("article :is(mjx-container[display], .cell_output table)")].filter(whole => {
  for (let e = whole; e; e = e.parentElement) if (e.tagName === "DETAILS") e.open = true;
  const column = whole.closest("section, details, li, .admonition").getBoundingClientRect();
  return [...whole.querySelectorAll("*")].some(part => part.getBoundingClientRect().right > column.right + 1);
}).map(whole => whole.textContent.slice(0, 99))"""

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
def visit(browser: Browser, site: str):
    """Open a page, wait until it stands, and see to it that nothing goes wrong while it is open."""

    @contextlib.contextmanager
    def open_page(name: str):
        problems, weights = [], {}
        with browser.new_context() as context:
            page = context.new_page()
            page.route(lambda url: not url.startswith((site, "data:")), lambda route: route.abort())
            page.on(
                "request", lambda r: problems.append(f"asks {r.url}") if not r.url.startswith((site, "data:")) else None
            )
            page.on("response", lambda r: problems.append(f"{r.status} for {r.url}") if r.status >= 400 else None)
            page.on("response", lambda r: weights.update({r.url: weight(r)}))
            page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.goto(site + name, wait_until="networkidle")
            at_first = dict(weights)
            page.evaluate(SETTLED)
            yield page, at_first
        assert not problems

    return open_page


@pytest.fixture(scope="module", params=[*PAGES, "404.html", "search.html"] if PAGES else ["no pages"])
def opened(request, visit):
    """Each page, opened once for all tests of it: its name, the page, and the bytes of each file that it loaded."""
    with visit(request.param) as (page, weights):
        yield request.param, page, weights


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_) -> None:
        pass

    def end_headers(self) -> None:
        if self.path.startswith("/strict/"):
            self.send_header("Content-Security-Policy", STRICT)
        super().end_headers()

    def copyfile(self, source, outputfile) -> None:
        with contextlib.suppress(ConnectionError):  # of a page that was left before it had all
            super().copyfile(source, outputfile)

    def translate_path(self, path: str) -> str:
        """The page for wrong addresses names files from the site's root, which may lie in a folder of its host."""
        path = path.removeprefix("/strict")
        site = yaml.safe_load((HTML.parents[1] / "_config.yml").read_text())["html"].get("baseurl", "")
        return super().translate_path("/" + path.removeprefix(urlsplit(site).path or "/"))


def written_sliders(name: str) -> int:
    """How many sliders the chapter of a page asks for."""
    chapter = (BOOK / name).with_suffix(".ipynb")
    cells = json.loads(chapter.read_text())["cells"] if chapter.exists() else []
    return sum("explore(" in "".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def weight(response: Response) -> int:
    """Bytes of an answer on its way."""
    body = response.body()
    return len(gzip.compress(body) if re.search("text|javascript|json|svg", response.headers["content-type"]) else body)


def test_a_page_loads_little_before_a_slider_is_touched(opened):
    """In bytes on the way, texts compressed as web servers do."""
    name, _, weights = opened
    assert sum(weights.values()) <= 1_500_000, weights
    assert (HTML / name).stat().st_size <= 600_000


def test_a_page_is_whole_and_its_pictures_are_explained(opened):
    name, page, _ = opened
    assert page.locator("mjx-merror, [data-mjx-error], .math:not(:has(mjx-container))").count() == 0
    assert page.evaluate(STOPS) == 0
    assert page.locator(".explore").count() == written_sliders(name)
    pictures = page.evaluate(PICTURES)
    assert [source for source, alt, *_ in pictures if not alt.strip()] == [], "without words"
    assert [source for source, _, width, _ in pictures if not width] == [], "not there"
    assert [source for source, *_, caption in pictures if not caption.strip()] == [], "without a caption"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_stands_out_and_no_rule_for_accessible_pages_is_broken(opened, scheme):
    _, page, _ = opened
    page.add_style_tag(content="* { transition: none !important }")  # colours are those that it comes to
    page.emulate_media(color_scheme=scheme)
    expect(page.locator("html")).to_have_attribute("data-theme", scheme)
    if page.locator("article").count():
        assert page.evaluate(FAINT) == []
    options = {"preload": False} | ({"runOnly": ["color-contrast"]} if scheme == "dark" else {})  # all else is the same
    found = Axe().run(page, options=options).response["violations"]
    assert [(rule["help"], [node["html"][:200] for node in rule["nodes"]]) for rule in found] == []


def test_formulas_and_tables_end_with_the_column(opened):
    _, page, _ = opened
    page.set_viewport_size({"width": 1300, "height": 900})
    assert page.evaluate(CUT) == []


def test_a_page_fits_a_width_of_400_pixels(opened):
    _, page, _ = opened
    wide = page.viewport_size
    page.set_viewport_size({"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert page.evaluate(OUTSIDE) == []
    page.set_viewport_size(wide)


def test_every_slider_moves_its_picture_by_keys_and_says_its_value(opened):
    _, page, _ = opened
    address = page.url
    for explorer in page.locator(".explore").all():
        picture = explorer.locator("img")
        for slider in explorer.get_by_role("slider").all():
            assert slider.evaluate("slider => slider.labels[0].textContent.trim()")
            if slider.get_attribute("max") == "0":
                continue  # one value, nowhere to go
            seen, said = picture.get_attribute("src"), slider.get_attribute("aria-valuetext")
            slider.press("ArrowLeft" if slider.input_value() == slider.get_attribute("max") else "ArrowRight")
            expect(picture).not_to_have_attribute("src", seen)
            expect(slider).not_to_have_attribute("aria-valuetext", said)
            page.evaluate(SETTLED)
            assert picture.evaluate("image => image.naturalWidth"), "not there"
    assert page.url == address, "an arrow key moved a slider and turned the page too"


def test_arrow_keys_turn_pages(visit):
    with visit("foundations/bayes_predictors.html") as (page, _):
        page.keyboard.press("ArrowRight")
        page.wait_for_url("**/foundations/in_context_learning.html")
        page.keyboard.press("ArrowLeft")
        page.wait_for_url("**/foundations/bayes_predictors.html")


@pytest.mark.parametrize(
    ("words", "chapter"),
    [
        ("soft prompt", "prompting/tuning_methods"),
        ("Laplace", "foundations/bayes_predictors"),
        ("LoRA", "prompting/tuning_methods"),
    ],
)
def test_search_needs_no_server_and_finds_where_a_word_is_explained(browser, words, chapter):
    if not PAGES:
        missing("the book is not built: `make book`")
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(f"{(HTML / 'search.html').as_uri()}?q={quote(words)}")
        first = page.locator("#search-results ul.search > li > a").first
        assert first.get_attribute("href").partition("#")[0] == f"{chapter}.html"


def test_the_site_is_small():
    if not PAGES:
        missing("the book is not built: `make book`")
    assert sum(path.stat().st_size for path in HTML.rglob("*") if path.is_file()) <= 60_000_000
