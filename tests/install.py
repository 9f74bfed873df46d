"""What pip makes of our distributions: each into an empty environment, then an import, the claims and one chapter.

python tests/install.py dist/bayesprompt-0.2.0-py3-none-any.whl dist/bayesprompt-0.2.0.tar.gz
"""

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CHAPTER = ROOT / "book" / "theory" / "when_to_prompt.ipynb"


def try_out(distribution: Path) -> None:
    """Install a file as a reader would, and stop at the first thing that does not work."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        binaries = Path(folder, "bin")
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        for command in (
            ["python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", distribution.resolve()],
            ["python", "-c", "import bayesprompt; print(bayesprompt.__version__, bayesprompt.__file__)"],
            ["bayesprompt", "list"],
            [
                "python",
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "nbconvert",
                "ipykernel",
                "pandas",
            ],
            ["jupyter", "nbconvert", "--to", "notebook", "--execute", "--output-dir", folder, CHAPTER],
        ):
            program, *arguments = command
            subprocess.run([binaries / program, *arguments], cwd=folder, env=environment, check=True)
        judged = subprocess.run([binaries / "bayesprompt", "claims"], env=environment, capture_output=True, text=True)
        if judged.returncode not in (0, 1) or "Traceback" in judged.stderr:  # 1: a claim fails, and is said to
            sys.exit(judged.stdout + judged.stderr)


for name in sys.argv[1:]:
    print(f"== {name} with Python {sys.version.split()[0]}", flush=True)
    try_out(Path(name))
