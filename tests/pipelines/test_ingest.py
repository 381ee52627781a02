"""`python -m pipelines.ingest`: what it makes, and every log it refuses."""

import gzip
import json
from pathlib import Path

import polars as pl
import pytest

from tests.pipelines.conftest import Place

ROWS = {
    "user": [1, 1, 2, 2, 3, 3],
    "item": ["a", "b", "a", "c", "b", "c"],
    "time": [1_600_000_000 + i for i in range(6)],
}
QUARANTINE = "home/data/cache/quarantine"


def write_csv(place: Place, name: str = "log.csv", **columns: list) -> None:
    pl.DataFrame({**ROWS, **columns}, strict=False).write_csv(place.folder / name)


def ingest(place: Place, *arguments: str, path: str = "log.csv", **options):
    settings = ["data=log", f"data.path={path}", *arguments]
    # Limits and variables are those of a process.
    return (
        place.command("ingest", *settings, **options)
        if options
        else place.here("ingest", *settings)
    )


def refused(place: Place, *arguments: str, path: str = "log.csv", **options) -> str:
    return place.refused("ingest", "data=log", f"data.path={path}", *arguments, **options)


def store_of(place: Place) -> Path:
    (store,) = (place.home / "data" / "cache" / "stores").iterdir()
    return store


def test_report_result_and_cache(place) -> None:
    write_csv(place)
    before = place.files
    first = ingest(place, "result=out/table.json")
    assert first.returncode == 0, first.stderr
    assert "rows in" in first.stdout and "events per user" in first.stdout
    store = store_of(place)
    assert f"Store: {store}" in first.stdout
    assert {file.split("/")[0] for file in place.files - before} == {"home", "out"}
    table = json.loads((place.folder / "out" / "table.json").read_text())
    assert set(table) >= {"run_id", "seconds", "peak_memory_gb", "rows"}
    (row,) = table["rows"]
    assert row["model"] == "log"
    assert (row["metrics"]["rows_in"], row["metrics"]["users"], row["metrics"]["items"]) == (
        6,
        3,
        3,
    )
    assert json.loads((store / "report.json").read_text())["rows_out"] == 6

    stamps = {file: file.stat().st_mtime_ns for file in store.iterdir()}
    files = place.files
    again = ingest(place)
    assert again.stdout == first.stdout
    assert place.files == files
    assert {file: file.stat().st_mtime_ns for file in store.iterdir()} == stamps


