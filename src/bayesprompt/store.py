"""Results on disk: one labelled file a cell, that says where it came from."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import platformdirs
import xarray as xr

from bayesprompt.files import (
    RefusedFileError,
    canonical,
    check_there,
    digest,
    load_arrays,
    make_folder,
    save_arrays,
    set_aside,
    tree_hash,
    write_atomically,
)
from bayesprompt.provenance import provenance
from bayesprompt.settings import LOG

SHIPPED = Path(__file__).parent / "results"


def cache_folder() -> Path:
    """Return the folder of the user's own results: $BAYESPROMPT_CACHE, else the platform's cache folder."""
    return Path(os.environ.get("BAYESPROMPT_CACHE") or platformdirs.user_cache_dir("bayesprompt")).expanduser()


class Store:
    """The cells on disk: those in the user's folder first, then those that ship with the package."""

    def __init__(self, folder: Path | str | None = None, shipped: Path | str | None = SHIPPED) -> None:
        """Look in `folder` (default: the user's cache) and then in `shipped`; None leaves the shipped results out."""
        self.folder = Path(folder) if folder is not None else cache_folder()
        self.folders = [self.folder] + ([Path(shipped)] if shipped is not None else [])

    def find(self, name: str) -> Path | None:
        """Return the first file of this cell, unchecked."""
        return next((path for folder in self.folders if (path := folder / f"{name}.nc").exists()), None)

    def load(self, name: str, config: dict[str, Any] | None = None) -> xr.Dataset | None:
        """Return a cell's dataset if one passes its checks, else None; each file refused is named in one log line."""
        return self.first(lambda folder: read_dataset(folder / f"{name}.nc", config))

    def first(self, read: Callable[[Path], Any]) -> Any:
        """Return what `read` finds in the first folder that has it, or None; each file refused is one log line."""
        for folder in self.folders:
            try:
                return read(folder)
            except FileNotFoundError:
                continue
            except RefusedFileError as error:
                LOG.warning("%s", error)
        return None

    def save(
        self,
        name: str,
        dataset: xr.Dataset,
        config: dict[str, Any],
        seconds: float,
        origin: dict[str, str] | None = None,
    ) -> xr.Dataset:
        """Write a cell and return it; a file that stands in the way is kept under another name.

        `origin` is its provenance, as it was when the computation began (default: as it is now).
        """
        identity = {"config": canonical(config), "config_hash": digest(config), "seconds": float(seconds)}
        # NetCDF3 has no 64-bit integers: narrow them here, so that what is hashed is what will be read.
        wide = {name: v.astype(np.int32) for name, v in dataset.variables.items() if v.dtype == np.int64}
        dataset = dataset.assign(wide).assign_attrs(identity | (origin or provenance()))
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

    @contextlib.contextmanager
    def lock(self, name: str, timeout: float = -1) -> Iterator[None]:
        """Hold the lock that keeps two runs of one cell apart; where there are no locks, go on without, and say so."""
        make_folder(self.folder)
        lock = filelock.FileLock(self.folder / f"{name}.lock", timeout=timeout)
        try:
            lock.acquire()
        except filelock.Timeout:
            raise
        except (OSError, NotImplementedError) as error:  # another user's file, or a file system without locks
            LOG.warning("%s", f"{lock.lock_file} = no lock ({error}): a second run of this cell would not wait")
        try:
            yield
        finally:
            lock.release()

    def checkpoint(self, name: str, config: dict[str, Any], part: str = "") -> Path:
        """Return where an unfinished run of this configuration, or a named part of it, keeps its state."""
        return self.folder / f"{name}.{digest(config)[:12]}{part and f'-{part}'}.partial"

    def drop_checkpoints(self, name: str, config: dict[str, Any]) -> None:
        """Delete what a finished run of this configuration kept."""
        for path in self.folder.glob(f"{self.checkpoint(name, config).stem}*.partial"):
            path.unlink(missing_ok=True)


def read_dataset(path: Path, config: dict[str, Any] | None = None) -> xr.Dataset:
    """Read and check one results file; raises FileNotFoundError, or RefusedFileError that says why it is not used."""
    check_there(path)
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
