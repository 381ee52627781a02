"""From a log to a store: the whole way, against a plain program; and everything that can be bad."""

import json
import subprocess
import sys
from datetime import UTC, datetime
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.histories import ingest as ingest_module
from recsys.histories import ingest_report
from recsys.histories.ingest import ingest, read_report, render_report
from recsys.histories.store import NO_TIME, StoreError, open_store
from recsys.logs import files as files_module
from recsys.logs.cleaning import Cleaning
from recsys.logs.errors import LogError
from recsys.logs.schema import Columns

COLUMNS = Columns("user", "item", "time")
ANY = Cleaning()
START = 1_600_000_000

user_ids = st.sampled_from(["7", "12", "100", "x", "y z", "é"])
item_ids = st.sampled_from(["1", "2", "30", "a", 'q"t', ","])
rows = st.lists(st.tuples(user_ids, item_ids, st.integers(0, 6)), min_size=1, max_size=40)


def frame(data):
    data = [(user, item, START + time) for user, item, time in data]
    return pl.DataFrame(data, schema=["user", "item", "time"], orient="row")


def histories(store):
    """Raw ids and times of every user, oldest first."""
    result = {}
    for user, raw in enumerate(store.user_vocabulary.raw_ids.to_list()):
        begin, end = store.offsets[user], store.offsets[user + 1]
        items = store.item_vocabulary.raw(store.items[begin:end]).to_list()
        times = None if store.times is None else store.times[begin:end].tolist()
        result[raw] = (items, times)
    return result


@settings(deadline=None, max_examples=20)
@given(rows, st.sampled_from(["csv", "tsv", "parquet", "ndjson"]), st.booleans())
def test_histories_are_the_rows_of_each_user_in_order_of_time(
    tmp_path_factory, data, suffix, split
):
    folder = tmp_path_factory.mktemp("log")
    table = frame(data)
    parts = [table[: len(data) // 2], table[len(data) // 2 :]] if split else [table]
    for number, part in enumerate(parts):
        path = folder / f"{number}.{suffix}"
        if suffix == "parquet":
            part.write_parquet(path)
        elif suffix == "ndjson":
            part.write_ndjson(path)
        else:
            part.write_csv(path, separator="\t" if suffix == "tsv" else ",")
    if split and suffix == "ndjson" and len(data) == 1:
        (folder / "0.ndjson").unlink()  # no rows, so an empty file
    store = open_store(ingest(str(folder / f"*.{suffix}"), COLUMNS, ANY, folder / "cache"))
    ordered = sorted(data, key=lambda row: row[2])
    number = {}
    for position, kind in ((0, "user"), (1, "item")):
        whole = all(row[position].isdigit() for row in data)
        number[kind] = int if whole and suffix != "never" else str
    expected = {
        number["user"](user): (
            [number["item"](item) for who, item, _ in ordered if who == user],
            [(START + time) * 10**6 for who, _, time in ordered if who == user],
        )
        for user in {row[0] for row in data}
    }
    assert histories(store) == expected
    for vocabulary in (store.user_vocabulary, store.item_vocabulary):
        raw = vocabulary.raw_ids
        assert raw.to_list() == raw.sort().to_list()
    assert sorted(set(store.items.tolist())) == list(range(1, store.catalogue_size))
    counts = pl.read_parquet(store.path / "items.parquet")["count"].to_list()
    assert counts == np.bincount(store.items)[1:].tolist()


@settings(deadline=None, max_examples=20)
@given(rows, st.randoms())
def test_without_ties_neither_rows_nor_files_need_an_order(tmp_path_factory, data, random):
    data = [(user, item, time) for time, (user, item, _) in enumerate(data)]
    folder = tmp_path_factory.mktemp("log")
    cleaning = Cleaning(deduplicate="last", item_core=1, drop_consecutive_repeats=True)
    found = []
    for name, order in (("a", data), ("b", random.sample(data, len(data)))):
        frame(order).write_csv(folder / f"{name}.csv")
        path = ingest(str(folder / f"{name}.csv"), COLUMNS, cleaning, folder / "cache")
        found.append(open_store(path))
    assert histories(found[0]) == histories(found[1])
    np.testing.assert_array_equal(found[0].items, found[1].items)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.tuples(user_ids, item_ids, st.sampled_from(["1600000000", "", "x"]))))
