"""Devices: how work is dealt out to them, and that their number changes no result."""

import os
import platform
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from safetensors.numpy import load_file

from bayesprompt.devices import allowed_cores, grid, keep_compiled, make_mesh, padded, part_size

# 20 steps of three repetitions, as each process of a run does them; the first process keeps the numbers.
FIT = """
import sys
import jax
import numpy as np
address, processes, index, architecture, batch, out = sys.argv[1:]
if int(processes) > 1:
    jax.distributed.initialize(address, int(processes), int(index))
from bayesprompt.models import predictor as predictors
from bayesprompt.tuning.fitting import FitConfig, fit
from bayesprompt.sources.coins import Coin
from bayesprompt.files import save_arrays
from bayesprompt.tuning.tuners import make_tuner
sizes = predictors.LSTM(2, 16, 16) if architecture == "LSTM" else predictors.Transformer(2, 16, 4, 1, 32)
predictor = predictors.make_predictor(sizes)
base = predictor.init(jax.random.key(0))
config = FitConfig(steps=20, batch=int(batch), length=6, learning_rate=1e-3)
result = fit(predictor, make_tuner("SoftPT", sizes, 2), base, Coin(0.2), config, jax.random.key(1), 3)
if jax.process_index() == 0:
    save_arrays(__import__("pathlib").Path(out), (result, np.array(len(jax.devices()))))
"""


def fitted(tmp_path, processes, devices_each, architecture, batch):
    """Run FIT in fresh processes and return its loss, phi and number of devices."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    out = tmp_path / f"{processes}-{devices_each}"
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices_each), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", FIT, address, str(processes)]
    running = [
        subprocess.Popen([*command, str(i), architecture, str(batch), str(out)], env=environment)
        for i in range(processes)
    ]
    assert [process.wait(timeout=240) for process in running] == [0] * processes
    arrays = load_file(out)
    return arrays["0.loss"], arrays["0.phi"], int(arrays["1"])


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "batch"), [("LSTM", 8), ("Transformer", 9)])
def test_two_devices_and_two_processes_give_the_numbers_of_one_device(tmp_path, architecture, batch):
    """A batch of 8 is shared by both devices; 9 does not divide, so the three repetitions are filled up to four."""
    loss, phi, count = fitted(tmp_path, 1, 1, architecture, batch)
    assert count == 1 and loss.shape == (3, 20) and phi.shape == (3, 2, 16)
    for processes, devices_each in [(1, 2), (2, 1)]:
        again, phi_again, count = fitted(tmp_path, processes, devices_each, architecture, batch)
        assert count == 2
        np.testing.assert_allclose(again, loss, rtol=1e-5)
        np.testing.assert_allclose(phi_again, phi, rtol=0, atol=1e-5 * abs(phi).max())


@pytest.mark.parametrize(
    ("count", "repetitions", "batch", "expected"),
    [
        (1, 10, 256, (1, 1)),
        (2, 10, 256, (2, 1)),
        (2, 1, 256, (1, 2)),
        (2, 3, 256, (1, 2)),  # 1.5 batches each instead of 2
        (2, 3, 9, (2, 1)),  # no half of 9
        (4, 10, 256, (2, 2)),
        (8, 10, 256, (2, 4)),
        (16, 10, 256, (2, 8)),
        (3, 1, 256, (1, 2)),  # 3 does not divide 256
    ],
)
def test_the_grid_leaves_each_device_the_least_work(count, repetitions, batch, expected):
    assert grid(count, repetitions, batch) == expected


def test_what_does_not_divide_is_filled_up():
    assert [padded(n, 4) for n in (1, 4, 5, 8)] == [4, 4, 8, 8]


def test_parts_are_for_caches(monkeypatch):
    assert [part_size(batch, 64) for batch in (256, 2048, 80, 48, 1)] == [64, 64, 40, 48, 1]
    assert [part_size(batch, 64) for batch in (100, 255)] == [50, 51], "near what the cache holds, and a divisor"
    assert part_size(128, 256) == 128
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert part_size(256, 64) == 256


def devices_after(code, **settings):
    """Return the number of devices in a fresh process, whose user chose nothing but `settings`."""
    clean = {k: v for k, v in os.environ.items() if k not in ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS")}
    command = [sys.executable, "-c", code + "\nimport jax; print(len(jax.devices()))"]
    done = subprocess.run(command, env=clean | settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


SPREAD = "from bayesprompt.devices import use_every_core; use_every_core()"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({}, None), ({"JAX_NUM_CPU_DEVICES": "3"}, 3), ({"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}, 4)],
)
def test_every_core_is_a_device_unless_someone_chose(settings, expected):
    assert devices_after(SPREAD, **settings) == (expected or allowed_cores())


def test_a_jax_that_has_started_is_left_as_it_is():
    assert devices_after("import jax; jax.devices(); " + SPREAD) == 1


def test_importing_changes_nothing_outside_the_package():
    assert devices_after("import bayesprompt.cli, bayesprompt.tuning, bayesprompt.lab.plotting") == 1


@pytest.mark.parametrize(
    "start",
    [
        "from bayesprompt.lab import chapter; chapter.start()",
        "from bayesprompt import cli; cli.app = lambda **_: 0\ntry: cli.main()\nexcept SystemExit: pass",
    ],
    ids=["chapter", "command line"],
)
def test_chapters_and_the_command_line_ask_for_every_core(start):
    assert devices_after(start) == allowed_cores()


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine of 64 cores whose files say what control groups this process is in, and what they allow."""

    def write(files):
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return tmp_path

    monkeypatch.setattr(os, "process_cpu_count", lambda: 64, raising=False)
    return write


