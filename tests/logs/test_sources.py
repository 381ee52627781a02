"""Public data sets: each publisher's format, the mirror, files put there by hand, and refusals.

The archives are made here in the publishers' formats. With RECSYS_NETWORK_TESTS=1 MovieLens-100K is
fetched for real too.
"""

import base64
import dataclasses
import hashlib
import importlib.util
import io
import os
import re
import zipfile
from pathlib import Path

import polars as pl
import pytest
import yaml
from polars.testing import assert_frame_equal

from recsys.logs import sources
from recsys.logs.sources import (
    SOURCES,
    Release,
    SourceError,
    content_hash,
    fetch,
    fetch_source,
    find_source,
)

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("RECSYS_SHARED", ROOT.parent / "shared")) / "data"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def zipped(**members: str | bytes) -> bytes:
    """A zip; `__` in a keyword stands for a slash and the rest is the member's name."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return memory.getvalue()


RATINGS_100K = "196\t242\t3\t881250949\n186\t302\t3\t891717742\n196\t302\t1\t881250949\n"
ML_100K = zipped(
    **{
        "ml-100k/u.data": RATINGS_100K,
        "ml-100k/u1.base": "not this one",
        "ml-100k/u.genre": "unknown|0\nComedy|1\nDrama|2\n\n",
        "ml-100k/u.item": (
            "242|Misérables, Les (1995)|01-Jan-1995||http://x|0|1|1\n302|unknown||||1|0|0\n"
        ).encode("latin-1"),
        "ml-100k/u.user": "186|39|F|executive|00000\n196|49|M|writer|55105\n",
    }
)
WHEEL_FOLDER = "recbole/dataset_example/ml-100k/ml-100k"
WHEEL_MEMBERS = {
    f"{WHEEL_FOLDER}.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    + RATINGS_100K,
    f"{WHEEL_FOLDER}.item": (
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        "242\tMisérables, Les\t1995\tComedy Drama\n302\tunkonwn\tunkonwn\tunknown\n"
    ),
    f"{WHEEL_FOLDER}.user": (
        "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n"
        "186\t39\tF\texecutive\t00000\n196\t49\tM\twriter\t55105\n"
    ),
}
ML_1M = zipped(
    **{
        "ml-1m/README": "MovieLens",
        # Film 20 before film 10 at one time: the file's order must stand.
        "ml-1m/ratings.dat": (
            "1::30::5::300\n1::20::4::100\n1::10::3::100\n1::40::1::200\n2::10::2::50\n"
        ),
        "ml-1m/movies.dat": (
            "10::Star Wars: Episode IV - A New Hope (1977)::Action|Sci-Fi\n"
            "20::Misérables, Les (1995)::Drama\n"
            "30::Odd \x85 Title (2000)::Drama\n40::None::War\n"
        ).encode("latin-1"),
        "ml-1m/users.dat": "1::F::1::10::48067\n2::M::56::16::70072-1234\n",
    }
)
ML_LATEST_SMALL = zipped(
    **{
        "ml-latest-small/ratings.csv": (
            "userId,movieId,rating,timestamp\n1,31,2.5,1260759144\n1,29,3.0,1260759179\n"
            "2,31,4.0,835355493\n"
        ),
        "ml-latest-small/movies.csv": (
            'movieId,title,genres\n29,"City of Lost Children, The (1995)",Adventure|Drama\n'
            "31,Rücksicht,(no genres listed)\n"
        ),
    }
)
BEAUTY = b"1 1 2 3 4 5\n2 6 7\n3 4\n"
TA_FENG = (
    b'"TRANSACTION_DT","CUSTOMER_ID","AGE_GROUP","PIN_CODE","PRODUCT_SUBCLASS","PRODUCT_ID",'
    b'"AMOUNT","ASSET","SALES_PRICE"\n'
    b'"11/1/2000","01104905","45-49","115","110411","4710199010372","24","1044","1080"\n'
    b'"11/13/2000","00418683","","Unknown","120107","4710857472535","1","24","18"\n'
    b'"02/28/2001","01104905","45-49","115","110411","4710199010372","1","43","45"\n'
)

CASES = {
    # name: (content, rows, users, items)
    "ml_100k": (ML_100K, 3, 2, 2),
    "ml_1m": (ML_1M, 5, 2, 4),
    "ml_latest_small": (ML_LATEST_SMALL, 3, 2, 2),
    "amazon_beauty": (BEAUTY, 8, 3, 7),
    "ta_feng": (zipped(**{"ta_feng_all_months_merged.csv": TA_FENG}), 3, 2, 2),
}


def small(publisher, name, **changes):
    """The real source, but of the small set above and at the address of this machine."""
    content, *counts = CASES[name]
    source = SOURCES[name]
    file = source.files[0]
    publisher.files.setdefault("/set", content)
    settings = {
        "downloads": ((publisher.address + "/set", file),),
        "releases": (Release("small", *counts),),
        "mirror": None,
    }
    return dataclasses.replace(source, **(settings | changes))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", CASES)
def test_publisher_format_becomes_the_canonical_table_once(publisher, tmp_path, name):
    source = small(publisher, name)
    path = fetch_source(source, tmp_path)
    assert path == tmp_path / "downloads" / name / f"{name}.parquet"
    assert pl.read_parquet(path).height == CASES[name][1]
    assert not [n for n in names(path.parent) if ".part" in n]
    before = path.stat()
    assert fetch_source(source, tmp_path) == path
    assert path.stat() == before
    assert len(publisher.asked) == 1


@pytest.mark.parametrize("name", CASES)
def test_the_shipped_settings_name_columns_that_the_table_has(publisher, tmp_path, name):
    settings = yaml.safe_load((ROOT / "conf" / "data" / f"{name}.yaml").read_text())
    assert settings["name"] == settings["source"] == name
    events = pl.read_parquet(fetch_source(small(publisher, name), tmp_path))
    named = [column for column in settings["columns"].values() if column is not None]
    assert set(named) <= set(events.columns)
    for column in ("position", "label", "rating", "timestamp"):
        assert (column in events.columns) == (column in named), column


def test_ml_100k_keeps_the_files_order_and_its_text_is_hashed(publisher, tmp_path):
    path = fetch_source(small(publisher, "ml_100k"), tmp_path)
    events = pl.read_parquet(path)
    assert events.rows() == [
        (196, 242, 3, 881250949),
        (186, 302, 3, 891717742),
        (196, 302, 1, 881250949),
    ]
    assert content_hash(events) == hashlib.sha256(RATINGS_100K.encode()).hexdigest()
    items = pl.read_parquet(path.with_name("ml_100k_items.parquet"))
    assert items.rows() == [
        (242, "Misérables, Les", 1995, ["Comedy", "Drama"]),
        (302, "unknown", None, ["unknown"]),
    ]
    users = pl.read_parquet(path.with_name("ml_100k_users.parquet"))
    assert users.rows()[0] == (186, 39, "F", "executive", "00000")


def test_ml_1m_orders_by_time_and_on_equal_times_by_the_file(publisher, tmp_path):
    path = fetch_source(small(publisher, "ml_1m"), tmp_path)
    events = pl.read_parquet(path)
    assert events.columns == ["user_id", "item_id", "position", "label", "rating", "timestamp"]
    assert events.rows() == [
        (1, 20, 1, 1, 4, 100),
        (1, 10, 2, 0, 3, 100),
        (1, 40, 3, 0, 1, 200),
        (1, 30, 4, 1, 5, 300),
        (2, 10, 1, 0, 2, 50),
    ]
    items = pl.read_parquet(path.with_name("ml_1m_items.parquet"))
    assert items.rows() == [
        (10, "Star Wars: Episode IV - A New Hope (1977)", 1977, ["Action", "Sci-Fi"]),
        (20, "Misérables, Les (1995)", 1995, ["Drama"]),
        (30, "Odd \x85 Title (2000)", 2000, ["Drama"]),
        (40, "None", None, ["War"]),
    ]
    users = pl.read_parquet(path.with_name("ml_1m_users.parquet"))
    assert users.rows() == [(1, "F", 1, 10, "48067"), (2, "M", 56, 16, "70072-1234")]


def test_ml_latest_small_has_half_stars_and_titles(publisher, tmp_path):
    path = fetch_source(small(publisher, "ml_latest_small"), tmp_path)
    assert pl.read_parquet(path).rows()[0] == (1, 31, 2.5, 1260759144)
    items = pl.read_parquet(path.with_name("ml_latest_small_items.parquet"))
    assert items.rows() == [
        (29, "City of Lost Children, The (1995)", 1995, ["Adventure", "Drama"]),
        (31, "Rücksicht", None, []),
    ]


def test_amazon_beauty_lines_become_positions(publisher, tmp_path):
    events = pl.read_parquet(fetch_source(small(publisher, "amazon_beauty"), tmp_path))
    assert events.rows()[4:] == [(1, 5, 5), (2, 6, 1), (2, 7, 2), (3, 4, 1)]


@pytest.mark.parametrize("plain", [False, True])
def test_ta_feng_days_are_times_as_csv_and_as_zip(publisher, tmp_path, plain):
    if plain:
        publisher.files["/set"] = TA_FENG
    path = fetch_source(small(publisher, "ta_feng"), tmp_path)
    assert pl.read_parquet(path).rows() == [
        (1104905, 4710199010372, 973036800, 24, 1080),
        (418683, 4710857472535, 974073600, 1, 18),
        (1104905, 4710199010372, 983318400, 1, 45),
    ]
    users = pl.read_parquet(path.with_name("ta_feng_users.parquet"))
    assert users.rows() == [(418683, "", "Unknown"), (1104905, "45-49", "115")]
    items = pl.read_parquet(path.with_name("ta_feng_items.parquet"))
    assert items.rows() == [(4710199010372, 110411), (4710857472535, 120107)]


# ---- the mirror ----


def wheel() -> bytes:
    """A wheel that pip accepts, with the members that the real one has."""
    info = "recbole-1.2.1.dist-info"
    members = WHEEL_MEMBERS | {
        "recbole/__init__.py": "raise RuntimeError('never imported')",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: recbole\nVersion: 1.2.1\n"
        "Requires-Dist: a-package-that-does-not-exist\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
    }
    record = [
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest())},"
        for name, text in members.items()
    ]
    return zipped(**members, **{f"{info}/RECORD": "\n".join(record)})


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that stands for the package index: pip really runs, and asks nobody else."""
    if importlib.util.find_spec("pip") is None:
        pytest.skip("this environment has no pip")
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


