"""Settings: every wrong one is refused by name, every shipped one works."""

import inspect
import shutil
from dataclasses import asdict, fields
from pathlib import Path
from typing import Literal, get_type_hints

import pytest
import yaml

from pipelines.checking import ConfigError, build
from pipelines.entry import CONF, as_overrides, as_yaml, choices, compose, groups
from pipelines.schemas import (
    BacktestConfig,
    BCEConfig,
    BPRConfig,
    ColumnsConfig,
    CompareConfig,
    DataConfig,
    DINConfig,
    EvaluateConfig,
    ExplainConfig,
    ExportConfig,
    FullSoftmaxConfig,
    GBCEConfig,
    IngestConfig,
    LeaveOneOutConfig,
    LogisticRegressionConfig,
    MeanPoolingConfig,
    NextItemTrainerConfig,
    PromoteConfig,
    RecommendConfig,
    ReproduceConfig,
    SampledSoftmaxConfig,
    SASRecConfig,
    ShareConfig,
    SyncConfig,
    TimeConfig,
    TrainConfig,
    TuneConfig,
    UIConfig,
)

COMMANDS = {
    "ingest": IngestConfig,
    "train": TrainConfig,
    "tune": TuneConfig,
    "backtest": BacktestConfig,
    "evaluate": EvaluateConfig,
    "compare": CompareConfig,
    "promote": PromoteConfig,
    "reproduce": ReproduceConfig,
    "recommend": RecommendConfig,
    "export": ExportConfig,
    "explain": ExplainConfig,
    "ui": UIConfig,
    "sync": SyncConfig,
}
LOG = ["data=log", "data.path=x.csv"]
RECIPES = choices("experiment")


def refusal(*overrides: str, command: str = "train", folders: tuple[Path, ...] = ()) -> str:
    with pytest.raises(ConfigError) as caught:
        compose(command, COMMANDS[command], overrides, folders)
    return str(caught.value)


def experiment(folder: Path, text: str) -> Path:
    """A user's own folder of configs with the recipe `mine`."""
    (folder / "experiment").mkdir(parents=True)
    (folder / "experiment" / "mine.yaml").write_text("# @package _global_\n" + text)
    return folder


# --- what we ship ---


def shipped() -> list[tuple[str, str, str]]:
    return [
        (command, group, choice)
        for command in COMMANDS
        for group in groups(command)
        for choice in choices(group)
    ]


@pytest.mark.parametrize(("command", "group", "choice"), shipped())
def test_every_file_we_ship_composes(command: str, group: str, choice: str) -> None:
    overrides = [f"{group}={choice}"]
    overrides += ["data.path=x.csv"] if choice == "log" else []
    of_a_run = ("evaluate", "recommend", "export", "explain", "promote", "reproduce")
    overrides += ["run=latest"] if command in of_a_run else []
    overrides += ["output=model.onnx"] if command == "export" else []
    overrides += ["output=top.parquet"] if command == "recommend" else []
    overrides += ["runs=[latest]"] if command == "compare" else []
    overrides += ["name=films"] if command == "promote" else []
    overrides += ["study=mine"] if command == "tune" else []
    overrides += ["candidate_set.path=x.parquet"] if choice == "given" else []
    if choice in ("own", "own_ranker") and group != "space":
        overrides += [f"{group}.class_path=mypackage.module.Name"]
    config = compose(command, COMMANDS[command], overrides)
    assert build(COMMANDS[command], asdict(config), lambda key: "") == config


def test_every_file_is_reached_by_some_command() -> None:
    reached = {CONF / group / f"{choice}.yaml" for _, group, choice in shipped()}
    reached |= {CONF / f"{command}.yaml" for command in COMMANDS}
    assert set(CONF.rglob("*.yaml")) == reached


