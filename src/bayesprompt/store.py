"""Results on disk: one labelled file a cell, written in one move, that says where it came from. Nothing is pickled."""

import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import re
import subprocess
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import filelock
import jax
import numpy as np
import platformdirs
import safetensors.numpy
import xarray as xr

from bayesprompt.checks import UserError

LOG = logging.getLogger("bayesprompt")
SHIPPED = Path(__file__).parent / "results"


class RefusedFileError(UserError):
    """A results file is truncated, altered, foreign or of another configuration."""


class OtherRunError(RefusedFileError):
    """A file is intact, and of another run."""


def cache_folder() -> Path:
    """Return the folder of the user's own results: $BAYESPROMPT_CACHE, else the platform's cache folder."""
    return Path(os.environ.get("BAYESPROMPT_CACHE") or platformdirs.user_cache_dir("bayesprompt"))


class Store:
    """The cells on disk: those in the user's folder first, then those that ship with the package."""

    def __init__(self, folder: Path | str | None = None, shipped: Path | str | None = SHIPPED) -> None:
        """Look in `folder` (default: the user's cache) and then in `shipped`; None leaves the shipped results out."""
        self.folder = Path(folder) if folder is not None else cache_folder()
        self.commit = commit()  # read now: the checkout may move on during a long run
        self.folders = [self.folder] + ([Path(shipped)] if shipped is not None else [])

    def find(self, name: str, suffix: str = ".nc") -> Path | None:
        """Return the first file of this cell, unchecked."""
        return next((f / (name + suffix) for f in self.folders if (f / (name + suffix)).exists()), None)

    def load(self, name: str, config: dict[str, Any] | None = None) -> xr.Dataset | None:
        """Return a cell's dataset if one passes its checks, else None; each file refused is named in one log line."""
        for folder in self.folders:
            try:
                return read_dataset(folder / f"{name}.nc", config)
            except FileNotFoundError:
                continue
            except RefusedFileError as error:
                LOG.warning("%s", error)
        return None

    def save(self, name: str, dataset: xr.Dataset, config: dict[str, Any], seconds: float) -> xr.Dataset:
        """Write a cell with its provenance and return it; a file that stands in the way is kept under another name."""
        provenance = {
            "config": canonical(config),
            "config_hash": digest(config),
            "version": importlib.metadata.version("bayesprompt"),
            "commit": self.commit,
            "device": device(),
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "seconds": float(seconds),
        }
        # NetCDF3 has no 64-bit integers: narrow them here, so that what is hashed is what will be read.
        wide = {name: v.astype(np.int32) for name, v in dataset.variables.items() if v.dtype == np.int64}
        dataset = dataset.assign(wide).assign_attrs(provenance)
        dataset.attrs["checksum"] = checksum(dataset)
        path = self.folder / f"{name}.nc"
        set_aside(path)
        write_atomically(path, lambda temporary: dataset.to_netcdf(temporary, engine="scipy"))
        return dataset

    def save_arrays(self, name: str, tree: Any) -> None:
        """Write a cell's trained arrays; a file with others that stands in the way is kept under another name."""
        path = self.folder / f"{name}.safetensors"
        try:
            same = tree_hash(load_arrays(path, tree)) == tree_hash(tree)
        except (FileNotFoundError, RefusedFileError):
            same = False
        if not same:
            set_aside(path)
        save_arrays(path, tree)

    def lock(self, name: str) -> filelock.BaseFileLock:
        """Return the lock that keeps two runs of one cell apart."""
        make_folder(self.folder)
        return filelock.FileLock(self.folder / f"{name}.lock")

    def checkpoint(self, name: str, config: dict[str, Any], part: str = "") -> Path:
        """Return where an unfinished run of this configuration, or a named part of it, keeps its state."""
        return self.folder / f"{name}.{digest(config)[:12]}{part and f'-{part}'}.partial"

    def drop_checkpoints(self, name: str, config: dict[str, Any]) -> None:
        """Delete what a finished run of this configuration kept."""
        whole = self.checkpoint(name, config)
        for path in (whole, *self.folder.glob(whole.name.replace(".partial", "-*.partial"))):
            path.unlink(missing_ok=True)


def read_dataset(path: Path, config: dict[str, Any] | None = None) -> xr.Dataset:
    """Read and check one results file; raises FileNotFoundError, or RefusedFileError that says why it is not used."""
    if not path.exists():
        raise FileNotFoundError(path)
    try:
        with xr.open_dataset(path, engine="scipy", decode_timedelta=False) as file:
            dataset = file.load()
        kept = dataset.attrs["checksum"]
        stored = json.loads(dataset.attrs["config"])
        intact = kept == checksum(dataset) and dataset.attrs["config_hash"] == digest(stored)
    except Exception as error:  # a damaged file can fail anywhere inside the reader
        raise RefusedFileError(f"{path} = unreadable ({type(error).__name__}): not used; it is kept") from None
    if not intact:
        raise RefusedFileError(f"{path} = altered: its contents do not match its checksum; not used; it is kept")
    if config is not None and digest(config) != dataset.attrs["config_hash"]:
        now = json.loads(canonical(config))
        differing = sorted(k for k in now.keys() | stored.keys() if now.get(k) != stored.get(k))
        raise RefusedFileError(
            f"{path} = another configuration (differs in {', '.join(differing)}): not used; it is kept"
        )
    return dataset