def test_every_row_is_in_the_store_removed_or_quarantined(tmp_path_factory, data):
    data = [*data, ("u", "i", "1600000000"), ("", "i", "1600000000")]
    folder = tmp_path_factory.mktemp("log")
    path = folder / "log.csv"
    pl.DataFrame(data, schema=["user", "item", "time"], orient="row").write_csv(path)
    cleaning = Cleaning(deduplicate="exact", max_bad_share=1)
    store = ingest(str(path), COLUMNS, cleaning, folder / "cache")
    report = read_report(store)
    removed = sum(step["rows"] for step in report["removed"])
    quarantined = sum(report["quarantined"].values())
    assert report["rows_in"] == len(data) == report["rows_out"] + removed + quarantined
    rejected = pl.read_parquet(store / "quarantine.parquet")
    assert len(rejected) == quarantined
    assert rejected.columns == ["user", "item", "time", "file", "line", "reason"]
    # Nothing is lost: every source row stands where it says it does.
    for user, item, time, _, line, _ in rejected.rows():
        assert (user or "", item or "", time or "") == data[line - 2]
    good = {(u, i) for u, i, t in data if u and t == "1600000000"}
    assert open_store(store).events == len(good)


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (["10", "9", "-3"], [-3, 9, 10]),
        (["10", "9", "007"], ["007", "10", "9"]),
        (["10", "9", "x"], ["10", "9", "x"]),
        (["1", "1.0", "+1"], ["+1", "1", "1.0"]),
        ([str(2**63 - 1), "5", str(-(2**63))], [-(2**63), 5, 2**63 - 1]),
        ([str(2**63), "5", "6"], ["5", "6", str(2**63)]),
    ],
)
def test_ids_are_whole_numbers_only_if_nothing_is_lost(tmp_path, ids, expected):
    table = frame([(raw, "i", 0) for raw in ids])
    table.write_csv(tmp_path / "log.csv")
    store = open_store(ingest(str(tmp_path / "log.csv"), COLUMNS, ANY, tmp_path / "cache"))
    assert store.user_vocabulary.raw_ids.to_list() == expected


@pytest.mark.parametrize("dtype", [pl.Int8, pl.UInt32, pl.Int64, pl.UInt64, pl.Float64, pl.Int128])
def test_whole_numbers_of_any_width_give_the_vocabulary_that_csv_gives(tmp_path, dtype):
    table = frame([("9", "1", 0), ("10", "2", 1), ("11", "100", 2)])
    table = table.with_columns(pl.col("user", "item").cast(pl.Int64).cast(dtype))
    table.write_parquet(tmp_path / "log.parquet")
    table.cast({"user": pl.Int64, "item": pl.Int64}).write_csv(tmp_path / "log.csv")
    found = [
        open_store(ingest(str(tmp_path / f"log.{s}"), COLUMNS, ANY, tmp_path / "cache"))
        for s in ("parquet", "csv")
    ]
    assert found[0].user_vocabulary.raw_ids.to_list() == [9, 10, 11]
    assert found[0].item_vocabulary.fingerprint == found[1].item_vocabulary.fingerprint


def test_hashes_beyond_63_bits_stay_exact(tmp_path):
    table = frame([("u", "i", 0), ("v", "j", 1)])
    table = table.with_columns(user=pl.Series([2**64 - 1, 2**64 - 2], dtype=pl.UInt64))
    table.write_parquet(tmp_path / "log.parquet")
    store = open_store(ingest(str(tmp_path / "log.parquet"), COLUMNS, ANY, tmp_path / "cache"))
    assert store.user_vocabulary.raw_ids.to_list() == [str(2**64 - 2), str(2**64 - 1)]


