"""The book as one PDF, build/bayesprompt.pdf: all chapters on one long page, printed by a browser, and checked."""

import shutil
import sys
from collections.abc import Iterator

import pikepdf
from chapters import BUILD, run
from playwright.sync_api import sync_playwright

from book import prepare

PAGES, PDF = BUILD / "pdf", BUILD / "bayesprompt.pdf"
MOST_BYTES = 30_000_000
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"

# Solutions are opened, pictures fetched, formulas written; the contents are the theme's own. The code of figures, which
# a screen shows folded, is left out.
READY = """async () => {
  for (const details of document.querySelectorAll("details.hide"))
    if (details.textContent.includes("code cell source")) details.remove();
  for (const link of document.querySelectorAll('a[href*=".html"]'))
    if (link.protocol === "file:") {  // of a chapter's output, which knows nothing of the long page
      const name = link.pathname.match(/[^/]+\\/[^/]+(?=[.]html)/)[0];
      const places = [link.hash.slice(1), "document-" + name, "document-" + name.split("/")[1]];
      const place = places.find(id => document.getElementById(id));
      if (place) link.setAttribute("href", "#" + place);  // else it stays, and is found below
    }
  for (const details of document.querySelectorAll("details")) details.open = true;
  for (const image of document.images) image.loading = "eager";
  await Promise.all([...document.images].map(image => image.decode().catch(() => {})));
  while (!window.MathJax?.startup?.promise) await new Promise(next => setTimeout(next, 20));
  await MathJax.startup.promise;
  await new Promise(next => setTimeout(next));
  dispatchEvent(new Event("beforeprint"));
  return [...document.querySelectorAll(".math")].filter(formula => !formula.querySelector("mjx-container")).length;
}"""
# What the outline ought to say: the browser's own repeats headings and drops spaces where a line ends.
HEADINGS = """() => [...document.querySelectorAll("h1, h2, h3, h4, h5, h6, [role=heading]")]
  .filter(heading => heading.getClientRects().length)
  .map(heading => heading.innerText.replace(/#\\s*$/, "").replace(/\\s+/g, " ").trim())"""
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
        if missing := page.evaluate(READY):
            sys.exit(f"{missing} formulas were not written")
        page.emulate_media(media="print")
        headings = page.evaluate(HEADINGS)
        page.pdf(
            path=PDF,
            format="A4",
            scale=0.8,
            outline=True,
            tagged=True,
            margin=margins,
            print_background=True,
            display_header_footer=True,
            header_template="<span></span>",
            footer_template=NUMBER,
        )
    finish(headings)


def finish(headings: list[str]) -> None:
    """Name and pack what was printed, which is mostly structure in plain text; local links, or 30 MB, are an error."""
    with pikepdf.open(PDF, allow_overwriting_input=True) as printed:
        notes = (note for page in printed.pages for note in page.get("/Annots", []))
        links = {str(note.A.URI) for note in notes if "/URI" in note.get("/A", {})}
        if broken := sorted(link for link in links if not link.startswith("https://")):
            sys.exit(f"links that lead nowhere on paper: {', '.join(broken)}")
        with printed.open_outline() as outline:
            entries = list(walk(outline.root))
            for entry, heading in zip(entries, headings, strict=True):
                if "".join(heading.split()) not in "".join(entry.title.split()):
                    sys.exit(f"outline: {entry.title!r} where the page has {heading!r}")
                entry.title = heading
        printed.save(object_stream_mode=pikepdf.ObjectStreamMode.generate)
    if (size := PDF.stat().st_size) > MOST_BYTES:
        sys.exit(f"{PDF}: {size / 1e6:.1f} MB, more than {MOST_BYTES / 1e6:.0f}")
    print(PDF)


def walk(entries: list[pikepdf.OutlineItem]) -> Iterator[pikepdf.OutlineItem]:
    """Entries of an outline in the order of the pages."""
    for entry in entries:
        yield entry
        yield from walk(entry.children)


if __name__ == "__main__":
    print_book()
