"""How work is spread: over accelerators, also of several hosts (`jax.distributed`), or over the cores of a CPU."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, PartitionSpec

# What each core of a CPU has for itself: repetitions, and shares of a batch where cores are left; repetitions only, if
# the gradients of large weights cost more to add up than shares save; or nothing, if weights fill the memory. All
# else the cores compute together.
Cores = Literal["batch", "repetitions", "nothing"]

# What every device has of an argument: a share of its first axis (repetitions), or all of it.
SHARED_OUT, WHOLE = PartitionSpec("repetition"), PartitionSpec()


def use_every_core() -> None:
    """Make each CPU core a device: work side by side uses the cores better than one computation can.

    This takes effect only where JAX has not started and nobody has chosen (JAX_NUM_CPU_DEVICES, XLA_FLAGS).
    """
    chosen = jax.config.jax_num_cpu_devices > 0 or "force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if not chosen:
        try:
            jax.config.update("jax_num_cpu_devices", cores)
        except RuntimeError:  # JAX has started: its one device uses all cores as well as it can
            pass


def keep_compiled(folder: Path) -> None:
    """Keep compiled programs on disk, so that the next process starts in seconds; a folder the user chose stays."""
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def make_mesh(repetitions: int, batch: int, cores: Cores = "batch") -> Mesh:
    """Return all hosts' devices as a ("repetition", "batch") grid, some left out where that leaves none more work."""
    devices = jax.devices()
    if jax.default_backend() == "cpu" and cores != "batch":
        batch, devices = 1, devices if cores == "repetitions" else devices[:1]
    rows, columns = grid(len(devices), repetitions, batch)
    return Mesh(np.array(devices[: rows * columns]).reshape(rows, columns), ("repetition", "batch"))


def grid(devices: int, repetitions: int, batch: int) -> tuple[int, int]:
    """Return over how many devices to spread repetitions and batch, so that each has the least work."""
    grids = [
        (rows, columns)
        for rows in range(1, min(devices, repetitions) + 1)
        for columns in range(1, devices // rows + 1)
        if batch % columns == 0
    ]
    return min(grids, key=lambda split: (padded(repetitions, split[0]) / split[0] / split[1], split[1]))


def padded(repetitions: int, rows: int) -> int:
    """Return the next multiple: what does not divide evenly is filled up with further repetitions that nobody sees."""
    return -(-repetitions // rows) * rows


def spread(function: Callable, mesh: Mesh, *arguments: PartitionSpec) -> Callable:
    """Return a function that each device runs on its share of the arguments; its results are shared out likewise."""
    return jax.shard_map(function, mesh=mesh, in_specs=arguments, out_specs=SHARED_OUT, check_vma=False)


def gather(tree: Any) -> Any:
    """Return arrays that are spread over devices, and hosts, as NumPy arrays."""
    return jax.device_get(tree if jax.process_count() == 1 else multihost_utils.process_allgather(tree, tiled=True))


def part_size(batch: int, in_cache: int) -> int:
    """Return how many sequences to compute at a time: on a CPU as many as its cache holds, else the whole batch."""
    return int(np.gcd(batch, in_cache)) if jax.default_backend() == "cpu" else batch
