"""Reading logs: every format gives the same events, and bad files are named for what they are."""

import gzip
import json
from datetime import UTC, datetime

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.logs.errors import LogError
from recsys.logs.readers import find_files, open_log
from recsys.logs.schema import Columns

COLUMNS = Columns("user", "item", "time")
ROWS = [("u2", "b", 1_600_000_000), ("u1", "a", 1_600_000_050), ("u2", "c é, x", 1_600_000_007)]


def table(rows=ROWS):
    return pl.DataFrame(rows, schema=["user", "item", "time"], orient="row")


def write(path, frame):
    """Write by suffix."""
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    if plain.suffix == ".parquet":
        frame.write_parquet(plain)
    elif plain.suffix in (".csv", ".tsv"):
        frame.write_csv(plain, separator="\t" if plain.suffix == ".tsv" else ",")
    else:
        frame.write_ndjson(plain)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
    return str(path)


def events(path, columns=COLUMNS, unit="auto"):
    """Usable rows with plain types."""
    frame = open_log(str(path), columns, unit).events().collect(engine="streaming")
    frame = frame.filter(reason=0).drop("reason")
    return frame.with_columns(pl.col(pl.Categorical).cast(pl.String)).rows()


def rejected(path, columns=COLUMNS, unit="auto"):
    """(name of the file, line, reason) of the unusable rows."""
    frame = open_log(str(path), columns, unit).rejected().collect()
    return [(f.rsplit("/")[-1], n, r) for f, n, r in frame.select("file", "line", "reason").rows()]


@pytest.mark.parametrize(
    "suffix",
    ["csv", "tsv", "parquet", "ndjson", "jsonl", "csv.gz", "tsv.gz", "ndjson.gz", "CSV.GZ", "CSV"],
)
def test_every_format_gives_the_same_events(tmp_path, suffix):
    path = tmp_path / f"log.{suffix.lower()}"
    write(path, table())
    path = path.rename(tmp_path / f"log.{suffix}")
    assert events(path) == [(user, item, time * 10**6) for user, item, time in ROWS]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet", "ndjson"])
def test_a_glob_reads_its_files_in_the_order_of_their_names(tmp_path, suffix):
    frame = table([(f"u{i}", f"i{i}", 1_600_000_000 - i) for i in range(40)])
    for number in (3, 1, 0, 2):
        write(tmp_path / f"part-{number}.{suffix}", frame[number * 10 : number * 10 + 10])
    (tmp_path / "notes.txt").write_text("not a part of it")
    found = events(tmp_path / f"*.{suffix}")
    assert [user for user, *_ in found] == [f"u{i}" for i in range(40)]


def test_files_may_differ_in_other_columns_and_in_the_order_of_columns(tmp_path):
    (tmp_path / "a.csv").write_text("user,item,time\nu1,a,1600000000\n")
    (tmp_path / "b.csv").write_text("time,price,item,user\n1600000001,9,b,u2\n")
    assert events(tmp_path / "*.csv") == [
        ("u1", "a", 1_600_000_000_000_000),
        ("u2", "b", 1_600_000_001_000_000),
    ]


