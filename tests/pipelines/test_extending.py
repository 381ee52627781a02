"""docs/extending.md, block by block, against an installed wheel and not the checkout."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from safetensors import safe_open

from pipelines import recommend, train
from pipelines.checking import ConfigError
from pipelines.entry import compose
from pipelines.ingest import make_store
from pipelines.schemas import IngestConfig, RecommendConfig, TrainConfig
from recsys.testing import ClickLaws, NextItemLaws
from recsys.tracking.reading import load_run
from tests.pipelines.conftest import CHECKOUT, Place
from tests.pipelines.test_train import model_folder

PAGE = (CHECKOUT / "docs" / "extending.md").read_text(encoding="utf-8")
QUICK = ["trainer.max_epochs=2", "trainer.tokens_per_batch=600", "trainer.learning_rate=0.01"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def files() -> dict[str, str]:
    """The Python of the page, by the path in each block's first line."""
    return {text.partition("\n")[0].removeprefix("# "): text for text in blocks("python")}


def commands(of: str = "next items") -> list[list[str]]:
    """The commands of a block of the page, without `python -m`."""
    text = dict(zip(("next items", "studies", "clicks"), blocks("console"), strict=True))[of]
    lines = text.replace("\\\n", " ").strip().splitlines()
    return [shlex.split(line.removeprefix("python -m pipelines.")) for line in lines]


