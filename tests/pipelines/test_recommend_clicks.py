"""Lists from rankers, through the command: who gets which, what is read, what is left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from pipelines import recommend
from pipelines.clicks import RANKERS, click_judge, make_ranker, ranker_arguments
from pipelines.entry import compose
from pipelines.ingest import make_store
from pipelines.schemas import RecommendConfig, TrainConfig
from recsys.histories.store import open_store
from recsys.training.saved_model import save_model

USERS, ITEMS, HOUR = 12, 16, 3600
NOBODY = ("u10", "u11")  # they were shown items and took none
LOG = [
    "data=log",
    "data.path=log.parquet",
    "data.columns.user=uid",
    "data.columns.item=sku",
    "data.columns.time=ts",
    "data.columns.label=clicked",
    "model.max_length=4",
]
FEATURES = [
    f"+data.features.{name}.{key}={value}"
    for name, feature in {
        "dwell": {"kind": "numeric", "of": "event", "column": "dwell"},
        "device": {"kind": "categorical", "of": "event", "column": "device"},
        "city": {"kind": "categorical", "of": "user", "column": "city"},
        "ago": {"kind": "recency"},
    }.items()
    for key, value in feature.items()
]
ANONYMOUS = [*FEATURES, "questions.history=events", "questions.user_id=false"]


def log() -> pl.DataFrame:
    """Everybody is shown eight items, each at another time."""
    draw = np.random.Generator(np.random.PCG64(0))
    rows = [
        (f"u{user:02}", f"i{item:02}", 1_700_000_000 + HOUR * (20 * place + user))
        for user in range(USERS)
        for place, item in enumerate(draw.permutation(ITEMS)[:8])
    ]
    frame = pl.DataFrame(rows, schema=["uid", "sku", "ts"], orient="row")
    n = len(frame)
    frame = frame.with_columns(
        clicked=pl.Series(draw.integers(0, 2, n)),
        dwell=pl.Series(draw.uniform(0.1, 9, n)),
        device=pl.Series(draw.choice(["pc", "tv"], n)),
        city=pl.col("uid").str.slice(2),
    )
    return frame.with_columns(clicked=pl.col("clicked") * ~pl.col("uid").is_in(NOBODY))


@dataclass
class Here:
    """A working directory with a log, rankers on it (their weights are drawn), and the command."""

    folder: Path
    patch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]
    said: str = ""

    def ranker(self, *settings: str, model: str = "din") -> Here:
        """From now on the tracked run is this one."""
        config = compose("train", TrainConfig, [f"model={model}", *LOG, *settings])
        judge = click_judge(config, open_store(make_store(config.data)))
        size, sizes = judge.store.catalogue_size, judge.features.sizes
        made = make_ranker(config.model, size, sizes, seed=0)
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                parameter += 0.3 * torch.randn_like(parameter)
                if "table" in name and len(parameter) > 1:
                    parameter[0] = 0  # what is missing
        folder = self.folder / "model"
        facts = {
            "name": RANKERS[model],
            "item_vocabulary": judge.store.item_vocabulary.fingerprint,
        }
        save_model(folder, made, ranker_arguments(config.model, size, sizes), facts)
        judge.features.save(folder / "features.json")
        info = SimpleNamespace(
            run_id="r1", name="ranker", model=lambda: self.folder / "model", tags={}
        )
        self.patch.setattr(recommend, "trained_run", lambda *_: (info, config))
        self.judge = judge
        return self

    def lists(self, *settings: str, output: str = "top.parquet") -> pl.DataFrame:
        """The command's lists; what it said is in `said`."""
        given = ["run=r1", f"output={output}", "k=16", *settings]
        recommend.run(compose("recommend", RecommendConfig, given))
        self.said = self.capsys.readouterr().out
        return pl.read_parquet(self.folder / output)


@pytest.fixture
def here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Here:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RECSYS_HOME", str(tmp_path / "home"))
    log().write_parquet("log.parquet")
    return Here(tmp_path, monkeypatch, capsys)


def pairs(frame: pl.DataFrame, user: str = "user", item: str = "item") -> set[tuple[Any, Any]]:
    return set(frame.select(user, item).rows())


def scores(frame: pl.DataFrame) -> dict[tuple[str, str], float]:
    return {
        (user, item): score for user, item, score in frame.select("user", "item", "score").rows()
    }


