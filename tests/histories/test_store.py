"""The store on disk: what was written comes back; what is damaged is named."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.histories import store as store_module
from recsys.histories.store import HistoryStore, StoreError, open_store, read_manifest, write_store

SETTINGS = {"name": "test", "fingerprint": "f" * 64, "settings": {"a": 1}, "sources": []}
FILES = ["manifest.json", "offsets.npy", "items.npy", "times.npy", "ratings.npy", "labels.npy"]
FILES += ["users.parquet", "items.parquet", "report.json"]


def example():
    plain = HistoryStore.from_lists([[1, 2, 2], [3], [2, 1]], times=[[5, 6, 7], [5], [1, 9]])
    return replace(
        plain,
        ratings=np.array([1, np.nan, 3, 4, 5, 6], dtype=np.float32),
        labels=np.array([0, 1, -1, 1, 0, 0], dtype=np.int8),
    )


def write(folder, store=None, **changes):
    return write_store(
        folder, store or example(), order="time", report={"rows_in": 6}, **{**SETTINGS, **changes}
    )


def same(one, other):
    for name in ("offsets", "items", "times", "ratings", "labels"):
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None) == (b is None)
        if a is not None:
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
    for name in ("user_vocabulary", "item_vocabulary"):
        a, b = getattr(one, name), getattr(other, name)
        assert (a.raw_ids.to_list(), a.first_index) == (b.raw_ids.to_list(), b.first_index)
        assert a.fingerprint == b.fingerprint


def test_what_was_written_comes_back(tmp_path):
    folder = write(tmp_path / "stores" / "x")
    assert sorted(f.name for f in folder.iterdir()) == sorted(FILES)
    assert [f.name for f in folder.parent.iterdir()] == ["x"]
    opened = open_store(folder, verify=True)
    same(opened, example())
    assert isinstance(opened.items, np.memmap)
    assert opened.fingerprint == "f" * 64
    assert opened.path == folder
    assert (opened.users, opened.events, opened.catalogue_size) == (3, 6, 4)
    assert opened.history(0, 2).tolist() == [1, 2]
    manifest = opened.manifest
    assert (manifest["format"], manifest["version"]) == ("recsys-histories", 1)
    assert manifest["counts"] == {"events": 6, "users": 3, "items": 3}
    assert manifest["item_vocabulary"] == example().item_vocabulary.fingerprint
    assert manifest["has_times"] is True


@settings(deadline=None, max_examples=25)
@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1, max_size=8))
def test_any_histories_come_back(tmp_path_factory, histories):
    plain = HistoryStore.from_lists(histories)
    opened = open_store(write(tmp_path_factory.mktemp("s") / "x", plain))
    same(opened, plain)
    assert [opened.history(u).tolist() for u in range(opened.users)] == histories
    assert opened.manifest["has_times"] is False


def test_a_store_takes_the_place_of_an_older_one(tmp_path):
    write(tmp_path / "x")
    write(tmp_path / "x", HistoryStore.from_lists([[1]]), fingerprint="g" * 64)
    assert open_store(tmp_path / "x").fingerprint == "g" * 64
    assert not (tmp_path / "x" / "times.npy").exists()
    assert [f.name for f in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["cut off", "missing"])
def test_a_truncated_or_missing_file_is_named_with_the_remedy(tmp_path, name, damage):
    folder = write(tmp_path / "x")
    if damage == "missing":
        (folder / name).unlink()
    else:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(StoreError) as error:
        open_store(folder)
    assert name in str(error.value)
    assert str(folder) in str(error.value)
    assert "data.verify=true" in str(error.value)


def test_an_altered_file_of_the_same_size_is_found_when_asked(tmp_path):
    folder = write(tmp_path / "x")
    content = bytearray((folder / "items.npy").read_bytes())
    content[-4] ^= 3
    (folder / "items.npy").write_bytes(content)
    open_store(folder)
    with pytest.raises(StoreError, match=r"items\.npy was altered"):
        open_store(folder, verify=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 2}, "format version 2, this program reads 1"),
        ({"format": "other"}, "not the manifest of a histories store"),
        ({"files": None}, "lacks files"),
    ],
)
def test_another_format_is_refused(tmp_path, change, words):
    folder = write(tmp_path / "x")
    manifest = {**read_manifest(folder), **change}
    kept = {name: value for name, value in manifest.items() if value is not None}
    (folder / "manifest.json").write_text(json.dumps(kept))
    with pytest.raises(StoreError, match=words):
        open_store(folder)


def test_no_store_at_all(tmp_path):
    with pytest.raises(StoreError, match=r"no histories store at .*pipelines\.ingest"):
        open_store(tmp_path / "x")


@pytest.mark.parametrize("there_before", [False, True])
def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch, there_before):
    folder = tmp_path / "stores" / "x"
    if there_before:
        write(folder)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_module, "_write_parquet", fail)
    with pytest.raises(OSError, match="No space left"):
        write(folder, HistoryStore.from_lists([[1]]))
    if there_before:
        same(open_store(folder, verify=True), example())
        assert [f.name for f in folder.parent.iterdir()] == ["x"]
    else:
        assert list(tmp_path.iterdir()) == []


LIMITED = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
from recsys.histories.store import HistoryStore, write_store
size = int(sys.argv[2])
store = HistoryStore.from_lists([[i] for i in range(1, size + 1)])
try:
    write_store(Path(sys.argv[1]), store, name="x", fingerprint="f", settings={}, sources=[],
                order="time", report={})
except OSError as error:
    print(error)
"""


@pytest.mark.parametrize("users", [2_000, 10_000])
def test_a_full_disk_is_an_os_error_and_leaves_nothing(tmp_path, users):
    # 2,000 users: the arrays fit, the vocabulary (written by Polars) and hashes may not.
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "stores" / "x"), str(users)],
        capture_output=True,
        text=True,
        check=True,
    )
    left = [f for f in tmp_path.rglob("*") if f.is_file()]
    if "File too large" in done.stdout:
        assert list(tmp_path.iterdir()) == []
    else:
        assert users == 2_000, done
        assert len(left) == 6


def test_a_folder_that_moved_opens(tmp_path):
    folder = write(tmp_path / "x")
    moved = shutil.move(folder, tmp_path / "y")
    same(open_store(moved), example())
