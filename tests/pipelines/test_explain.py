"""The attention explorer, through the commands: its page, its numbers, what it refuses."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from pipelines.checking import ConfigError
from pipelines.entry import compose
from pipelines.evaluate import run as evaluate
from pipelines.explain import run as explain
from pipelines.explaining import (
    Asked,
    affordable,
    by_length,
    drawn,
    explain_lists,
    first_candidates,
    make_report,
)
from pipelines.judging import Judge, make_split
from pipelines.recommend import run as recommend
from pipelines.schemas import (
    EvaluateConfig,
    EvaluationConfig,
    ExplainConfig,
    RecommendConfig,
    TrainConfig,
)
from pipelines.titles import item_titles
from pipelines.train import run
from recsys.explain.attention_weights import NoAttentionError
from recsys.explain.summary import summarise
from recsys.histories.attributes import attribute_of
from recsys.histories.clicks import ClickQuestions
from recsys.histories.store import HistoryStore
from recsys.histories.vocabulary import Vocabulary
from recsys.models.next_item.sasrec import SASRec
from recsys.testing import planted_log
from tests.pipelines import test_clicks
from tests.pipelines.conftest import Place
from tests.pipelines.test_train import SMALL, artifacts

QUICK = ["evaluation.baselines=false", "evaluation.resamples=0", "trainer.max_epochs=1"]
NEXT = [*SMALL, *QUICK, "evaluation.tie_orders=0", "model.heads=2", "data.items=items.csv"]
LONG = 10_000


def write_files(folder: Path) -> None:
    """A planted log, its titles, a user with one event and one with ten thousand."""
    store = planted_log(30)
    raw = store.item_vocabulary.raw_ids.to_list()
    draw = np.random.default_rng(0)
    rows = [
        (f"u{user}", raw[item - 1], at)
        for user in range(store.users)
        for at, item in enumerate(store.history(user).tolist())
    ]
    rows += [("single", raw[3], 0), ("pair", raw[3], 0), ("pair", raw[4], 1), ("pair", raw[7], 2)]
    rows += [("long", raw[item], at) for at, item in enumerate(draw.integers(0, 59, LONG))]
    pl.DataFrame(rows, schema=["user", "item", "at"], orient="row").write_parquet(
        folder / "log.parquet"
    )
    titles = pl.DataFrame({"item": raw, "title": [f"The {item} <film>" for item in raw]})
    titles[:-1].write_csv(folder / "items.csv")  # the last has none
    titles.rename({"item": "sku", "title": "called"}).write_csv(folder / "other.csv")


class Here:
    """A place whose commands run in this process, which saves their imports."""

    def __init__(self, folder: Path) -> None:
        self.place, self.folder = Place(folder), folder

    def stocked(self, store: Path) -> Here:
        self.place.stocked(store)
        return self

    def enter(self, patch: pytest.MonkeyPatch) -> None:
        patch.chdir(self.folder)
        patch.setenv("RECSYS_HOME", str(self.place.home))

    def train(self, *overrides: str) -> str:
        """The run's id."""
        run(compose("train", TrainConfig, [*overrides, "result=result.json"]))
        return str(json.loads((self.folder / "result.json").read_text())["run_id"])

    def explain(self, *overrides: str) -> dict[str, Any]:
        """The numbers of the run that `explain` leaves, and its page as `page`."""
        explain(compose("explain", ExplainConfig, [*overrides, "result=result.json"]))
        run_id = json.loads((self.folder / "result.json").read_text())["run_id"]
        return {"run_id": run_id, **self.kept(run_id)}

    def kept(self, run_id: str) -> dict[str, Any]:
        folder = artifacts(self.place, run_id)
        values: dict[str, Any] = json.loads((folder / "explain.json").read_text())
        return {**values, "page": (folder / "explain.html").read_text()}

    def refused(self, *overrides: str) -> str:
        """Why `explain` does not; nothing is written."""
        before = self.place.files
        with pytest.raises(ValueError) as caught:
            explain(compose("explain", ExplainConfig, list(overrides)))
        assert self.place.files == before
        return str(caught.value)


@pytest.fixture(scope="module")
def trained_once(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Here, str]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("explain")
        write_files(folder)
        here = Here(folder).stocked(empty_store)
        here.enter(patch)
        return here, here.train(*NEXT)


@pytest.fixture
def trained(trained_once: tuple[Here, str], monkeypatch: pytest.MonkeyPatch) -> tuple[Here, str]:
    """A SASRec on the planted log."""
    trained_once[0].enter(monkeypatch)
    return trained_once


