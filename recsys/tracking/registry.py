"""The model registry: versions of a name, each the model of a run, and aliases that point at them.

A version says which run it is of; everything else about it (settings, weights, answers) is read
from that run. `NAME@ALIAS` and `NAME/3` name a version.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from recsys.tracking.outbox import MODEL
from recsys.tracking.reading import logged_model, run_of_id
from recsys.tracking.store import TrackingError, open_client, store_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

CHAMPION = "champion"
LONGEST_NAME = 200

_MODEL_NAME = re.compile(r"\w([\w.\- ]*[\w.\-])?")
_REFERENCE = re.compile(r"(?P<name>[^@/:]+)(@(?P<alias>[\w\-]+)|/(?P<number>\d+))")


@dataclass(frozen=True)
class Version:
    """A version of a registered model.

    Attributes:
        name: of the registered model.
        number: counted from 1.
        run_id: of the run whose model it is.
        tags: what was noted about it.
        aliases: that point at it.
    """

    name: str
    number: int
    run_id: str
    tags: dict[str, str]
    aliases: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name}/{self.number}"


def check_model_name(name: str, setting: str) -> None:
    """Refuses names that MLflow does not take, or that `NAME@ALIAS` and `NAME/3` could not name.

    Args:
        name: of a registered model.
        setting: which said so.

    Raises:
        TrackingError: naming the nearest.
    """
    if _MODEL_NAME.fullmatch(name) and len(name) <= LONGEST_NAME:
        return
    near = re.sub(r"[^\w.\- ]+", "-", name)[:LONGEST_NAME].strip(" .-") or "model"
    raise TrackingError(
        f"{setting}={name} is no name for a registered model: at most {LONGEST_NAME} letters, "
        f"digits, '_', '-', '.' and spaces, from a letter or digit on; nearest: {near}"
    )


def register_run(uri: str, name: str, run_id: str, tags: Mapping[str, str]) -> Version:
    """Makes the model of a run a version of a name, once; the name is made if absent.

    Args:
        uri: the store.
        name: of the registered model.
        run_id: of the run that holds the model.
        tags: of a new version; of one that is there they stay as they are.

    Raises:
        TrackingError: no such run, or the registry refuses.
    """
    client = open_client(uri)
    with store_errors(uri, f"register run {run_id} as a version of {name!r}"):
        run_of_id(client, uri, run_id)
        found = _version_of_run(client, name, run_id)
        if found is None:
            if name not in _names(client):
                _create(client, name)
            logged = logged_model(client, run_id)
            # A run from before models were MLflow's keeps it among its artifacts. Not by the
            # models:/ address, which MLflow looks up in the store of the process.
            source = f"runs:/{run_id}/{MODEL}" if logged is None else logged.artifact_location
            found = client.create_model_version(
                name,
                source,
                run_id=run_id,
                tags=dict(tags),
                model_id=None if logged is None else logged.model_id,
            )
        return _read(client, name, found)


def champion_of(uri: str, name: str) -> Version | None:
    """The champion of a name; None where there is none yet, or no such name.

    Raises:
        TrackingError: no store, or the champion's run is gone.
    """
    client = open_client(uri, create=False)
    with store_errors(uri, f"look for the champion of {name!r}"):
        if name not in _names(client):
            return None
        number = _aliases(client.get_registered_model(name)).get(CHAMPION)
    return None if number is None else find_version(uri, f"{name}/{number}")


def find_version(uri: str, reference: str) -> Version:
    """Reads a version; its run is there.

    Args:
        uri: the store.
        reference: `NAME@ALIAS` or `NAME/3`.

    Raises:
        TrackingError: no such name, alias or version (says which there are), or its run is gone.
    """
    read = _REFERENCE.fullmatch(reference)
    client = open_client(uri, create=False)
    with store_errors(uri, f"read {reference!r} in the registry"):
        names = _names(client)
        if read is None:
            name = reference if reference in names else "NAME"
            raise TrackingError(
                f"model={reference} names no version: write {name}@{CHAMPION}, or {name}/3 for a "
                "version by number"
            )
        name = read["name"]
        if name not in names:
            raise TrackingError(f"model={reference}: {_no_such_name(name, names)}")
        model = client.get_registered_model(name)
        aliases = _aliases(model)
        alias: str | None = read["alias"]
        if alias is not None and alias not in aliases:
            raise TrackingError(f"model={reference}: {_no_such_alias(alias, name, aliases)}")
        number = int(read["number"]) if alias is None else aliases[alias]
        numbers = {int(v.version): v for v in client.search_model_versions(f"name = '{name}'")}
        if number not in numbers:
            there = ", ".join(str(n) for n in sorted(numbers)) or "none"
            raise TrackingError(
                f"model={reference}: {name} has no version {number}; there are {there}"
            )
        version = _read(client, name, numbers[number])
        if not version.run_id:
            raise TrackingError(
                f"model={reference}: version {version} says no run that it is of, as those do that "
                "train and promote register"
            )
        try:
            run_of_id(client, uri, version.run_id)
        except TrackingError as error:
            raise TrackingError(
                f"model={reference}: {version} is the model of a run that cannot be read: {error}"
            ) from error
        return version


def write_decision(uri: str, version: Version, tags: Mapping[str, str], markdown: str) -> None:
    """Notes on a version what was decided about it, in tags and as its description.

    Raises:
        TrackingError: the registry refuses.
    """
    client = open_client(uri, create=False)
    with store_errors(uri, f"write the decision about {version}"):
        for key, value in tags.items():
            client.set_model_version_tag(version.name, str(version.number), key, value)
        client.update_model_version(version.name, str(version.number), markdown)


def make_champion(uri: str, version: Version, instead_of: Version | None) -> None:
    """Moves the champion's alias.

    Args:
        uri: the store.
        version: the new champion.
        instead_of: the one that it was held against; None: there was none.

    Raises:
        TrackingError: another version became champion meanwhile.
    """
    client = open_client(uri, create=False)
    with store_errors(uri, f"make {version} the champion"):
        now = _aliases(client.get_registered_model(version.name)).get(CHAMPION)
        if now != (None if instead_of is None else instead_of.number):
            raise TrackingError(
                f"{version.name}/{now} became the champion meanwhile, against which {version} was "
                "not held: promote again"
            )
        client.set_registered_model_alias(version.name, CHAMPION, str(version.number))


def _version_of_run(client: MlflowClient, name: str, run_id: str) -> ModelVersion | None:
    """The first, should there be several."""
    found = [v for v in client.search_model_versions(f"run_id = '{run_id}'") if v.name == name]
    return min(found, key=lambda version: int(version.version), default=None)


def _read(client: MlflowClient, name: str, found: ModelVersion) -> Version:
    number = int(found.version)
    aliases = _aliases(client.get_registered_model(name))
    return Version(
        name=name,
        number=number,
        run_id=found.run_id or "",
        tags=dict(found.tags),
        aliases=tuple(sorted(alias for alias, n in aliases.items() if n == number)),
    )


def _aliases(model: RegisteredModel) -> dict[str, int]:
    return {alias: int(number) for alias, number in model.aliases.items()}


def _names(client: MlflowClient) -> list[str]:
    """All names, prompts left out."""
    names: list[str] = []
    token = None
    while True:
        page = client.search_registered_models(page_token=token)
        names += [model.name for model in page]
        token = page.token
        if not token:
            return sorted(names)


def _create(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException:
        if name not in _names(client):  # else another run has made it at the same moment
            raise


def _no_such_name(name: str, names: list[str]) -> str:
    if not names:
        return (
            "no model is registered yet: train register=NAME, or promote run=ID name=NAME, makes "
            "the first version of a name"
        )
    near = difflib.get_close_matches(name, names, n=1)
    hint = f". Did you mean '{near[0]}'?" if near else ""
    return f"there is no registered model '{name}'; there are {', '.join(names)}{hint}"


def _no_such_alias(alias: str, name: str, aliases: Mapping[str, int]) -> str:
    if not aliases:
        return (
            f"{name} has no alias '{alias}', and no other: python -m pipelines.promote run=ID "
            f"name={name} makes a champion"
        )
    there = ", ".join(f"{known} (version {number})" for known, number in sorted(aliases.items()))
    near = difflib.get_close_matches(alias, aliases, n=1)
    hint = f". Did you mean '{near[0]}'?" if near else ""
    return f"{name} has no alias '{alias}'; there are {there}{hint}"
