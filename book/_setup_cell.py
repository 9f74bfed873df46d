# @title Setup: only Google Colab needs it, everywhere else it does nothing
import importlib.util
import subprocess
import sys

# Where pip finds the package; the copies in the branch `published` say it.
SOURCE = ""
if "google.colab" in sys.modules:
    if not SOURCE:
        raise RuntimeError("In Colab, open the copy in the branch `published`")
    # --no-deps: never touch Colab's own jax
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, SOURCE], check=True)
    pure = "jaxtyping wadler_lindig xarray platformdirs filelock tqdm typer"
    missing = [n for n in pure.split() if importlib.util.find_spec(n) is None]
    if missing:
        subprocess.run([*pip, *missing], check=True)