@pytest.fixture(scope="module")
def ranker_once(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Here, str]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("explain clicks")
        log = test_clicks.write_log(folder / "log.parquet")
        log.with_columns(clicked=pl.col("clicked") * (pl.col("user") != "u3")).write_parquet(
            folder / "log.parquet"
        )
        here = Here(folder).stocked(empty_store)
        here.enter(patch)
        return here, here.train(*test_clicks.SMALL, *QUICK, "model.heads=2")


@pytest.fixture
def ranker(ranker_once: tuple[Here, str], monkeypatch: pytest.MonkeyPatch) -> tuple[Here, str]:
    """A DIN on a log of clicks, in which one user took nothing."""
    ranker_once[0].enter(monkeypatch)
    return ranker_once


MAPS = [f"layer {layer} head {head}" for layer in (1, 2) for head in (1, 2)]


# --- with every training run ---


def test_every_training_run_explains_a_sample(trained: tuple[Here, str]) -> None:
    here, run_id = trained
    found = here.kept(run_id)
    assert (found["format"], found["version"]) == ("recsys-explanation", 1)
    assert found["maps"] == [*MAPS, "rolled out"]
    lengths = [user["events"] for user in found["users"]]
    assert len(lengths) == 8 and lengths == sorted(lengths) and lengths[0] < lengths[-1]
    assert [len(user["read"]) for user in found["users"]] == [min(n, 40) for n in lengths]
    assert found["sample"]["histories"] == 32 and found["sample"]["maps"] == MAPS
    assert "http" not in found["page"] and "<script" not in found["page"]
    assert "The i1 &lt;film&gt;" in found["page"] or "The i2 &lt;film&gt;" in found["page"]
    for user in found["users"]:
        assert np.sum(user["maps"], 1) == pytest.approx(np.ones(5), abs=1e-4)
        assert len(user["items"]) in (3, 4)
        assert [item["place"] for item in user["items"][:3]] == [1, 2, 3]
        (came,) = [item for item in user["items"] if "came next" in item["role"]]
        for item in user["items"]:
            assert len(item["drops"]) == len(item["places_without"]) == len(user["read"])
            verdicts = [one["verdict"] for one in item["correlations"]]
            assert len(verdicts) == 5 and all(verdicts)
        assert came["title"]


def test_it_can_be_switched_off_and_needs_attention(
    ranker: tuple[Here, str], capsys: pytest.CaptureFixture[str]
) -> None:
    here, _ = ranker
    log = [*test_clicks.SMALL, *QUICK]
    for settings, said in (
        (["evaluation.explained_users=0"], None),
        (["questions.history=none"], "all of the 40 histories are empty"),
        (["model=mean_pooling"], "Mean pooling has no attention to explain; models that have: SAS"),
        (["model=logistic_regression"], "Logistic regression has no attention to explain"),
    ):
        ours = [o for o in log if not (settings[0].startswith("model=") and "attention_units" in o)]
        if settings[0] == "model=logistic_regression":
            ours = [o for o in ours if not o.startswith(("model.width", "model.hidden"))]
        run_id = here.train(*ours, *settings)
        printed = capsys.readouterr().out
        assert (said is None) == ("explain.html is left out" not in printed)
        assert said is None or f"explain.html is left out: {said}" in printed
        assert not (artifacts(here.place, run_id) / "explain.html").exists()
        if said is not None:
            name = "cannot be explained" if "empty" in said else f"run {run_id} ("
            assert name in (refused := here.refused(f"run={run_id}")) and said in refused


def test_evaluation_leaves_the_page_too(trained: tuple[Here, str]) -> None:
    here, run_id = trained
    settings = [f"run={run_id}", "evaluation.baselines=false", "result=again.json"]
    settings += ["evaluation.resamples=0", "evaluation.explained_users=8"]
    evaluate(compose("evaluate", EvaluateConfig, settings))
    again = here.kept(json.loads((here.folder / "again.json").read_text())["run_id"])
    before = here.kept(run_id)
    assert again["users"] == before["users"] and again["sample"] == before["sample"]


# --- the command ---


