"""A result says which source wrote it, on what, with which libraries: or that it does not know."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import bayesprompt
from bayesprompt import provenance as provenances
from bayesprompt.provenance import commit, device, provenance

PACKAGE = Path(bayesprompt.__file__).parent


def test_what_is_stored_with_every_result():
    found = provenance()
    assert found["version"] == bayesprompt.__version__
    assert re.fullmatch(r"unknown|[0-9a-f]{40}(\+changes)?", found["commit"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", found["date"]) and found["device"].startswith("cpu: ")
    assert re.fullmatch(r"jax [\d.]+, jaxlib [\d.]+, numpy [\d.]+; matrix products: default", found["libraries"])


def test_without_git_the_commit_is_unknown(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert commit() == "unknown"


def test_another_repository_around_the_package_is_not_its_own(tmp_path):
    """As where a virtual environment lies inside the reader's own repository."""
    inside = tmp_path / "venv" / "lib" / "bayesprompt"
    shutil.copytree(PACKAGE, inside, ignore=shutil.ignore_patterns("results", "__pycache__"))
    who = ["-c", "user.name=reader", "-c", "user.email=reader@example.org"]
    for words in (["init", "-q"], [*who, "commit", "-q", "--allow-empty", "-m", "theirs"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    code = "from bayesprompt.provenance import commit; print(commit())"
    said = [sys.executable, "-c", code]
    environment = {"PYTHONPATH": str(inside.parent), "PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu"}
    assert subprocess.run(said, env=environment, capture_output=True, text=True, check=True).stdout.strip() == "unknown"
    subprocess.run(["git", "add", "-A"], cwd=tmp_path, check=True)
    tracked = subprocess.run(said, env=environment, capture_output=True, text=True, check=True).stdout.strip()
    assert re.fullmatch(r"[0-9a-f]{40}\+changes", tracked), "a repository that tracks it is its own"


def test_a_platform_that_is_not_there_is_one_line(monkeypatch):
    def devices():
        raise RuntimeError("Unable to initialize backend 'cuda'")

    device.cache_clear()
    monkeypatch.setattr(provenances.jax, "devices", devices)
    with pytest.raises(ValueError, match="^JAX_PLATFORMS = .*: must name a platform of this machine$"):
        device()
    device.cache_clear()
