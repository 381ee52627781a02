"""A file in parts: whole or not at all, and an interruption changes nothing."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.serving import parts
from recsys.serving.parts import OutputError, check_output, parts_folder, write_in_parts

IDENTITY = {"run": "r1", "k": 10, "filter_seen": True}


class Stop(BaseException):
    """Ctrl-C, or whatever ends a process."""


def make(number: int) -> pl.DataFrame:
    return pl.DataFrame({"user": [f"u{number}"] * 3, "rank": [1, 2, 3]})


def stops_at(number: int):
    def stopping(asked: int) -> pl.DataFrame:
        if asked == number:
            raise Stop
        return make(asked)

    return stopping


WHOLE = pl.concat([make(number) for number in range(5)])


def test_parts_stand_behind_each_other_and_are_gone(tmp_path: Path) -> None:
    output = tmp_path / "new" / "top.parquet"
    assert write_in_parts(output, 5, make, IDENTITY) == 0
    assert pl.read_parquet(output).equals(WHOLE)
    assert [path.name for path in output.parent.iterdir()] == ["top.parquet"]


@settings(max_examples=8)
@given(st.lists(st.integers(0, 4), max_size=3))
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path_factory, stops) -> None:
    output = tmp_path_factory.mktemp("x") / "top.parquet"
    made: list[int] = []
    for stop in stops:
        stopping = stops_at(stop)
        if stop not in made:
            with pytest.raises(Stop):
                write_in_parts(output, 5, stopping, IDENTITY)
            made = list(range(max(len(made), stop)))
        assert not output.exists()
    done: list[int] = []
    found = write_in_parts(output, 5, make, IDENTITY, done.append)
    assert found == len(made) and done == list(range(found, 6))
    assert pl.read_parquet(output).equals(WHOLE)


def test_what_stood_there_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    output = tmp_path / "top.parquet"
    output.write_text("before")
    with pytest.raises(Stop):
        write_in_parts(output, 5, stops_at(3), IDENTITY)
    assert output.read_text() == "before"
    write_in_parts(output, 5, make, IDENTITY)
    assert pl.read_parquet(output).equals(WHOLE)


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    output = tmp_path / "top.parquet"
    with pytest.raises(Stop):
        write_in_parts(output, 5, stops_at(3), IDENTITY)
    with pytest.raises(OutputError, match=r"other settings: k \(10 there, 20 here\)\. Give those"):
        write_in_parts(output, 5, make, {**IDENTITY, "k": 20})
    with pytest.raises(OutputError, match=r"users \(None there, abc here\)"):
        write_in_parts(output, 5, make, {**IDENTITY, "users": "abc"})
    with pytest.raises(OutputError, match=r"filter_seen \(True there, None here\)"):
        write_in_parts(output, 5, make, {"run": "r1", "k": 10})
    assert write_in_parts(output, 5, make, IDENTITY) == 3  # nothing was lost by asking


def test_what_a_killed_process_left_is_no_part(tmp_path: Path) -> None:
    output = tmp_path / "top.parquet"
    with pytest.raises(Stop):
        write_in_parts(output, 5, stops_at(2), IDENTITY)
    folder = parts_folder(output)
    (folder / ".part-000002.parquet.ab12").write_text("half")
    (folder / "joined.parquet").write_text("half")
    (folder / "part-000009.parquet").write_text("of nobody")
    with pytest.raises(Stop):
        write_in_parts(output, 5, stops_at(3), IDENTITY)
    names = [f"part-00000{number}.parquet" for number in range(3)]
    assert {path.name for path in folder.iterdir()} == {".lock", "manifest.json", *names}
    write_in_parts(output, 5, make, IDENTITY)
    assert pl.read_parquet(output).equals(WHOLE)
    # Killed before the manifest was there: nothing beside it counts.
    folder.mkdir()
    pl.DataFrame({"user": ["x"], "rank": [1]}).write_parquet(folder / "part-000000.parquet")
    assert write_in_parts(output, 5, make, IDENTITY) == 0
    assert pl.read_parquet(output).equals(WHOLE)


def test_a_damaged_manifest_is_said(tmp_path: Path) -> None:
    folder = parts_folder(tmp_path / "top.parquet")
    folder.mkdir()
    (folder / "manifest.json").write_text("{")
    with pytest.raises(OutputError, match=r"manifest\.json is damaged .* delete"):
        write_in_parts(tmp_path / "top.parquet", 5, make, IDENTITY)


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    output = tmp_path / "top.parquet"

    def make_and_start_another(number: int) -> pl.DataFrame:
        with pytest.raises(OutputError, match="another command is at work"):
            write_in_parts(output, 5, make, IDENTITY)
        return make(number)

    write_in_parts(output, 5, make_and_start_another, IDENTITY)
    assert pl.read_parquet(output).equals(WHOLE)


@pytest.mark.parametrize("at", ["part", "join"])
def test_a_full_disk_keeps_the_parts(tmp_path: Path, monkeypatch, at: str) -> None:
    output = tmp_path / "top.parquet"
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def no_space(file: Path) -> None:
        if ("joined" in file.name) == (at == "join"):
            raise full

    monkeypatch.setattr(parts, "sync", no_space)
    with pytest.raises(OSError, match="No space left"):
        write_in_parts(output, 5, make, IDENTITY)
    assert not output.exists()
    monkeypatch.undo()
    left = {path.name for path in parts_folder(output).glob("*part-*")}
    assert len(left) == (0 if at == "part" else 5)
    assert write_in_parts(output, 5, make, IDENTITY) == len(left)


def test_an_output_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a folder: add the name of a file"):
        check_output(tmp_path)
    with pytest.raises(OutputError, match=r"written as Parquet; name it top\.parquet"):
        check_output(tmp_path / "top.csv")


# What is kept of everybody shows: the lists alone of 24,000 people, less those of the warm-up, are
# 196,000 rows of 47 bytes, 9 MB. Joining a dozen parts takes what joining many does: a dozen warm
# up, and growth was then 4 MB.
STREAM = """
import json, resource, sys
from dataclasses import replace
from pathlib import Path
import numpy as np, polars as pl, torch
from recsys.histories.attributes import Attribute
from recsys.histories.clicks import ClickQuestions, feature_rows, history_view
from recsys.histories.features import Categorical, Label, Numeric, fit_features
from recsys.histories.store import HistoryStore
from recsys.histories.vocabulary import Vocabulary
from recsys.models.click.mean_pooling import MeanPooling
from recsys.models.next_item.sasrec import SASRec
from recsys.serving import parts
from recsys.serving.parts import write_in_parts
from recsys.serving.people import NewPeople, StoredPeople
from recsys.serving.rankers import RankerScorer
from recsys.serving.recommender import Recommender, event_counts
kind, users = sys.argv[1], int(sys.argv[2])
EVENTS, V, STEP = 3, 12, 512
torch.set_num_threads(1)
parts.sync = lambda file: None  # memory is measured, and not the disk
rng = np.random.default_rng(0)
n = EVENTS * users
store = HistoryStore(
    offsets=np.arange(0, n + 1, EVENTS),
    items=rng.integers(1, V, n).astype(np.int32),
    user_vocabulary=Vocabulary(pl.Series("user", np.arange(users)), 0),
    item_vocabulary=Vocabulary(pl.Series("item", np.arange(V - 1)), 1),
    labels=rng.integers(0, 2, n).astype(np.int8),
    attributes={
        "event.device": Attribute(rng.integers(0, 3, n).astype(np.int32), pl.Series(["pc", "tv"])),
        "event.dwell": Attribute(numbers=rng.random(n)),
    },
)
items, counts = store.item_vocabulary, event_counts(store)
if kind == "stored":
    model = SASRec(V, max_length=2, width=4)
    people = StoredPeople(store, np.arange(users))
    recommender = Recommender(model, items, name="SASRec", popularity_V=counts)
