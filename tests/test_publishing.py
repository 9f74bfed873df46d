"""A small book in a repository of its own, published at an address that no file of it names."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import links
import nbformat
import published
import pytest

ROOT = Path(__file__).resolve().parents[1]
SETUP = (ROOT / "book" / "_setup_cell.py").read_text().strip()
SLIDER = """
from matplotlib import pyplot as plt
from bayesprompt.lab.widgets import explore
def bar(height):
    figure, axes = plt.subplots()
    axes.bar([0], [height])
    return figure
explore(bar, alt="a bar of height {height}", height=[1, 2])
"""
CONTENTS = "format: jb-book\nroot: intro\nparts:\n- caption: Part\n  chapters:\n  - file: part/chapter\n"


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A clone with two chapters, committed, whose origin is a repository beside it."""
    root = tmp_path_factory.mktemp("publish") / "project"
    shutil.copytree(ROOT / "scripts", root / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "book", root / "book", ignore=shutil.ignore_patterns("*.ipynb", "*.md", "_build"))
    for folder in ("src", "requirements", ".github/workflows", "book/part"):
        (root / folder).mkdir(parents=True)
    (root / ".github" / "workflows" / "book.yml").write_text("name: Book")
    (root / "requirements" / "lock.txt").write_text("a==1")
    (root / ".gitignore").write_text("build/\n__pycache__/\n")
    (root / "book" / "_toc.yml").write_text(CONTENTS)
    figure = {"mystnb": {"figure": {"caption": "A bar.", "name": "fig-bar"}}}
    cells = [nbformat.v4.new_code_cell(SETUP, metadata={"tags": ["remove-input"]})]
    cells.append(nbformat.v4.new_code_cell(SLIDER, metadata=figure))
    for name, more in (("intro", []), ("part/chapter", cells)):
        text = nbformat.v4.new_markdown_cell(f"# The page {name}\n\nWhat it is about.")
        notebook = nbformat.v4.new_notebook(cells=[text, *(more or cells[:1])])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, root / "book" / f"{name}.ipynb")
    for command in (
        ["git", "init", "--quiet", "--initial-branch=main"],
        ["git", "init", "--quiet", "--bare", "../origin.git"],
        ["git", "remote", "add", "origin", "../origin.git"],
        ["git", "add", "."],
        ["git", *published.NAME, "commit", "--quiet", "-m", "A book"],
        ["git", "push", "--quiet", "origin", "main"],
    ):
        subprocess.run(command, cwd=root, check=True)
    return root


def build(project: Path, **addresses: str) -> Path:
    program = [sys.executable, project / "scripts" / "book.py"]
    environment = {name: value for name, value in os.environ.items() if name not in ("REPOSITORY", "SITE")}
    done = subprocess.run(program, cwd=project, env=environment | addresses, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return project / "build" / "book" / "_build" / "html"


def leaving(html: Path) -> set[str]:
    """Every address that pages lead to on other hosts."""
    return {link for page in links.pages(html).values() for link in links.links(page) if "://" in link}


@pytest.mark.slow
def test_a_book_without_an_address_leads_nowhere_but_to_what_it_cites(project):
    links.pages.cache_clear()
    html = build(project)
    assert links.dead(html) == []
    hosts = {link.split("/")[2] for link in leaving(html)}
    assert hosts <= {"creativecommons.org", "www.apache.org", "jupyterbook.org", "www.sphinx-doc.org"}, hosts
    assert not (project / "build" / "published").exists()
    assert not (html / "sitemap.xml").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("repository", "site"),
    [
        ("https://github.com/someone/fork", "https://someone.github.io/fork"),
        ("https://github.com/someone/fork.git", "https://book.example.org/"),
    ],
)
def test_a_book_is_published_at_any_address(project, repository, site):
    links.pages.cache_clear()
    html = build(project, REPOSITORY=repository, SITE=site)
    site = site.removesuffix("/")
    assert links.dead(html, "/" + site.partition("://")[2].partition("/")[2]) == []
    assert {link for link in leaving(html) if "fork" in link or "example" in link} >= {
        "https://github.com/someone/fork",
        "https://colab.research.google.com/github/someone/fork/blob/published/book/part/chapter.ipynb",
        "https://mybinder.org/v2/gh/someone/fork/published?urlpath=lab/tree/book/part/chapter.ipynb",
        "https://codespaces.new/someone/fork/tree/published?quickstart=1",
        f"{site}/part/chapter.html",
    }
    assert f"<loc>{site}/part/chapter.html</loc>" in (html / "sitemap.xml").read_text()
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=project, check=True, capture_output=True, text=True).stdout
    offered = html / "_sources" / "part" / "chapter.ipynb"
    for path in (offered, project / "build" / "published" / "book" / "part" / "chapter.ipynb"):
        setup = json.loads(path.read_text())["cells"][1]["source"]
        assert f'SOURCE = "git+https://github.com/someone/fork@{head.strip()}"' in "".join(setup)


@pytest.mark.slow
def test_the_branch_is_the_commit_with_addresses_and_without_workflows(project):
    program = [sys.executable, project / "scripts" / "published.py", "https://github.com/someone/fork", "push"]
    for _ in range(2):  # the second time over what is there
        subprocess.run(program, cwd=project, check=True)

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=project.parent / "origin.git", check=True, capture_output=True)
        return done.stdout.decode()

    names = {branch: set(git("ls-tree", "-r", "--name-only", branch).split()) for branch in ("main", "published")}
    assert names["main"] - names["published"] == {".github/workflows/book.yml"} and names["published"] < names["main"]
    changed = git("diff", "--name-only", "--diff-filter=M", "main", "published").split()
    assert changed == ["book/intro.ipynb", "book/part/chapter.ipynb"]
    assert git("rev-list", "--count", "published").strip() == "1"


def test_every_chapter_of_ours_takes_a_source():
    for path in (ROOT / "book").rglob("*.ipynb"):
        if ".ipynb_checkpoints" not in path.parts:
            chapter = published.with_source(path.read_text(encoding="utf-8"), "git+https://github.com/a/b@1")
            code = [cell["source"] for cell in json.loads(chapter)["cells"] if cell["cell_type"] == "code"]
            assert "".join(code[0]).strip() == SETUP.replace('""', '"git+https://github.com/a/b@1"', 1)