def test_the_default_of_every_group_is_a_choice() -> None:
    for command in COMMANDS:
        for group, choice in groups(command).items():
            assert choice is None or choice in choices(group)


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_set_no_data_value(recipe: str) -> None:
    text = (CONF / "experiment" / f"{recipe}.yaml").read_text()
    assert text.startswith("# @package _global_\n")
    keys = [key.partition(".")[0] for key in yaml.safe_load(text)]
    assert "data" not in keys


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_takes_the_users_own_log(recipe: str) -> None:
    plain = compose("train", TrainConfig, [f"experiment={recipe}"])
    for order in ([f"experiment={recipe}", *LOG], [*LOG, f"experiment={recipe}"]):
        config = compose("train", TrainConfig, order)
        assert config.data == compose("train", TrainConfig, LOG).data
        assert (config.model, config.trainer) == (plain.model, plain.trainer)


def test_a_recipe_takes_a_local_copy_of_its_data() -> None:
    config = compose("train", TrainConfig, ["experiment=sasrec_ml1m", "data.path=ml1m.parquet"])
    assert (config.data.source, config.data.path) == ("ml_1m", "ml1m.parquet")


def test_the_command_line_wins_over_a_recipe(tmp_path: Path) -> None:
    text = "defaults:\n  - override /data: ml_1m\nmodel:\n  width: 48\n  heads: 3\nseed: 7\n"
    folder = experiment(tmp_path, text)
    config = compose(
        "train", TrainConfig, ["experiment=mine", "data=ta_feng", "model.width=24"], [folder]
    )
    assert (config.data.name, config.model.width, config.model.heads) == ("ta_feng", 24, 3)
    assert config.seed == 7


def assert_same_signature(schema: type, target: object, injected: set[str]) -> None:
    """The schema's fields are the target's parameters, but `name` and what the caller injects."""
    wanted = get_type_hints(schema)
    wanted.pop("name", None)
    function = target.__init__ if inspect.isclass(target) else target
    found = get_type_hints(function)
    parameters = set(inspect.signature(function).parameters) - {"self"}
    assert injected <= parameters
    assert wanted == {name: found[name] for name in parameters - injected}


def test_schemas_equal_what_they_configure() -> None:
    from recsys.histories.questions import global_time, user_share
    from recsys.logs.cleaning import Cleaning
    from recsys.logs.schema import Columns
    from recsys.models.click.din import DIN
    from recsys.models.click.logistic_regression import LogisticRegression
    from recsys.models.click.mean_pooling import MeanPooling
    from recsys.models.next_item.sasrec import SASRec
    from recsys.objectives.bce import BCE
    from recsys.objectives.bpr import BPR
    from recsys.objectives.gbce import GBCE
    from recsys.objectives.sampled_softmax import SampledSoftmax

    assert_same_signature(SASRecConfig, SASRec, {"catalogue_size"})
    fields_of = {"user_fields", "item_fields", "event_fields", "context_fields"}
    for schema, model in (
        (DINConfig, DIN),
        (MeanPoolingConfig, MeanPooling),
        (LogisticRegressionConfig, LogisticRegression),
    ):
        assert_same_signature(schema, model, {"catalogue_size", *fields_of})
    injected = {"item_counts_V", "touched_rows"}
    assert_same_signature(SampledSoftmaxConfig, SampledSoftmax, injected)
    assert_same_signature(GBCEConfig, GBCE, injected)
    assert_same_signature(BCEConfig, BCE, injected)
    assert_same_signature(BPRConfig, BPR, injected)
    assert_same_signature(ShareConfig, user_share, {"store"})
    assert_same_signature(TimeConfig, global_time, {"store"})
    assert_same_signature(ColumnsConfig, Columns, set())
    cleaning = get_type_hints(Cleaning)
    assert cleaning.items() <= get_type_hints(DataConfig).items()
    own = {"name", "source", "path", "columns", "repeats", "verify", "label_from_rating"}
    own |= {"users", "users_key", "items", "items_key", "features", "impressions"}
    own |= {"class_path", "arguments"}  # whose signature is in the user's code
    assert {field.name for field in fields(DataConfig)} - own == set(cleaning)


