"""What the theme, Sphinx and pandas leave slow or wrong on built pages, mended: this only takes away and merges."""

import hashlib
import re
from pathlib import Path

import tinycss2

STYLE = re.compile(r'<link (?=[^>]*rel="stylesheet")[^>]*href="([^"]*?)(_static/[^"?]*)[^"]*"[^>]*>\s*')
OPTIONS = re.compile(r"<script [^>]*/documentation_options\.js[^>]*></script>")
MENDED = [
    # What searches, on all pages but the one for it.
    (r"<script[^>]* src=\"[^\"]*(searchtools|language_data|searchindex)\.js\"[^>]*></script>", ""),
    (r"<script[^>]*/fontawesome\.js[^>]*></script>", ""),  # 1.5 MB of drawn icons: the style sheet has them as a font
    (r"<script (?!defer)(?=[^>]*src=)", "<script defer "),  # text comes first
    (r'<link rel="preload" as="script"[^>]*>', ""),  # they would be loaded before the style sheet
    ('id="pst-primary-sidebar"', r'\g<0> role="navigation" aria-label="Book"'),  # a landmark for who listens
    ("<h1></h1>", ""),  # on the page for wrong addresses
    (r"<th([^>]*)>(&nbsp;)?</th>", r"<td\1></td>"),  # no title, so no column's or row's head
    (' role="doc-biblioentry"| role="list"(?= class="citation-list")', ""),  # neither an entry nor a list to a browser
]

# The theme asks of each box whether it scrolls, and writes the answer before it asks the next: a layout for each.
ASKS = re.compile(r'(document\.querySelectorAll\(\[[^]]*]\.join\(", "\)\))\.forEach\(e=>\{e\.tabIndex=([^?]*)\?0:-1}\)')
ASKS_ALL_FIRST = (
    r"const boxes=[...\1],scrolls=boxes.map(e=>\2);"
    "boxes.forEach((e,i)=>{const to=scrolls[i]?0:-1;if(e.tabIndex!==to)e.tabIndex=to})"
)

TOP_LEVEL_COMMA = re.compile(r",(?![^()]*\))")
INLINE = re.compile(r"<script(?![^>]*(?:src=|/json))[^>]*>(.*?)</script>", re.DOTALL)
# In place of the theme's two attributes `onclick`.
CLICKS = """document.addEventListener("click", ({ target }) => {
  const button = target.closest("[data-does]");
  if (button) window[button.dataset.does]();
});
"""


def mend(html: Path) -> None:
    """Mend every page of a site."""
    (icons,) = html.glob("_static/scripts/fontawesome.js")
    icons.unlink()
    theme = html / "_static" / "scripts" / "pydata-sphinx-theme.js"
    script, found = ASKS.subn(ASKS_ALL_FIRST, theme.read_text(encoding="utf-8"))
    if found != 1:
        raise ValueError(f"{theme.name}: must have the loop that asks which boxes scroll, and has {found}")
    theme.write_text(script, encoding="utf-8")
    sheet = one_style_sheet(html)
    options = (html / "_static" / "documentation_options.js").read_text(encoding="utf-8").strip()
    for path in html.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        if found := STYLE.search(text):
            text = STYLE.sub("", text.replace(found[0], "@sheet", 1))
            text = text.replace("@sheet", f'<link rel="stylesheet" href="{found[1]}{sheet}">\n')
        # Inline scripts go on from this one, so it cannot wait: 400 bytes for which the text would.
        text = OPTIONS.sub(lambda _: f"<script>{options}</script>", text)
        for wrong, right in MENDED[path.name == "search.html" :]:
            text = re.sub(wrong, right, text)
        if 'class="play"' in text:
            text = without_inline_scripts(
                text, html / "_static" / "scripts", "../" * len(path.relative_to(html).parents[1:])
            )
        path.write_text(text, encoding="utf-8")


def one_style_sheet(html: Path) -> str:
    """Merge the style sheets that pages ask for, ten in a row, into one; return its address."""
    names = [name for _, name in STYLE.findall((html / "search.html").read_text(encoding="utf-8"))]
    basic = (html / "_static" / "basic.css").read_text(encoding="utf-8").replace("url(file.png)", "url(../file.png)")
    sheets = [(html / name).read_text(encoding="utf-8").replace('@import "../basic.css";', basic) for name in names]
    merged = "\n".join(sheets).replace('@charset "UTF-8";', "")
    words: set[str] = set()
    for path in [*html.rglob("*.html"), *(html / "_static").rglob("*.js")]:
        words.update(re.findall(r"[\w-]+", path.read_text(encoding="utf-8")))
    (html / "_static" / "styles" / "book.css").write_text(used(merged, words), encoding="utf-8")
    return "_static/styles/book.css"


def used(sheet: str, words: set[str]) -> str:
    """Leave out of a style sheet the rules for classes and ids that are no word of any page or script."""
    kept = []
    for rule in tinycss2.parse_stylesheet(sheet, skip_comments=True, skip_whitespace=True):
        prelude = tinycss2.serialize(rule.prelude)
        content = tinycss2.serialize(token for token in rule.content or () if token.type != "comment").strip()
        if rule.type == "qualified-rule":
            prelude = ",".join(each for each in TOP_LEVEL_COMMA.split(prelude) if may_match(each, words))
            keep = prelude
        elif rule.at_keyword in ("media", "supports"):
            keep = content = used(content, words)
            prelude = f"@{rule.at_keyword}{prelude}"
        else:
            kept.append(rule.serialize())
            continue
        if keep:
            kept.append(f"{prelude.strip()}{{{content}}}")
    return "\n".join(kept)


def may_match(selector: str, words: set[str]) -> bool:
    """Say whether all classes and ids that a selector asks for are words that are used somewhere."""
    asked = re.sub(r"\[[^]]*\]|\([^()]*\)", "", re.sub(r"\([^()]*\)", "", selector))
    # Bootstrap's scripts put names together that begin with bs.
    return "\\" in asked or all(name in words or name.startswith("bs-") for name in re.findall(r"[.#]([\w-]+)", asked))


def without_inline_scripts(page: str, folder: Path, up: str) -> str:
    """Make files of a page's inline scripts, in their order: a policy may then refuse all that are not files."""

    def save(script: str) -> str:
        name = f"{hashlib.sha256(script.encode()).hexdigest()[:16]}.js"
        (folder / name).write_text(script, encoding="utf-8")
        return f'<script src="{up}_static/scripts/{name}"></script>'

    page = re.sub(r'onclick="(?:window\.)?(\w+)\(\)"', r'data-does="\1"', page)
    return INLINE.sub(lambda found: save(found[1]), page).replace("</body>", f"{save(CLICKS)}</body>")
