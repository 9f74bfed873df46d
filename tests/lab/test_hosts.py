"""Hosts of one `jax.distributed` program compute a cell together, on a folder that they share."""

import os
import socket
import subprocess
import sys

import pytest
import xarray as xr

from bayesprompt import catalog
from bayesprompt.lab.cells import load_cell
from bayesprompt.lab.run import run_cell
from bayesprompt.store import Store

CELL = ("single-coin", "lstm", "SoftPT", "smoke")
HOST = """
import sys
import jax
address, index, folder = sys.argv[1:]
jax.distributed.initialize(address, 2, int(index))
from bayesprompt import catalog
from bayesprompt.lab.run import run_cell
from bayesprompt.store import Store
dataset = run_cell(catalog.cell(*{cell}), Store(folder, None))
print(float(dataset.regret.sel(n=20).median()))
"""


@pytest.mark.slow
def test_two_hosts_on_one_folder_store_one_cell(tmp_path):
    """The second does not wait for ever on the first one's lock, which it holds through their common computation."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    settings = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}
    code = HOST.format(cell=CELL)
    hosts = [
        subprocess.Popen(
            [sys.executable, "-c", code, address, str(index), str(tmp_path / "shared")],
            env=os.environ | settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for index in (0, 1)
    ]  # fmt: skip
    said = [host.communicate(timeout=300) for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], said
    results = [out.splitlines()[-1] for out, _ in said]
    assert results[0] == results[1], "both return the result"
    shared, alone = Store(tmp_path / "shared", None), Store(tmp_path / "alone", None)
    together, by_one = load_cell(catalog.cell(*CELL), shared), run_cell(catalog.cell(*CELL), alone)
    xr.testing.assert_allclose(together.regret, by_one.regret, rtol=1e-3, atol=1e-4)
    assert not list(shared.folder.glob("*.partial")) and not list(shared.folder.glob("*.refused*"))