else:
    some = np.arange(100)
    asked = ClickQuestions(some, np.full(100, 3), some % 9 + 1, some * 1.0, some, some)
    declared = [Label(), Categorical("device", "event", "device"), Numeric("d", "event", "dwell")]
    features = fit_features(store, declared, feature_rows(history_view(store, "events"), asked))
    model = MeanPooling(V, {}, {}, features.sizes["event"], {}, 2, 4, hidden=[4]).eval()
    # The model's own store is small; the people are those of another.
    own = NewPeople(store, items).slice(0, 100).store
    scorer = RankerScorer(model, features, "events", own)
    people = NewPeople(store, items, taken_only=True)
    recommender = Recommender(scorer, items, name="Mean pooling", popularity_V=counts,
        make_batch=scorer.make_batch)
def make(number):
    some = people.slice(number * STEP, min((number + 1) * STEP, users))
    top = recommender.top_k(some.store, some.users_M, some.ends_M, k=11, filter_seen=False,
        read_N=some.read_M)
    return recommender.frame(some.raw_users, top)
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
write_in_parts(Path("warm.parquet"), 12, make, {})
before = peak()
write_in_parts(Path("all.parquet"), -(-users // STEP), make, {})
rows = pl.scan_parquet("all.parquet").select(pl.len()).collect().item()
print(json.dumps({"rows": rows, "growth_mb": peak() - before, "before_mb": before}))
"""


@pytest.mark.parametrize("kind", ["stored", "new"])
def test_memory_does_not_grow_with_the_people(tmp_path: Path, kind: str) -> None:
    people = 24_000
    pytest.importorskip("resource")
    done = subprocess.run(
        [sys.executable, "-c", STREAM, kind, str(people)],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
            "POLARS_MAX_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert measured["rows"] == 11 * people
    assert measured["growth_mb"] < 8, measured
