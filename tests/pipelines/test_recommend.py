"""Lists from a tracked run, through the command."""

import json
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from pipelines.entry import as_yaml, compose, main
from pipelines.ingest import make_store
from pipelines.people import histories_config
from pipelines.recommend import run
from pipelines.schemas import DataConfig, RecommendConfig, TrainConfig
from recsys.histories.store import open_store
from recsys.models.next_item.sasrec import SASRec
from recsys.serving.parts import parts_folder
from recsys.tracking.run import TrackedRun
from recsys.tracking.store import local_store
from recsys.training.saved_model import save_model
from tests.pipelines.conftest import Place

SETTINGS = [
    "data=log",
    "data.path=log.csv",
    "data.name=shop",
    "data.columns.user=uid",
    "data.columns.item=sku",
    "data.columns.time=null",
    "data.columns.order=at",
    "split.validation_users=all",
]
USERS, ITEMS = 40, 25


def write_histories(file: Path, histories: dict[str, list[str]]) -> None:
    rows = [(user, item, at) for user, row in histories.items() for at, item in enumerate(row)]
    pl.DataFrame(rows, schema=["uid", "sku", "at"], orient="row").write_csv(file)


@pytest.fixture(scope="module")
def place(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A place with a log and one finished training run on it (its weights are those drawn)."""
    place = Place(tmp_path_factory.mktemp("recommend")).stocked(empty_store)
    rng = np.random.Generator(np.random.PCG64(0))
    histories = {
        f"u{user}": [f"i{item}" for item in rng.permutation(ITEMS)[: 3 + user % 9]]
        for user in range(USERS)
    }
    write_histories(place.folder / "log.csv", histories)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place.folder)
        patch.setenv("RECSYS_HOME", str(place.home))
        config = compose("train", TrainConfig, SETTINGS)
        store = open_store(make_store(config.data))
        torch.manual_seed(0)
        arguments = {"catalogue_size": store.catalogue_size, "max_length": 6, "width": 8}
        model = SASRec(**arguments, initial_scale=1.0)
        uri, artifact_root = local_store(place.home)
        with TrackedRun.start(
            uri=uri,
            artifact_root=artifact_root,
            experiment="recsys",
            run_name="SASRec shop",
            params=asdict(config),
            config_yaml=as_yaml(config),
            tags={},
        ) as tracked:
            facts = {"name": "SASRec", "item_vocabulary": store.item_vocabulary.fingerprint}
            save_model(place.folder / "model", model, {**arguments, "initial_scale": 1.0}, facts)
            tracked.artifact_file(place.folder / "model")
        with TrackedRun.start(
            uri=uri,
            artifact_root=artifact_root,
            experiment="recsys",
            run_name="evaluate SASRec shop",
            params={},
            config_yaml="",
            tags={},
            pipeline="evaluate",
        ) as tracked:
            (place.folder / "evaluation.txt").write_text(tracked.run_id)
    return place


Command = Callable[..., str]


@pytest.fixture
def recommend(place: Place, monkeypatch, capfd) -> Command:
    """The command as its own process runs it, but in this one: import once, not forty times."""

    def _recommend(*arguments: str, code: int = 0) -> str:
        monkeypatch.chdir(place.folder)
        monkeypatch.setenv("RECSYS_HOME", str(place.home))
        given = {argument.partition("=")[0] for argument in arguments}
        defaults = {"run": "run=latest", "output": "output=top.parquet"}
        added = [setting for name, setting in defaults.items() if name not in given]
        monkeypatch.setattr(sys, "argv", ["recommend", *added, *arguments])
        with pytest.raises(SystemExit) as left:
            main("recommend", RecommendConfig, run, __doc__ or "")
        printed = capfd.readouterr()
        assert left.value.code == code, printed.err
        return printed.err if code else printed.out

    return _recommend


def lists(place: Place, name: str = "top.parquet") -> dict[str, list[str]]:
    frame = pl.read_parquet(place.folder / name)
    assert frame.columns == ["user", "rank", "item", "score", "model", "protocol"]
    result: dict[str, list[str]] = {}
    for user, rank, item in frame.select("user", "rank", "item").rows():
        result.setdefault(user, []).append(item)
        assert rank == len(result[user])  # ranks from 1, users together
    assert frame.filter(pl.col("score").diff().over("user") > 0).is_empty()
    return result


def log_of(place: Place) -> dict[str, list[str]]:
    frame = pl.read_csv(place.folder / "log.csv").sort("at")
    return {u[0]: rows["sku"].to_list() for u, rows in frame.group_by("uid", maintain_order=True)}


def test_everybody_and_what_is_said(place: Place, recommend: Command) -> None:
    said = recommend("k=5", "result=out/result.json")
    answered, log = lists(place), log_of(place)
    assert list(answered) == sorted(log) and {len(row) for row in answered.values()} == {5}
    assert not any(set(answered[user]) & set(log[user]) for user in log)
    frame = pl.read_parquet(place.folder / "top.parquet")
    assert frame["model"].unique().to_list() == ["SASRec"]
    assert frame["protocol"].unique().to_list() == ["all-full-unseen"]
    assert frame.schema["score"] == pl.Float32 and frame.schema["user"] == pl.String
    result = json.loads((place.folder / "out/result.json").read_text())
    counts, _, way = said.splitlines()[-3:]
    assert counts.startswith("200 rows for 40 people in ")
    assert way.endswith(f"-m pipelines.ui run={result['run_id']}")
    assert result["rows"][0]["metrics"] == {"people": 40, "lists_rows": 200, "parts_found": 0}
    assert not parts_folder(place.folder / "top.parquet").exists()


def test_the_lists_before_the_test_question_are_those_of_the_evaluation(
    place: Place, recommend: Command
) -> None:
    from recsys.evaluation.ranking import rank
    from recsys.histories.questions import leave_one_out
    from recsys.training.saved_model import load_model

    recommend("k=7", "history=test")
    frame = pl.read_parquet(place.folder / "top.parquet")
    assert frame["protocol"].unique().to_list() == ["loo-full-unseen"]
    store = open_store(next((place.home / "data/cache/stores").glob("shop-*")))
    model, _ = load_model(place.folder / "model")
    questions = leave_one_out(store).test
    judged = rank(model, store, questions, filter_seen=True, k=7)  # type: ignore[arg-type]
    expected = {
        user: store.item_vocabulary.raw(row).to_list()
        for user, row in zip(
            store.user_vocabulary.raw(questions.users), judged.lists_NK, strict=True
        )
    }
    assert lists(place) == expected


def test_some_users_in_their_order(place: Place, recommend: Command) -> None:
    recommend("k=3")
    everybody = lists(place)
    pl.DataFrame({"uid": ["u7", "nobody", "u12", "u7"]}).write_csv(place.folder / "some.csv")
    said = recommend("k=3", "users=some.csv")
    answered = lists(place)
    assert list(answered) == ["u7", "u12"]
    assert all(everybody[user] == row for user, row in answered.items())
    assert "users=some.csv: 1 of 3 ids are not in the store and are skipped" in said
    assert "the first is 'nobody'." in said


def test_people_never_seen_in_training(place: Place, recommend: Command) -> None:
    recommend("k=4")
    everybody, log = lists(place), log_of(place)
    new = {
        "stranger": log["u5"],
        "mixed": ["new1", *log["u6"], "new2"],
        "lost": ["new1"],
        "u3": ["i1"],
    }
    write_histories(place.folder / "new.csv", new)
    said = recommend("k=4", "histories=new.csv", "output=new.parquet")
    answered = lists(place, "new.parquet")
    assert set(answered) == set(new)
    assert answered["stranger"] == everybody["u5"] and answered["mixed"] == everybody["u6"]
    assert answered["u3"] != everybody["u3"]  # their own history, not that of a namesake
    frame = pl.read_parquet(place.folder / "new.parquet")
    assert frame.filter(user="lost")["model"].to_list() == ["Popularity"] * 4
    assert frame.filter(pl.col("user") != "lost")["model"].unique().to_list() == ["SASRec"]
    counts = pl.read_csv(place.folder / "log.csv")["sku"].value_counts()
    best = counts.sort("count", descending=True)["count"].head(4).cast(pl.Float32)
    assert frame.filter(user="lost")["score"].to_list() == best.to_list()
    events = sum(map(len, new.values()))
    assert f"3 of {events} events are skipped: they are on 2 items" in said
    assert "1 people have no history: they get the most popular items" in said


def test_other_peoples_events_are_read_as_the_models_own() -> None:
    def read(*settings: str) -> DataConfig:
        data = compose("train", TrainConfig, ["data=log", "data.path=x.csv", *settings]).data
        return histories_config(data, "new.csv", labels=False, features={})

    rated = ["data.columns.rating=stars", "data.columns.label=liked"]
    plain = read(*rated, "data.user_core=5", "data.item_core=5", "data.time_until=2020-01-01")
    assert (plain.path, plain.user_core, plain.item_core, plain.time_until) == (
        "new.csv",
        1,
        1,
        None,
    )
    assert (plain.columns.user, plain.columns.rating, plain.columns.label) == ("user", None, None)
    rating = read(*rated, "data.minimum_rating=4")
    assert (rating.columns.rating, rating.minimum_rating, rating.columns.label) == (
        "stars",
        4,
        None,
    )
    positive = read(*rated, "data.positive_only=true", "data.deduplicate=first")
    assert (positive.columns.rating, positive.columns.label) == (None, "liked")
    assert positive.positive_only and positive.deduplicate == "first"
    derived = read(*rated[:1], "data.positive_only=true", "data.label_from_rating=4")
    assert (derived.columns.rating, derived.label_from_rating) == ("stars", 4)


def test_candidates_and_exclusions(place: Place, recommend: Command) -> None:
    pl.DataFrame({"sku": [f"i{i}" for i in range(12)] + ["i99"], "price": range(13)}).write_parquet(
        place.folder / "items.parquet"
    )
    (place.folder / "sold_out.txt").write_text("i3\ni4\n")
    recommend("k=25", "filter_seen=false")
    everything = lists(place)
    assert {len(row) for row in everything.values()} == {ITEMS}
    said = recommend(
        "k=25",
        "filter_seen=false",
        "candidates=items.parquet",
        "candidates_where=price >= 2",
        "exclude=sold_out.txt",
    )
    allowed = {"i2", *(f"i{i}" for i in range(5, 12))}
    expected = {u: [i for i in row if i in allowed] for u, row in everything.items()}
    assert lists(place) == expected
    frame = pl.read_parquet(place.folder / "top.parquet")
    assert frame["protocol"].unique().to_list() == ["all-listed-all"]
    assert "candidates=items.parquet: 1 of 11 ids are not in the store" in said
    assert "there are 8 candidates: the lists hold so many, and not k=25" in said


def test_interrupted_and_resumed_equals_uninterrupted(
    place: Place, recommend: Command, monkeypatch
) -> None:
    from recsys.serving.recommender import Recommender

    monkeypatch.setattr("recsys.serving.parts.PEOPLE", 7)
    recommend("k=6", "output=whole.parquet")
    original, calls = Recommender.top_k, []

    def stopped(self, *arguments, **options):
        calls.append(len(arguments[1]))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, *arguments, **options)

    monkeypatch.setattr(Recommender, "top_k", stopped)
    assert recommend("k=6", "output=again.parquet", code=130) == "Interrupted.\n"
    assert not (place.folder / "again.parquet").exists()
    message = recommend("k=5", "filter_seen=false", "output=again.parquet", code=2)
    assert "with other settings: k (6 there, 5 here), filter_seen (True there, False" in message
    said = recommend("k=6", "output=again.parquet")
    assert "going on: 14 people were answered before" in said
    assert calls == [7, 7, 7, 7, 7, 7, 5]
    whole, again = (pl.read_parquet(place.folder / f"{n}.parquet") for n in ("whole", "again"))
    assert whole.equals(again)


KILLED = """
import os, runpy, signal, sys
import recsys.serving.parts as parts
from recsys.serving.recommender import Recommender
parts.PEOPLE = 7
original, calls = Recommender.top_k, []
def top_k(self, *arguments, **options):
    calls.append(0)
    if len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, *arguments, **options)