def test_ratings_labels_and_an_order_without_times(tmp_path):
    table = pl.DataFrame(
        {
            "user": ["u", "u", "u", "v"],
            "item": ["a", "b", "c", "a"],
            "position": [3, 1, 2, 1],
            "rating": [1.5, None, 3, 4],
            "label": [True, None, False, True],
        }
    )
    table.write_parquet(tmp_path / "log.parquet")
    columns = Columns("user", "item", "time", "position", "rating", "label")
    path = ingest(str(tmp_path / "log.parquet"), columns, ANY, tmp_path / "cache")
    store = open_store(path)
    assert store.items.tolist() == [2, 3, 1, 1]
    np.testing.assert_array_equal(store.ratings, np.array([np.nan, 3, 1.5, 4], dtype=np.float32))
    assert store.labels.tolist() == [-1, 0, 1, 1]
    assert store.times is None
    assert (store.manifest["order"], store.manifest["has_times"]) == ("order", False)
    assert "times: none" in render_report(read_report(path))


def test_times_beside_an_order_may_be_unknown(tmp_path):
    table = frame([("u", "a", 0), ("u", "b", 1)]).with_columns(
        pos=pl.Series([2, 1]), time=pl.Series([START, None])
    )
    table.write_csv(tmp_path / "log.csv")
    columns = Columns("user", "item", "time", "pos")
    path = ingest(str(tmp_path / "log.csv"), columns, ANY, tmp_path / "cache")
    assert open_store(path).times.tolist() == [NO_TIME, START * 10**6]
    assert read_report(path)["times_unknown"] == 1


def test_the_report(tmp_path):
    data = [("u", "a", 0), ("u", "a", 0), ("u", "b", 0), ("u", "a", 86400), ("v", "b", 5)]
    frame(data).write_csv(tmp_path / "log.csv")
    path = ingest(
        str(tmp_path / "log.csv"),
        COLUMNS,
        Cleaning(deduplicate="exact"),
        tmp_path / "cache",
        name="mine",
    )
    report = read_report(path)
    assert (report["rows_in"], report["rows_out"]) == (5, 4)
    assert report["removed"] == [{"step": "exact duplicates", "rows": 1}]
    assert (report["users"], report["items"]) == (2, 2)
    assert report["density"] == 3 / 4
    assert report["length_quantiles"]["min"] == 1
    assert report["length_quantiles"]["max"] == 3
    assert report["ties"] == 2 / 4
    assert report["repeats"] == 1 / 4
    assert report["consecutive_repeats"] == 0
    first = datetime.fromtimestamp(START, tz=UTC).strftime("%Y-%m-%d %H:%M:%S")
    assert report["time_first"] == first
    assert report["time_span_days"] == 1
    text = render_report(report)
    for words in ("Ingested mine", "rows in", "exact duplicates", "-1", "rows out", "ties", first):
        assert words in text


def test_the_same_inputs_again_are_found_and_others_are_not(tmp_path, monkeypatch):
    path, cache = tmp_path / "log.csv", tmp_path / "cache"
    frame([("u", "a", 0), ("v", "b", 1)]).write_csv(path)
    first = ingest(str(path), COLUMNS, ANY, cache)
    written = (first / "manifest.json").stat().st_mtime_ns
    hashed = []
    true_hash = files_module.sha256_of
    monkeypatch.setattr(files_module, "sha256_of", lambda p: hashed.append(p) or true_hash(p))

    assert ingest(str(path), COLUMNS, ANY, cache) == first
    assert hashed == []  # size and mtime_ns stand
    assert ingest(str(path), COLUMNS, ANY, cache, verify=True) == first
    assert hashed == [path]
    assert (first / "manifest.json").stat().st_mtime_ns == written

    moved = path.rename(tmp_path / "moved.csv")
    assert ingest(str(moved), COLUMNS, ANY, cache) == first  # the content counts, not the name
    other = ingest(str(moved), COLUMNS, Cleaning(deduplicate="exact"), cache)
    assert other != first
    frame([("u", "a", 0), ("v", "c", 1)]).write_csv(moved)
    assert ingest(str(moved), COLUMNS, ANY, cache) not in (first, other)
    assert len(list((cache / "stores").iterdir())) == 3


