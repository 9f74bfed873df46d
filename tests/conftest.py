"""What every test runs under; pyproject.toml adds shape checks and turns our warnings into errors."""

import gc
import os
import sys
from pathlib import Path

# What the chapters or another test compiled is loaded: before JAX is imported, and for the processes of tests too.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / "build" / "compiled"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
# Most of the tests' time is compiling: they take a fifth less this way. Chapters and benchmarks run what users run.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax
import matplotlib
import pytest
from hypothesis import settings

jax.config.update("jax_numpy_rank_promotion", "raise")

settings.register_profile("bayesprompt", max_examples=20, deadline=None, derandomize=True)
settings.load_profile("bayesprompt")


def pytest_sessionstart():
    """Give the tests every core as a device, once pyproject's shape checks are in place and before JAX starts."""
    from bayesprompt.devices import use_every_core

    use_every_core()


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """Forget compiled programs where they are many: Linux gives a process 65,530 areas of memory, then JAX crashes."""
    yield
    areas = Path("/proc/self/maps")
    if areas.exists() and areas.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Keep every test away from the user's own results."""
    monkeypatch.setenv("BAYESPROMPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def command(monkeypatch, capsys):
    """Run the command line in this process; return exit code, standard output and standard error."""
    from bayesprompt import cli  # not before pyproject's shape checks are in place

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["bayesprompt", *map(str, words)])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def figures():
    """Draw in the book's style, and leave no figure open."""
    from bayesprompt.lab import plotting, style  # not before pyproject's shape checks are in place

    with matplotlib.rc_context():
        matplotlib.style.use(style.STYLE)
        yield
    plotting.plt.close("all")


@pytest.fixture(scope="module")
def browser():
    """Chromium for the tests of a file."""
    from needs import chromium  # few tests need it

    with chromium() as opened:
        yield opened
