"""Execute the chapters that changed, once.

What an execution depends on (its chapter, src/ with the stored results, the locked versions, this file) is hashed, and
a chapter is executed again whenever any of it changed. `make book` and `make test` both come here, so they share one
execution, which is also the test of the chapters: a cell that fails, or a warning from a cell or our package, stops it.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
BOOK, BUILD = ROOT / "book", ROOT / "build"
EXECUTED = BUILD / "executed"
STAMPS = EXECUTED / "stamps.json"
LEFTOVERS = {"__pycache__", ".ipynb_checkpoints", "_build", "bayesprompt.egg-info"}

# IPython runs this as each kernel starts, after it has set filters of its own.
WARNINGS_ARE_ERRORS = r"""
import warnings
warnings.filterwarnings("error", module=r"bayesprompt(\.|$)")
warnings.filterwarnings("error", module=r"__main__$")
"""


def files(folder: Path) -> list[Path]:
    """Every file of a folder less leftovers, in one order."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in found if not LEFTOVERS.intersection(path.relative_to(folder).parts))


def digest(*paths: Path, more: str = "") -> str:
    """One hash of the names and contents of files, and of all files in folders."""
    total = hashlib.sha256(more.encode())
    for path in (p for given in paths for p in (files(given) if given.is_dir() else [given])):
        content = path.read_bytes()
        total.update(f"{path.relative_to(ROOT)} {len(content)} ".encode() + content)
    return total.hexdigest()


def execute() -> None:
    """Bring the executed copies of all chapters up to date."""
    common = digest(ROOT / "src", ROOT / "requirements" / "lock.txt", Path(__file__), more=sys.version)
    wanted = {str(p.relative_to(BOOK)): digest(p, more=common) for p in files(BOOK) if p.suffix == ".ipynb"}
    done = json.loads(STAMPS.read_text()) if STAMPS.exists() else {}
    kept = {name: stamp for name, stamp in wanted.items() if done.get(name) == stamp and (EXECUTED / name).exists()}
    # In reading order, as the gallery repeats what chapters before it compiled; but the longest, which train, first.
    toc = (BOOK / "_toc.yml").read_text(encoding="utf-8")
    changed = sorted(
        wanted.keys() - kept.keys(),
        key=lambda name: (not name.startswith("practice/"), toc.find(f"{name.removesuffix('.ipynb')}\n"), name),
    )
    print(f"chapters: {len(changed)} to execute, {len(kept)} unchanged since they were executed", flush=True)
    EXECUTED.mkdir(parents=True, exist_ok=True)
    STAMPS.write_text(json.dumps(kept))
    if not changed:
        return
    for name in changed:
        (EXECUTED / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(BOOK / name, EXECUTED / name)
    passed = nbmake(changed)
    STAMPS.write_text(json.dumps(kept | {name: wanted[name] for name in passed}))
    if passed < set(changed):
        sys.exit(f"stopped by {', '.join(sorted(set(changed) - passed))}")


def nbmake(names: list[str]) -> set[str]:
    """Execute copies of chapters where they lie; return the names of those that ran without a complaint."""
    startup, report = BUILD / "ipython" / "profile_default" / "startup", BUILD / "chapters.xml"
    startup.mkdir(parents=True, exist_ok=True)
    (startup / "00-warnings.py").write_text(WARNINGS_ARE_ERRORS)
    report.unlink(missing_ok=True)
    options = ["--overwrite", "--nbmake-timeout=900", f"--rootdir={ROOT}", f"--junitxml={report}"]
    options += ["-n2", "--maxschedchunk=1"]  # each worker takes the next chapter
    with tempfile.TemporaryDirectory() as cache:  # the book shows the shipped results, not those of whoever builds it
        environment = {**os.environ, "IPYTHONDIR": str(BUILD / "ipython"), "BAYESPROMPT_CACHE": cache}
        environment.setdefault("OPENBLAS_NUM_THREADS", "1")  # chapters beside each other would fight over the cores
        # What one chapter compiled, the next one loads.
        environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(BUILD / "compiled"))
        environment.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
        run("pytest", "--nbmake", *options, *(str(EXECUTED / name) for name in names), env=environment)
    cases = ElementTree.parse(report).iter("testcase") if report.exists() else []
    passed = {case.get("classname") for case in cases if not len(case)}
    return {name for name in names if str((EXECUTED / name).relative_to(ROOT)).replace("/", ".") in passed}


def run(program: str, *arguments: str, **options: object) -> int:
    """Run a program of this environment and return its exit code."""
    return subprocess.run([Path(sys.executable).with_name(program), *arguments], cwd=ROOT, **options).returncode