def test_a_damaged_store_is_an_error_that_verify_repairs(tmp_path):
    frame([("u", "a", 0)]).write_csv(tmp_path / "log.csv")
    arguments = (str(tmp_path / "log.csv"), COLUMNS, ANY, tmp_path / "cache")
    folder = ingest(*arguments)
    (folder / "items.npy").write_bytes(b"")
    with pytest.raises(StoreError, match=r"items\.npy is truncated.*data\.verify=true"):
        ingest(*arguments)
    assert ingest(*arguments, verify=True) == folder
    open_store(folder, verify=True)


def files_below(folder):
    return sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())


def test_too_many_unusable_rows_stop_and_leave_only_the_quarantine(tmp_path):
    path = tmp_path / "log.csv"
    table = frame([("u", f"i{n}", n) for n in range(198)])
    table = table.vstack(pl.DataFrame({"user": [None, "u"], "item": ["i", None], "time": [1, 1]}))
    table.write_csv(path)
    cache = tmp_path / "cache"
    with pytest.raises(LogError) as error:
        ingest(str(path), COLUMNS, Cleaning(max_bad_share=0.005), cache)
    message = str(error.value)
    assert "2 of 200 rows (1.00%)" in message
    assert "data.max_bad_share=0.005" in message
    assert "the user id is missing: 1" in message
    assert f"{path}, line 200" in message
    (left,) = files_below(cache)
    assert left.startswith("quarantine/log-") and str(cache / left) in message
    assert pl.read_parquet(cache / left)["line"].to_list() == [200, 201]
    # Exactly the allowed share passes.
    store = ingest(str(path), COLUMNS, Cleaning(max_bad_share=0.01), cache)
    assert pl.read_parquet(store / "quarantine.parquet")["line"].to_list() == [200, 201]
    assert open_store(store).events == 198


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("user,item,time\n", r"log\.csv is empty"),
        ("user,item,time\n\n\n", r"log\.csv is empty"),
        ("user,item\nu,i\n", r"no column 'time'"),
        ("user,item,time\nu,i,soon\n", "the time cannot be read: 1"),
        ('user,item,time\nu,"i,5\nv,j,6\n', "quotation mark"),
    ],
)
def test_bad_logs_leave_nothing_but_the_quarantine(tmp_path, content, words):
    (tmp_path / "log.csv").write_text(content)
    with pytest.raises(LogError, match=words):
        ingest(str(tmp_path / "log.csv"), COLUMNS, ANY, tmp_path / "cache")
    left = files_below(tmp_path / "cache") if (tmp_path / "cache").exists() else []
    assert all(name.startswith("quarantine/") for name in left)
    assert len(left) == ("soon" in content)


def test_of_many_files_the_unreadable_one_is_named(tmp_path):
    for number in range(3):
        frame([("u", "a", 0)]).write_csv(tmp_path / f"{number}.csv")
    (tmp_path / "1.csv").write_text('user,item,time\nu,"i,5\n')
    with pytest.raises(LogError, match=r"1\.csv cannot be read"):
        ingest(str(tmp_path / "*.csv"), COLUMNS, ANY, tmp_path / "cache")


