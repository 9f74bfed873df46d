"""Results on disk: what was written is read, and nothing else is ever used, deleted or left half-written."""

import ast
import errno
import logging
import os
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import bayesprompt
from bayesprompt import store as stores
from bayesprompt.checks import UserError
from bayesprompt.files import (
    OtherRunError,
    RefusedFileError,
    array_name,
    canonical,
    digest,
    load_arrays,
    save_arrays,
    tree_hash,
    write_atomically,
)
from bayesprompt.store import Store, read_dataset

CONFIG = {"experiment": "tests", "sizes": {"width": 16}, "seed": 0}
DATASET = xr.Dataset(
    {
        "regret": (("repetition", "n"), np.linspace(0, 1, 6).reshape(2, 3)),
        "prediction": (("seen", "heads"), np.array([[0.5, np.nan]], np.float32)),
        "counts": ("token", np.array([1, 5])),
    },
    coords={"n": np.arange(1, 4, dtype=np.int32)},
    attrs={"network": "abc"},
)
TREE = {"torso": {"cell_0": {"kernel": jnp.arange(6.0).reshape(2, 3)}}, "steps": (jnp.int32(3), jnp.zeros(0))}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "cells", shipped=None)


@pytest.fixture
def path(store):
    store.save("cell", DATASET, CONFIG, 1.5)
    return store.folder / "cell.nc"


@pytest.fixture
def refused(caplog):
    """Give the one line in which a file was refused."""

    def line():
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        message = caplog.records[0].getMessage()
        assert "\n" not in message
        caplog.clear()
        return message

    caplog.set_level(logging.DEBUG, "bayesprompt")
    return line


def test_what_was_saved_is_loaded(store):
    saved = store.save("cell", DATASET, CONFIG, 1.5)
    loaded = store.load("cell", CONFIG)
    xr.testing.assert_identical(loaded, saved)
    xr.testing.assert_equal(loaded, DATASET)
    assert loaded.attrs["network"] == "abc" and loaded.attrs["seconds"] == 1.5
    assert loaded.attrs["version"] == bayesprompt.__version__
    assert loaded.attrs["config"] == canonical(CONFIG) and loaded.attrs["config_hash"] == digest(CONFIG)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", loaded.attrs["date"])
    assert loaded.attrs["device"].startswith("cpu: ")
    assert re.fullmatch(r"unknown|[0-9a-f]{40}(\+changes)?", loaded.attrs["commit"])


def test_a_missing_cell_is_nothing_to_speak_of(store, caplog):
    assert store.load("cell", CONFIG) is None and store.find("cell") is None
    assert not caplog.records


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path):
    path.write_bytes(b"")


def foreign(path):
    path.write_text("not a result\n" * 100)


def flipped(path):
    content = bytearray(path.read_bytes())
    place = content.index(np.linspace(0, 1, 6).astype(">f8").tobytes())
    content[place + 11] ^= 1
    path.write_bytes(bytes(content))


def relabelled(path):
    content = path.read_bytes()
    assert content.count(b'"seed": 0') == 1
    path.write_bytes(content.replace(b'"seed": 0', b'"seed": 1'))


def without_provenance(path):
    DATASET.to_netcdf(path, engine="scipy")


DAMAGES = {
    truncated: "unreadable|altered",
    emptied: "unreadable",
    foreign: "unreadable",
    flipped: "altered",
    relabelled: "altered",
    without_provenance: "unreadable",
}