def save_arrays(path: Path, tree: Any, record: dict[str, str] | None = None) -> None:
    """Write a tree of arrays as safetensors in one move, each under its path in the tree, with a checksum.

    The `record` says which run they belong to.
    """
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    arrays = {array_name(p): np.asarray(x, order="C") for p, x in leaves}
    kept = {"checksum": _seal(arrays, record or {}), **(record or {})}
    write_atomically(path, lambda temporary: safetensors.numpy.save_file(arrays, temporary, kept))


def load_arrays(path: Path, like: Any, record: dict[str, str] | None = None) -> Any:
    """Read arrays into a tree shaped like `like` (a size of -1: any).

    Raises FileNotFoundError, RefusedFileError for a damaged file or other names, types or sizes, and, where a `record`
    is asked for, OtherRunError for a file that holds another one.
    """
    if not path.exists():
        raise FileNotFoundError(path)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            kept, arrays = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}
    except Exception as error:
        raise RefusedFileError(f"{path} = unreadable ({type(error).__name__}): not used; it is kept") from None
    held = {key: value for key, value in kept.items() if key != "checksum"}
    if kept.get("checksum", _seal(arrays, held)) != _seal(arrays, held):
        raise RefusedFileError(f"{path} = altered: its contents do not match its checksum; not used; it is kept")
    if record is not None and not held:
        raise RefusedFileError(f"{path} = without a record of its run: not used; it is kept")
    if record is not None and held != record:
        differing = ", ".join(key for key in record if held.get(key) != record[key])
        raise OtherRunError(f"{path} = of another run (differs in {differing}): must be of this one; it is kept")
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    names = [array_name(p) for p, _ in leaves]
    fits = set(names) == set(arrays) and all(
        x.dtype == like.dtype
        and x.ndim == len(like.shape)
        and all(a in (b, -1) or b == -1 for a, b in zip(like.shape, x.shape, strict=True))
        for x, like in zip((arrays[n] for n in names), (leaf for _, leaf in leaves), strict=True)
    )
    if not fits:
        raise RefusedFileError(f"{path} = other arrays than expected: not used; it is kept")
    return jax.tree.unflatten(structure, [arrays[n] for n in names])


def _seal(arrays: dict[str, np.ndarray], record: dict[str, str]) -> str:
    """Return the checksum of arrays, with that of the record where there is one."""
    return tree_hash(arrays) if not record else digest({"arrays": tree_hash(arrays), **record})


def array_name(path: tuple) -> str:
    """Return a leaf's name from its path, e.g. torso.blocks_0.key.kernel."""
    return re.sub(r"[\[\]'.]+", ".", jax.tree_util.keystr(path)).strip(".")


def tree_hash(tree: Any) -> str:
    """Return the SHA-256 of all names, shapes and values in a tree of arrays."""
    total = hashlib.sha256()
    for path, x in sorted((array_name(p), np.asarray(x)) for p, x in jax.tree_util.tree_flatten_with_path(tree)[0]):
        total.update(f"{path} {x.dtype} {x.shape}".encode())
        total.update(np.ascontiguousarray(x).tobytes())
    return total.hexdigest()


def canonical(config: dict[str, Any]) -> str:
    """Return the one JSON text of a configuration."""
    return json.dumps(config, sort_keys=True)


def digest(config: dict[str, Any]) -> str:
    """Return the SHA-256 of a configuration."""
    return hashlib.sha256(canonical(config).encode()).hexdigest()


def checksum(dataset: xr.Dataset) -> str:
    """Return the SHA-256 of a dataset's values and of every attribute but the checksum itself."""
    attributes = {k: v.item() if isinstance(v, np.generic) else v for k, v in dataset.attrs.items() if k != "checksum"}
    total = hashlib.sha256(canonical(attributes).encode())
    for name in sorted(map(str, dataset.variables)):
        values = dataset[name].values
        # NetCDF stores big-endian; hash one byte order.
        total.update(f"{name} {dataset[name].dims} {values.shape}".encode())
        total.update(np.ascontiguousarray(values.astype(values.dtype.newbyteorder("<"))).tobytes())
    return total.hexdigest()


def write_atomically(path: Path, write: Callable[[str], None]) -> None:
    """Write through a temporary file in the same folder: a reader sees the whole file or none."""
    make_folder(path.parent)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        write(temporary)
        os.chmod(temporary, 0o644)  # temporary files start out private
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def set_aside(path: Path) -> None:
    """Keep a file that may not be used under another name, if there is one."""
    if path.exists():
        path.replace(unused(path.with_name(path.name + ".refused")))


def make_folder(folder: Path) -> None:
    """Create a folder that can be written to; raises ValueError naming it otherwise."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"folder = {folder}: must be writable ({error.strerror})") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"folder = {folder}: must be writable (Permission denied)")


def unused(path: Path) -> Path:
    """Return `path`, or the first of path-1, path-2, ... that is free."""
    candidates = [path, *(path.with_name(f"{path.name}-{i}") for i in range(1, 1000))]
    return next(p for p in candidates if not p.exists())


def commit() -> str:
    """Return the commit of the running source, marked where `src` has changes that are not in it; or "unknown"."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", ".", ":!results")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def device() -> str:
    """Return the device that computes, in words, e.g. "cpu: AMD EPYC, 2 cores"."""
    first = jax.devices()[0]
    if first.platform != "cpu":
        return f"{first.platform}: {first.device_kind}"
    names = re.findall(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return f"cpu: {names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
