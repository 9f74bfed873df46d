# @title Setup: only Google Colab needs it, everywhere else it does nothing
import importlib.util
import subprocess
import sys

SOURCE = ""  # where pip finds the package; the copies in the branch `published` say it
if "google.colab" in sys.modules:
    if not SOURCE:
        raise RuntimeError("In Colab, open this chapter from the repository's branch `published`")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]  # --no-deps: never touch Colab's own jax
    subprocess.run([*pip, SOURCE], check=True)
    pure = ("jaxtyping", "wadler_lindig", "xarray", "platformdirs", "filelock", "tqdm", "typer")
    if missing := [name for name in pure if importlib.util.find_spec(name) is None]:
        subprocess.run([*pip, *missing], check=True)