@pytest.mark.parametrize("model", ["din", "mean_pooling", "logistic_regression", "own_ranker"])
def test_a_ranker_brings_the_groups_that_go_with_it(model: str) -> None:
    own = ["model.class_path=mypackage.module.Name"] if model == "own_ranker" else []
    config = compose("train", TrainConfig, [f"model={model}", *own, *LOG])
    named = [config.split.name, config.questions.name, config.objective.name, config.trainer.name]
    assert named == ["share", "clicks", "cross_entropy", "clicks"]
    chosen = ["split=time", f"model={model}", *own, "trainer.max_epochs=2"]
    other = compose("train", TrainConfig, chosen)
    assert (other.split.name, other.trainer.max_epochs) == ("time", 2)


# --- unknown keys ---


@pytest.mark.parametrize(
    ("override", "key", "near"),
    [
        ("sead=3", "sead", "seed"),
        ("trainer.max_epocs=3", "trainer.max_epocs", "trainer.max_epochs"),
        ("+trainer.max_epocs=3", "trainer.max_epocs", "trainer.max_epochs"),
        ("++trainer.max_epocs=3", "trainer.max_epocs", "trainer.max_epochs"),
        ("data.columns.usr=uid", "data.columns.usr", "data.columns.user"),
        ("+data.columns={usr: uid}", "data.columns.usr", "data.columns.user"),
        ("max_epochs=3", "max_epochs", "trainer.max_epochs"),
        ("modle=sasrec", "modle", "model"),
        ("+modle=sasrec", "modle", "model"),
        ("modle.width=3", "modle", "model"),
    ],
)
def test_unknown_key_on_the_command_line(override: str, key: str, near: str) -> None:
    message = refusal(override)
    assert f"unknown key '{key}' on the command line ({override})" in message
    assert f"Did you mean '{near}'?" in message


@pytest.mark.parametrize("key", ["hydra.run.dir", "+hydra.x", "foo.bar.baz", "+a.b"])
def test_unknown_key_without_a_neighbour(key: str) -> None:
    assert f"on the command line ({key}=1)" in refusal(f"{key}=1")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("sead: 12345\n", "sead"),
        ("trainer:\n  max_epocs: 3\n", "trainer.max_epocs"),
        ("data:\n  columns:\n    usr: uid\n", "data.columns.usr"),
        ("trainer.max_epochs: 3\n", "trainer.max_epochs"),
        ("hydra:\n  run:\n    dir: x\n", "hydra"),
        ("default:\n  - override /data: ml_1m\n", "default"),
    ],
)
def test_unknown_key_in_a_users_file(tmp_path: Path, text: str, key: str) -> None:
    message = refusal("experiment=mine", folders=(experiment(tmp_path, text),))
    assert f"unknown key '{key}' in {tmp_path / 'experiment' / 'mine.yaml'}" in message


def test_a_recipe_without_its_first_line(tmp_path: Path) -> None:
    folder = experiment(tmp_path, "")
    (folder / "experiment" / "mine.yaml").write_text("seed: 3\n")
    assert "# @package _global_" in refusal("experiment=mine", folders=(folder,))


def test_a_group_the_command_does_not_have() -> None:
    message = refusal("model=sasrec", command="ingest")
    assert "unknown key 'model'" in message and "Its groups: data" in message


# --- unknown choices ---


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model=sasrex", "unknown model 'sasrex'"),
        ("+model=sasrex", "unknown model 'sasrex'"),
        ("data=ml_1mm", "unknown data 'ml_1mm'"),
        ("experiment=sasrec_ml1", "unknown experiment 'sasrec_ml1'"),
    ],
)
def test_unknown_choice(override: str, words: str) -> None:
    message = refusal(override)
    assert words in message and "Did you mean '" in message


def test_unknown_choice_in_a_users_file(tmp_path: Path) -> None:
    folder = experiment(tmp_path, "defaults:\n  - override /model: sasrex\n")
    message = refusal("experiment=mine", folders=(folder,))
    assert "unknown model 'sasrex'" in message and "Did you mean 'sasrec'?" in message


