"""Results that travel: packed for another machine, and taken from one after every check."""

import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

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
        names = [f"{_PACKED}{piece:03d}-of-{number:03d}" for piece in range(number)]
        return [_write(folder / name, whole.read(PIECE)) for name in names]


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def merge(folder: Path, store: Store, named: Named) -> list[Outcome]:
    """Take finished cells and checkpoints from another machine's folder, or what `export` packed there.

    Refused is a file that is damaged, that is of no cell of this version, or whose base network is not the store's own.
    Networks are taken before what is tuned on them; a checkpoint where neither it nor its finished cell is there.
    """
    with tempfile.TemporaryDirectory() as unpacked:
        if pieces := sorted(folder.glob(f"{_PACKED}*-of-*")):
            _unpack(pieces, Path(unpacked))
            folder = Path(unpacked)
        return [*_merge_cells(folder, store, named), *_merge_checkpoints(folder, store, named)]


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


def _merge_cells(folder: Path, store: Store, named: Named) -> Iterator[Outcome]:
    other = Store(folder, shipped=None)
    found = {path: named(path.name.removesuffix(".nc")) for path in folder.glob("*.nc")}
    for path in sorted(found, key=lambda p: (found[p] is None or not found[p].makes_network, p.name)):
        try:
            yield path.name.removesuffix(".nc"), _merge_cell(found[path], path, other, store)
        except RefusedFileError as error:
            yield path.name.removesuffix(".nc"), f"refused: {error}"
        except OSError as error:  # a link that leads nowhere, a disk that is full
            yield path.name.removesuffix(".nc"), f"refused: {path} = {error.strerror}"


def _merge_cell(cell: Cell | None, path: Path, other: Store, store: Store) -> str:
    if cell is None:
        raise RefusedFileError(f"{path.name.removesuffix('.nc')} = not the name of a cell")
    if (mine := load_cell(cell, store)) is not None:
        same = mine.attrs["checksum"] == read_dataset(path).attrs["checksum"]
        return "there already" if same else "kept ours: there already, with other numbers"
    read_dataset(path, cell.config(_network_hash(cell, path, store)))
    if cell.makes_network and load_network(cell, other) is None:
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


def _merge_checkpoints(folder: Path, store: Store, named: Named) -> Iterator[Outcome]:
    for path in sorted(folder.glob("*.partial")):
        try:
            yield path.name, _merge_checkpoint(path, store, named)
        except RefusedFileError as error:
            yield path.name, f"refused: {error}"
        except OSError as error:
            yield path.name, f"refused: {path} = {error.strerror}"


def _merge_checkpoint(path: Path, store: Store, named: Named) -> str:
    stem, _, belongs = path.name.removesuffix(".partial").rpartition(".")
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