@pytest.mark.parametrize(("damage", "reason"), DAMAGES.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_a_damaged_file_is_refused_and_kept(store, path, refused, damage, reason):
    damage(path)
    content = path.read_bytes()
    assert store.load("cell", CONFIG) is None
    assert re.fullmatch(rf"{re.escape(str(path))} = ({reason})\b.*: .*not used; it is kept", refused())
    assert path.read_bytes() == content, "reading changes nothing"
    store.save("cell", DATASET, CONFIG, 2.0)
    assert path.with_name("cell.nc.refused").read_bytes() == content
    assert store.load("cell", CONFIG).attrs["seconds"] == 2.0


def test_every_refused_file_is_kept(store, path):
    for number in (1, 2, 3):
        path.write_text(str(number))
        store.save("cell", DATASET, CONFIG, 0.0)
    kept = sorted(file.name for file in store.folder.glob("*.refused*"))
    assert kept == ["cell.nc.refused", "cell.nc.refused-1", "cell.nc.refused-2"]
    assert [(store.folder / name).read_text() for name in kept] == ["1", "2", "3"]


def test_another_configuration_is_refused_by_what_differs(store, path, refused):
    assert store.load("cell", CONFIG | {"seed": 1, "scale": "paper"}) is None
    assert "another configuration (differs in scale, seed)" in refused()
    assert store.load("cell") is not None, "without a configuration, any will do"


def test_ones_own_results_come_before_those_shipped(store, path, tmp_path, refused):
    own = Store(tmp_path / "own", shipped=store.folder)
    assert own.load("cell", CONFIG).attrs["seconds"] == 1.5 and own.find("cell") == path
    own.save("cell", DATASET, CONFIG, 2.5)
    assert own.load("cell", CONFIG).attrs["seconds"] == 2.5
    truncated(own.folder / "cell.nc")
    assert own.load("cell", CONFIG).attrs["seconds"] == 1.5, "a damaged file of one's own hides nothing"
    assert refused().startswith(str(own.folder))


def test_the_folder_of_ones_own_results(cache, tmp_path, monkeypatch):
    assert Store().folder == cache and stores.SHIPPED in Store().folders
    monkeypatch.delenv("BAYESPROMPT_CACHE")
    assert "bayesprompt" in str(Store().folder)
    assert Store(tmp_path).folder == tmp_path
    monkeypatch.setenv("BAYESPROMPT_CACHE", "~/results")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Store().folder == tmp_path / "results"


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file" / "cells", shipped=None)
    message = re.escape(f"folder = {store.folder}: must be writable (Not a directory)")
    assert store.load("cell", CONFIG) is None
    for act in (lambda: store.save("cell", DATASET, CONFIG, 0.0), lambda: store.lock("cell").__enter__()):
        with pytest.raises(UserError, match=f"^{message}$"):
            act()


def test_a_folder_without_permission_is_named(store, path, monkeypatch):
    monkeypatch.setattr(stores.os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(ValueError, match=r"^folder = .*: must be writable \(Permission denied\)$"):
        store.save("cell", DATASET, CONFIG, 0.0)


def test_a_write_that_fails_leaves_nothing_behind(tmp_path):
    path = tmp_path / "folder" / "file"
    path.parent.mkdir()
    path.write_text("before")

    def fail(temporary):
        Path(temporary).write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert [file.name for file in path.parent.iterdir()] == ["file"] and path.read_text() == "before"
    write_atomically(path, lambda temporary: Path(temporary).write_text("after"))
    assert [file.name for file in path.parent.iterdir()] == ["file"] and path.read_text() == "after"


def test_arrays_come_back_as_they_were(tmp_path):
    save_arrays(tmp_path / "a", TREE)
    loaded = load_arrays(tmp_path / "a", TREE)
    assert tree_hash(loaded) == tree_hash(TREE) and type(loaded["steps"]) is tuple
    np.testing.assert_array_equal(loaded["torso"]["cell_0"]["kernel"], TREE["torso"]["cell_0"]["kernel"])


@given(
    arrays=st.dictionaries(
        st.text("abc_+01", min_size=1, max_size=4),
        st.lists(st.floats(width=32, allow_nan=False), max_size=3).map(lambda x: np.array(x, np.float32)),
        min_size=1,
    )
)
def test_any_arrays_come_back(arrays, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    save_arrays(path, {"phi": arrays})
    loaded = load_arrays(path, {"phi": arrays})["phi"]
    assert {name: x.tobytes() for name, x in loaded.items()} == {name: x.tobytes() for name, x in arrays.items()}


def flipped_array(path):
    content = path.read_bytes()
    assert content.count(np.float32(5).tobytes()) == 1
    path.write_bytes(content.replace(np.float32(5).tobytes(), np.float32(6).tobytes()))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(truncated, "unreadable"), (emptied, "unreadable"), (foreign, "unreadable"), (flipped_array, "altered")],
)
def test_damaged_arrays_are_refused(tmp_path, damage, reason):
    path = tmp_path / "cell.safetensors"
    save_arrays(path, TREE)
    damage(path)
    with pytest.raises(RefusedFileError, match=f"^{re.escape(str(path))} = {reason}.*; it is kept$"):
        load_arrays(path, TREE)


@pytest.mark.parametrize(
    "like",
    [
        {"torso": {"cell_0": {"kernel": jnp.zeros((2, 3))}}},
        {**TREE, "more": jnp.zeros(1)},
        {**TREE, "torso": {"cell_0": {"kernel": jnp.zeros((3, 2))}}},
        {**TREE, "torso": {"cell_0": {"kernel": jnp.zeros(6)}}},
        {**TREE, "torso": {"cell_0": {"kernel": jnp.zeros((2, 3), jnp.int32)}}},
        {**TREE, "torso": {"cell_1": {"kernel": jnp.zeros((2, 3))}}},
    ],
    ids=["fewer", "more", "transposed", "flat", "integers", "renamed"],
)
def test_arrays_of_something_else_are_refused(tmp_path, like):
    save_arrays(tmp_path / "a", TREE)
    with pytest.raises(RefusedFileError, match="= other arrays than expected: not used; it is kept$"):
        load_arrays(tmp_path / "a", like)


def test_missing_arrays_are_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_arrays(tmp_path / "a", TREE)


def test_arrays_without_a_checksum_are_judged_by_their_shapes(tmp_path):
    """As other tools write them."""
    safetensors.numpy.save_file({"phi": np.ones(2, np.float32)}, tmp_path / "a")
    np.testing.assert_array_equal(load_arrays(tmp_path / "a", {"phi": jnp.zeros(2)})["phi"], 1)


RECORD = {"source": "a" * 64, "key": "b" * 64}


def test_arrays_know_the_run_that_they_belong_to(tmp_path):
    path = tmp_path / "a"
    save_arrays(path, TREE, RECORD)
    for asked in (RECORD, None):
        assert tree_hash(load_arrays(path, TREE, asked)) == tree_hash(TREE)
    message = f"{path} = of another run (differs in key): must be of this one; it is kept"
    with pytest.raises(OtherRunError, match=f"^{re.escape(message)}$"):
        load_arrays(path, TREE, RECORD | {"key": "c" * 64})
    save_arrays(path, TREE)
    with pytest.raises(RefusedFileError, match="= without a record of its run: not used; it is kept$"):
        load_arrays(path, TREE, RECORD)


def test_an_altered_record_is_damage_and_no_other_run(tmp_path):
    path = tmp_path / "a"
    save_arrays(path, TREE, RECORD)
    path.write_bytes(path.read_bytes().replace(b"b" * 64, b"c" * 64))
    with pytest.raises(RefusedFileError, match="= altered: ") as error:
        load_arrays(path, TREE, RECORD | {"key": "c" * 64})
    assert not isinstance(error.value, OtherRunError)


def test_a_cells_arrays_replace_the_same_and_set_others_aside(store):
    path = store.folder / "cell.safetensors"
    store.save_arrays("cell", TREE)
    store.save_arrays("cell", TREE)
    assert [file.name for file in store.folder.iterdir()] == [path.name]
    other = {**TREE, "steps": (jnp.int32(4), jnp.zeros(0))}
    store.save_arrays("cell", other)
    assert tree_hash(load_arrays(path.with_name(path.name + ".refused"), TREE)) == tree_hash(TREE)
    assert tree_hash(load_arrays(path, TREE)) == tree_hash(other)


def test_names_of_arrays_read_like_paths():
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(TREE)[0]]
    assert [array_name(path) for path in paths] == ["steps.0", "steps.1", "torso.cell_0.kernel"]


