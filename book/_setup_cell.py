# @title Setup: only Google Colab needs it, everywhere else it does nothing
import importlib.util
import subprocess
import sys

if "google.colab" in sys.modules:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]  # --no-deps: never touch Colab's own jax
    subprocess.run([*pip, "git+https://github.com/YOUR_NAME/bayesprompt"], check=True)
    pure = ("jaxtyping", "wadler_lindig", "xarray", "platformdirs", "filelock", "tqdm", "typer")
    if missing := [name for name in pure if importlib.util.find_spec(name) is None]:
        subprocess.run([*pip, *missing], check=True)
