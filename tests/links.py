"""Links of built pages: which lead nowhere on this site, and which lead away from it."""

import functools
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

from bs4 import BeautifulSoup


@functools.cache
def pages(html: Path) -> dict[str, BeautifulSoup]:
    """All pages of a site by their address in it."""
    found = (path for path in html.rglob("*.html") if "_static" not in path.parts)
    return {path.relative_to(html).as_posix(): BeautifulSoup(path.read_text("utf-8"), "html.parser") for path in found}


def links(page: BeautifulSoup) -> list[str]:
    """Everything that a page links to, shows or loads."""
    return [tag[name] for name in ("href", "src") for tag in page.find_all(attrs={name: True})]


def dead(html: Path, base: str = "/") -> list[str]:
    """Each link to a place on the site that is not there, as page and link; `base` is where the site's root lies."""
    parsed = pages(html)
    anchors = {name: {tag["id"] for tag in page.find_all(id=True)} for name, page in parsed.items()}
    found = []
    for name, page in parsed.items():
        for link in links(page):
            address, anchor = urldefrag(link)
            if urlsplit(link).scheme:
                continue
            path = unquote(urlsplit(address).path)
            target = html / path.removeprefix(base).lstrip("/") if path.startswith("/") else (html / name).parent / path
            target = (target if path else html / name).resolve()
            known = anchors.get(target.relative_to(html.resolve()).as_posix()) if target.is_file() else None
            if not target.is_file() or (anchor and known is not None and unquote(anchor) not in known):
                found.append(f"{name}: {link}")
    return found