def test_a_cache_hit_imports_no_torch_and_no_mlflow(place) -> None:
    write_csv(place)
    script = """
import runpy, sys
sys.argv = ["ingest", "data=log", "data.path=log.csv"]
try:
    runpy.run_module("pipelines.ingest", run_name="__main__")
except SystemExit as end:
    print([m for m in ("torch", "mlflow", "pytorch_lightning", "pandas") if m in sys.modules])
"""
    for _ in range(2):
        done = place.python("-c", script)
        assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_the_users_own_log_in_one_line(place) -> None:
    (place.folder / "events").mkdir()
    frame = pl.DataFrame(ROWS).rename({"user": "uid", "item": "sku", "time": "ts"})
    frame[:3].write_parquet(place.folder / "events" / "1.parquet")
    frame[3:].write_parquet(place.folder / "events" / "2.parquet")
    done = ingest(
        place,
        "data.columns.user=uid",
        "data.columns.item=sku",
        "data.columns.time=ts",
        path="events/*.parquet",
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((store_of(place) / "report.json").read_text())["rows_out"] == 6


def test_a_log_that_only_has_an_order(place) -> None:
    pl.DataFrame(ROWS).rename({"time": "position"}).write_csv(place.folder / "log.csv")
    done = ingest(place, "data.columns.order=position")
    assert done.returncode == 0, done.stderr
    assert "the order is given by a column" in done.stdout


def test_every_setting_reaches_the_store(place) -> None:
    write_csv(place, rating=[1, 5, 5, 5, 5, 5], label=[1, 1, 1, 1, 1, 0])
    settings = {
        "time_unit": "s",
        "deduplicate": "last",
        "user_core": 2,
        "item_core": 1,
        "minimum_rating": 2.0,
        "positive_only": True,
        "drop_consecutive_repeats": True,
        "time_from": "2020-01-01",
        "time_until": "2021-01-01",
        "max_bad_share": 0.5,
    }
    done = ingest(
        place,
        "data.columns.rating=rating",
        "data.columns.label=label",
        "data.name=mine",
        *(f"data.{key}={value}" for key, value in settings.items()),
    )
    assert done.returncode == 0, done.stderr
    assert store_of(place).name.startswith("mine-")
    manifest = json.loads((store_of(place) / "manifest.json").read_text())
    assert manifest["settings"]["cleaning"] == settings
    assert manifest["settings"]["columns"] == {
        "user": "user",
        "item": "item",
        "time": "time",
        "order": None,
        "rating": "rating",
        "label": "label",
    }


def test_a_local_copy_in_place_of_the_download(place) -> None:
    frame = pl.DataFrame(ROWS).rename({"user": "user_id", "item": "item_id", "time": "timestamp"})
    frame.with_columns(rating=pl.lit(4)).write_parquet(place.folder / "copy.parquet")
    done = place.here("ingest", "data=ml_100k", "data.path=copy.parquet")
    assert done.returncode == 0, done.stderr
    assert store_of(place).name.startswith("ml_100k-")


# --- logs that cannot be used ---


def test_no_such_file(place) -> None:
    assert "nowhere.csv" in refused(place, path="nowhere.csv")


def test_a_glob_that_matches_nothing(place) -> None:
    assert "events/*.parquet" in refused(place, path="events/*.parquet")


def test_missing_column(place) -> None:
    pl.DataFrame(ROWS).rename({"item": "sku"}).write_csv(place.folder / "log.csv")
    message = refused(place)
    for word in ("log.csv", "'item'", "data.columns.item", "'user'", "'sku'", "'time'"):
        assert word in message


def test_misnamed_column(place) -> None:
    write_csv(place)
    message = refused(place, "data.columns.user=usr")
    assert "'usr'" in message and "Did you mean 'user'?" in message


def test_unparsable_times(place) -> None:
    write_csv(place, time=[*ROWS["time"][:-1], "yesterday"])
    message = refused(place, may_add=(QUARANTINE,))
    assert "1 of 6 rows" in message and "data.max_bad_share" in message
    assert "the time cannot be read: 1" in message and "line 7" in message
    (file,) = (place.folder / QUARANTINE).iterdir()
    assert str(file) in message
    assert pl.read_parquet(file)["time"].to_list() == ["yesterday"]


def test_null_ids(place) -> None:
    write_csv(place, user=[None, 1, 2, 2, 3, 3], item=["a", None, "a", "c", "b", "c"])
    message = refused(place, may_add=(QUARANTINE,))
    assert "the user id is missing: 1" in message and "the item id is missing: 1" in message


def test_a_few_unusable_rows_are_kept_apart(place) -> None:
    rows = {name: values * 50 for name, values in ROWS.items()}
    rows["time"] = list(range(1_600_000_000, 1_600_000_300))
    write_csv(place, **{**rows, "item": [None, *rows["item"][1:]]})
    done = ingest(place)
    assert done.returncode == 0, done.stderr
    assert "the item id is missing" in done.stdout
    quarantined = pl.read_parquet(store_of(place) / "quarantine.parquet")
    assert quarantined["line"].to_list() == [2]


@pytest.mark.parametrize("name", ["log.csv", "log.parquet", "log.ndjson"])
def test_empty_file(place, name: str) -> None:
    (place.folder / name).touch()
    assert f"{name} is empty" in refused(place, path=name)


def test_a_header_and_no_rows(place) -> None:
    (place.folder / "log.csv").write_text("user,item,time\n")
    assert "log.csv is empty" in refused(place)


def test_a_file_that_is_not_what_its_suffix_says(place) -> None:
    pl.DataFrame(ROWS).write_parquet(place.folder / "log.csv")
    message = refused(place)
    assert "log.csv" in message and "Parquet" in message
    write_csv(place, "log.parquet")
    assert "log.parquet" in refused(place, path="log.parquet")
    write_csv(place, "log.ndjson")
    assert "log.ndjson" in refused(place, path="log.ndjson")


def test_a_cut_off_file(place) -> None:
    pl.DataFrame(ROWS).write_parquet(place.folder / "log.parquet")
    whole = (place.folder / "log.parquet").read_bytes()
    (place.folder / "log.parquet").write_bytes(whole[: len(whole) // 2])
    assert "log.parquet" in refused(place, path="log.parquet")
    packed = gzip.compress(b"user,item,time\n" + b"1,a,1600000000\n" * 5000)
    (place.folder / "log.csv.gz").write_bytes(packed[: len(packed) // 2])
    assert "log.csv.gz" in refused(place, path="log.csv.gz")


def test_an_unknown_suffix(place) -> None:
    write_csv(place, "log.xlsx")
    assert "log.xlsx" in refused(place, path="log.xlsx")


def test_files_that_disagree(place) -> None:
    write_csv(place, "1.csv")
    pl.DataFrame(ROWS).rename({"item": "sku"}).write_csv(place.folder / "2.csv")
    message = refused(place, path="[12].csv")
    assert "2.csv" in message and "'item'" in message


def test_nobody_is_left(place) -> None:
    write_csv(place)
    message = refused(place, "data.user_core=50")
    assert "Nothing is left of 6" in message and "users with < 50" in message


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("data.minimum_rating=3", "data.columns.rating"),
        ("data.positive_only=true", "data.columns.label"),
        ("data.time_from=soon", "data.time_from"),
        ("data.user_core=0", "data.user_core=0"),
        ("data.max_bad_share=2", "data.max_bad_share=2"),
        ("data.columns.time=null", "data.columns.order"),
        ("data.columns.item=user", "'user'"),
    ],
)
def test_settings_that_mean_nothing(place, setting: str, words: str) -> None:
    write_csv(place)
    assert words in refused(place, setting)


def test_an_unknown_source(place) -> None:
    message = place.refused("ingest", "data=ml_100k", "data.source=ml_100")
    assert "'ml_100'" in message and "ml_100k" in message


# --- what goes wrong on the way ---


@pytest.mark.parametrize("largest_file", [0, 200])
def test_full_disk(place, largest_file: int) -> None:
    write_csv(place)
    before = place.files
    done = ingest(place, largest_file=largest_file)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: the disk is full") and "Traceback" not in done.stderr
    assert place.files == before
    assert ingest(place).returncode == 0


def test_full_disk_while_rows_go_to_quarantine(place) -> None:
    write_csv(place, time=[*ROWS["time"][:-1], "yesterday"])
    before = place.files
    done = ingest(place, largest_file=100)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: the disk is full") and "Traceback" not in done.stderr
    assert place.files == before


def test_full_disk_while_the_result_is_written(place) -> None:
    write_csv(place)
    assert ingest(place).returncode == 0
    before = place.files
    done = ingest(place, "result=table.json", largest_file=100)
    assert done.returncode == 1 and done.stderr.startswith("Error: the disk is full")
    assert place.files == before


def test_a_folder_that_cannot_be_made(place) -> None:
    write_csv(place)
    (place.folder / "home").touch()
    done = ingest(place)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ") and "Traceback" not in done.stderr


def test_a_truncated_store(place) -> None:
    write_csv(place)
    assert ingest(place).returncode == 0
    items = store_of(place) / "items.npy"
    items.write_bytes(items.read_bytes()[:-4])
    message = refused(place)
    assert "items.npy" in message and "data.verify=true" in message
    mended = ingest(place, "data.verify=true")
    assert mended.returncode == 0, mended.stderr
    assert ingest(place).returncode == 0


@pytest.mark.parametrize("moment", ["os.replace", "os.fsync"])
def test_control_c_leaves_nothing_half_written(place, moment: str) -> None:
    """The signal arrives when the store is all but there."""
    write_csv(place)
    before = place.files
    script = f"""
import os, runpy, signal, sys
real = {moment}
def interrupted(*arguments):
    os.kill(os.getpid(), signal.SIGINT)
    return real(*arguments)
{moment} = interrupted
sys.argv = ["ingest", "data=log", "data.path=log.csv"]
runpy.run_module("pipelines.ingest", run_name="__main__")
"""
    done = place.python("-c", script)
    assert done.returncode == 130 and done.stderr == "Interrupted.\n"
    assert place.files == before


def test_click_logs_have_both_kinds_of_question_audited(place: Place) -> None:
    rows = [
        (user, item, 100 * user + item, (user + item) % 2) for user in range(9) for item in range(8)
    ]
    frame = pl.DataFrame(rows, schema=["user", "item", "time", "label"], orient="row")
    frame.write_csv(place.folder / "log.csv")
    log = ["data=log", "data.path=log.csv"]
    both = place.here("ingest", *log, "data.columns.label=label")
    assert both.returncode == 0, both.stderr
    assert "split audit: " in both.stdout and "split audit of clicks: " in both.stdout
    one = place.here("ingest", *log, "data.columns.label=label", "questions=clicks")
    assert "split audit: " not in one.stdout and "split audit of clicks: " in one.stdout
    plain = place.here("ingest", *log)
    assert "split audit: " in plain.stdout and "split audit of clicks" not in plain.stdout
    none = place.here("ingest", *log, "questions=clicks")
    assert "split audit of clicks: split=loo cannot be made of this log" in none.stdout
    labelled = [*log, "data.columns.label=label"]
    refused = place.here("ingest", *labelled, "questions=clicks", "audit.future=0.1")
    assert refused.returncode == 2 and "more than audit.future=0.1" in refused.stderr
    # Nobody asked for clicks: thresholds are about next items.
    for threshold in ("audit.ties=0.9", "audit.future=1.0"):
        kept = place.here("ingest", *labelled, threshold)
        assert kept.returncode == 0 and "split audit of clicks: " in kept.stdout, kept.stderr
    frame.with_columns(label=1).write_csv(place.folder / "log.csv")
    positive = place.here("ingest", *labelled, "audit.future=1.0")
    assert positive.returncode == 0, positive.stderr
    assert "split audit of clicks: split=loo cannot be made of this log: " in positive.stdout