def by_popularity(frame: pl.DataFrame) -> set[str]:
    return set(frame.filter(model="Popularity")["user"])


POPULAR = "people have no history of items taken: they get the most popular items"


def test_who_took_nothing_gets_the_popular_items(here: Here) -> None:
    found = here.ranker().lists("k=3")
    assert by_popularity(found) == set(NOBODY) and f"2 {POPULAR}" in here.said
    assert set(found.filter(~pl.col("user").is_in(NOBODY))["model"]) == {"DIN"}
    taken = log().filter(clicked=1)["sku"].value_counts().sort("count", descending=True)["count"]
    assert found.filter(user="u10")["score"].to_list() == taken.head(3).to_list()
    new = log().filter(uid="u00", clicked=1)
    new = pl.concat(
        [
            new,
            log().filter(uid="u00", clicked=0).with_columns(uid=pl.lit("shown")),
            new.with_columns(uid=pl.lit("lost"), sku="sku" + pl.lit("?")),
        ]
    )
    new.write_csv("new.csv")
    found = here.lists("k=3", "histories=new.csv")
    assert by_popularity(found) == {"shown", "lost"} and f"2 {POPULAR}" in here.said
    new.filter(uid="u00").write_csv("new.csv")
    found = here.lists("k=3", "histories=new.csv")
    assert by_popularity(found) == set() and "people have no" not in here.said


@pytest.mark.parametrize("history", ["events", "none"])
def test_rankers_that_read_all_events_or_none_answer_who_took_nothing(
    here: Here, history: str
) -> None:
    found = here.ranker(f"questions.history={history}").lists("k=3")
    assert by_popularity(found) == set() and "people have no" not in here.said
    new = (
        log()
        .filter(pl.col("uid") < "u02")
        .with_columns(sku=pl.when(uid="u00").then(pl.lit("?")).otherwise("sku"))
    )
    new.write_csv("new.csv")
    found = here.lists("k=3", "histories=new.csv")
    assert by_popularity(found) == ({"u00"} if history == "events" else set())
    assert ("1 people have no history: they get" in here.said) == (history == "events")


def test_new_people_with_the_same_log_get_the_same_scores(here: Here) -> None:
    stored = here.ranker(*ANONYMOUS).lists("seen=taken")
    newest = log()["ts"].max()
    moment = str(np.datetime64(newest, "s"))
    assert f"recency counts from {moment}, the newest event" in here.said
    others = log().with_columns(uid="n" + pl.col("uid"))
    others.sample(fraction=1, shuffle=True, seed=0).write_parquet("others.parquet")
    new = here.lists("histories=others.parquet", "seen=taken")
    assert f"recency counts from {moment}, the newest event" in here.said
    assert "lacks" not in here.said and "missing" not in here.said
    assert new["user"].str.slice(1).equals(stored["user"]) and new["item"].equals(stored["item"])
    np.testing.assert_allclose(new["score"], stored["score"], rtol=1e-5)
    later = here.lists("histories=others.parquet", "seen=taken", "at=2024-05-01T12:00")
    assert "recency counts from 2024-05-01T12:00:00, the moment of at=" in here.said
    assert not np.allclose(later["score"].sort(), new["score"].sort())
    again = here.lists("seen=taken", "at=2024-05-01T12:00")
    np.testing.assert_allclose(later["score"], again["score"], rtol=1e-5)


