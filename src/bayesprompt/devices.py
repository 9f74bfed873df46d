"""How work is spread: over accelerators, also of several hosts (`jax.distributed`), or over the cores of a CPU."""

import contextlib
import ctypes
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, PartitionSpec

# What is spread over the cores of a CPU. "batch": the repetitions, and shares of each batch where cores are left.
# "repetitions": these alone, where the gradients of large weights cost more to add up than shares of a batch save.
# "nothing", where the weights fill the memory: the cores compute every product together.
Cores = Literal["batch", "repetitions", "nothing"]

# What every device has of an argument: a share of its first axis (repetitions), or all of it.
SHARED_OUT, WHOLE = PartitionSpec("repetition"), PartitionSpec()

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD


def use_every_core() -> None:
    """Make each CPU core a device of JAX: work side by side uses the cores better than one computation can.

    This takes effect only where JAX has not started and nobody has chosen (JAX_NUM_CPU_DEVICES, XLA_FLAGS).
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if jax.config.values["jax_num_cpu_devices"] <= 0 and "force_host_platform_device_count" not in flags:
        with contextlib.suppress(RuntimeError):  # JAX has started: its one device uses all cores as well as it can
            jax.config.update("jax_num_cpu_devices", allowed_cores())


def allowed_cores(root: Path = Path("/")) -> int:
    """Return how many whole cores this process may use: those it may run on, or a container's quota if that is less."""
    if hasattr(os, "process_cpu_count"):  # Python 3.13, which may also be told a number
        usable = os.process_cpu_count()
    else:
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, int(min([usable or 1, *_quotas(root)])))


def _quotas(root: Path) -> Iterator[float]:
    """Yield the cores that each control group of this process allows: its own, and those around it."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, group = line.split(":", 2)
        version_1 = "cpu" in controllers.split(",")
        if controllers and not version_1:
            continue
        mount = root / "sys/fs/cgroup" / ("cpu" if version_1 else "")
        # In a container the group's path may be the host's: what is mounted here is then the container's own group.
        for place in (mount / group.lstrip("/") / "x").parents:
            if version_1:
                words = _lines(place / "cpu.cfs_quota_us") + _lines(place / "cpu.cfs_period_us")
            else:
                words = " ".join(_lines(place / "cpu.max")).split()
            if len(words) == 2 and words[0].isdigit():  # neither "max" nor -1
                yield int(words[0]) / int(words[1])
            if place == mount:
                break


def _lines(path: Path) -> list[str]:
    """Return the lines of a file, or nothing where there is no such file."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def keep_compiled(folder: Path) -> None:
    """Keep compiled programs on disk, so that the next process starts in seconds; a folder the user chose stays."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def keep_freed_memory() -> None:
    """Undo that Dask lets its workers give freed memory back at once: each step of a fit asks for it anew.

    The settings are glibc's, of the whole process; another C library stays as it is.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # no such function, or no way to look
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_TRIM_THRESHOLD, 2**30)
        mallopt(_MMAP_THRESHOLD, 2**25)  # the largest that glibc takes


def make_mesh(repetitions: int, batch: int, cores: Cores = "batch") -> Mesh:
    """Return the devices of all hosts as a ("repetition", "batch") grid; fewer if that gives none of them more work."""
    devices = jax.devices()
    if jax.default_backend() == "cpu" and cores != "batch":
        batch, devices = 1, devices if cores == "repetitions" else devices[:1]
    rows, columns = grid(len(devices), repetitions, batch)
    return Mesh(np.array(devices[: rows * columns]).reshape(rows, columns), ("repetition", "batch"))


def grid(devices: int, repetitions: int, batch: int) -> tuple[int, int]:
    """Return over how many devices to spread (repetitions, batch), so that each has the least work."""
    grids = [
        (rows, columns)
        for rows in range(1, min(devices, repetitions) + 1)
        for columns in range(1, devices // rows + 1)
        if batch % columns == 0
    ]
    return min(grids, key=lambda split: (padded(repetitions, split[0]) / split[0] / split[1], split[1]))


def padded(repetitions: int, rows: int) -> int:
    """Return the next multiple of `rows`: repetitions that nobody sees fill up what does not divide evenly."""
    return -(-repetitions // rows) * rows


def spread(function: Callable, mesh: Mesh, *arguments: PartitionSpec) -> Callable:
    """Return a function that each device runs on its share of the arguments; its results are shared out likewise."""
    return jax.shard_map(function, mesh=mesh, in_specs=arguments, out_specs=SHARED_OUT, check_vma=False)


def gather(tree: Any) -> Any:
    """Return arrays that are spread over devices, and hosts, as NumPy arrays."""
    return jax.device_get(tree if jax.process_count() == 1 else multihost_utils.process_allgather(tree, tiled=True))


def part_size(batch: int, in_cache: int) -> int:
    """Return how many sequences to compute at a time, a divisor of `batch`: all, but on a CPU what its cache holds."""
    if jax.default_backend() != "cpu":
        return batch
    return max(size for size in range(1, min(batch, in_cache) + 1) if batch % size == 0)
