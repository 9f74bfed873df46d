"""What the chapter on performance tells a reader to write for a cluster does what it says."""

import importlib.util
import json
import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def recipe(word):
    """Return the block of code in the chapter that has a word in it."""
    cells = json.loads((ROOT / "book" / "practice" / "performance.ipynb").read_text())["cells"]
    text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    blocks = re.findall(r"(?:^    .*\n(?:\n(?=    ))?)+", text + "\n", re.MULTILINE)
    (block,) = [block for block in blocks if word in block]
    return re.sub("^    ", "", block, flags=re.MULTILINE)


@pytest.mark.skipif(
    importlib.util.find_spec("dask_jobqueue") is None and os.environ.get("CI") != "true",
    reason="dask_jobqueue must be installed; CI has it",
)
def test_the_recipe_for_slurm_asks_for_what_a_worker_needs():
    block, here = recipe("SLURMCluster("), {}
    exec(block.partition("\ncluster.scale")[0], here)
    try:
        script = here["cluster"].job_script()
    finally:
        here["cluster"].close()
    asked = re.findall(r"^#SBATCH (.*)$", script, re.MULTILINE)
    assert {"--cpus-per-task=8", "--mem=15G", "--gres=gpu:1", "-n 1"} <= {*asked}
    command = script.splitlines()[-1]
    assert "distributed.cli.dask_worker" in command and "--nthreads 1 " in command and "--resources GPU=1" in command
    assert "--nworkers" not in command or "--nworkers 1 " in command