Recommender.top_k = top_k
sys.argv = ["recommend", "run=latest", "output=killed.parquet"]
runpy.run_module("pipelines.recommend", run_name="__main__")
"""


def test_the_real_command_killed_and_given_again(
    place: Place, recommend: Command, monkeypatch
) -> None:
    done = place.python("-c", KILLED)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (place.folder / "killed.parquet").exists()
    assert parts_folder(place.folder / "killed.parquet").is_dir()
    done = place.python("-c", KILLED.replace("len(calls) == 4", "False"))
    assert done.returncode == 0, done.stderr
    assert "going on: 21 people were answered before" in done.stdout
    recommend()
    assert lists(place, "killed.parquet") == lists(place)


def test_the_real_command_refuses(place: Place) -> None:
    assert place.refused("recommend", "run=latest", "output=real.csv") == (
        "Error: output=real.csv: the lists are written as Parquet; name it real.parquet\n"
    )


@pytest.fixture(scope="module")
def inputs(place: Place) -> Place:
    """Files that are no good."""
    pl.DataFrame({"uid": ["ü1", "x2"]}).write_csv(place.folder / "unknown.csv")
    pl.DataFrame({"user": ["u1"]}).write_csv(place.folder / "other_column.csv")
    pl.DataFrame({"sku": [f"i{i}" for i in range(ITEMS)]}).write_csv(place.folder / "all.csv")
    (place.folder / "unknown.txt").write_text("ii3\n")
    (place.folder / "folder").mkdir()
    write_histories(place.folder / "other.csv", {"a": ["v", "w", "x"], "b": ["x", "v", "w"]})
    return place


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["k=0"], "k must be at least 1, not 0"),
        (["k=ten"], "k must be a whole number, not 'ten'"),
        (["output=folder"], "output=folder is a folder: add the name of a file"),
        (["result=folder"], "result=folder is a folder"),
        (["run=???"], "run is required"),
        (["run=latets"], "latets"),
        (["history=training"], "history must be all or test, not 'training'"),
        (["users=unknown.csv"], "knows none of its 2 ids; the first is 'ü1'. Did you mean 'u1'?"),
        (["users=other_column.csv"], "there is no column 'uid'"),
        (["users=no.csv"], "users=no.csv: there is no such file"),
        (["candidates=unknown.txt"], "the first is 'ii3'. Did you mean 'i3'?"),
        (["candidates_where=a"], "candidates_where is a condition on the table of candidates="),
        (["exclude=all.csv"], "exclude=all.csv leaves no candidates"),
        (["users=a.csv", "histories=b.csv"], "give one"),
        (["seen=taken"], "seen=taken: the log has no labels (data.columns.label)"),
        (["seen=events", "filter_seen=false"], "with filter_seen=false none are"),
        (["seen=shown"], "seen must be events, taken or null, not 'shown'"),
        (["at=2024-05-01"], "at=2024-05-01 is the moment that features of recency count from"),
        (["at=soon"], "at='soon' cannot be read as a moment"),
        (["at=2024-05-01", "history=test"], "leave at= out"),
        (["histories=new.csv", "history=test"], "histories= are read whole"),
        (["histories=no.csv"], "no.csv"),
        (["histories=other_column.csv"], "there is no column 'uid' (data.columns.user)"),
        (
            [*SETTINGS[:1], "data.path=other.csv", *SETTINGS[3:7]],
            "trained on other items than these (25 there, 3 here)",
        ),
    ],
)
def test_what_is_wrong_is_said(inputs: Place, recommend: Command, arguments, words) -> None:
    before = inputs.files
    message = recommend(*arguments, code=2)
    assert message.startswith("Error: ") and words in message and "Traceback" not in message
    assert inputs.files == before


def test_a_run_without_a_model(place: Place, recommend: Command) -> None:
    run_id = (place.folder / "evaluation.txt").read_text()
    message = recommend(f"run={run_id}", code=2)
    assert "is a run of evaluate, which holds no model" in message


def test_truncated_weights(place: Place, recommend: Command) -> None:
    (weights,) = place.home.glob("mlruns/**/weights.safetensors")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    try:
        assert "weights.safetensors is missing or truncated" in recommend(code=2)
    finally:
        weights.write_bytes(whole)
