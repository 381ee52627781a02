"""`python -m pipelines.ingest` with features: tables found, left out, refused."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipelines.entry import compose
from pipelines.ingest import features_of, make_store
from pipelines.schemas import IngestConfig
from recsys.histories.store import open_store
from recsys.logs.errors import LogError
from tests.histories.test_attributes import raw
from tests.pipelines.conftest import Place

EVENTS = {
    "user_id": [1, 1, 1, 1, 1, 2, 2, 2, 2, 2] * 5,
    "item_id": [10, 20, 30, 40, 50] * 10,
    "rating": [5, 4, 3, 2, 1] * 10,
    "label": [1, 1, 0, 0, 0] * 10,
    "timestamp": [978_300_000 + 60 * i for i in range(50)],
    "position": list(range(50)),
}
USERS = {
    "user_id": [2, 1],
    "gender": ["M", "F"],
    "age_code": [25, 1],
    "occupation_code": [15, 10],
}
FILMS = {
    "item_id": [10, 20, 30, 40, 50],
    "genres": [["Action", "War"], ["Drama"], [], None, ["War"]],
    "year": [1999, 2000, None, 1990, 1977],
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_HOME", str(tmp_path / "home"))


def tables(folder: Path, *names: str) -> str:
    folder.mkdir(exist_ok=True)
    for name, columns in (("ml1m", EVENTS), ("ml1m_users", USERS), ("ml1m_items", FILMS)):
        if name in ("ml1m", *names):
            pl.DataFrame(columns).write_parquet(folder / f"{name}.parquet")
    return str(folder / "ml1m.parquet")


def made(*overrides: str):
    data = compose("ingest", IngestConfig, overrides).data
    store = open_store(make_store(data))
    return store, [feature.name for feature in features_of(data, store)]


def test_a_local_copy_brings_the_tables_that_stand_beside_it(tmp_path, capsys) -> None:
    path = tables(tmp_path, "ml1m_users", "ml1m_items")
    store, features = made("data=ml_1m", f"data.path={path}")
    assert features == ["gender", "age", "occupation", "genres", "year"]
    assert raw(store.attributes["user.gender"]) == ["F", "M"]
    assert raw(store.attributes["item.genres"])[1:] == [
        ["Action", "War"],
        ["Drama"],
        [],
        [],
        ["War"],
    ]
    assert "left out" not in capsys.readouterr().err


def test_without_a_table_its_features_are_left_out_in_one_line(tmp_path, capsys) -> None:
    path = tables(tmp_path, "ml1m_items")
    _, features = made("data=ml_1m", f"data.path={path}")
    assert features == ["genres", "year"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "ml_1m: left out gender, age, occupation (features of users), since there is no table of "
        f"users beside {path}: name one in data.users"
    )
    # Elsewhere, once it is named.
    tables(tmp_path / "other", "ml1m_users")
    users = f"data.users={tmp_path / 'other' / 'ml1m_users.parquet'}"
    assert len(made("data=ml_1m", f"data.path={path}", users)[1]) == 5


def test_ml_100k_gets_its_labels_from_ratings(tmp_path) -> None:
    path = tables(tmp_path)
    store, _ = made("data=ml_100k", f"data.path={path}")
    np.testing.assert_array_equal(store.labels, store.ratings >= 4)


def own(path: str, *overrides: str) -> list[str]:
    columns = ["data.columns.user=user_id", "data.columns.item=item_id"]
    return ["data=log", f"data.path={path}", *columns, "data.columns.time=timestamp", *overrides]


def test_the_users_own_log_and_tables(tmp_path) -> None:
    path = tables(tmp_path, "ml1m_users", "ml1m_items")
    pl.DataFrame({"id": ["1", "2"], "age": ["30", "40.5"]}).write_csv(tmp_path / "people.csv")
    store, features = made(
        *own(
            path,
            f"data.users={tmp_path / 'people.csv'}",
            "data.users_key=id",
            "data.features.age={kind: numeric, of: user, column: age}",
            "data.features.stars={kind: categorical, of: event, column: rating}",
            "data.features.place={kind: categorical, of: context, column: position}",
            "data.features.when.kind=recency",
        )
    )
    assert features == ["age", "stars", "place", "when"]
    assert sorted(store.attributes) == ["event.position", "event.rating", "user.age"]


def test_settings_that_say_nothing_are_refused(tmp_path) -> None:
    path = tables(tmp_path)
    with pytest.raises(LogError, match=r"data\.items_key='id' says nothing without a table"):
        made(*own(path, "data.items_key=id"))


@pytest.mark.parametrize(
    ("feature", "words"),
    [
        ("{kind: numeric, of: item, column: genre}", "the first other value is 'cheap'"),
        ("{kind: numeric, of: item, column: gnre}", "no column 'gnre' (data.features.f.column)"),
        ("{kind: numeric, of: event, column: gnre}", "no column 'gnre' (data.features.f.column)"),
        ("{kind: hour_of_week, of: context}", "needs a log with times"),
    ],
)
def test_the_command_refuses(place: Place, feature: str, words: str) -> None:
    (place.folder / "log.csv").write_text("user,item,at\nu,a,1\nu,b,2\n")
    (place.folder / "items.csv").write_text("item,genre\na,3\nb,cheap\n")
    settings = ["data.columns.order=at", "data.items=items.csv", f"data.features.f={feature}"]
    assert words in place.refused("ingest", "data=log", "data.path=log.csv", *settings)


def test_the_command_reports_impressions(place: Place) -> None:
    (place.folder / "log.csv").write_text("user,item,time\nu,a,1600000001\nu,b,1600000002\n")
    (place.folder / "shown.csv").write_text(
        "user,item,time,label,request\nu,a,1600000002,1,r\nu,c,1600000002,0,r\nv,a,1600000000,0,s\n"
    )
    done = place.here("ingest", "data=log", "data.path=log.csv", "data.impressions.path=shown.csv")
    assert done.returncode == 0, done.stderr
    assert "3 rows out, 1 clicked, by 2 users" in done.stdout
    assert "(empty history): 1; users without any event: 1; items in no history: 1" in done.stdout
