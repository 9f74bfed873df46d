"""Files: arrays under their names, written in one move with a checksum, and refused if altered. Nothing is pickled."""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from bayesprompt.checks import UserError


class RefusedFileError(UserError):
    """A results file is truncated, altered, foreign or of another configuration."""


class OtherRunError(RefusedFileError):
    """A file is intact, and of another run."""


def save_arrays(path: Path, tree: Any, record: dict[str, str] | None = None) -> None:
    """Write a tree of arrays as safetensors in one move, each under its path in the tree, with a checksum.

    The `record` says which run they belong to.
    """
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    arrays = {array_name(p): np.asarray(x, order="C") for p, x in leaves}
    kept = {"checksum": _seal(arrays, record or {}), **(record or {})}

    def write(temporary: str) -> None:
        try:
            safetensors.numpy.save_file(arrays, temporary, kept)
        except safetensors.SafetensorError as error:  # a full disk, say
            raise OSError(f"{path} = not written: {error}") from None

    write_atomically(path, write)


def load_arrays(path: Path, like: Any, record: dict[str, str] | None = None) -> Any:
    """Read arrays into a tree shaped like `like` (a size of -1: any).

    Raises FileNotFoundError, RefusedFileError for a damaged file or other names, types or sizes, and, where a `record`
    is asked for, OtherRunError for a file that holds another one.
    """
    arrays, held = read_arrays(path)
    if record is not None and not held:
        raise RefusedFileError(f"{path} = without a record of its run: not used; it is kept")
    if record is not None and held != record:
        differing = ", ".join(key for key in record | held if held.get(key) != record.get(key))
        raise OtherRunError(f"{path} = of another run (differs in {differing}): must be of this one; it is kept")
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    names = [array_name(p) for p, _ in leaves]
    fits = set(names) == set(arrays) and all(
        x.dtype == like.dtype
        and x.ndim == len(like.shape)
        and all(a in (b, -1) for a, b in zip(like.shape, x.shape, strict=True))
        for x, like in zip((arrays[n] for n in names), (leaf for _, leaf in leaves), strict=True)
    )
    if not fits:
        raise RefusedFileError(f"{path} = other arrays than expected: not used; it is kept")
    return jax.tree.unflatten(structure, [arrays[n] for n in names])


def read_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read and check a file: its arrays, and the record of their run.

    Raises FileNotFoundError, or RefusedFileError that says why the file is not used.
    """
    check_there(path)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            kept, arrays = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}
    except Exception as error:
        raise RefusedFileError(f"{path} = unreadable ({type(error).__name__}): not used; it is kept") from None
    held = {key: value for key, value in kept.items() if key != "checksum"}
    if kept.get("checksum", _seal(arrays, held)) != _seal(arrays, held):
        raise RefusedFileError(f"{path} = altered: its contents do not match its checksum; not used; it is kept")
    return arrays, held


def _seal(arrays: dict[str, np.ndarray], record: dict[str, str]) -> str:
    """Return the checksum of arrays, with that of the record where there is one."""
    return tree_hash(arrays) if not record else digest({"arrays": tree_hash(arrays), **record})


def check_there(path: Path) -> None:
    """Raise FileNotFoundError for a file that is not there, RefusedFileError where one may not even look."""
    try:
        path.stat()
    except FileNotFoundError:
        raise
    except NotADirectoryError:
        raise FileNotFoundError(path) from None
    except OSError as error:
        raise RefusedFileError(f"{path} = unreadable ({error.strerror}): not used; it is kept") from None


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


def write_atomically(path: Path, write: Callable[[str], None]) -> None:
    """Write through a temporary file in the same folder: a reader sees the whole file or none."""
    make_folder(path.parent)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        write(temporary)
        os.umask(withheld := os.umask(0))  # it can only be read by setting it
        os.chmod(temporary, 0o666 & ~withheld)  # temporary files start out private
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def set_aside(path: Path) -> None:
    """Keep a file that may not be used under another name, if there is one."""
    if path.exists():
        names = [f"{path.name}.refused", *(f"{path.name}.refused-{i}" for i in range(1, 1000))]
        path.replace(next(free for free in map(path.with_name, names) if not free.exists()))


def make_folder(folder: Path) -> None:
    """Create a folder that can be written to; raises ValueError naming it otherwise."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"folder = {folder}: must be writable ({error.strerror})") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"folder = {folder}: must be writable (Permission denied)")