def test_unknown_group_in_a_users_file(tmp_path: Path) -> None:
    folder = experiment(tmp_path, "defaults:\n  - override /modle: sasrec\n")
    assert "modle" in refusal("experiment=mine", folders=(folder,))


def test_unknown_model_name() -> None:
    assert refusal("model.name=sasrek").endswith("Did you mean 'sasrec'?")


@pytest.mark.parametrize("override", ["data=null", "data=", "model=null"])
def test_a_group_that_must_have_a_choice(override: str) -> None:
    assert "chooses nothing" in refusal(override)


def test_no_recipe_can_be_said() -> None:
    assert compose("train", TrainConfig, ["experiment=null"]) == compose("train", TrainConfig)


# --- wrong values ---


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trainer.max_epochs=five", "trainer.max_epochs must be a whole number, not 'five'"),
        ("trainer.max_epochs=2.5", "trainer.max_epochs must be a whole number, not 2.5"),
        ("trainer.max_epochs=true", "trainer.max_epochs must be a whole number, not True"),
        ("trainer.max_epochs=null", "trainer.max_epochs must be a whole number, not None"),
        ("model.dropout=a", "model.dropout must be a number, not 'a'"),
        ("model.dropout=nan", "model.dropout must be a number, not nan"),
        ("data.verify=1", "data.verify must be true or false, not 1"),
        ("evaluation.ks=5", "evaluation.ks must be a list in brackets, each a whole number"),
        ("evaluation.ks=[5,x]", "evaluation.ks must be a list in brackets"),
        ("evaluation.ks=5,10", "A list stands in brackets: [5,10]"),
        ("data.path.x=1", "data.path must be text or null, not a mapping"),
        ("data.columns=uid", "data.columns must be a mapping, not 'uid'"),
        ("data.deduplicate=frist", "off, exact, first or last, not 'frist'"),
        ("trainer.precision=fp32", "auto, 32 or bf16, not 'fp32'"),
        ("split.validation_users=al", "a whole number or all, not 'al'"),
        ("evaluation.ks=[5", "cannot read 'evaluation.ks=[5'"),
    ],
)
def test_wrong_value(override: str, words: str) -> None:
    message = refusal(override)
    assert words in message and override in message


def test_a_reference_to_nothing() -> None:
    assert "'nothing' not found" in refusal("seed=${nothing}")


def test_the_nearest_word_is_named() -> None:
    assert refusal("data.deduplicate=frist").endswith("Did you mean 'first'?")


def test_wrong_value_in_a_file_names_the_file(tmp_path: Path) -> None:
    folder = experiment(tmp_path, "trainer:\n  max_epochs: many\n")
    message = refusal("experiment=mine", folders=(folder,))
    assert f"not 'many' in {tmp_path / 'experiment' / 'mine.yaml'}" in message


@pytest.mark.parametrize("text", ["trainer: {max_epochs: 3", "seed: 1\nseed: 2\n", "a: b: c\n"])
def test_a_file_that_is_no_yaml(tmp_path: Path, text: str) -> None:
    message = refusal("experiment=mine", folders=(experiment(tmp_path, text),))
    assert "not readable as YAML" in message and "mine.yaml" in message


def test_missing_settings() -> None:
    assert refusal("data=log").startswith("data.path is required: add data.path=VALUE")
    assert refusal("run=???", command="evaluate").startswith("run is required")
    assert "data.user_core is missing" in refusal("~data.user_core")


@pytest.mark.parametrize("argument", ["seed", "=3", "~"])
def test_what_is_no_setting(argument: str) -> None:
    assert refusal(argument)


@pytest.mark.parametrize(
    "path",
    [
        "events/*.parquet",
        "my events (2).csv",
        "a,b.csv",
        "a=b.csv",
        "C:\\logs\\x.csv",
        "it's.csv",
        "back\\'slash\\",
        "{x}.csv",
        "[x].csv",
        "~/x.csv",
        "20240531",
        "true",
        "ünïcode.csv",
        "#1.csv",
        "a:b",
    ],
)
def test_text_is_taken_as_it_stands(path: str) -> None:
    assert compose("ingest", IngestConfig, ["data=log", f"data.path={path}"]).data.path == path