def test_a_trees_hash_is_of_names_types_shapes_and_values():
    base = {"a": np.zeros(4, np.float32), "b": np.ones(2, np.float32)}
    others = [
        {"a": base["a"], "c": base["b"]},
        {**base, "a": np.zeros((2, 2), np.float32)},
        {**base, "a": np.zeros(4, np.int32)},
        {**base, "a": np.float32([0, 0, 0, 1e-30])},
        {"a": base["b"], "b": base["a"]},
    ]
    assert tree_hash(dict(reversed(base.items()))) == tree_hash(base)
    assert len({tree_hash(tree) for tree in [base, *others]}) == 1 + len(others)


@given(st.dictionaries(st.text(), st.integers() | st.floats(allow_nan=False) | st.text() | st.none()))
def test_a_digest_does_not_depend_on_order(config):
    assert digest(dict(reversed(config.items()))) == digest(config)
    assert digest(config | {"one more": 1}) != digest(config)


def test_the_lock_admits_one(store):
    with store.lock("cell"):
        with pytest.raises(TimeoutError), store.lock("cell", timeout=0.01):
            pass
        with store.lock("other", timeout=0.01):
            pass


@pytest.mark.parametrize("error", [OSError(errno.ENOLCK, "No locks"), NotImplementedError("flock")])
def test_where_there_are_no_locks_the_work_goes_on_and_says_so(store, monkeypatch, refused, error):
    def acquire(self):
        raise error

    monkeypatch.setattr(stores.filelock.FileLock, "acquire", acquire)
    with store.lock("cell"):
        store.save("cell", DATASET, CONFIG, 1.0)
    assert "cell.lock = no lock" in refused()