@pytest.mark.parametrize(
    "times",
    [
        pl.Series([1_684_331_109, 1_684_331_110]),
        pl.Series([1_684_331_109.0, 1_684_331_110.0]),
        pl.Series([1_684_331_109_000, 1_684_331_110_000]),
        pl.Series([1_684_331_109_000_000, 1_684_331_110_000_000]),
        pl.Series([1_684_331_109_000_000_000, 1_684_331_110_000_000_000]),
        pl.Series(["2023-05-17T13:45:09", "2023-05-17 13:45:10"]),
        pl.Series(["1684331109", "2023-05-17T15:45:10+02:00"]),
        *(
            pl.Series(["2023-05-17T13:45:09", "2023-05-17T13:45:10"]).str.to_datetime(time_unit=u)
            for u in ("ms", "us", "ns")
        ),
        pl.Series(["2023-05-17T13:45:09Z", "2023-05-17T13:45:10Z"]).str.to_datetime(
            time_zone="Europe/Amsterdam"
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("suffix", ["parquet", "csv", "ndjson"])
def test_times_in_every_writing(tmp_path, times, suffix):
    frame = table(ROWS[:2]).with_columns(time=times)
    first = int(datetime(2023, 5, 17, 13, 45, 9, tzinfo=UTC).timestamp()) * 10**6
    found = events(write(tmp_path / f"log.{suffix}", frame))
    assert [time for *_, time in found] == [first, first + 10**6]


def test_dates_and_a_unit_that_is_set(tmp_path):
    frame = table(ROWS[:1]).with_columns(time=pl.lit("2023-05-17").str.to_date())
    expected = int(datetime(2023, 5, 17, tzinfo=UTC).timestamp()) * 10**6
    assert events(write(tmp_path / "a.parquet", frame))[0][2] == expected
    small = table([("u", "i", 5)])
    assert events(write(tmp_path / "b.csv", small), unit="ms")[0][2] == 5_000
    assert events(write(tmp_path / "b.csv", small))[0][2] == 5_000_000


def test_reasons_and_lines_of_unusable_rows(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(
        "user,item,time,rating,label\n"
        "u1,a,1600000000,4.5,1\n"
        ",a,1600000000,4,1\n"
        "u1, ,1600000000,4,1\n"
        "u1,a,,4,1\n"
        "u1,a,May,4,1\n"
        "u1,a,1600000000,good,1\n"
        "u1,a,1600000000,4,2\n"
        "u1,a,1600000000,4,1,more\n"
        "\n"
        "u1,a\n"
        "u1,b,1600000000,,\n"
        "u1,c,1600000000,1,true\n"
        "\n"
    )
    columns = Columns("user", "item", "time", rating="rating", label="label")
    time = 1_600_000_000_000_000
    assert events(path, columns) == [
        ("u1", "a", time, 4.5, 1),
        ("u1", "b", time, None, None),
        ("u1", "c", time, 1.0, 1),
    ]
    assert rejected(path, columns) == [
        ("log.csv", 3, "the user id is missing"),
        ("log.csv", 4, "the item id is missing"),
        ("log.csv", 5, "the time is missing"),
        ("log.csv", 6, "the time cannot be read"),
        ("log.csv", 7, "the rating is not a number"),
        ("log.csv", 8, "the label is not 0 or 1"),
        ("log.csv", 9, "the line has more fields than the header"),
        ("log.csv", 11, "the time is missing"),
    ]


def test_an_order_takes_the_place_of_the_time(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user,item,pos,time\nu,a,1,\nu,b,2.5,1600000000\nu,c,,5\nu,d,last,5\nu,e,3,x\n")
    columns = Columns("user", "item", "time", "pos")
    assert events(path, columns) == [
        ("u", "a", None, 1.0),
        ("u", "b", 1_600_000_000_000_000, 2.5),
        ("u", "e", None, 3.0),
    ]
    assert [r for *_, r in rejected(path, columns)] == [
        "the order is missing",
        "the order is not a number",
    ]
    no_time = Columns("user", "item", "no such column", "pos")
    assert [row[:2] for row in events(path, no_time)] == [("u", "a"), ("u", "b"), ("u", "e")]


def test_rejects_keep_every_source_column_even_if_one_has_our_name(tmp_path):
    frame = table([(None, "a", 1_600_000_000)]).with_columns(reason=pl.lit("x"), file=pl.lit("y"))
    log = open_log(write(tmp_path / "log.parquet", frame), COLUMNS)
    row = log.rejected().collect().row(0, named=True)
    assert (row["reason_source"], row["file_source"]) == ("x", "y")
    assert row["reason"] == "the user id is missing"
    assert row["line"] == 1


def test_whole_number_ids_with_gaps_that_pandas_made_into_fractions(tmp_path):
    frame = table(ROWS).with_columns(user=pl.Series([1.0, None, float("nan")]))
    path = write(tmp_path / "log.parquet", frame.extend(frame.with_columns(user=pl.lit(2.5))))
    assert [user for user, *_ in events(path)] == [1]
    assert [r for *_, r in rejected(path)] == [
        *(["the user id is missing"] * 2),
        *(["the user id is not a whole number"] * 3),
    ]


def test_quotation_marks_that_swallow_lines_are_found_in_columns_nobody_asked_for(tmp_path):
    path = tmp_path / "log.csv"
    lines = [f"u{i},i{i},1600000000,title {i}\n" for i in range(3000)]
    path.write_text("user,item,time,title\n" + "".join(lines).replace("title 9\n", '"\ny\n"\n'))
    assert len(events(path)) == 3000  # a line break inside quotation marks is fine
    lines[500] = lines[500].replace("title", '"title')
    lines[700] = lines[700].replace("title", '"title')
    path.write_text("user,item,time,title\n" + "".join(lines))
    with pytest.raises(LogError, match=r"log\.csv|quotation mark"):
        open_log_and_read(path)


def open_log_and_read(path):
    from recsys.logs.readers import reading

    with reading(path):
        return events(path)


def test_broken_json_lines_spoil_nothing_but_themselves(tmp_path):
    path = tmp_path / "log.ndjson"
    objects = [{"user": 1, "item": "é", "time": 1_600_000_000, "x": {"y": 1}}, {"user": "2"}]
    path.write_text(
        "\n".join([json.dumps(objects[0]), '{"user": "cut o', "", "[1]", json.dumps(objects[1])])
    )
    log = open_log(str(path), COLUMNS)
    assert log.line_by_line
    assert events(path) == [("1", "é", 1_600_000_000_000_000)]
    assert rejected(path) == [
        ("log.ndjson", 2, "the line is not a JSON object"),
        ("log.ndjson", 4, "the line is not a JSON object"),
        ("log.ndjson", 5, "the item id is missing"),
    ]
    kept = log.rejected().collect()["line_text"].to_list()
    assert kept == ['{"user": "cut o', "[1]", None]


def test_a_json_column_may_mix_numbers_and_text_and_appear_late(tmp_path):
    path = tmp_path / "log.ndjson"
    lines = [{"user": i, "item": "a", "time": 1_600_000_000} for i in range(200)]
    lines.append({"user": "x", "item": 5, "time": "2020-01-01", "pos": 3})
    path.write_text("\n".join(map(json.dumps, lines)))
    assert events(path)[-1] == ("x", "5", 1_577_836_800_000_000)
    assert len(events(path, Columns("user", "item", "time", "pos"))) == 1


@pytest.mark.parametrize("gap", ["\n", "\r\n\r\n", ""])
def test_blank_lines_byte_order_mark_and_windows_line_ends(tmp_path, gap):
    path = tmp_path / "log.csv"
    text = f"{gap}user,item,time\r\nu,a,1600000000\r\n\r\n,b,1600000000\r\n"
    path.write_bytes(("\ufeff" + text).encode())
    assert events(path) == [("u", "a", 1_600_000_000_000_000)]
    assert rejected(path) == [("log.csv", 4 + gap.count("\n"), "the user id is missing")]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("log.csv", b"", r"log\.csv is empty \(0 bytes\)"),
        ("log.parquet", b"", r"is empty \(0 bytes\)"),
        ("log.csv", b"\n\n  \n", "nothing but blank lines"),
        ("log.csv.gz", gzip.compress(b"", mtime=0), "is empty"),
        ("log.csv.gz", b"user,item,time\nu,i,1\n", "is not gzip-compressed"),
        ("log.csv", gzip.compress(b"user,item,time\nu,i,1\n", mtime=0), "is gzip-compressed"),
        (
            "log.csv.gz",
            gzip.compress(b"user,item,time\n" * 99, mtime=0)[:25],
            "not a whole gzip file",
        ),
        ("log.parquet", b"user,item,time\nu,i,1\n", "not a Parquet file.*looks like text"),
        ("log.parquet", b"PAR1" + b"\x00" * 50, "Parquet file that was cut off"),
        ("log.parquet", b"PAR1" + b"\x07" * 50 + b"PAR1", "cannot be read"),
        ("log.csv", b"PAR1" + b"\x00" * 50 + b"PAR1", "not CSV text.*a Parquet file"),
        ("log.csv", b"PK\x03\x04\x00\x00", "a zip archive or an Excel file"),
        ("log.csv", "user,item,time\n".encode("utf-16"), "UTF-16"),
        ("log.csv", b'{"user": 1, "item": 2, "time": 3}\n', "not CSV.*looks like NDJSON"),
        ("log.ndjson", b"user,item,time\nu,i,1\n", "not NDJSON"),
        ("log.ndjson", b'[{"user": 1}]', "one JSON list; write one object a line"),
        ("log.ndjson", b"{broken\n{more\n", "none of its first lines is a JSON object"),
        ("log.csv", b"user\titem\ttime\nu\ti\t1\n", r"separated by tabs.*\.tsv"),
        ("log.csv", b"user;item;time\nu;i;1\n", "separated by semicolons"),
        ("log.tsv", b"user,item,time\nu,i,1\n", "separated by commas"),
        ("log.csv", b"user,item,time,user\nu,i,1,u\n", "names 'user' twice"),
        ("log.csv", b"users,item,time\nu,i,1\n", "'users', 'item', 'time'.*mean 'users'"),
        ("log.txt", b"user,item,time\nu,i,1\n", r"'.txt' says nothing about the format.*\.csv"),
        ("log.parquett", b"x", r"mean '\.parquet'"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(LogError, match=words) as error:
        open_log(str(path), COLUMNS)
    assert str(path) in str(error.value)


def test_text_that_is_not_utf8(tmp_path):
    path = tmp_path / "log.csv"
    path.write_bytes("user,item,time\né,b,1600000000\n".encode("latin-1"))
    with pytest.raises(LogError, match=r"log\.csv cannot be read.*UTF-8"):
        open_log_and_read(path)


def test_no_file(tmp_path):
    (tmp_path / "events.csv").write_text("user,item,time\n")
    with pytest.raises(LogError, match=r"no file .*event\.csv.*Did you mean 'events\.csv'"):
        find_files(str(tmp_path / "event.csv"))
    with pytest.raises(LogError, match=r"No file matches .*\*\.parquet"):
        find_files(str(tmp_path / "*.parquet"))
    with pytest.raises(LogError, match=r"is a folder.*/\*\.csv"):
        find_files(str(tmp_path))
    with pytest.raises(LogError, match="no folder"):
        find_files(str(tmp_path / "nowhere" / "a.csv"))


def test_a_link_counts_by_its_own_name(tmp_path):
    (tmp_path / "blob").write_text("user,item,time\nu,a,1600000000\n")
    (tmp_path / "log.csv").symlink_to(tmp_path / "blob")
    assert len(events(tmp_path / "log.csv")) == 1


def test_files_of_one_log_must_agree(tmp_path):
    write(tmp_path / "a.parquet", table())
    write(tmp_path / "b.csv", table())
    with pytest.raises(LogError, match=r"one format.*b\.csv"):
        open_log(str(tmp_path / "*"), COLUMNS)
    write(tmp_path / "c.parquet", table().with_columns(user=pl.lit(1)))
    with pytest.raises(LogError, match=r"'user'.*text in .*a\.parquet but whole numbers in"):
        open_log(str(tmp_path / "*.parquet"), COLUMNS)
    write(tmp_path / "c.parquet", table().drop("item"))
    with pytest.raises(LogError, match=r"c\.parquet: there is no column 'item'"):
        open_log(str(tmp_path / "*.parquet"), COLUMNS)
    write(tmp_path / "c.parquet", table().drop("time").with_columns(pos=1))
    write(tmp_path / "a.parquet", table().with_columns(pos=1))
    with pytest.raises(LogError, match="'time' is in some files"):
        open_log(str(tmp_path / "*.parquet"), Columns("user", "item", "time", "pos"))


cells = {
    "user": ["u", "", " ", None],
    "item": ["1", "\u3000", None],
    "time": ["1600000000", "2020-01-01", "", "May", None],
    "rating": ["4", "", " ", "good", None],
    "label": ["1", "no", " ", None],
}


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.tuples(*map(st.sampled_from, cells.values())), min_size=1, max_size=5),
    st.booleans(),
    st.sampled_from([None, "time"]),
)
def test_a_row_is_judged_alike_alone_and_among_others(tmp_path_factory, rows, label_needed, order):
    folder = tmp_path_factory.mktemp("log")
    columns = Columns("user", "item", "time", order, rating="rating", label="label")

    def judged(rows, name):
        text = pl.DataFrame(rows, schema=dict.fromkeys(cells, pl.String), orient="row")
        text.write_parquet(folder / f"{name}.parquet")
        path = str(folder / f"{name}.parquet")
        log = open_log(path, columns, "s", label_needed=label_needed)
        return log.events().collect(engine="streaming").rows()

    together = judged(rows, "all")
    assert together == [judged([row], "one")[0] for row in rows]
    # In this company every row's reason is looked for.
    assert together == judged([*rows, (None,) * 5], "all")[:-1]
