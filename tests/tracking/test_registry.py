"""Versions, aliases and what is said where there are none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from recsys.tracking.registry import (
    CHAMPION,
    Version,
    champion_of,
    check_model_name,
    find_version,
    make_champion,
    register_run,
    write_decision,
)
from recsys.tracking.run import TrackedRun
from recsys.tracking.store import TrackingError, local_store, open_client

Start = Callable[..., TrackedRun]


@pytest.fixture
def uri(root: Path) -> str:
    return local_store(root)[0]


def a_run(start: Start) -> str:
    with start() as tracked:
        return tracked.run_id


def test_a_run_is_a_version_once(start: Start, uri: str) -> None:
    one, other = a_run(start), a_run(start)
    first = register_run(uri, "shop", one, {"protocol": "loo-full-unseen"})
    assert first == Version("shop", 1, one, {"protocol": "loo-full-unseen"}, ())
    assert register_run(uri, "shop", one, {"protocol": "another"}) == first
    assert register_run(uri, "shop", other, {}).number == 2
    assert register_run(uri, "my other shop", one, {}).number == 1  # a name of its own
    assert register_run(uri, "shop", one, {}) == first
    found = open_client(uri).get_model_version("shop", "1")
    assert found.run_id == one and found.source == f"runs:/{one}/model"


def test_the_first_version_is_no_champion(start: Start, uri: str) -> None:
    assert champion_of(uri, "shop") is None
    register_run(uri, "shop", a_run(start), {})
    assert champion_of(uri, "shop") is None


def test_the_alias_moves_from_version_to_version(start: Start, uri: str) -> None:
    one, two = (register_run(uri, "shop", a_run(start), {}) for _ in range(2))
    make_champion(uri, one, None)
    found = champion_of(uri, "shop")
    assert found is not None and (found.number, found.aliases) == (1, (CHAMPION,))
    make_champion(uri, two, found)
    assert str(find_version(uri, "shop@champion")) == "shop/2"
    assert find_version(uri, "shop/1").aliases == ()
    assert find_version(uri, "shop/1").run_id == one.run_id


def test_another_champion_meanwhile_is_not_pushed_aside(start: Start, uri: str) -> None:
    one, two, three = (register_run(uri, "shop", a_run(start), {}) for _ in range(3))
    make_champion(uri, one, None)
    make_champion(uri, two, one)
    for held_against in (one, None):
        with pytest.raises(TrackingError, match="shop/2 became the champion meanwhile"):
            make_champion(uri, three, held_against)
    assert find_version(uri, "shop@champion").number == 2


def test_a_decision_is_noted(start: Start, uri: str) -> None:
    version = register_run(uri, "shop", a_run(start), {"protocol": "p"})
    write_decision(uri, version, {"decision": "refused"}, "**refused**")
    write_decision(uri, version, {"decision": "promoted", "margin": "0"}, "**promoted**")
    found = open_client(uri).get_model_version("shop", "1")
    assert found.tags == {"protocol": "p", "decision": "promoted", "margin": "0"}
    assert found.description == "**promoted**"


def refused(uri: str, reference: str) -> str:
    with pytest.raises(TrackingError) as caught:
        find_version(uri, reference)
    return str(caught.value)


def test_what_is_not_there_is_said_with_what_is(start: Start, uri: str) -> None:
    assert "no model is registered yet: train register=NAME" in refused(uri, "shop@champion")
    one = register_run(uri, "shop", a_run(start), {})
    register_run(uri, "films", one.run_id, {})
    said = refused(uri, "shpo@champion")
    assert "there are films, shop. Did you mean 'shop'?" in said
    assert "has no alias 'champion', and no other" in refused(uri, "shop@champion")
    make_champion(uri, one, None)
    said = refused(uri, "shop@champoin")
    assert "there are champion (version 1). Did you mean 'champion'?" in said
    assert "shop has no version 7; there are 1" in refused(uri, "shop/7")
    for wrong in ("shop@", "shop/one", "shop@a/1", "models:/shop/1", ""):
        assert "names no version: write NAME@champion, or NAME/3" in refused(uri, wrong)
    assert "write shop@champion, or shop/3" in refused(uri, "shop")
    client = open_client(uri)
    client.delete_model_version("shop", "1")
    assert "has no alias 'champion', and no other" in refused(uri, "shop@champion")
    assert "shop has no version 1; there are none" in refused(uri, "shop/1")


def test_a_version_whose_run_is_gone(start: Start, uri: str) -> None:
    version = register_run(uri, "shop", a_run(start), {})
    make_champion(uri, version, None)
    client = open_client(uri)
    client.delete_run(version.run_id)
    said = refused(uri, "shop@champion")
    assert "shop/1 is the model of a run that cannot be read" in said
    assert f"mlflow runs restore --run-id {version.run_id}" in said
    with pytest.raises(TrackingError, match="shop/1 is the model of a run"):
        champion_of(uri, "shop")
    with pytest.raises(TrackingError, match="is deleted; bring it back"):
        register_run(uri, "shop", version.run_id, {})
    client.create_model_version("shop", "s3://somewhere/else")
    assert "version shop/2 says no run that it is of" in refused(uri, "shop/2")


def test_an_unknown_run_makes_no_name(start: Start, uri: str) -> None:
    a_run(start)
    with pytest.raises(TrackingError, match="there is no run"):
        register_run(uri, "shop", "0123456789abcdef0123456789abcdef", {})
    assert open_client(uri).search_registered_models() == []


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("shop/films", "shop-films"),
        ("shop:films", "shop-films"),
        ("shop@champion", "shop-champion"),
        ("../shop", "shop"),
        ("shop ", "shop"),
        (" ", "model"),
        ("", "model"),
        ("it's", "it-s"),
        ("x" * 300, "x" * 200),
    ],
)
def test_names_that_could_not_be_named_are_refused(name: str, near: str) -> None:
    with pytest.raises(TrackingError, match="is no name for a registered model") as caught:
        check_model_name(name, "register")
    assert str(caught.value).startswith(f"register={name} is no name")
    assert str(caught.value).endswith(f"nearest: {near}")


@pytest.mark.parametrize("name", ["shop", "ml-1m.sasrec_2", "my shop", "x", "läden"])
def test_names_that_are_taken_work(start: Start, uri: str, name: str) -> None:
    check_model_name(name, "register")
    version = register_run(uri, name, a_run(start), {})
    make_champion(uri, version, None)
    assert find_version(uri, f"{name}@champion") == find_version(uri, f"{name}/1")


def test_reading_makes_no_store(tmp_path: Path) -> None:
    uri = local_store(tmp_path)[0]
    for read in (
        lambda: find_version(uri, "shop@champion"),
        lambda: champion_of(uri, "shop"),
    ):
        with pytest.raises(TrackingError, match="there are no runs yet"):
            read()
    assert list(tmp_path.iterdir()) == []
