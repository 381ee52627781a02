"""Ids from files of every format, and what is said about files that hold none."""

from pathlib import Path

import polars as pl
import pytest

from recsys.histories.vocabulary import Vocabulary
from recsys.logs.errors import LogError
from recsys.serving.id_lists import look_up, read_ids

IDS = ["007", "b", "a b", "ü"]


def write(folder: Path, name: str) -> str:
    file = folder / name
    frame = pl.DataFrame({"price": [1, 2, 3, 4, 5, None], "sku": [*IDS, "b", None]})
    match file.suffix:
        case ".csv":
            frame.write_csv(file)
        case ".tsv":
            frame.write_csv(file, separator="\t")
        case ".parquet":
            frame.write_parquet(file)
        case ".ndjson" | ".jsonl":
            frame.write_ndjson(file)
        case ".txt":
            file.write_text("\n".join([*IDS, "b", ""]) + "\n", encoding="utf-8")
    return str(file)


FORMATS = ["x.csv", "x.tsv", "x.parquet", "x.ndjson", "x.jsonl", "x.txt"]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_each_id_once_in_order(tmp_path: Path, name: str) -> None:
    ids = read_ids(write(tmp_path, name), "sku", "candidates")
    assert ids.to_list() == IDS and ids.dtype == pl.String


@pytest.mark.parametrize("name", FORMATS[:-1])
def test_a_condition_on_the_other_columns(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, name)
    ids = read_ids(path, "sku", "candidates", "price < 3 OR sku = 'ü'")
    assert ids.to_list() == ["007", "b", "ü"]


@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.txt"])
def test_ids_in_text_keep_their_zeros(tmp_path: Path, name: str) -> None:
    header = "" if name == "x.txt" else "sku\n"
    (tmp_path / name).write_text(f"{header}007\n8\n")
    assert read_ids(str(tmp_path / name), "sku", "users").to_list() == ["007", "8"]


def test_whole_numbers(tmp_path: Path) -> None:
    pl.DataFrame({"sku": pl.Series([3, 1], dtype=pl.UInt8)}).write_parquet(tmp_path / "x.parquet")
    ids = read_ids(str(tmp_path / "x.parquet"), "sku", "users")
    assert ids.to_list() == [3, 1] and ids.dtype == pl.Int64


@pytest.mark.parametrize(
    ("name", "column", "where", "words"),
    [
        ("y.csv", "sku", None, "candidates=.*: there is no such file .*Did you mean 'x.csv'"),
        ("x.xlsx", "sku", None, "the suffix '.xlsx' says nothing about the format"),
        ("x.csv", "skuu", None, "no column 'skuu'.* Columns: 'price', 'sku'. Did you mean 'sku'"),
        ("x.parquet", "skuu", None, "no column 'skuu'"),
        ("x.csv", "sku", "pric < 3", "has no column 'pric'.* Did you mean 'price'"),
        ("x.csv", "sku", "price <", "'price <' is no SQL condition on candidates"),
        ("x.csv", "sku", "price > 100", "no row meets the condition"),
        ("x.csv", "sku", "price + 1", "it gives Int64"),
        ("x.parquet", "sku", "price < 'x'", "on candidates: cannot compare string"),
        ("x.txt", "sku", "price > 1", "no columns for a condition"),
        ("e.csv", "sku", None, "it holds no ids"),
        ("e.txt", "sku", None, "it holds no ids"),
        ("f.parquet", "sku", None, "holds Float64, not ids"),
        ("broken.parquet", "sku", None, "broken.parquet"),
        ("latin.csv", "sku", None, "UTF-8"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, name, column, where, words) -> None:
    for existing in FORMATS:
        if Path(name).stem == "x" or existing == "x.csv":
            write(tmp_path, existing)
    (tmp_path / "e.csv").write_text("sku,price\n")
    (tmp_path / "e.txt").write_text("")
    pl.DataFrame({"sku": [1.5]}).write_parquet(tmp_path / "f.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 nothing")
    (tmp_path / "latin.csv").write_bytes("sku\nM\xfcller\n".encode("latin-1"))
    with pytest.raises(LogError, match=words):
        read_ids(str(tmp_path / name), column, "candidates", where)


def test_unknown_ids_are_counted_and_the_first_is_named() -> None:
    vocabulary = Vocabulary(pl.Series("item", ["milk", "bread"]), 1)
    found = look_up(pl.Series(["bread", "mlik", "x"]), vocabulary)
    assert found.indices.tolist() == [2] and found.unknown == 2
    assert found.example == "'mlik'. Did you mean 'milk'?"
    assert look_up(pl.Series(["milk"]), vocabulary).example == ""