def test_the_command_as_a_user_types_it(trained: tuple[Here, str]) -> None:
    here, run_id = trained
    done = here.place.command(
        "explain", "run=latest", "users=[u7,pair]", "k=4", "output=out/page.html", "result=r.json"
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((here.folder / "r.json").read_text())
    found = here.kept(result["run_id"])
    assert (here.folder / "out/page.html").read_text() == found["page"]
    assert [user["user"] for user in found["users"]] == ["u7", "pair"]
    lines = done.stdout.splitlines()
    assert "over 2 users" in done.stdout and "The page: out/page.html" in lines
    assert lines[-1].endswith(f"python -m pipelines.ui run={result['run_id']}")
    with sqlite3.connect(here.place.home / "mlflow.db") as database:
        ask = "select key, value from tags where run_uuid = ?"
        tags = dict(database.execute(ask, (result["run_id"],)).fetchall())
        ask = "select key, value from latest_metrics where run_uuid = ?"
        metrics = dict(database.execute(ask, (result["run_id"],)).fetchall())
    assert (tags["explains"], tags["pipeline"]) == (run_id, "explain")
    assert tags["store"] in {value for key, value in tags.items() if key.startswith("dataset.")}
    (row,) = result["rows"]
    own = {name: value for name, value in metrics.items() if not name.startswith("system/")}
    assert own == {f"rank_correlation/{n}": v for n, v in row["metrics"].items()}
    assert "a run of explain, which holds no model" in here.refused(f"run={result['run_id']}")


def test_the_lists_are_those_of_recommend(trained: tuple[Here, str]) -> None:
    here, run_id = trained
    for history in ("test", "all"):
        found = here.explain(f"run={run_id}", "users=[u1,long,u2]", "k=6", f"history={history}")
        settings = [f"run={run_id}", "k=6", f"history={history}", "output=top.parquet"]
        recommend(compose("recommend", RecommendConfig, settings))
        lists = pl.read_parquet("top.parquet")
        for user in found["users"]:
            theirs = lists.filter(user=user["user"]).sort("rank")
            ours = [item for item in user["items"] if item["role"].startswith("recommended")]
            assert [item["raw"] for item in ours] == theirs["item"].to_list()
            assert [item["score"] for item in ours] == pytest.approx(
                theirs["score"].to_list(), rel=1e-4, abs=1e-5
            )
        assert any("came next" in i["role"] for i in found["users"][0]["items"]) == (
            history == "test"
        )


def test_histories_of_one_event_and_of_ten_thousand(trained: tuple[Here, str]) -> None:
    here, run_id = trained
    found = here.explain(f"run={run_id}", "users=[single,long]", "history=all")
    single, long = found["users"]
    assert single["maps"] == [[1.0]] * 5 and single["events"] == 1
    (score,), drops = {i["score"] for i in single["items"][:1]}, single["items"][0]["drops"]
    assert drops == pytest.approx([score])  # an empty history scores 0
    assert "fewer than 3 events" in single["items"][0]["correlations"][0]["verdict"]
    assert long["events"] == LONG and len(long["read"]) == 40
    assert f"{LONG:,} events, of which the model reads the newest 40" in found["page"]
    assert "1 event<" in found["page"]


def test_who_has_no_history_breaks_nothing_and_seen_items_have_no_place() -> None:
    store = HistoryStore.from_lists([[1, 2, 3, 4, 5], [2, 1, 6, 1]], items=9)
    config = compose("train", TrainConfig, NEXT)
    evaluation = config.evaluation
    assert isinstance(evaluation, EvaluationConfig)
    judge = Judge(store, make_split(config.split, store), evaluation, filter_seen=True)
    torch.manual_seed(0)
    model = SASRec(10, 4, width=8, initial_scale=1.0).eval()
    asked = Asked(np.array([0, 1, 0]), np.array([0, 1, 4]), np.array([0, 1, 2]))
    titles = item_titles(replace(config.data, items=None), store)
    empty, one, several = explain_lists(model, judge, asked, titles, k=3)
    assert empty.explanation is None and empty.events == empty.asked == []
    assert one.explanation is not None and [raw for raw, _ in one.events] == ["i2"]
    assert several.explanation is not None and len(several.asked) == 4
    assert not {item.raw for item in several.asked[:3]} & {"i1", "i2", "i3", "i4"}
    assert several.explanation.removal.places_K is not None
    assert several.explanation.removal.places_K.tolist() == [1, 2, 3, 0]
    assert several.asked[3].role == "came next"
    report = make_report("t", "l", [empty, one, several], summarise(["a"], []), titles)
    assert report.page.count("<article") == 3 and "no candidate" in report.page


def test_a_file_of_users_skips_unknown_ones_and_says_so(
    trained: tuple[Here, str], capsys: pytest.CaptureFixture[str]
) -> None:
    here, run_id = trained
    (here.folder / "people.txt").write_text("u4\nnobody\nu5\nsingle\n")
    found = here.explain(f"run={run_id}", "users=people.txt")
    assert [user["user"] for user in found["users"]] == ["u4", "u5"]
    printed = capsys.readouterr().out
    assert "users=people.txt: 1 of 4 ids are not in the store and are skipped" in printed
    assert "1 users have no test question and are left out, such as single" in printed


# --- titles ---


def test_titles_come_from_the_table_of_the_data_or_are_ids(trained: tuple[Here, str]) -> None:
    here, run_id = trained
    one = [f"run={run_id}", "users=[u1]", "sample=2"]
    titles = {e["item"]: e["title"] for e in here.explain(*one)["users"][0]["read"]}
    assert titles.pop("i59", "i59") == "i59"  # the table has none
    assert titles and all(title == f"The {item} <film>" for item, title in titles.items())
    (here.folder / "items.csv").rename(here.folder / "gone.csv")
    try:
        config = compose("train", TrainConfig, NEXT)
        store = HistoryStore.from_lists([[1, 2, 3]])
        found = item_titles(config.data, store)
        assert found.of(np.array([0, 2])) == ["", "i2"] and "no table of items" in found.source
    finally:
        (here.folder / "gone.csv").rename(here.folder / "items.csv")


def test_titles_are_found_by_id_or_in_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = replace(compose("train", TrainConfig, NEXT).data, items=None)
    store, items = HistoryStore.from_lists([[1, 2, 3]]), np.array([1, 2, 3])
    Path("other.csv").write_text("sku,called\ni1,One\ni2,\ni1,Two\n,\n")
    found = item_titles(data, store, table="other.csv", key="sku", column="called")
    assert found.of(items) == ["One", "i2", "i3"]
    assert found.source == "column 'called' of other.csv"
    whole = Vocabulary(pl.Series("item", [10, 20, 30]), 1)
    pl.DataFrame({"item": [20.0, None, 30.0, 10.0], "name": ["b", "x", "c", " "]}).write_parquet(
        "n.parquet"
    )
    numbered = replace(store, item_vocabulary=whole)
    assert item_titles(data, numbered, table="n.parquet").of(items) == ["10", "b", "c"]
    title = attribute_of(pl.Series("title", [None, "A", None, "C"]), "")
    kept = replace(store, attributes={"item.title": title, "user.name": title})
    assert item_titles(data, kept).of(items) == ["A", "i2", "C"]
    assert item_titles(data, store).of(items) == ["i1", "i2", "i3"]
    with pytest.raises(ConfigError, match=r"but 'title'\. Did you mean 'title'"):
        item_titles(data, kept, column="titel")
    numbers = replace(store, attributes={"item.price": attribute_of(pl.Series("p", [0.5]), "")})
    listed = attribute_of(pl.Series("title", [["A"], None, ["C", "D"], None]), "")
    lists = replace(store, attributes={"item.title": listed})
    assert item_titles(data, lists).of(items) == ["i1", "i2", "i3"]  # nobody asked for it
    with pytest.raises(ConfigError, match="title=title: the column holds lists"):
        item_titles(data, lists, column="title")
    with pytest.raises(ConfigError, match="title=price: the column holds numbers"):
        item_titles(data, numbers, column="price")
    with pytest.raises(ConfigError, match="titles_key='sku' says nothing without a table"):
        item_titles(data, store, key="sku")


# --- rankers ---


def test_candidates_of_a_ranker_have_maps_of_their_own(ranker: tuple[Here, str]) -> None:
    here, run_id = ranker
    found = here.kept(run_id)
    assert found["maps"] == ["head 1", "head 2", "mean"] and len(found["users"]) == 8
    several = [user for user in found["users"] if len(user["items"]) > 1]
    assert several and "maps" not in several[0]
    for user in found["users"]:
        assert len(user["items"]) <= 3
        for item in user["items"]:
            assert item["role"] in ("taken", "not taken") and "place" not in item
            maps = np.array(item["maps"])
            assert maps.shape == (3, len(user["read"])) == (3, len(item["drops"]))
            assert maps[2] == pytest.approx(maps[:2].mean(0), rel=1e-5)
    first, second, *_ = several[0]["items"]
    assert first["maps"] != second["maps"] and first["score"] >= second["score"]
    assert "Scores are logits" in found["page"] and "probability" in found["page"]


def test_lists_of_a_ranker_and_somebody_who_took_nothing(ranker: tuple[Here, str]) -> None:
    here, run_id = ranker
    found = here.explain(f"run={run_id}", "users=[u3,u5]", "history=all", "k=3")
    nobody, other = found["users"]
    assert nobody["user"] == "u3" and nobody["events"] == 0 and nobody["items"] == []
    assert "there is nothing to explain" in found["page"]
    settings = [f"run={run_id}", "k=3", "output=top.parquet"]
    recommend(compose("recommend", RecommendConfig, settings))
    theirs = pl.read_parquet("top.parquet").filter(user="u5").sort("rank")
    assert [item["raw"] for item in other["items"]] == theirs["item"].to_list()
    logits = np.array([item["score"] for item in other["items"]])
    assert 1 / (1 + np.exp(-logits)) == pytest.approx(theirs["score"].to_numpy(), rel=1e-4)


def test_the_candidates_of_a_users_first_question() -> None:
    def asked(**columns: list[int]) -> ClickQuestions:
        arrays = {name: np.array(values) for name, values in columns.items()}
        nothing = np.zeros(len(arrays["users"]), dtype=np.int64)
        return ClickQuestions(candidates=nothing, labels=nothing, rows=nothing, **arrays)

    questions = asked(
        users=[2, 0, 2, 0, 2, 0],
        history_ends=[3, 5, 3, 4, 9, 4],
        requests=[1, 7, 1, 8, 1, 9],
    )
    assert [group.tolist() for group in first_candidates(questions)] == [[3], [0, 2]]


# --- samples ---


def test_samples_are_seeded_and_hold_all_lengths() -> None:
    ends = np.array([0, 9, 1, 5, 0, 7, 3, 100])
    rows = by_length(ends, 3, seed=0)
    assert rows.tolist() == by_length(ends, 3, seed=0).tolist()
    assert [set(part) for part in ([2, 6], [3, 5], [1, 7])] == [
        {2, 6},
        {3, 5},
        {1, 7},
    ] and all(row in part for row, part in zip(rows, ([2, 6], [3, 5], [1, 7]), strict=True))
    assert sorted(by_length(ends, 99, seed=1)) == [1, 2, 3, 5, 6, 7]
    assert {tuple(by_length(ends, 3, seed)) for seed in range(9)} != {tuple(rows)}
    assert ends[drawn(ends, 4, seed=0)].tolist() == sorted(ends[drawn(ends, 4, seed=0)])
    assert len(drawn(ends, 4, seed=0)) == 4
    for sample in (by_length, drawn):
        with pytest.raises(NoAttentionError, match="all of the 3 histories are empty"):
            sample(np.zeros(3, dtype=np.int64), 2, 0)


def test_long_histories_are_explained_for_fewer_people() -> None:
    model = SASRec(5, 2000, width=4)
    assert affordable(model, np.array([200, 10]), 8) == 8
    assert affordable(model, np.array([500, 10]), 8) == 4
    assert affordable(SASRec(5, 200, width=4), np.array([10_000]), 8) == 8
    assert affordable(model, np.zeros(2, dtype=np.int64), 8) == 8
    with pytest.raises(NoAttentionError, match=r"without each of 2,000 events takes long; python"):
        affordable(model, np.array([10_000]), 8)


# --- what is refused ---


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["users=[u7,u99]"], "users: the run's store does not know 'u99'. Did you mean 'u9'?"),
        (["users=[a,b,c,d,sinle]"], "know 'a'.; 'b'.; 'c'. (and 2 more)"),
        (["users=[sinle]"], "does not know 'sinle'. Did you mean 'single'?"),
        (["users=[single]"], "history=test: 'single' has no test question; take history=all"),
        (["users=[]"], "users=[] names nobody"),
        (["users=nobody.txt"], "users=nobody.txt: there is no such file"),
        (["users=[u1]", "count=3"], "count=3 is of a sample, users= names them: give one"),
        (["k=0"], "k must be at least 1, not 0"),
        (["count=0"], "sample and count must be at least 1"),
        (["sample=0"], "sample and count must be at least 1"),
        (["output=home"], "output=home is a folder"),
        (["output=page.pdf"], "output=page.pdf: the page is HTML; name it page.html"),
        (["titles_key=sku"], "titles_key=sku says nothing without a table in titles="),
        (["titles=none.csv"], "none.csv"),
        (
            ["title=titel"],
            "items.csv has no such column, but 'item', 'title'. Did you mean 'title'",
        ),
        (["titles=other.csv"], "titles=other.csv: it has no column 'title' or 'name': add title="),
        (["titles=items.csv", "titles_key=itm"], "'itm'"),
        (["titles=items.csv", "titles_key=title"], "If another column holds the ids: titles_key="),
    ],
)
def test_what_is_wrong_is_named(trained: tuple[Here, str], settings: list[str], words: str) -> None:
    here, run_id = trained
    assert words in here.refused(f"run={run_id}", *settings)


def test_there_must_be_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = Here(tmp_path)
    here.enter(monkeypatch)
    assert "there are no runs yet" in here.refused("run=latest")
    with pytest.raises(ConfigError, match="run is required"):
        compose("explain", ExplainConfig, [])
