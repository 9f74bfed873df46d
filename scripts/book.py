"""Build the book: execute the chapters that changed, then make the pages from the executed copies.

Without addresses the pages lead to no other place. With them, as REPOSITORY=https://github.com/me/fork and
SITE=https://me.github.io/fork in the environment, they have buttons for Colab, Binder, Codespaces and GitHub, and
build/published has what those buttons lead to.

    python scripts/book.py          the pages
    python scripts/book.py links    and asks every address that they lead to
"""

import fcntl
import json
import os
import shutil
import sys
from pathlib import Path

import chapters
import mend
import pictures
import published
import yaml
from chapters import BOOK, BUILD, EXECUTED, LEFTOVERS, ROOT, STAMPS, digest, run

PAGES = BUILD / "book"
HTML = PAGES / "_build" / "html"


def build(repository: str, site: str) -> None:
    """Make the pages; a warning of Sphinx is an error."""
    source = published.source(repository)
    stamp, now = PAGES / "stamp", digest(BOOK, ROOT / "scripts", STAMPS, more=f"{source} {site}")
    if stamp.exists() and stamp.read_text() == now:
        print("pages: unchanged")
        return
    names = prepare(PAGES, repository, site)
    if code := run("jupyter-book", "build", str(PAGES), "-W", "-n", "--keep-going", "--quiet"):
        sys.exit(code)
    mend.mend(HTML)
    for name in names:  # what a page offers to download: the chapter as it is written
        chapter = published.with_source((BOOK / name).read_text(encoding="utf-8"), source)
        (HTML / "_sources" / name).write_text(chapter, encoding="utf-8")
    if site:
        published.tell_search_engines(HTML, site)
    stamp.write_text(now)


def prepare(folder: Path, repository: str = "", site: str = "", one_page: bool = False) -> list[str]:
    """Lay out in a folder what the pages are made from; return the chapters' names."""
    shutil.rmtree(folder, ignore_errors=True)  # from scratch: Sphinx repeats no warning about a page that it kept
    shutil.copytree(BOOK, folder, ignore=shutil.ignore_patterns(*LEFTOVERS, "*.ipynb"))
    (folder / "_config.yml").write_text(yaml.safe_dump(settings(repository, site), sort_keys=False))
    names = sorted(json.loads(STAMPS.read_text()))
    for path in map(Path, names):
        notebook = json.loads((EXECUTED / path).read_text(encoding="utf-8"))
        beside = path.with_suffix("")
        pictures.to_files(notebook, folder / "_pictures" / beside, beside.as_posix() if one_page else beside.name)
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(json.dumps(notebook), encoding="utf-8")
    return names


def settings(repository: str, site: str) -> dict:
    """The book's settings with its addresses, if it has any: without them no page has a button that leads elsewhere."""
    config = yaml.safe_load((BOOK / "_config.yml").read_text(encoding="utf-8"))
    sphinx = config["sphinx"]["config"]
    sphinx["html_search_scorer"] = str(BOOK / "_extensions" / "scorer.js")
    if repository:
        config["repository"] = {"url": repository, "path_to_book": "book", "branch": published.BRANCH}
        config["html"]["use_repository_button"] = True
        config["launch_buttons"] = {
            "colab_url": "https://colab.research.google.com",
            "binderhub_url": "https://mybinder.org",
            "notebook_interface": "jupyterlab",
        }
    if site:
        config["html"]["baseurl"] = sphinx["ogp_site_url"] = f"{site}/"
        sphinx["notfound_urls_prefix"] = f"/{site.partition('://')[2].partition('/')[2]}/".replace("//", "/")
    sphinx["ogp_social_cards"]["enable"] = bool(site)
    return config


if __name__ == "__main__":
    addresses = [os.environ.get(name, "").removesuffix("/").removesuffix(".git") for name in ("REPOSITORY", "SITE")]
    BUILD.mkdir(exist_ok=True)
    with open(BUILD / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of two builds at once the second waits, then finds the work done
        chapters.execute()
        build(*addresses)
        if sys.argv[1:] == ["links"]:
            sys.exit(run("jupyter-book", "build", str(PAGES), "--builder", "linkcheck", "--quiet"))
        if addresses[0]:
            print(published.write_tree(addresses[0]))
    print(HTML / "index.html")
