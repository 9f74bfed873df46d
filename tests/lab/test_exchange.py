"""Results travel: what is packed comes out the same, and nothing is taken without every check."""

import numpy as np
import pytest
import xarray as xr

from bayesprompt import catalog
from bayesprompt.catalog import cell_named
from bayesprompt.checks import UserError
from bayesprompt.files import save_arrays
from bayesprompt.lab import exchange
from bayesprompt.lab.cells import load_cell
from bayesprompt.lab.exchange import export, merge
from bayesprompt.lab.run import run_cell
from bayesprompt.store import Store

EXACT = [catalog.cell("single-coin", "bayes", method, "smoke") for method in ("TargetBayes", "PreBayes")]


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "here", None)
    for cell in EXACT:
        run_cell(cell, store)
    return store


@pytest.fixture
def other(tmp_path):
    return Store(tmp_path / "there", None)


def test_what_was_packed_comes_out_the_same(store, other, tmp_path, monkeypatch):
    monkeypatch.setattr(exchange, "PIECE", 5000)
    pieces = export(tmp_path / "packed", store)
    assert len(pieces) > 2 and all(path.stat().st_size <= 5000 for path in pieces)
    assert dict(merge(tmp_path / "packed", other, cell_named)) == {cell.name: "taken" for cell in EXACT}
    for cell in EXACT:
        xr.testing.assert_identical(load_cell(cell, other), load_cell(cell, store))
    assert {outcome for _, outcome in merge(tmp_path / "packed", other, cell_named)} == {"there already"}
    export(tmp_path / "packed", store)
    pieces[1].unlink()
    with pytest.raises(UserError, match=r"^DIR = .*packed: must have all \d+ pieces of one archive, and no others$"):
        merge(tmp_path / "packed", other, cell_named)


def test_nothing_to_pack_is_one_line(other, tmp_path):
    with pytest.raises(UserError, match="^DIR = .*: must have something to hold, but .*there has no results$"):
        export(tmp_path / "packed", other)


def test_names_that_are_no_cells_are_refused_every_time(store, other):
    """A seed written 00 is no name of a cell: it would never be found again."""
    stem = EXACT[0].name
    for name in (stem[:-1] + "00", stem[:-1] + "+0", "notes", stem + ".0", stem.replace("smoke", "huge")):
        (store.folder / f"{stem}.nc").rename(store.folder / f"{name}.nc")
        outcomes = dict(merge(store.folder, other, cell_named))
        assert outcomes[name] == f"refused: {name} = not the name of a cell"
        (store.folder / f"{name}.nc").rename(store.folder / f"{stem}.nc")


def test_a_link_that_leads_nowhere_stops_nothing(store, other):
    first, second = sorted(cell.name for cell in EXACT)
    (store.folder / f"{first}.nc").unlink()
    (store.folder / f"{first}.nc").symlink_to("nowhere")
    outcomes = dict(merge(store.folder, other, cell_named))
    assert outcomes[first].startswith("refused: ") and outcomes[second] == "taken"


def test_a_checkpoint_is_taken_where_it_belongs(store, other):
    cell = catalog.cell("pretraining", "lstm", "Pretrained", "smoke")
    path = store.checkpoint(cell.name, cell.config())
    save_arrays(path, {"phi": np.ones(3, np.float32)})
    foreign = store.folder / path.name.replace(path.name.split(".")[-2], "0" * 12)
    save_arrays(foreign, {"phi": np.ones(3, np.float32)})
    damaged = store.checkpoint(cell.name, cell.config(), "half")
    damaged.write_bytes(path.read_bytes()[:-5])
    outcomes = dict(merge(store.folder, other, cell_named))
    assert outcomes[path.name] == "taken: a run goes on there"
    assert (other.folder / path.name).read_bytes() == path.read_bytes()
    assert outcomes[foreign.name] == f"refused: {foreign} = another configuration: not used; it is kept"
    assert "unreadable" in outcomes[damaged.name] and foreign.exists() and damaged.exists()
    assert dict(merge(store.folder, other, cell_named))[path.name] == "kept ours: there already"
    packed = export(other.folder / "packed", store, unfinished=True)
    assert sum(path.stat().st_size for path in packed) > path.stat().st_size
