r"""Deliver what waits for a tracking server; close runs whose process is gone.

Examples:
  python -m pipelines.sync
  python -m pipelines.sync tracking.uri=http://tracking.example:5000
  python -m pipelines.sync run=RUN_ID tracking.uri=http://another.example:5000

A run whose server goes away, or is away when it starts, goes on, and keeps its results below
data/cache/outbox. Here each is delivered, once, however often this is interrupted: params, metrics
with their times, artifacts, data set, status. A run that was killed and still counts as running
becomes KILLED, with the tag `closed`, if it ran on this machine.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.checking import ConfigError, nearest
from pipelines.entry import main
from pipelines.paths import outbox_dir, root, tracking_uri
from pipelines.schemas import SyncConfig
from pipelines.ui import how_to_open

if TYPE_CHECKING:
    from recsys.tracking.outbox import Waiting


def run(config: SyncConfig) -> int:
    """Deliver, close, say what is left."""
    waiting, damaged = what_waits(config.run)
    arrived, away = deliver_all(config, waiting)
    move_run_folders()
    closed: list[tuple[str, str]] = []
    unasked = False
    if config.run is None:
        stores = {uri for uri, _ in arrived}
        if config.tracking.uri is not None:
            stores = {config.tracking.uri} - away
        elif (root() / "mlflow.db").exists():
            stores.add(tracking_uri())
        closed, unasked = close_all(sorted(stores))
    left = sum((folder / "run.json").exists() for folder, _ in waiting) + damaged
    print(f"{len(arrived)} delivered, {left} waiting, {len(closed)} closed", flush=True)
    if last := [*closed, *arrived][-1:]:
        ((uri, run_id),) = last
        print(how_to_open(run_id, None if uri == tracking_uri() else uri), flush=True)
    return 1 if damaged or away or unasked else 0


def what_waits(run: str | None) -> tuple[list[tuple[Path, Waiting]], int]:
    """The folders of the runs that wait, parents first, and how many cannot be read.

    Args:
        run: the only one that is wanted; None for all.

    Raises:
        ConfigError: that one does not wait.
    """
    from recsys.tracking.names import PARENT_TAG
    from recsys.tracking.outbox import OutboxError, delivered_as, read_waiting, waiting_runs

    folders = waiting_runs(outbox_dir())
    if run is not None:
        names = [folder.name for folder in folders]
        if run not in names:
            became = delivered_as(outbox_dir(), run)
            if became != run:
                raise ConfigError(f"run={run} was delivered already: it is run {became}")
            there = f"there are {', '.join(names)}." if names else "nothing waits."
            raise ConfigError(f"run={run} does not wait: {there}{nearest(run, names)}")
        folders = [outbox_dir() / run]
    found, damaged = [], 0
    for folder in folders:
        try:
            found.append((folder, read_waiting(folder)))
        except OutboxError as error:
            damaged += 1
            complain(error)
    return sorted(found, key=lambda pair: (PARENT_TAG in pair[1].tags, pair[1].start_time)), damaged


def deliver_all(
    config: SyncConfig, waiting: Sequence[tuple[Path, Waiting]]
) -> tuple[list[tuple[str, str]], set[str]]:
    """Delivers each run, as far as its server takes it.

    Returns:
        Server and id of each run that arrived; and the servers that took not all they should.
    """
    from recsys.tracking.delivery import deliver
    from recsys.tracking.outbox import InUse
    from recsys.tracking.store import OutOfReach, server_name

    arrived: list[tuple[str, str]] = []
    away: set[str] = set()
    silent: set[str] = set()
    for folder, what in waiting:
        name = f"{folder.name} ({what.name})"
        uri = config.tracking.uri or what.uri
        elsewhere = server_name(uri) != what.uri
        if elsewhere and config.run is None:
            print(f"left {name}: it waits for {what.uri}")
            continue
        if "***" in uri:
            complain(
                f"run {name}: {uri} has a password, which is not kept: give tracking.uri= whole"
            )
            away.add(uri)
            continue
        if uri in silent:
            continue
        try:
            run = deliver(folder, uri)
        except InUse as error:
            print(f"left {name}: {error}")
        except ValueError as error:
            away.add(uri)
            if isinstance(error, OutOfReach):
                silent.add(uri)  # said once, waited for once
            complain(error)
        else:
            arrived.append((uri, run.run_id))
            became = "" if run.run_id == folder.name else f" as run {run.run_id}"
            print(f"delivered {name} to {server_name(uri)}{became}: {run.status}", flush=True)
    return arrived, away


def close_all(stores: Sequence[str]) -> tuple[list[tuple[str, str]], bool]:
    """Closes the runs whose process is gone.

    Returns:
        Store and id of each; and whether a store could not be asked.
    """
    from recsys.tracking.delivery import close_abandoned

    closed: list[tuple[str, str]] = []
    unasked = False
    for uri in stores:
        try:
            closed += [(uri, run.run_id) for run in close_abandoned(uri, print, outbox_dir())]
        except ValueError as error:
            complain(error)
            unasked = True
    return closed, unasked


def move_run_folders() -> None:
    """A run that got another id with its delivery is resumed by that one."""
    from pipelines.train import run_folder
    from recsys.tracking.outbox import delivered_runs

    for before, now in delivered_runs(outbox_dir()).items():
        if run_folder(before).exists() and not run_folder(now).exists():
            run_folder(before).rename(run_folder(now))


def complain(error: object) -> None:
    """As every command says what went wrong; but the other runs are still to be delivered."""
    print(f"Error: {error}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main("sync", SyncConfig, run, __doc__ or "")