def test_a_folder_that_may_not_be_read_hides_nothing(path, store, tmp_path, monkeypatch, refused):
    """Results of another user come first, and cannot even be looked at: those that ship are used."""
    own = Store(tmp_path / "another user", shipped=store.folder)
    stat = Path.stat

    def forbidden(self, **options):
        if "another user" in str(self):
            raise PermissionError(errno.EACCES, "Permission denied")
        return stat(self, **options)

    monkeypatch.setattr(Path, "stat", forbidden)
    assert own.load("cell", CONFIG) is not None
    assert refused().endswith("unreadable (Permission denied): not used; it is kept")


def test_files_have_the_permissions_that_the_user_gives(store):
    for mask, mode in ((0o022, 0o644), (0o077, 0o600), (0o002, 0o664)):
        before = os.umask(mask)
        try:
            store.save("cell", DATASET, CONFIG, 1.0)
        finally:
            os.umask(before)
        assert (store.folder / "cell.nc").stat().st_mode & 0o777 == mode


def test_checkpoints_of_different_configurations_are_different_files(store):
    assert store.checkpoint("cell", CONFIG) == store.checkpoint("cell", dict(reversed(CONFIG.items())))
    assert store.checkpoint("cell", CONFIG) != store.checkpoint("cell", CONFIG | {"seed": 1})
    assert store.checkpoint("cell", CONFIG) != store.checkpoint("cell", CONFIG, "first")


def test_a_finished_run_drops_its_checkpoints_and_no_others(store):
    own = [store.checkpoint("cell", CONFIG, part) for part in ("", "first", "second")]
    others = [store.checkpoint("cell", CONFIG | {"seed": 1}), store.checkpoint("cell2", CONFIG, "first")]
    store.folder.mkdir()
    for path in own + others:
        path.write_bytes(b"kept")
    store.drop_checkpoints("cell", CONFIG)
    assert not any(path.exists() for path in own) and all(path.exists() for path in others)
    store.drop_checkpoints("cell", CONFIG)


def test_a_copied_file_is_as_good(store, path, tmp_path):
    shutil.copy(path, tmp_path / "copy.nc")
    xr.testing.assert_identical(read_dataset(tmp_path / "copy.nc", CONFIG), store.load("cell", CONFIG))


def test_nothing_is_ever_pickled():
    words = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    for module in Path(bayesprompt.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(module.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not words & {part for name in names for part in name.split(".")}, module
            if isinstance(node, ast.keyword):
                assert node.arg != "allow_pickle", module
            if isinstance(node, ast.Attribute):  # NumPy's own format pickles what it does not know
                assert ast.unparse(node) not in ("np.load", "np.save", "np.savez"), module