def test_what_a_log_of_new_people_lacks_is_said_in_one_line(here: Here) -> None:
    context = ["+data.features.at_all.kind=hour_of_week", "+data.features.at_all.of=context"]
    whole = here.ranker(*ANONYMOUS, *context).lists("seen=taken")
    missing = "features of context count as missing: at_all; nobody knows yet where and when"
    assert missing in here.said
    log().drop("device", "city").write_parquet("new.parquet")
    some = here.lists("histories=new.parquet", "seen=taken")
    assert missing in here.said
    lacks = (
        "new.parquet lacks what these features read: device (device), city (city); they count as"
    )
    assert here.said.count("lacks") == 1 and lacks in here.said
    assert "did not know" not in here.said
    assert pairs(some) == pairs(whole) and scores(some) != pytest.approx(scores(whole), rel=1e-4)
    log().with_columns(device=pl.lit("watch"), city=pl.lit("?")).write_parquet("new.parquet")
    unknown = here.lists("histories=new.parquet", "seen=taken")
    assert "lacks" not in here.said
    n = len(log())
    counted = f"values that training did not know, in new.parquet: event.device {n}, user.city 12"
    assert counted in here.said
    assert scores(unknown) != pytest.approx(scores(some), rel=1e-4)
    more = pl.concat([log(), log().with_columns(uid="m" + pl.col("uid"))])
    more.with_columns(clicked=pl.Series([7] + [1] * (2 * n - 1))).write_parquet("new.parquet")
    here.lists("histories=new.parquet", "k=2")
    aside = "1 rows of the log could not be used (the label is not 0 or 1: 1): quarantine.parquet"
    assert here.said.count(aside) == 1
    log().drop("clicked").write_parquet("new.parquet")
    here.lists("histories=new.parquet", "k=2")
    assert "has no column 'clicked': all of its events count as unlabelled" in here.said


def test_new_people_are_unknown_users_whatever_their_ids(here: Here) -> None:
    here.ranker()
    namesakes = here.lists("histories=log.parquet")
    log().with_columns(uid="n" + pl.col("uid")).write_parquet("others.parquet")
    others = here.lists("histories=others.parquet")
    assert namesakes.drop("user").equals(others.drop("user"))
    assert scores(here.lists()) != pytest.approx(scores(namesakes), rel=1e-4)


@pytest.mark.parametrize("user_id", [True, False])
def test_before_the_test_question_the_score_is_that_of_the_evaluation(
    here: Here, user_id: bool
) -> None:
    here.ranker(*FEATURES, f"questions.user_id={str(user_id).lower()}")
    found = scores(here.lists("history=test", "filter_seen=false"))
    assert "recency counts from each user's test question" in here.said
    from recsys.evaluation.click_scores import score_clicks
    from recsys.training.saved_model import load_model

    judge, store = here.judge, here.judge.store
    model = load_model(here.folder / "model")[0].eval()
    asked = judge.split.test
    told = score_clicks(model, judge.split.view, asked, judge.columns, judge.max_length)
    first = np.unique(asked.users, return_index=True)[1]  # each user's earliest test question
    users = store.user_vocabulary.raw(asked.users[first])
    items = store.item_vocabulary.raw(asked.candidates[first])
    compared = 0
    for place, user, item in zip(first, users, items, strict=True):
        if asked.history_ends[place] > 0:  # else the list is the popularity list
            assert found[user, item] == pytest.approx(told[place], rel=1e-4)
            compared += 1
    assert compared == USERS - len(NOBODY)


def untaken_and_unseen() -> tuple[set[tuple[Any, Any]], set[tuple[Any, Any]]]:
    """What nobody took of all items, and what nobody was shown."""
    shown, taken = pairs(log(), "uid", "sku"), pairs(log().filter(clicked=1), "uid", "sku")
    everything = {(user, item) for user, _ in shown for item in set(log()["sku"])}
    return everything - taken, everything - shown


def test_of_a_model_of_what_was_taken_that_is_left_out(here: Here) -> None:
    untaken, unseen = untaken_and_unseen()
    here.ranker()
    found = here.lists()
    assert pairs(found) == untaken and set(found["protocol"]) == {"all-full-untaken"}
    assert "items that were taken (label 1) are left out" in here.said
    found = here.lists("seen=events")
    assert pairs(found) == unseen and set(found["protocol"]) == {"all-full-unseen"}
    assert "items of the history are left out" in here.said
    here.lists("filter_seen=false")
    assert "items of the history are listed too" in here.said


def test_what_is_left_out_for_new_people(here: Here) -> None:
    untaken, unseen = untaken_and_unseen()
    here.ranker()
    assert pairs(here.lists("histories=log.parquet")) == untaken
    assert pairs(here.lists("histories=log.parquet", "seen=events")) == unseen
    log().drop("clicked").write_parquet("unlabelled.parquet")
    assert pairs(here.lists("histories=unlabelled.parquet")) == unseen
    assert "has no column 'clicked': all of its events count as taken" in here.said
    with pytest.raises(ValueError, match=r"there is no column 'clicked' \(data.columns.label\)"):
        here.lists("histories=unlabelled.parquet", "seen=taken")