def test_values_keep_their_meaning() -> None:
    config = compose(
        "train",
        TrainConfig,
        [
            "data=log",
            "data.path='quoted, path.csv'",
            "data.time_from=2014-01-01",
            "data.columns={user: uid, item: sku}",
            "data.deduplicate=off",
            "trainer.precision=32",
            "trainer.learning_rate=1e-3",
            "model.dropout=0",
            "evaluation.ks=[1,5]",
            "resume=12345678901234567890123456789012",
            "split.validation_users=all",
            "model.parameter_groups=null",
        ],
    )
    assert config.data.path == "quoted, path.csv"
    assert config.data.time_from == "2014-01-01"
    assert (config.data.columns.user, config.data.columns.item) == ("uid", "sku")
    assert (config.data.deduplicate, config.trainer.precision) == ("off", "32")
    assert config.trainer.learning_rate == 0.001
    assert config.model.dropout == 0.0 and isinstance(config.model.dropout, float)
    assert config.evaluation.ks == [1, 5]
    assert config.resume == "12345678901234567890123456789012"
    assert config.split.validation_users == "all"


def test_bare_words_of_yaml_in_a_file(tmp_path: Path) -> None:
    text = "data:\n  deduplicate: off\ntrainer:\n  precision: 32\n"
    config = compose("train", TrainConfig, ["experiment=mine"], [experiment(tmp_path, text)])
    assert (config.data.deduplicate, config.trainer.precision) == ("off", "32")


def test_a_users_own_data_file(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "shop.yaml").write_text(
        "defaults:\n  - log\n  - _self_\nname: shop\npath: shop.csv\ncolumns:\n  user: uid\n"
    )
    config = compose("train", TrainConfig, ["data=shop", "experiment=sasrec_ml1m"], [tmp_path])
    assert (config.data.name, config.data.columns.user) == ("shop", "uid")
    assert config.data.columns.item == "item"


def test_a_union_of_parts_is_told_apart_by_name() -> None:
    from dataclasses import make_dataclass

    first = make_dataclass("First", [("name", Literal["first"]), ("x", int)], frozen=True)
    second = make_dataclass("Second", [("name", Literal["second"]), ("y", int)], frozen=True)
    holder = make_dataclass("Holder", [("part", first | second)], frozen=True)

    def nowhere(key: str) -> str:
        return ""

    assert build(holder, {"part": {"name": "second", "y": 3}}, nowhere).part == second("second", 3)
    with pytest.raises(ConfigError, match=r"unknown key 'part.y'"):
        build(holder, {"part": {"name": "first", "y": 3}}, nowhere)
    with pytest.raises(ConfigError, match=r"part.name must be first or second, not 'frst'"):
        build(holder, {"part": {"name": "frst", "y": 3}}, nowhere)
    with pytest.raises(ConfigError, match=r"part.name is required"):
        build(holder, {"part": {"y": 3}}, nowhere)


def test_the_yaml_of_a_config_gives_it_back() -> None:
    config = compose("train", TrainConfig, LOG)
    assert build(TrainConfig, yaml.safe_load(as_yaml(config)), lambda key: "") == config
    assert isinstance(config.split, LeaveOneOutConfig)
    assert isinstance(config.objective, FullSoftmaxConfig)


@pytest.mark.parametrize(
    "overrides",
    [
        *([f"experiment={recipe}"] for recipe in RECIPES),
        ["data=log", "data.path=it's [x],{y}=\\", "split=time", "split.test_cut=2001-02-01"],
        ["model=din", *LOG, "data.impressions.path=y.csv", "tracking.uri=sqlite:///a b.db"],
        [*LOG, "candidate_set=sampled", "evaluation.cohorts=[item.a b]", "name='null'"],
        [*LOG, "+data.features.a={kind: hashed, of: item, column: b c, buckets: 3}"],
    ],
)
def test_overrides_of_a_config_give_it_back(overrides: list[str]) -> None:
    config = compose("train", TrainConfig, overrides)
    assert compose("train", TrainConfig, as_overrides("train", config)) == config


