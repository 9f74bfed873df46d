"""Results that travel: packed for another machine, and taken from one after every check."""

import shutil
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bayesprompt.checks import UserError
from bayesprompt.files import RefusedFileError, digest, make_folder, read_arrays, write_atomically
from bayesprompt.lab.cells import load_cell, load_network
from bayesprompt.lab.experiment import Cell
from bayesprompt.store import Store, read_dataset

PIECE = 15 * 2**20  # bytes of a packed file at most: what mail and repositories take
_PACKED = "results.tar."  # and which of how many pieces, e.g. 000-of-002

Outcome = tuple[str, str]  # a file, and what became of it
Named = Callable[[str], Cell | None]  # finds a cell by the stem of its files


def export(folder: Path, store: Store, unfinished: bool = False) -> list[Path]:
    """Pack the finished cells of the user's own folder, and with `unfinished` the checkpoints, into a few files.

    They are the pieces of one archive, each of at most 15 MiB. Raises UserError where there is nothing to pack.
    """
    suffixes = (".nc", ".safetensors", ".partial") if unfinished else (".nc", ".safetensors")
    files = sorted(path for path in store.folder.glob("[!.]*") if path.suffix in suffixes)
    if not files:
        raise UserError(f"DIR = {folder}: must have something to hold, but {store.folder} has no results")
    make_folder(folder)
    for old in folder.glob(f"{_PACKED}*"):
        old.unlink()
    with tempfile.TemporaryFile(dir=folder) as whole:
        with tarfile.open(fileobj=whole, mode="w") as archive:
            for path in files:
                archive.add(path, path.name)
        size = whole.tell()
        whole.seek(0)
        number = -(-size // PIECE)
        paths = [folder / f"{_PACKED}{piece:03d}-of-{number:03d}" for piece in range(number)]
        for path in paths:
            path.write_bytes(whole.read(PIECE))
        return paths


def merge(folder: Path, store: Store, named: Named) -> list[Outcome]:
    """Take finished cells and checkpoints from another machine's folder, or what `export` packed there.

    Refused is a file that is damaged, that is of no cell of this version, or whose base network is not the store's own.
    Networks are taken before what is tuned on them; a checkpoint where neither it nor its finished cell is there.
    """
    with tempfile.TemporaryDirectory() as unpacked:
        if pieces := sorted(folder.glob(f"{_PACKED}*-of-*")):
            _unpack(pieces, Path(unpacked))
            folder = Path(unpacked)
        cells = {path: named(path.stem) for path in folder.glob("*.nc")}
        ordered = sorted(cells, key=lambda p: (cells[p] is None or not cells[p].makes_network, p.name))
        taken = [(path.stem, _outcome(_merge_cell, path, cells[path], store)) for path in ordered]
        unfinished = sorted(folder.glob("*.partial"))
        return taken + [(path.name, _outcome(_merge_checkpoint, path, named, store)) for path in unfinished]


def _outcome(merge_one: Callable[..., str], path: Path, *given: Any) -> str:
    try:
        return merge_one(path, *given)
    except RefusedFileError as error:
        return f"refused: {error}"
    except OSError as error:  # a link that leads nowhere, a disk that is full
        return f"refused: {path} = {error.strerror}"


def _unpack(pieces: list[Path], into: Path) -> None:
    number = int(pieces[0].name.rpartition("-")[2])
    if [path.name for path in pieces] != [f"{_PACKED}{piece:03d}-of-{number:03d}" for piece in range(number)]:
        raise UserError(f"DIR = {pieces[0].parent}: must have all {number} pieces of one archive, and no others")
    with tempfile.TemporaryFile(dir=into) as whole:
        for piece in pieces:
            whole.write(piece.read_bytes())
        whole.seek(0)
        try:
            with tarfile.open(fileobj=whole) as archive:
                flat = [member for member in archive if member.isfile() and "/" not in member.name]
                archive.extractall(into, flat, filter="data")
        except (tarfile.TarError, EOFError) as error:
            raise UserError(f"DIR = {pieces[0].parent}: must have an archive that can be read ({error})") from None


def _merge_cell(path: Path, cell: Cell | None, store: Store) -> str:
    if cell is None:
        raise RefusedFileError(f"{path.stem} = not the name of a cell")
    if (mine := load_cell(cell, store)) is not None:
        same = mine.attrs["checksum"] == read_dataset(path).attrs["checksum"]
        return "there already" if same else "kept ours: there already, with other numbers"
    read_dataset(path, cell.config(_network_hash(cell, path, store)))
    if cell.makes_network and load_network(cell, Store(path.parent, shipped=None)) is None:
        raise RefusedFileError(f"{path} = without its network's arrays, or with others: not used; it is kept")
    for suffix in (".safetensors", ".nc"):
        if (source := path.with_name(cell.name + suffix)).exists():
            _copy(source, store)
    return "taken"


def _network_hash(cell: Cell, path: Path, store: Store) -> str | None:
    if cell.base is None:
        return None
    if (base := load_cell(cell.base, store)) is None:
        raise RefusedFileError(f"{path} = tuned on a base network that is not here: merge that cell first")
    return base.attrs["network"]


def _merge_checkpoint(path: Path, named: Named, store: Store) -> str:
    stem, _, belongs = path.stem.rpartition(".")
    if (cell := named(stem)) is None:
        raise RefusedFileError(f"{path.name} = not the name of a cell's checkpoint")
    if belongs.partition("-")[0] != digest(cell.config(_network_hash(cell, path, store)))[:12]:
        raise RefusedFileError(f"{path} = another configuration: not used; it is kept")
    read_arrays(path)
    if load_cell(cell, store) is not None:
        return "not needed: its cell is there"
    if (store.folder / path.name).exists():
        return "kept ours: there already"
    _copy(path, store)
    return "taken: a run goes on there"


def _copy(source: Path, store: Store) -> None:
    write_atomically(store.folder / source.name, lambda temporary: shutil.copyfile(source, temporary))