def mirrored(publisher, **changes):
    """ML-100K, small, with its mirror."""
    return small(publisher, "ml_100k", mirror=SOURCES["ml_100k"].mirror, **changes)


def test_mirror_takes_over_and_gives_the_same_table(publisher, index, tmp_path):
    from_publisher = fetch_source(mirrored(publisher), tmp_path / "a")
    (index / "recbole-1.2.1-py3-none-any.whl").write_bytes(wheel())
    said = []
    publisher.files.clear()
    publisher.statuses["/set"] = [404]
    from_mirror = fetch_source(mirrored(publisher), tmp_path / "b", say=said.append)
    for kind in ("", "_users"):
        a, b = (path.with_name(f"ml_100k{kind}.parquet") for path in (from_publisher, from_mirror))
        assert_frame_equal(pl.read_parquet(a), pl.read_parquet(b))
    assert content_hash(pl.read_parquet(from_mirror)) == content_hash(
        pl.read_parquet(from_publisher)
    )
    assert pl.read_parquet(from_mirror.with_name("ml_100k_items.parquet")).rows()[0] == (
        242,
        "Misérables, Les",
        1995,
        ["Comedy", "Drama"],
    )
    assert any("HTTP 404" in line for line in said)
    assert any("recbole==1.2.1" in line for line in said)
    assert not [name for name in names(from_mirror.parent) if name.startswith(".pip-")]
    # The package's file is kept: the table can be made again with nobody in reach.
    (index / "recbole-1.2.1-py3-none-any.whl").unlink()
    from_mirror.unlink()
    publisher.asked.clear()
    assert fetch_source(mirrored(publisher), tmp_path / "b") == from_mirror
    assert from_mirror.exists()
    assert publisher.asked == []


