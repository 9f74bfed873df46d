"""The book as one PDF, build/bayesprompt.pdf: all chapters on one long page, printed by a browser."""

import shutil
import sys

from chapters import BUILD, run
from playwright.sync_api import sync_playwright

from book import prepare

PAGES, PDF = BUILD / "pdf", BUILD / "bayesprompt.pdf"
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"

# Solutions are opened, pictures fetched, formulas written; the contents are the theme's own.
READY = """async () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
  for (const image of document.images) image.loading = "eager";
  await Promise.all([...document.images].map(image => image.decode().catch(() => {})));
  while (!window.MathJax?.startup?.promise) await new Promise(next => setTimeout(next, 20));
  await MathJax.startup.promise;
  await new Promise(next => setTimeout(next));
  dispatchEvent(new Event("beforeprint"));
}"""
NUMBER = '<div style="font-size: 8px; width: 100%; text-align: center"><span class="pageNumber"></span></div>'


def print_book() -> None:
    """Make the long page and print it with contents, links and page numbers; a warning of Sphinx is an error."""
    prepare(PAGES, one_page=True)
    if code := run("jupyter-book", "build", str(PAGES), "--builder", "singlehtml", "-W", "--keep-going", "--quiet"):
        sys.exit(code)
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    program = next(filter(None, map(shutil.which, names)), None) or sys.exit("no browser: install Chromium")
    margins = {side: "18mm" for side in ("top", "right", "bottom", "left")}
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=program, args=FLAGS.split()) as browser,
    ):
        page = browser.new_page()
        page.set_default_timeout(600_000)
        page.goto((PAGES / "_build" / "singlehtml" / "intro.html").as_uri())  # index.html only leads there
        page.evaluate(READY)
        page.pdf(
            path=PDF,
            format="A4",
            outline=True,
            tagged=True,
            margin=margins,
            print_background=True,
            display_header_footer=True,
            header_template="<span></span>",
            footer_template=NUMBER,
        )
    print(PDF)


if __name__ == "__main__":
    print_book()