V1, V2 = "4:cpu,cpuacct:/docker/a\n3:memory:/docker/a\n0::/\n", "0::/kubepods/pod/a\n"


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 64),
        ({"proc/self/cgroup": V2}, 64),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/kubepods/pod/a/cpu.max": "max 100000\n"}, 64),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/kubepods/pod/a/cpu.max": "200000 100000\n"}, 2),
        (
            {"proc/self/cgroup": V2, "sys/fs/cgroup/kubepods/pod/cpu.max": "250000 100000\n"},
            2,
        ),  # of the group around it
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),  # as a container sees itself
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/cpu.max": "9900000 100000\n"}, 64),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu/docker/a/cpu.cfs_quota_us": "300000\n",
                "sys/fs/cgroup/cpu/docker/a/cpu.cfs_period_us": "100000\n",
            },
            3,
        ),
        (  # the path is the host's, and the container's own group is mounted
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "400000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            4,
        ),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            64,
        ),
    ],
)
def test_a_containers_quota_is_kept(machine, files, cores):
    assert allowed_cores(machine(files)) == cores


def test_without_a_quota_it_is_the_cores_that_the_process_may_run_on(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "process_cpu_count", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5, 7}, raising=False)
    assert allowed_cores(tmp_path) == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)  # not known
    assert allowed_cores(tmp_path) == 1


def test_compiled_programs_are_kept_where_the_user_says(tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    keep_compiled(tmp_path / "ours")
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")
    jax.config.update("jax_compilation_cache_dir", None)
    keep_compiled(tmp_path / "ours")
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "ours")
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()


def test_cores_have_for_themselves_what_an_architecture_says():
    devices = len(jax.devices())
    assert make_mesh(devices, 8, "nothing").size == 1
    assert dict(make_mesh(devices, 8, "repetitions").shape) == {"repetition": devices, "batch": 1}
    assert make_mesh(1, 8 * devices, "repetitions").size == 1
    assert dict(make_mesh(1, 8 * devices).shape) == {"repetition": 1, "batch": devices}


@pytest.mark.skipif("glibc" not in platform.libc_ver(), reason="the settings are glibc's")
def test_freed_memory_is_kept_where_a_worker_of_dask_gives_it_back():
    code = """
import resource, numpy as np
from bayesprompt.devices import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        np.full(2**21, 1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
given = faults()
keep_freed_memory()
faults()
print(given, faults())
"""
    # As Dask sets it; and pages stay small. An array is larger than any hole that imports leave in the heap.
    environment = os.environ | {"MALLOC_TRIM_THRESHOLD_": "65536", "NUMPY_MADVISE_HUGEPAGE": "0"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    given_back, kept = map(int, done.stdout.split())
    assert given_back > 20 * 2048  # most of the 4096 pages of each array are new
    assert kept < given_back / 100
