"""`data.features` and `data.impressions`: unions told apart by kind, in a dict, strictly."""

from dataclasses import fields
from typing import get_args, get_type_hints

import pytest

from pipelines.checking import ConfigError
from pipelines.entry import compose
from pipelines.schemas import FeatureConfig, ImpressionsConfig, IngestConfig
from recsys.histories.features import KINDS

LOG = ["data=log", "data.path=x.csv"]
PRICE = ["data.features.price.of=item", "data.features.price.column=price"]


def data(*overrides: str):
    return compose("ingest", IngestConfig, [*LOG, *overrides]).data


def refusal(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        data(*overrides)
    return str(caught.value)


def test_every_kind_of_feature_can_be_configured_and_has_its_own_settings() -> None:
    for config in get_args(FeatureConfig):
        hints = get_type_hints(config)
        (kind,) = get_args(hints.pop("kind"))
        feature = KINDS[kind]
        wanted = {f.name: get_type_hints(feature)[f.name] for f in fields(feature)}
        assert wanted.pop("name") is str
        assert hints == wanted
        defaults = {f.name: f.default for f in fields(feature)}
        assert {f.name: f.default for f in fields(config) if f.name != "kind"} == {
            name: default for name, default in defaults.items() if name != "name"
        }
    built_in = {"user_id", "label"}  # switched on by the model, not by the data
    assert len(get_args(FeatureConfig)) == len(set(KINDS) - built_in)


def test_a_feature_from_the_command_line() -> None:
    (found,) = data(*PRICE, "data.features.price.kind=numeric").features.values()
    assert (type(found).__name__, found.of, found.column) == ("NumericConfig", "item", "price")
    (found,) = data("data.features.g={kind: multi, of: user, column: '7'}").features.values()
    assert (found.column, found.minimum_count, found.separator) == ("7", 1, "|")
    # Text settings inside the union are taken as they stand.
    found = data(
        "data.features.g.kind=multi",
        "data.features.g.of=item",
        "data.features.g.column=0123",
        "data.features.g.separator=,",
    ).features["g"]
    assert (found.column, found.separator) == ("0123", ",")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([*PRICE], "data.features.price.kind is required"),
        ([*PRICE, "data.features.price.kind=numerc"], "Did you mean 'numeric'?"),
        (
            [*PRICE, "data.features.price.knd=categorical"],
            "Did you mean 'data.features.price.kind'?",
        ),
        (
            [*PRICE, "data.features.price.kind=quantle", "data.features.price.bucket=3"],
            "Did you mean 'data.features.price.buckets'?",
        ),
        ([*PRICE, "data.features.price.kind=[1]"], "data.features.price.kind must be categorical"),
        (
            [*PRICE, "data.features.price.kind=numeric", "data.features.price.buckets=3"],
            "unknown key 'data.features.price.buckets' on the command line",
        ),
        (
            [*PRICE, "data.features.price.kind=quantile", "data.features.price.bucket=3"],
            "Did you mean 'data.features.price.buckets'?",
        ),
        (
            ["data.features.price.kind=hashed", *PRICE],
            "data.features.price.buckets is missing: add data.features.price.buckets=VALUE",
        ),
        (
            ["data.features.price.kind=quantile", *PRICE, "data.features.price.buckets=many"],
            "data.features.price.buckets must be a whole number, not 'many' on the command line",
        ),
        (["data.features.h={kind: hour_of_week, of: item}"], "event or context, not 'item'"),
        (["data.features.price=3"], "data.features.price must be a mapping, not 3"),
        (["data.features=3"], "data.features must be a mapping, not 3"),
        (["data.impressions.columns.usr=u", "data.impressions.path=x"], "data.impressions.columns"),
        (["data.impressions.columns.user=u"], "data.impressions.path is missing"),
    ],
)
def test_wrong_features_are_refused_by_name(overrides: list[str], words: str) -> None:
    assert words in refusal(*overrides)


def test_impressions_name_only_what_is_called_otherwise() -> None:
    found = data("data.impressions.path=a,b.csv", "data.impressions.columns.item=sku").impressions
    assert isinstance(found, ImpressionsConfig)
    assert (found.path, found.columns.item, found.columns.user) == ("a,b.csv", "sku", "user")
    assert data().impressions is None
