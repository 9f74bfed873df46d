"""The built site, with or without addresses: no link is dead, and every button leads where it should."""

import json
from pathlib import Path

import links
import pytest
import yaml
from needs import missing

ROOT = Path(__file__).resolve().parents[1]
BOOK, BUILD = ROOT / "book", ROOT / "build"
HTML = BUILD / "book" / "_build" / "html"
RUNS = ("colab.research.google.com", "mybinder.org", "codespaces.new")


@pytest.fixture(scope="module")
def addresses() -> tuple[str, str]:
    """Where the built book's repository and its pages are; empty if nowhere."""
    if not (BUILD / "book" / "stamp").exists():
        missing("the book is not built: `make book`")
    config = yaml.safe_load((BUILD / "book" / "_config.yml").read_text())
    return config.get("repository", {}).get("url", ""), config["html"].get("baseurl", "")


def test_no_link_is_dead(addresses):
    base = "/" + addresses[1].partition("://")[2].partition("/")[2]
    assert links.dead(HTML, base) == []


def test_every_button_leads_to_the_published_chapters(addresses):
    repository, _ = addresses
    path = repository.partition("github.com/")[2]
    for name, page in links.pages(HTML).items():
        buttons = {link for link in links.links(page) if any(host in link for host in RUNS)}
        chapter = Path(name).with_suffix(".ipynb").as_posix()
        wanted = {
            f"https://colab.research.google.com/github/{path}/blob/published/book/{chapter}",
            f"https://mybinder.org/v2/gh/{path}/published?urlpath=lab/tree/book/{chapter}",
            f"https://codespaces.new/{path}/tree/published?quickstart=1",
        }
        assert buttons == (wanted if repository and (BOOK / chapter).exists() else set()), name


def test_each_page_says_what_and_where_it_is(addresses):
    _, site = addresses
    for name, page in links.pages(HTML).items():
        if (BOOK / name).with_suffix(".ipynb").exists() or (BOOK / name).with_suffix(".md").exists():
            assert page.find("meta", attrs={"name": "description"})["content"].strip(), name
            canonical = page.find("link", rel="canonical")
            assert (canonical["href"] if canonical else "") == (f"{site}{name}" if site else ""), name
            card = page.find("meta", property="og:image")
            assert (card is not None) == bool(site), name
            assert card is None or (HTML / card["content"].removeprefix(site)).is_file(), name


def test_search_engines_are_told_of_every_chapter(addresses):
    _, site = addresses
    contents = yaml.safe_load((BOOK / "_toc.yml").read_text())
    names = [contents["root"], *(entry["file"] for part in contents["parts"] for entry in part["chapters"])]
    if site:
        sitemap = (HTML / "sitemap.xml").read_text()
        assert {f"{site}{name}.html" for name in names} == {
            part.partition("</loc>")[0] for part in sitemap.split("<loc>")[1:]
        }
        assert f"Sitemap: {site}sitemap.xml" in (HTML / "robots.txt").read_text()


def test_a_page_offers_its_chapter_without_outputs(addresses):
    for path in BOOK.rglob("*.ipynb"):
        if ".ipynb_checkpoints" not in path.parts:
            offered = json.loads((HTML / "_sources" / path.relative_to(BOOK)).read_text("utf-8"))
            assert all(not cell.get("outputs") for cell in offered["cells"])