@pytest.mark.parametrize("model", ["sasrec", "din"])
def test_settings_recorded_before_there_was_a_choice_mean_what_was_done(model: str) -> None:
    config = compose("train", TrainConfig, [*LOG, f"model={model}"])
    assert config.trainer.row_updates == "auto"
    recorded = asdict(config)
    del recorded["trainer"]["row_updates"], recorded["plan"]
    recorded["trainer"].pop("windows", None)
    del recorded["trusted_modules"], recorded["data"]["class_path"], recorded["data"]["arguments"]
    recorded["evaluation"].pop("metrics", None)
    read = build(TrainConfig, recorded, lambda key: "")
    assert read.trainer.row_updates == "all" and not read.plan
    assert (read.trusted_modules, read.data.class_path, read.data.arguments) == ([], None, {})
    if isinstance(read.trainer, NextItemTrainerConfig):
        assert read.trainer.windows == "newest" and read.evaluation.metrics == []


def test_splits_and_objectives_are_told_apart_by_name() -> None:
    settings = ["split=time", "split.test_cut=2001-02-01", "split.validation_cut=.85"]
    config = compose("train", TrainConfig, [*settings, "objective=gbce", "objective.t=1"])
    assert isinstance(config.split, TimeConfig) and isinstance(config.objective, GBCEConfig)
    assert (config.split.test_cut, config.split.validation_cut) == ("2001-02-01", 0.85)
    assert config.objective.t == 1.0
    assert "unknown key 'split.seed'" in refusal("split=share", "split.seed=1")
    assert "unknown key 'objective.sampling'" in refusal("objective=gbce", "objective.sampling=x")
    message = refusal("split=time", "split.target=next")
    assert "split.target must be last, first, all or successive, not 'next'" in message
    assert "split.test_cut must be a number or text" in refusal("split=time", "split.test_cut=null")


# --- through the real command ---


def test_command_refuses_a_typo_in_a_users_file(place) -> None:
    experiment(place.folder / "mine", "trainer:\n  max_epocs: 3\n")
    message = place.refused("train", "--config-dir", "mine", "experiment=mine")
    assert message == (
        "Error: unknown key 'trainer.max_epocs' in mine/experiment/mine.yaml. "
        "Did you mean 'trainer.max_epochs'?\n"
    )


def test_command_refuses_a_typo_in_a_shipped_file(place) -> None:
    copy = place.folder / "checkout"
    for name in ("conf", "pipelines"):
        shutil.copytree(
            CONF.parent / name, copy / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    with (copy / "conf" / "trainer" / "next_item.yaml").open("a") as file:
        file.write("max_epocs: 3\n")
    place.python_path = f"{copy}:{place.python_path}"
    message = place.refused("train")
    assert "unknown key 'trainer.max_epocs' in checkout/conf/trainer/next_item.yaml" in message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["+trainer.max_epocs=3"], "Did you mean 'trainer.max_epochs'?"),
        (["experimnt=sasrec_ml1m"], "Did you mean 'experiment'?"),
        (["sead=1"], "Did you mean 'seed'?"),
        (["model.layers.deep.er=3"], "model.layers must be a whole number, not a mapping"),
        (["model=sasrex"], "unknown model 'sasrex': choose one of"),
        (["model.width=wide"], "model.width must be a whole number, not 'wide'"),
        (["data=log"], "data.path is required"),
    ],
)
def test_command_refuses(place, arguments: list[str], words: str) -> None:
    assert words in place.refused("train", *arguments)


def test_evaluate_requires_a_run(place) -> None:
    assert "run= names the run whose model is judged" in place.refused("evaluate")