def test_parquet_without_rows_and_nothing_left(tmp_path):
    frame([("u", "a", 0)])[:0].write_parquet(tmp_path / "log.parquet")
    with pytest.raises(LogError, match=r"log\.parquet is empty"):
        ingest(str(tmp_path / "log.parquet"), COLUMNS, ANY, tmp_path / "cache")
    frame([("u", "a", 0)]).write_parquet(tmp_path / "log.parquet")
    with pytest.raises(LogError, match=r"Nothing is left of 1 usable rows.*users with < 5"):
        ingest(str(tmp_path / "log.parquet"), COLUMNS, Cleaning(user_core=5), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_settings_are_checked_before_rows_are_read(tmp_path):
    (tmp_path / "log.csv").write_text('user,item,time\nu,"i,5\n')  # reading it would fail
    arguments = (str(tmp_path / "log.csv"), COLUMNS)
    with pytest.raises(LogError, match="minimum_rating needs a rating"):
        ingest(*arguments, Cleaning(minimum_rating=4), tmp_path / "cache")
    with pytest.raises(LogError, match=r"data\.name='a/b'"):
        ingest(*arguments, ANY, tmp_path / "cache", name="a/b")


def test_a_broken_json_line_goes_to_the_quarantine(tmp_path):
    # Beyond the rows that the schema is read from, so the fast reader meets it first.
    lines = [json.dumps({"user": n % 7, "item": n, "time": START + n}) for n in range(12_000)]
    lines[11_000] = '{"user": 1, "item'
    (tmp_path / "log.ndjson").write_text("\n".join(lines))
    path = ingest(str(tmp_path / "log.ndjson"), COLUMNS, ANY, tmp_path / "cache")
    report = read_report(path)
    assert report["quarantined"] == {"the line is not a JSON object": 1}
    assert (report["rows_in"], report["rows_out"]) == (12_000, 11_999)
    rejected = pl.read_parquet(path / "quarantine.parquet")
    assert rejected.select("line", "line_text").rows() == [(11_001, '{"user": 1, "item')]
    assert open_store(path).user_vocabulary.raw_ids.to_list() == list(range(7))


def test_neither_torch_nor_mlflow_is_imported():
    code = (
        "import sys, recsys.histories.ingest; "
        "print([m for m in ('torch', 'mlflow', 'pandas', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


LIMITED = """
import resource, sys
from pathlib import Path
from recsys.histories.ingest import ingest
from recsys.logs.cleaning import Cleaning
from recsys.logs.schema import Columns
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
try:
    columns = Columns("user", "item", "time")
    ingest(sys.argv[1], columns, Cleaning(max_bad_share=1), Path(sys.argv[2]))
except OSError as error:
    print("OSError", error)
"""


@pytest.mark.parametrize("bad", [False, True])
def test_a_full_disk_leaves_nothing(tmp_path, bad):
    # Ids that hardly compress: the quarantine, or the store, does not fit.
    random = np.random.default_rng(0)
    data = [("" if bad else "u", random.bytes(8).hex(), n) for n in range(4000)]
    data.append(("u", "i", 0))
    frame(data).write_csv(tmp_path / "log.csv")
    cache = tmp_path / "cache"
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "log.csv"), str(cache), "8000"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "OSError" in done.stdout and "File too large" in done.stdout
    assert not cache.exists() or files_below(cache) == []


@settings(deadline=None, max_examples=12)
@given(
    st.lists(
        st.tuples(
            user_ids,
            item_ids,
            st.integers(0, 3),
            st.sampled_from([4.0, 2.0, None]),
            st.sampled_from([0, 1, None]),
        ),
        min_size=1,
        max_size=40,
    ),
    st.integers(1, 5),
)
def test_a_log_read_in_small_batches_gives_the_same_store_and_report(tmp_path_factory, data, size):
    folder = tmp_path_factory.mktemp("log")
    names = ["user", "item", "time", "rating", "label"]
    table = pl.DataFrame(data, schema=names, orient="row", infer_schema_length=None)
    table.write_parquet(folder / "log.parquet", row_group_size=size)
    columns = Columns("user", "item", "time", rating="rating", label="label")

    def made(cache):
        path = ingest(str(folder / "log.parquet"), columns, ANY, folder / cache)
        arrays = {file.name: file.read_bytes() for file in path.glob("*.npy")}
        return arrays, histories(open_store(path)), read_report(path)

    whole = made("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest_module, "_BATCH", size)
        patch.setattr(ingest_module, "_GROWTH", size)
        patch.setattr(ingest_report, "_BLOCK", size)
        assert made("batches") == whole
    # The report, once more and plainly.
    report, pairs = whole[2], {row[:2] for row in data}
    assert report["repeats"] == 1 - len(pairs) / len(data)
    lists = [list(zip(*history, strict=True)) for history in whole[1].values()]
    again = sum(a[0] == b[0] for one in lists for a, b in pairwise(one))
    assert report["consecutive_repeats"] == again / len(data)
    tied = sum(times.count(time) > 1 for _, times in whole[1].values() for time in times)
    assert report["ties"] == tied / len(data)