@pytest.mark.parametrize("history", ["events", "none"])
def test_of_other_rankers_all_that_was_shown_is_left_out(here: Here, history: str) -> None:
    untaken, unseen = untaken_and_unseen()
    here.ranker(f"questions.history={history}")
    assert pairs(here.lists()) == unseen
    assert pairs(here.lists("seen=taken", "histories=log.parquet")) == untaken


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["at=2020-01-01"], "at=2020-01-01 is before the newest event, of 2023-11-"),
        (["at=2030-01-01", "history=test"], "leave at= out"),
        (["seen=taken", "filter_seen=false"], "with filter_seen=false none are"),
        (["seen=taken", "histories=new.csv", "filter_seen=false"], "filter_seen=false none are"),
        (["histories=two.parquet"], "column 'city' (data.features.city.column) is not the same"),
        (["histories=text.parquet"], "dwell: column 'dwell' of event does not hold numbers only"),
    ],
)
def test_what_cannot_be_is_refused(here: Here, settings: list[str], words: str) -> None:
    log().with_columns(city="sku").write_parquet("two.parquet")
    log().with_columns(dwell=pl.lit("long")).write_parquet("text.parquet")
    here.ranker(*FEATURES)
    with pytest.raises(ValueError) as caught:
        here.lists(*settings)
    assert words in str(caught.value)


def test_repeats_leave_nothing_to_be_seen(here: Here) -> None:
    here.ranker("data.repeats=true")
    with pytest.raises(ValueError, match=r"with data\.repeats=true none are"):
        here.lists("seen=events")
    assert pairs(here.lists("seen=events", "filter_seen=true")).isdisjoint(
        pairs(log(), "uid", "sku")
    )


@pytest.mark.parametrize("model", RANKERS)
def test_every_ranker_answers_whom_and_what_it_is_asked(here: Here, model: str) -> None:
    settings = [] if model == "logistic_regression" else ["model.width=4", "model.hidden=[4]"]
    everything = here.ranker(*settings, model=model).lists()
    assert set(everything["model"]) == {RANKERS[model], "Popularity"}
    assert by_popularity(everything) == set(NOBODY)
    assert set(everything["user"]) == set(log()["uid"])
    Path("some.txt").write_text("u07\nu10\nu03\nnobody\n")
    pl.DataFrame({"sku": ["i01", "i02", "i03", "i04", "i99"]}).write_csv("candidates.csv")
    Path("sold_out.txt").write_text("i03\n")
    asked = ["users=some.txt", "candidates=candidates.csv", "exclude=sold_out.txt"]
    some = here.lists(*asked)
    assert some["user"].unique(maintain_order=True).to_list() == ["u07", "u10", "u03"]
    assert f"1 {POPULAR}" in here.said
    of = everything.filter(
        pl.col("user").is_in(["u07", "u10", "u03"]) & pl.col("item").is_in(["i01", "i02", "i04"])
    )
    assert scores(some) == pytest.approx(scores(of), rel=1e-5)
    for user in ("u07", "u10", "u03"):
        assert some.filter(user=user)["item"].equals(of.filter(user=user)["item"])


Stopping = Callable[..., Any]


@pytest.mark.parametrize("histories", [[], ["histories=log.parquet"]])
def test_interrupted_and_resumed_equals_uninterrupted(here: Here, histories: list[str]) -> None:
    from recsys.serving.recommender import Recommender

    here.patch.setattr("recsys.serving.parts.PEOPLE", 5)
    whole = here.ranker(*FEATURES).lists(*histories, output="whole.parquet")
    original: Stopping = Recommender.top_k
    calls: list[int] = []

    def stopped(self: Recommender, *arguments: Any, **options: Any) -> Any:
        calls.append(len(arguments[1]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, *arguments, **options)

    here.patch.setattr(Recommender, "top_k", stopped)
    with pytest.raises(KeyboardInterrupt):
        here.lists(*histories)
    here.capsys.readouterr()
    for other, words in (
        ("seen=events", "seen (taken there, events here)"),
        ("at=2030-01-01", "at (None there, 2030-01-01 here)"),
    ):
        with pytest.raises(ValueError) as caught:
            here.lists(*histories, other)
        assert words in str(caught.value)
    assert here.lists(*histories).equals(whole)
    assert "going on: 5 people were answered before" in here.said
    assert calls == [5, 5, 5, 2]
