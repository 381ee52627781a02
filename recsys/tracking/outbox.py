"""What a run has to say while its server is away: kept on disk until it is delivered.

`OUTBOX/RUN/` holds `run.json` (the run, and how much of it has been delivered), `journal.ndjson`
(what happened, one operation a line, in order) and `artifacts/`. RUN is MLflow's id, or, of a run
that began while the server was away, a provisional one; once such a run is delivered,
`RUN.delivered.json` says which run it became. The journal is locked by whoever writes or delivers
it, so a process that is gone leaves it free.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from recsys.logs.files import name_aside, sync, write_text

FORMAT = 1
MODEL = "model"  # a run's model, in addresses such as runs:/RUN_ID/model
_DELIVERED = ".delivered.json"


class OutboxError(ValueError):
    """Something in the outbox that cannot be read, or not now."""


class InUse(OutboxError):
    """Another process writes or delivers the run at this moment."""


@dataclass(frozen=True)
class Waiting:
    """The run that an outbox keeps something of; its `run.json`.

    Attributes:
        uri: the server, without a password.
        experiment: name of the experiment.
        name: of the run.
        start_time: in milliseconds since 1970.
        tags: at its start, or when it was taken up again.
        params: flat, at its start.
        run_id: MLflow's id; None while no server knows the run.
        delivered: so many lines of the journal.
        format: of the files.
        artifact_root: folder for the artifacts, should the experiment have to be made in a
            database; None with a server, which has its own.
    """

    uri: str
    experiment: str
    name: str
    start_time: int
    tags: dict[str, str]
    params: dict[str, str]
    run_id: str | None
    delivered: int
    format: int = FORMAT
    artifact_root: str | None = None


class Outbox:
    """The folder of one run, locked until it is closed; see the top of the file.

    Attributes:
        folder: of the run; its name is the run's id here.
        waiting: what `run.json` says.
    """

    def __init__(self, folder: Path) -> None:
        """Opens what was begun.

        Raises:
            InUse: by a process that writes or delivers it.
            OutboxError: it cannot be read.
        """
        self.folder = folder
        self._journal = (folder / "journal.ndjson").open("a+b")
        try:
            fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.waiting = read_waiting(folder)
        except BaseException as error:
            self._journal.close()
            if isinstance(error, BlockingIOError):
                raise InUse(
                    f"another process writes or delivers run {folder.name} at this moment"
                ) from None
            raise
        self._cut_torn_line()

    @classmethod
    def create(cls, folder: Path, waiting: Waiting, config_yaml: str) -> Self:
        """Begins to keep a run.

        Args:
            folder: of the run, in the outbox.
            waiting: the run.
            config_yaml: its settings: without them it could not be resumed while it waits.
        """
        # Beside the artifacts that wait, as it may have been sent already; `append` names those.
        write_text(folder / "artifacts" / "config.yaml", config_yaml)
        write_text(folder / "run.json", json.dumps(asdict(waiting), indent=1))
        made = cls(folder)
        sync(folder)
        return made

    def append(self, operation: Mapping[str, Any]) -> None:
        """Keeps an operation; it is on the disk when this returns."""
        self._journal.write(json.dumps(operation).encode() + b"\n")
        self._journal.flush()
        os.fsync(self._journal.fileno())

    def artifact(self, name: str, source: Path) -> None:
        """Keeps a file as the artifact `name`."""
        self._copy(name, source)
        self.append({"do": "artifact", "name": name})

    def model(self, operation: Mapping[str, Any], folder: Path) -> None:
        """Keeps a folder as the run's model, and the operation that sends it."""
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            self._copy(f"{MODEL}/{path.relative_to(folder).as_posix()}", path)
        self.append(operation)

    def _copy(self, name: str, source: Path) -> None:
        path = self.artifact_path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = name_aside(path)
        try:
            shutil.copyfile(source, aside)
            sync(aside)
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)

    def artifact_path(self, name: str) -> Path:
        """Where an artifact waits."""
        return self.folder / "artifacts" / name

    def operations(self) -> list[dict[str, Any]]:
        """All that happened, in order.

        Raises:
            OutboxError: naming a line that cannot be read.
        """
        self._journal.seek(0)
        operations = []
        for number, line in enumerate(self._journal, 1):
            try:
                operations.append(json.loads(line))
            except ValueError:
                raise OutboxError(
                    f"{self._journal.name}, line {number}, is damaged: repair or remove the line"
                ) from None
        return operations

    def status(self) -> str:
        """How the run ended; RUNNING if it has not."""
        status = "RUNNING"
        for operation in self.operations():
            if operation["do"] in ("end", "running"):
                status = operation.get("status", "RUNNING")
        return status

    def note(self, **changes: Any) -> None:
        """Changes what `run.json` says."""
        self.waiting = replace(self.waiting, **changes)
        write_text(self.folder / "run.json", json.dumps(asdict(self.waiting), indent=1))

    def remove(self) -> None:
        """Everything is delivered: leaves nothing, or the note which run it became."""
        assert self.waiting.run_id is not None
        if self.folder.name != self.waiting.run_id:
            known = {"run_id": self.waiting.run_id, "format": FORMAT}
            write_text(self.folder.with_name(self.folder.name + _DELIVERED), json.dumps(known))
        aside = name_aside(self.folder)
        self.folder.rename(aside)
        self.close()
        shutil.rmtree(aside)

    def close(self) -> None:
        """Lets others at it."""
        self._journal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _cut_torn_line(self) -> None:
        """A line without end is one that a killed process had begun: it never happened."""
        self._journal.seek(0)
        whole = self._journal.read().rfind(b"\n") + 1
        self._journal.truncate(whole)
        self._journal.seek(whole)


