"""What a published book has beside its pages: a branch to run the chapters from, and words for search engines.

The branch `published` is the repository as it is, but for the chapters' setup cells, which name the repository's own
address and the exact commit. So Colab, where the book's buttons lead, installs the package that the page was made with.

    python scripts/published.py https://github.com/me/fork        build/published
    python scripts/published.py https://github.com/me/fork push   and the branch of that name at `origin`
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path

from chapters import BUILD, ROOT, files

BRANCH = "published"
TREE = BUILD / "published"
NAME = ["-c", "user.name=The book", "-c", "user.email=book@example.invalid"]


def git(*arguments: str, **environment: str) -> bytes:
    """What git has to say about this repository."""
    environment = os.environ | environment
    return subprocess.run(["git", *arguments], cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE).stdout


def source(repository: str) -> str:
    """Where pip finds the package of the commit that is checked out: nowhere without a repository."""
    return f"git+{repository}@{git('rev-parse', 'HEAD').decode().strip()}" if repository else ""


def with_source(chapter: str, source: str) -> str:
    """The text of a chapter's file, with a setup cell that installs the package from a source."""
    old, new = (json.dumps(f'SOURCE = "{address}"')[1:-1] for address in ("", source))
    return chapter.replace(old, new, 1)


def write_tree(repository: str, tree: Path = TREE) -> Path:
    """Write the files of the commit that is checked out, the chapters with their source, to a folder.

    Its workflows stay behind: they run on the main branch, and pushing them would need the right to change them.
    """
    shutil.rmtree(tree, ignore_errors=True)
    with tarfile.open(fileobj=BytesIO(git("archive", "HEAD"))) as archive:
        archive.extractall(tree, filter="data")
    shutil.rmtree(tree / ".github", ignore_errors=True)
    for path in files(tree / "book"):
        if path.suffix == ".ipynb":
            path.write_text(with_source(path.read_text(encoding="utf-8"), source(repository)), encoding="utf-8")
    return tree


def push(message: str) -> None:
    """Make build/published the only commit of the branch; it is made anew each time and has no history."""
    index = {"GIT_INDEX_FILE": str(BUILD / "published-index")}
    git(f"--work-tree={TREE}", "add", "--all", "--force", ".", **index)
    tree = git("write-tree", **index).decode().strip()
    commit = git(*NAME, "commit-tree", tree, "-m", message).decode().strip()
    git("push", "--force", "origin", f"{commit}:refs/heads/{BRANCH}")


def tell_search_engines(html: Path, site: str) -> None:
    """Write which pages there are, and that all may be read."""
    pages = {path.relative_to(html).as_posix() for path in html.rglob("*.html") if "_static" not in path.parts}
    pages -= {"404.html", "genindex.html", "index.html", "search.html"}
    urls = "".join(f"<url><loc>{site}/{page}</loc></url>\n" for page in sorted(pages))
    urlset = f'<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n{urls}</urlset>\n'
    (html / "sitemap.xml").write_text(f'<?xml version="1.0" encoding="utf-8"?>\n{urlset}', encoding="utf-8")
    (html / "robots.txt").write_text(f"User-agent: *\nAllow: /\n\nSitemap: {site}/sitemap.xml\n", encoding="utf-8")


if __name__ == "__main__":
    repository = sys.argv[1].removesuffix("/").removesuffix(".git")
    print(write_tree(repository))
    if sys.argv[2:] == ["push"]:
        push(f"The chapters of {source(repository)}")