def chains(users: int = 80, items: int = 40, length: int = 12) -> pl.DataFrame:
    """A log in which the next item is the next number; nobody has an item twice."""
    first = np.random.Generator(np.random.PCG64(0)).integers(items, size=users)
    return pl.DataFrame(
        {
            "user": [f"u{u}" for u in range(users) for _ in range(length)],
            "item": [f"i{(f + i) % items}" for f in first for i in range(length)],
            "time": [86_400 * (i + 1) + u for u in range(users) for i in range(length)],
        }
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the wheel is installed, and nothing else."""
    for tool in ("hatchling", "pip"):
        pytest.importorskip(tool, reason=f"{tool} builds and installs the wheel")
    folder = tmp_path_factory.mktemp("wheel")
    for arguments in (
        ["hatchling", "build", "-t", "wheel", "-d", str(folder)],
        ["pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(folder / "site")],
    ):
        if arguments[0] == "pip":
            arguments += map(str, folder.glob("*.whl"))
        done = subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=CHECKOUT,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
    return folder / "site"


@pytest.fixture(scope="module")
def shop(site: Path, empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A user's folder: the page's files, and three logs."""
    place = Place(tmp_path_factory.mktemp("shop"), python_path=str(site)).stocked(empty_store)
    for name, text in files().items():
        file = place.folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    log = chains()
    log.write_parquet(place.folder / "log.parquet")
    clicked = pl.col("item").str.slice(1).cast(pl.Int64) % 3 == 0
    log.with_columns(clicked=clicked.cast(pl.Int8)).write_parquet(place.folder / "clicks.parquet")
    # Beside the French purchases, Spanish ones and what was only looked at.
    other = [("purchase", "fr"), ("purchase", "es"), ("view", "fr")]
    parts = [log.with_columns(kind=pl.lit(kind), country=pl.lit(land)) for kind, land in other]
    pl.concat(parts).write_parquet(place.folder / "shop.parquet")
    return place


def test_the_wheel_is_what_runs(shop: Place, site: Path) -> None:
    code = (
        "import conf, pipelines, recsys; print(recsys.__file__, pipelines.__file__, conf.__file__)"
    )
    done = shop.python("-c", code)
    assert done.returncode == 0, done.stderr
    assert all(Path(found).is_relative_to(site) for found in done.stdout.split())
    assert (site / "conf" / "model" / "own.yaml").is_file()


# --- as a library ---

# None of them is needed: an import fails as if they were not installed.
SCRIPTS = """
import runpy, sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"hydra", "omegaconf", "mlflow", "pipelines"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hidden())
for script in sys.argv[1:]:
    names = runpy.run_path(script, run_name="__main__")
    if "top" in names:
        names["top"].write_parquet("top10.parquet")
"""


@pytest.fixture(scope="module")
def scripts(shop: Place) -> list[str]:
    """What the page's two scripts print, line by line; one process saves a start."""
    done = shop.python("-c", SCRIPTS, "ten_lines.py", "judge.py")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_ten_lines_from_a_log_to_lists(shop: Place, scripts: list[str]) -> None:
    comment, *lines = filter(None, files()["ten_lines.py"].splitlines())
    assert comment.startswith("#") and len(lines) == 10
    assert scripts[0].startswith("epoch 1/20 ")
    top = pl.read_parquet(shop.folder / "top10.parquet")
    assert top.columns == ["user", "rank", "item", "score", "model"]
    assert top["user"].n_unique() == 80 and len(top) == 800
    log = pl.read_parquet(shop.folder / "log.parquet")
    seen = log.select("user", "item")
    assert len(top.join(seen, on=["user", "item"], how="semi")) == 0
    # It was learnt: the next item of the chain stands first for nearly everybody.
    number = pl.col("item").str.slice(1).cast(pl.Int64)
    last = log.group_by("user").agg(((number.sort_by("time").last() + 1) % 40).alias("next"))
    first = top.filter(rank=1).join(last, on="user").filter(number == pl.col("next"))
    assert len(first) >= 70


def test_a_model_that_is_judged_saved_and_loaded(shop: Place, scripts: list[str]) -> None:
    assert 0 < float(scripts[-1]) <= 1
    described = json.loads((shop.folder / "model" / "model.json").read_text())
    assert described["class"] == "recsys.models.next_item.sasrec.SASRec"


# --- a package of one's own, in the commands ---


@pytest.fixture(scope="module")
def trained(shop: Place) -> dict[str, Any]:
    """What the page's training command left."""
    train = commands()[0]
    assert train[0] == "train"
    done = shop.command(*train, *QUICK, "result=trained.json")
    assert done.returncode == 0, done.stderr
    return {"printed": done.stdout, **json.loads((shop.folder / "trained.json").read_text())}


def test_everything_of_one_s_own_trains(shop: Place, trained: dict[str, Any]) -> None:
    names = [row["model"] for row in trained["rows"]]
    assert names == ["GRU", "Popularity", "Markov", "ItemKNN", "EASE", "iALS"]
    metric = "test/loo-full-unseen/patience_10"
    row = trained["rows"][0]
    low, high = row["intervals"][metric]
    assert low <= row["metrics"][metric] <= high
    assert re.search(
        r"^model .*MRR@10 +patience_10 +coverage@10$", trained["printed"], re.MULTILINE
    )
    assert "patience@" not in trained["printed"] and "960 events" in trained["printed"]
    # Baselines are tuned by it too, and are not kept: its code may change.
    assert "validation patience_10" in trained["printed"]
    assert not (shop.home / "data" / "cache" / "baselines").exists()
    (folder,) = shop.home.glob(f"mlruns/**/{trained['run_id']}/artifacts")
    for file in (folder / "per_question" / "test").glob("*.parquet"):
        frame = pl.read_parquet(file)
        expected = np.where(frame["rank"].fill_null(99) <= 10, 0.8 ** (frame["rank"] - 1.0), 0.0)
        assert np.allclose(frame["patience_10"], expected)
    page = (folder / "report.html").read_text(encoding="utf-8")
    accuracy = page[page.index("Accuracy") : page.index("Beyond accuracy")]
    assert "patience_10" in accuracy and "patience_5" in accuracy
    assert "patience" not in page[page.index("Beyond accuracy") :]
    model = model_folder(shop, trained["run_id"])
    described = json.loads((model / "model.json").read_text())
    assert described["class"] == "shop.models.GRU" and described["arguments"]["width"] == 32
    assert described["arguments"].keys() == {"catalogue_size", "width"}


ASK_ELSEWHERE = """
import importlib.util, sys
assert importlib.util.find_spec("shop") is None
import mlflow.pyfunc, pandas
model = mlflow.pyfunc.load_model(sys.argv[1])
table = pandas.DataFrame({"history": [["i1", "i2", "never sold"], []]})
print(model.predict(table, params={"k": 3})[["model", "unknown"]].values.tolist())
import shop.models
print(shop.models.__file__)
"""


def test_the_mlflow_model_brings_the_package_along(
    shop: Place, trained: dict[str, Any], tmp_path: Path
) -> None:
    folder = model_folder(shop, trained["run_id"])
    elsewhere = Place(tmp_path, python_path="")
    done = elsewhere.python(
        "-c", ASK_ELSEWHERE, str(folder), MLFLOW_ALLOW_PICKLE_DESERIALIZATION="false"
    )
    assert done.returncode == 0, done.stderr
    answer, origin = done.stdout.splitlines()
    assert answer == "[['GRU', 1], ['Popularity', 0]]"
    assert Path(origin).is_relative_to(folder / "code")


# The page's other commands, in one process, which saves their starts.
COMMANDS = """
import json, runpy, sys
for arguments in json.loads(sys.argv[1]):
    sys.argv = arguments
    try:
        runpy.run_module(f"pipelines.{arguments[0]}", run_name="__main__")
    except SystemExit as ended:
        print(f"{arguments[0]}: {ended.code}")
"""


@pytest.fixture(scope="module")
def commanded(shop: Place, trained: dict[str, Any]) -> str:
    """What they print."""
    evaluate, recommend, compare = commands()[1:]
    asked = [[*evaluate, "result=again.json"], recommend, compare]
    # The runs that "latest" means, which other tests may have gone on with.
    named = [[a.replace("latest", trained["run_id"]) for a in arguments] for arguments in asked]
    train, compare = commands("clicks")
    (tune,) = commands("studies")
    quick = ["trainer.max_epochs=3", "trainer.rows_per_batch=100", "trainer.learning_rate=0.02"]
    tested = ["test=true", "evaluation.baselines=false", "evaluation.resamples=0"]
    named += [
        [*train, *quick, "trainer.average_weights=0"],
        [*compare, "result=compared.json"],
        # Tested, unlike on the page: of the winner a model is kept.
        [*tune, *QUICK, "trainer.max_epochs=1", *tested, "result=study.json"],
    ]
    done = shop.python("-c", COMMANDS, json.dumps(named))
    assert done.returncode == 0, done.stderr
    ended = re.findall(r"^(\w+): (\w+)$", done.stdout, re.MULTILINE)
    assert ended == [(arguments[0], "0") for arguments in named], done.stderr
    return done.stdout


def test_evaluated_again_it_gives_the_same_digits(
    shop: Place, trained: dict[str, Any], commanded: str
) -> None:
    assert commands()[1] == ["evaluate", "run=latest", "trusted_modules=[shop]"]
    assert json.loads((shop.folder / "again.json").read_text())["rows"] == trained["rows"]


def test_its_lists_are_written(shop: Place, commanded: str) -> None:
    top = pl.read_parquet(shop.folder / "top.parquet")
    assert len(top) == 800 and set(top["model"]) == {"GRU"}


def test_it_is_compared_by_one_s_own_metric(commanded: str) -> None:
    assert commands()[3] == ["compare", "runs=[latest]", "metric=patience_10"]
    compared = commanded[commanded.index("recommend: 0") :]
    assert re.search(r"^model +patience_10 +GRU ahead by", compared, re.MULTILINE)
    assert re.search(r"^EASE ", compared, re.MULTILINE)


def test_a_ranker_trains_and_is_compared_by_one_s_own_metric(shop: Place, commanded: str) -> None:
    clicked = commanded.partition("\ncompare: 0\n")[2]
    heading = next(line for line in clicked.splitlines() if line.startswith("model "))
    assert heading.split() == ["model", "AUC", "GAUC", "logloss", "NE", "ECE", "profit"]
    assert "val/clicks/profit" in clicked
    found = json.loads((shop.folder / "compared.json").read_text())
    rows = found["rows"]
    names = ["Interest", "Item + user mean", "Logistic regression", "Mean pooling"]
    assert [row["model"] for row in rows] == names
    # One item in three is always clicked: who learns it buys all of those and nothing else.
    assert rows[0]["metrics"]["profit"] > 1
    assert re.search(r"^model +profit +Interest ahead by", clicked, re.MULTILINE)


def test_arguments_of_one_s_own_model_are_searched(shop: Place, commanded: str) -> None:
    found = json.loads((shop.folder / "study.json").read_text())
    assert [trial["state"] for trial in found["trials"]] == 3 * ["complete"]
    best = max(found["trials"], key=lambda trial: trial["value"])
    width = best["model.arguments.width"]
    assert width in (16, 32) and found["best"]["model.arguments.width"] == width
    # What was drawn, and not the 64 of the signature, is what was trained.
    run = load_run(f"sqlite:///{shop.home / 'mlflow.db'}", found["run_id"])
    folder = model_folder(shop, run.tags["winner"])
    assert json.loads((folder / "model.json").read_text())["arguments"]["width"] == width
    with safe_open(folder / "weights.safetensors", "np") as weights:
        assert weights.get_tensor("items.weight").shape == (41, width)


def test_code_that_a_run_names_is_not_run_without_consent(
    shop: Place, trained: dict[str, Any]
) -> None:
    """Not even imported: the package leaves a mark when it is."""
    mark = shop.folder / "shop" / "__init__.py"
    mark.write_text("import pathlib; pathlib.Path('imported').touch()\n")
    try:
        said = shop.refused("evaluate", f"run={trained['run_id']}")
        assert not (shop.folder / "imported").exists()
    finally:
        mark.unlink()
    assert f"run {trained['run_id']} (" in said
    for path, setting in (
        ("shop.models.GRU", "model.class_path"),
        ("shop.logs.purchases", "data.class_path"),
        ("shop.metrics.patience", "evaluation.metrics"),
    ):
        assert f"{path} ({setting})" in said
    assert "objective" not in said  # which evaluation does without
    assert said.endswith("add trusted_modules=[shop] if you trust it\n")


@pytest.fixture
def here(shop: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """The user's folder, for commands in this process, which saves their starts."""
    monkeypatch.chdir(shop.folder)
    monkeypatch.setenv("RECSYS_HOME", str(shop.home))
    monkeypatch.syspath_prepend(shop.folder)
    yield shop
    for name in [name for name in sys.modules if name.partition(".")[0] == "shop"]:
        del sys.modules[name]


def test_nor_by_recommend_and_by_train(here: Place, trained: dict[str, Any]) -> None:
    before = here.files
    asked = [f"run={trained['run_id']}", "output=other.parquet"]
    more: list[str]
    for more, said in (
        ([], r"add trusted_modules=\[shop\] if"),
        (["trusted_modules=[shap]"], r"add trusted_modules=\[shap,shop\] if"),
        (["trusted_modules=[shop.models]"], r"name a package, such as trusted_modules=\[shop\]"),
    ):
        with pytest.raises(ConfigError, match=said):
            recommend.run(compose("recommend", RecommendConfig, [*asked, *more]))
    resume = f"resume={trained['run_id']}"
    with pytest.raises(ConfigError, match=r"objective.class_path.*add trusted_modules=\[shop\] if"):
        train.run(compose("train", TrainConfig, [resume]))
    with pytest.raises(ConfigError, match="it goes with resume=RUN_ID"):
        train.run(compose("train", TrainConfig, ["trusted_modules=[shop]"]))
    assert here.files == before and not any(name.startswith("shop") for name in sys.modules)


@pytest.mark.parametrize("named", ["by consent", "on the command line"])
def test_a_run_of_one_s_own_is_resumed(
    here: Place, trained: dict[str, Any], monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    consent = ["trusted_modules=[shop]"] if named == "by consent" else commands()[0][1:] + QUICK
    settings = [f"resume={trained['run_id']}", "result=resumed.json", *consent]
    monkeypatch.setattr(sys, "argv", ["train", *settings])
    train.run(compose("train", TrainConfig, settings))
    rows = json.loads((here.folder / "resumed.json").read_text())["rows"]
    ranks = [{n: v for n, v in row["metrics"].items() if "vector" not in n} for row in rows]
    for ours, theirs in zip(ranks, trained["rows"], strict=True):
        assert ours == {n: v for n, v in theirs["metrics"].items() if "vector" not in n}


def test_rows_that_change_make_another_store(here: Place, trained: dict[str, Any]) -> None:
    """The function and its arguments are the same; what it gives is not."""
    settings = [part for part in commands()[0] if part.startswith("data")]
    data = compose("ingest", IngestConfig, settings).data
    file = here.folder / "shop.parquet"
    log = pl.read_parquet(file)
    try:
        before = make_store(data)
        log.with_columns(other=pl.lit(1)).write_parquet(file)  # which the function does not give
        assert make_store(data) == before
        time = pl.col("time") + pl.int_range(pl.len()).eq(3).cast(pl.Int64)
        log.with_columns(time).write_parquet(file)
        assert make_store(data) != before
    finally:
        log.write_parquet(file)


# --- the test kit ---


SABOTAGE = '''
import torch
from recsys.testing import NextItemLaws
from shop.models import GRU

class Peeking(GRU):
    """Reads its histories backwards too."""
    def states(self, batch):
        back_BLD = super().states(batch).flip(1).cumsum(1).flip(1)
        return back_BLD

class Unread(GRU):
    """Has a layer that nothing goes through."""
    def __init__(self, *arguments, **more):
        super().__init__(*arguments, **more)
        self.unread = torch.nn.Linear(3, 3)

class TestPeeking(NextItemLaws):
    prefix_invariant = True
    def build(self, catalogue_size, max_length):
        return Peeking(catalogue_size, max_length, width=16)

class TestUnread(TestPeeking):
    def build(self, catalogue_size, max_length):
        return Unread(catalogue_size, max_length, width=16)
'''


def test_the_kit_tells_models_apart(shop: Place) -> None:
    """It passes the page's models, and fails one that looks at the future where it does."""
    file = shop.folder / "test_sabotaged.py"
    file.write_text(SABOTAGE)
    done = shop.python(
        *["-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=no"],
        *["test_models.py", "test_rankers.py", file.name],
    )
    file.unlink()
    laws = 3 * [name for name in vars(NextItemLaws) if name.startswith("test_")]
    laws += [name for name in vars(ClickLaws) if name.startswith("test_")]
    failed = re.findall(r"^FAILED (\S+)", done.stdout, re.MULTILINE)
    assert f"{len(failed)} failed, {len(laws) - len(failed)} passed" in done.stdout
    names = [name.partition("::")[2] for name in failed]
    causality = "test_causality_replacing_later_events_leaves_earlier_outputs"
    assert f"TestPeeking::{causality}" in names
    gradients = "TestUnread::test_gradients_reach_every_parameter_and_not_the_padding"
    assert [name for name in names if not name.startswith("TestPeeking")] == [gradients]