def read_waiting(folder: Path) -> Waiting:
    """What waits in the folder of a run.

    Raises:
        OutboxError: it cannot be read, or was written by a newer version.
    """
    path = folder / "run.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            raise OutboxError(
                f"{path} has format {found['format']}, and this version reads {FORMAT}: it was "
                "written by another version of recsys, which can deliver it"
            )
        return Waiting(**found)
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, OutboxError):
            raise
        raise OutboxError(f"{path} is damaged ({error})") from None


def is_waiting(outbox: Path, run: str) -> bool:
    """Whether results of a run wait in the outbox."""
    return re.fullmatch(r"\w+", run) is not None and (outbox / run / "run.json").exists()


def is_unknown(outbox: Path, run: str) -> bool:
    """Whether a run waits of which no server knows."""
    return is_waiting(outbox, run) and read_waiting(outbox / run).run_id is None


def waiting_runs(outbox: Path) -> list[Path]:
    """The folders of all runs of which something waits."""
    return sorted(p.parent for p in outbox.glob("*/run.json") if not p.parent.name.startswith("."))


def delivered_as(outbox: Path, run: str) -> str:
    """MLflow's id of a run that was delivered under another one; other ids stay as they are."""
    note = outbox / f"{run}{_DELIVERED}"
    if re.fullmatch(r"\w+", run) is None or not note.exists():
        return run
    return str(json.loads(note.read_text(encoding="utf-8"))["run_id"])


def delivered_runs(outbox: Path) -> dict[str, str]:
    """All runs that were delivered under another id than they had here: old id → MLflow's."""
    old = [note.name.removesuffix(_DELIVERED) for note in sorted(outbox.glob(f"*{_DELIVERED}"))]
    return {run: delivered_as(outbox, run) for run in old}


def known_runs(outbox: Path) -> dict[str, str]:
    """All runs that wait or waited here, and that a server knows: id here → MLflow's."""
    return {**delivered_runs(outbox), **waiting_ids(outbox)}


def waiting_ids(outbox: Path) -> dict[str, str]:
    """The runs that wait, and that a server knows: id here → MLflow's."""
    known = {}
    for folder in waiting_runs(outbox):
        with suppress(OutboxError):  # a damaged one is said by who delivers it
            if (run_id := read_waiting(folder).run_id) is not None:
                known[folder.name] = run_id
    return known
