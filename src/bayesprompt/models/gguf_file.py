"""Reading a GGUF file's fields and tensors with the package gguf, after checking every length in its header.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import mmap
import struct
from pathlib import Path
from typing import Any

import numpy as np

from bayesprompt.store import RefusedFileError

# More than any published model has; a count beyond it is a damaged file's.
_MOST_FIELDS, _MOST_TENSORS, _MOST_ITEMS = 10_000, 100_000, 1_000_000
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a value, by its type
_STRING, _ARRAY = 8, 9


def check_file(path: Path) -> None:
    """Walk through a GGUF file's header with every length checked; raise RefusedFileError where it does not fit.

    The package gguf believes the counts that it reads: a damaged one could make it run or allocate without end.
    """
    with path.open("rb") as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:  # an empty file
            raise RefusedFileError(f"{path} = empty: must be a GGUF file") from None
        with data:
            if data[:4] != b"GGUF":
                raise RefusedFileError(f"{path} = starts with {bytes(data[:4])!r}: must be a GGUF file (b'GGUF')")
            try:
                _walk(data)
            except (struct.error, ValueError, RecursionError) as error:
                raise RefusedFileError(f"{path} = truncated or malformed: {error}") from None


def _walk(data: mmap.mmap) -> None:
    """Walk through the header; raise ValueError or struct.error where one does not fit."""
    at = 4

    def take(form: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from("<" + form, data, at)
        at += struct.calcsize(form)
        return value

    def skip(size: int) -> None:
        nonlocal at
        if size > len(data) - at:
            raise ValueError(f"{size} bytes announced at byte {at}, of {len(data)} in the file")
        at += size

    def count(form: str, most: int, what: str) -> int:
        if (found := take(form)) > most:
            raise ValueError(f"{found} {what}: must be at most {most}")
        return found

    def value(kind: int) -> None:
        if kind == _STRING:
            skip(take("Q"))
        elif kind == _ARRAY:
            kind, items = take("I"), count("Q", _MOST_ITEMS, "items of an array")
            if kind == _STRING:
                for _ in range(items):
                    skip(take("Q"))
            elif kind in _SIZES:
                skip(items * _SIZES[kind])
            else:
                raise ValueError(f"array of type {kind}")
        elif kind in _SIZES:
            skip(_SIZES[kind])
        else:
            raise ValueError(f"value of type {kind}")

    if (version := take("I")) not in (2, 3):
        raise ValueError(f"version {version}: must be 2 or 3")
    tensors, fields = count("Q", _MOST_TENSORS, "tensors"), count("Q", _MOST_FIELDS, "fields")
    for _ in range(fields):
        skip(take("Q"))
        value(take("I"))
    for _ in range(tensors):
        skip(take("Q"))
        skip(8 * count("I", 4, "dimensions of a tensor") + 4 + 8)


def read_file(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the file's fields and its tensors (still quantised, on disk) by name."""
    import gguf

    try:
        with np.errstate(over="raise"):  # places past 2**64
            reader = gguf.GGUFReader(path)
    except Exception as error:  # whatever it trips over in a damaged file
        raise RefusedFileError(f"{path} = truncated or malformed: {in_one_line(error)}") from None
    if sum(tensor.n_bytes for tensor in reader.tensors) > path.stat().st_size:  # memory could grow without end
        raise RefusedFileError(f"{path} = truncated or malformed: tensors that overlap")
    return reader.fields, {tensor.name: tensor for tensor in reader.tensors}


def in_one_line(error: Exception) -> str:
    """Return what an error says, in one line."""
    return " ".join((str(error) or repr(error)).split())
