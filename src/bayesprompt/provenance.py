"""Where a result comes from: the package's version and commit, the libraries beneath it, the device and the day."""

import functools
import importlib.metadata
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import jax

from bayesprompt.checks import UserError
from bayesprompt.settings import told
from bayesprompt.version import __version__


def provenance() -> dict[str, str]:
    """Return what is stored with every result; gathered before a computation, so that nothing fails after it."""
    libraries = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "jaxlib", "numpy"))
    return {
        "version": __version__,
        "commit": commit(),
        "libraries": f"{libraries}; {told()}",
        "device": device(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def commit() -> str:
    """Return the commit of the running source, marked where it has changes that are not in it; or "unknown".

    A repository counts only if it tracks this very file: a package that is installed inside another one is not its.
    """
    here = Path(__file__)

    def git(*words: str) -> str:
        command = ["git", "-C", str(here.parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)
        changed = git("status", "--porcelain", "--", ".", ":!results")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


@functools.cache
def device() -> str:
    """Return the device that computes, in words, e.g. "cpu: AMD EPYC, 2 cores"; raises UserError without one."""
    try:
        first = jax.devices()[0]
    except (RuntimeError, AssertionError):  # what JAX raises where no platform of those asked for is there
        raise UserError(f"JAX_PLATFORMS = {jax.config.jax_platforms}: must name a platform of this machine") from None
    if first.platform != "cpu":
        return f"{first.platform}: {first.device_kind}"
    try:
        names = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        names = []
    return f"cpu: {names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"