def test_no_publisher_and_no_mirror_says_what_to_do_by_hand(publisher, index, tmp_path):
    publisher.statuses["/set"] = [404]
    with pytest.raises(SourceError) as caught:
        fetch_source(mirrored(publisher), tmp_path)
    message, folder = str(caught.value), tmp_path / "downloads" / "ml_100k"
    assert "HTTP 404" in message
    assert re.search(r"pip download recbole==1\.2\.1: ERROR: .*recbole", message)
    assert "download ml-100k.zip from https://grouplens.org/datasets/movielens/100k/" in message
    assert str(folder) in message
    assert [name for name in names(folder) if not name.startswith(".lock")] == []


def test_mirror_with_other_content_is_refused(publisher, index, tmp_path):
    (index / "recbole-1.2.1-py3-none-any.whl").write_bytes(wheel())
    publisher.statuses["/set"] = [404]
    release = Release("small", *CASES["ml_100k"][1:], content="0" * 64)
    with pytest.raises(SourceError, match="other content"):
        fetch_source(mirrored(publisher, releases=(release,)), tmp_path)
    assert not (tmp_path / "downloads" / "ml_100k" / "recbole-1.2.1-py3-none-any.whl").exists()


def test_an_environment_without_pip_says_so(publisher, tmp_path, monkeypatch):
    (tmp_path / "python").write_text("#!/bin/sh\necho 'python: No module named pip' >&2\nexit 1\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sources.sys, "executable", str(tmp_path / "python"))
    publisher.statuses["/set"] = [404]
    with pytest.raises(SourceError, match="No module named pip"):
        fetch_source(mirrored(publisher), tmp_path)


# ---- files put there by hand ----


@pytest.mark.parametrize("name", CASES)
def test_unreachable_publisher_says_what_to_put_where_and_takes_it(publisher, tmp_path, name):
    source, content = small(publisher, name), publisher.files.pop("/set")
    with pytest.raises(SourceError) as caught:
        fetch_source(source, tmp_path)
    message, folder = str(caught.value), tmp_path / "downloads" / name
    assert f"{name} could not be downloaded" in message
    assert str(folder) in message
    assert "https://" in message
    # The file the message names is one that is then picked up.
    file = source.files[0]
    assert re.search(re.escape(file), message)
    (folder / file).write_bytes(content)
    publisher.asked.clear()
    assert pl.read_parquet(fetch_source(source, tmp_path)).height == CASES[name][1]
    assert publisher.asked == []
    assert (folder / file).read_bytes() == content


def test_ta_feng_csv_by_hand_is_taken(publisher, tmp_path):
    source = small(publisher, "ta_feng", downloads=SOURCES["ta_feng"].downloads)
    folder = tmp_path / "downloads" / "ta_feng"
    folder.mkdir(parents=True)
    (folder / "ta_feng_all_months_merged.csv").write_bytes(TA_FENG)
    assert pl.read_parquet(fetch_source(source, tmp_path)).height == 3


def test_another_file_put_in_place_is_read_anew(publisher, tmp_path):
    counts = CASES["amazon_beauty"][1:]
    releases = (Release("old", *counts), Release("new", 3, 1, 3))
    source = small(publisher, "amazon_beauty", releases=releases)
    path = fetch_source(source, tmp_path)
    (path.parent / "Beauty.txt").write_text("1 3 2 1\n")
    assert pl.read_parquet(fetch_source(source, tmp_path)).rows() == [
        (1, 3, 1),
        (1, 2, 2),
        (1, 1, 3),
    ]
    assert '"release": "new"' in (path.parent / "source.json").read_text()


def test_wrong_file_put_in_place_is_refused_and_kept(publisher, tmp_path):
    source = small(publisher, "ml_1m")
    folder = tmp_path / "downloads" / "ml_1m"
    folder.mkdir(parents=True)
    (folder / "ml-1m.zip").write_bytes(ML_100K)
    with pytest.raises(SourceError, match=r"ml-1m\.zip is not ml_1m .*holds no ratings\.dat"):
        fetch_source(source, tmp_path)
    assert (folder / "ml-1m.zip").read_bytes() == ML_100K
    assert publisher.asked == []


# ---- wrong content ----

PAGE = b"<!DOCTYPE html><html><body>Please log in to the hotel's network</body></html>"


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    "content",
    [
        pytest.param(lambda good: PAGE, id="a web page"),
        pytest.param(lambda good: b"", id="nothing"),
        pytest.param(lambda good: good[: len(good) // 2], id="half of it"),
        pytest.param(lambda good: bytes(range(256)) * 4, id="noise"),
    ],
)
def test_wrong_content_is_refused_and_leaves_nothing(publisher, tmp_path, name, content):
    source = small(publisher, name)
    publisher.files["/set"] = content(CASES[name][0])
    with pytest.raises(SourceError, match=f"{name} could not be downloaded"):
        fetch_source(source, tmp_path)
    assert names(tmp_path / "downloads" / name) == [".lock"]
    publisher.files["/set"] = CASES[name][0]
    assert pl.read_parquet(fetch_source(source, tmp_path)).height == CASES[name][1]


def test_a_web_page_is_called_one(publisher, tmp_path):
    publisher.files["/set"] = PAGE
    with pytest.raises(SourceError, match="it is a web page"):
        fetch_source(small(publisher, "ml_1m"), tmp_path)


def test_flipped_bits_are_noticed(publisher, tmp_path):
    spoilt = bytearray(ML_1M)
    spoilt[ML_1M.index(b"ratings.dat") + 20] ^= 0xFF
    publisher.files["/set"] = bytes(spoilt)
    with pytest.raises(SourceError, match="is not ml_1m"):
        fetch_source(small(publisher, "ml_1m"), tmp_path)


@pytest.mark.parametrize("change", [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_unknown_release_is_refused_with_its_counts(publisher, tmp_path, change):
    counts = [known + more for known, more in zip(CASES["ml_1m"][1:], change, strict=True)]
    source = small(publisher, "ml_1m", releases=(Release("that", *counts),))
    with pytest.raises(SourceError, match="holds 5 rows / 2 users / 4 items, which is no known"):
        fetch_source(source, tmp_path)


def test_the_next_address_is_tried(publisher, tmp_path):
    source = small(publisher, "ml_1m")
    address, file = source.downloads[0]
    publisher.files["/page"] = PAGE
    downloads = ((publisher.address + "/page", file), (address, file))
    path = fetch_source(dataclasses.replace(source, downloads=downloads), tmp_path)
    assert pl.read_parquet(path).height == 5


def test_a_truncated_table_is_made_again_without_a_download(publisher, tmp_path):
    source = small(publisher, "ml_1m")
    path = fetch_source(source, tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    assert fetch_source(source, tmp_path).read_bytes() == whole
    assert len(publisher.asked) == 1


def test_unknown_name_gives_the_nearest(tmp_path):
    with pytest.raises(SourceError, match=r"'ml_10m'.* Did you mean 'ml_100k|ml_1m'\?.*ta_feng"):
        fetch("ml_10m", tmp_path)
    assert names(tmp_path) == []


# ---- what the real sources say, held against real data ----


def test_every_source_can_be_found_and_tells_how_to_get_it_by_hand():
    assert list(SOURCES) == list(CASES)
    readme = (ROOT / "data" / "README.md").read_text()
    for name in SOURCES:
        source = find_source(name)
        assert "{folder}" in source.by_hand
        assert all(address.startswith("https://") for address, _ in source.downloads)
        for release in source.releases:
            counts = f"{release.rows:,} / {release.users:,} / {release.items:,}"
            assert counts in readme


def shared(name: str) -> pl.DataFrame:
    if not (SHARED / name).exists():
        pytest.skip(f"{name} is not here")
    return pl.read_parquet(SHARED / name)


def test_real_beauty_file_passes_its_hash(publisher, tmp_path):
    events = shared("amazon_beauty_s3rec.parquet")
    lines = events.group_by("user_id", maintain_order=True).agg("item_id")
    text = "".join(f"{user} {' '.join(map(str, items))}\n" for user, items in lines.rows())
    publisher.files["/set"] = text.encode()
    source = small(publisher, "amazon_beauty", releases=SOURCES["amazon_beauty"].releases)
    path = fetch_source(source, tmp_path)
    assert_frame_equal(pl.read_parquet(path), events, check_dtypes=False)


def test_real_latest_small_of_2016_is_a_known_release(publisher, tmp_path):
    events = shared("ml_latest_small.parquet")
    columns = {"user_id": "userId", "item_id": "movieId"}
    publisher.files["/set"] = zipped(
        **{
            "ml-latest-small/ratings.csv": events.rename(columns).write_csv(),
            "ml-latest-small/movies.csv": "movieId,title,genres\n1,Toy Story (1995),Comedy\n",
        }
    )
    source = small(publisher, "ml_latest_small", releases=SOURCES["ml_latest_small"].releases)
    path = fetch_source(source, tmp_path)
    assert_frame_equal(pl.read_parquet(path), events, check_dtypes=False)
    assert "October 2016" in (path.parent / "source.json").read_text()


@pytest.mark.skipif("RECSYS_NETWORK_TESTS" not in os.environ, reason="needs the network")
def test_real_ml_100k_comes_from_its_publisher_or_the_mirror(tmp_path):
    events = pl.read_parquet(fetch("ml_100k", tmp_path))
    assert events.row(0) == (196, 242, 3, 881250949)
    key = ["user_id", "item_id"]
    assert_frame_equal(events.sort(key), shared("ml100k.parquet").sort(key))
