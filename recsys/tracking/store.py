"""MLflow's store: opened quietly, with errors that say what could not be done, where and why.

MLflow is imported when the first store is opened, not when this file is: that takes two seconds,
and `--help` or a cached ingest must not pay for it.
"""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from mlflow import MlflowClient

# How long a server may take to answer. MLflow's own patience, 120 seconds and seven retries with
# growing pauses, is four minutes of silence on a wrong address, and of standstill in training.
SECONDS_TO_ANSWER = 10
SECONDS_TO_ANSWER_A_FILE = 120  # which it passes on before it answers
# In front of a host, also where a colon was forgotten, and among what follows a question mark.
_PASSWORD = re.compile(
    r"(//[^/\s:@]*:)[^/\s@]+(?=@)|([?&](?:password|passwd|pwd)=)[^&\s'\"]+", re.I
)
# What databases say to a wrong login or name; that they start or shut down is said alike.
_NO_ENTRY = re.compile(r'FATAL: +(password|role|database "|no pg_hba)|Access denied|Unknown data')
# `postgresql://` means psycopg to SQLAlchemy 2.1, and psycopg2 to 2.0.
_DRIVERS = {
    "psycopg": "'psycopg[binary]'",
    "psycopg2": "psycopg2-binary",
    "MySQLdb": "mysqlclient",
}


class TrackingError(ValueError):
    """A run, store or name that MLflow cannot serve, said so that one can act on it."""


class OutOfReach(TrackingError):
    """A server that does not answer, or that answers that it cannot at the moment."""


class Refused(TrackingError):
    """A server that does not take this user's word."""


def local_store(root: Path) -> tuple[str, str]:
    """The store that plain `mlflow ui`, started in `root`, shows.

    Returns:
        The tracking URI (`sqlite:///root/mlflow.db`) and the folder of the artifacts.

    Raises:
        TrackingError: a path that a database address cannot hold.
    """
    root = root.resolve()
    # SQLAlchemy 2.1 decodes %41 in an address, 2.0 does not: no spelling serves both.
    if unquote(str(root)) != str(root) or "?" in str(root):
        raise TrackingError(
            f"the folder {root} has '?' or '%' with two digits in its path, which the address of "
            "a database cannot hold; set RECSYS_HOME to another folder"
        )
    return f"sqlite:///{root / 'mlflow.db'}", str(root / "mlruns")


def check_address(uri: str) -> None:
    """Refuses what is no address of a store, without asking it anything.

    Raises:
        TrackingError: naming the nearest address, or the driver that a database lacks.
    """
    if not re.match(r"(https?://|sqlite:///|(postgresql|mysql|mssql)(\+\w+)?://)", uri):
        near = f"http://{uri}" if re.fullmatch(r"[\w.-]+:\d+/?", uri) else ""
        if re.match(r"postgres\b", uri):
            near = uri.replace("postgres", "postgresql", 1)
        raise TrackingError(
            f"{without_password(uri)} is no address of a tracking store: those of servers begin "
            "with http:// or https://, those of databases with sqlite:///, postgresql:// or mysql://"
            + (f". Did you mean {without_password(near)}?" if near else "")
        )
    if is_database_server(uri):
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import SQLAlchemyError

        try:
            make_url(uri).get_dialect().import_dbapi()
        except ModuleNotFoundError as error:
            raise TrackingError(f"{without_password(uri)}: {_no_driver(error)}") from error
        except (SQLAlchemyError, ValueError) as error:
            raise TrackingError(
                f"{without_password(uri)} is no address of a database: "
                f"{without_password(str(error).splitlines()[0])}"
            ) from error


def _no_driver(error: ModuleNotFoundError) -> str:
    name = error.name or "of the driver"
    return f"the package {name} is not installed (pip install {_DRIVERS.get(name, name)})"


def is_server(uri: str) -> bool:
    """Whether a store is an MLflow server, which shows its own UI."""
    return uri.startswith(("http://", "https://"))


def is_database_server(uri: str) -> bool:
    """Whether a store is a database that another program serves."""
    return re.match(r"(postgresql|mysql|mssql)\b", uri) is not None


def _database_file(uri: str) -> Path | None:
    """The file of a SQLite store, None for every other store."""
    if not uri.startswith("sqlite"):
        return None
    from sqlalchemy.engine import make_url

    file = make_url(uri).database
    return Path(file) if file and file != ":memory:" else None


def open_client(uri: str, create: bool = True) -> MlflowClient:
    """Imports MLflow, quietly, and opens a store."""
    file = _database_file(uri)
    if file is not None:
        # MLflow would try ten times, for a minute, before it says what is wrong here.
        if not create and not file.exists():
            raise TrackingError(f"there are no runs yet: {file} does not exist; train one first")
        if file.is_dir():
            raise TrackingError(f"{file} is a folder, not an MLflow database")
        if file.exists() and file.stat().st_size > 0:
            with file.open("rb") as head:
                if head.read(16) != b"SQLite format 3\x00":
                    raise TrackingError(
                        f"{file} is not an MLflow database (not SQLite); move it away"
                    )
        if create:
            file.parent.mkdir(parents=True, exist_ok=True)
        if create and not os.access(file if file.exists() else file.parent, os.W_OK):
            raise PermissionError(errno.EACCES, "the tracking store cannot be written", str(file))
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # What a server's client prints beside our own lines.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

    from mlflow import MlflowClient

    for name, level in (
        ("mlflow", logging.WARNING),  # "Creating initial MLflow database tables..."
        ("mlflow.store.db.utils", logging.CRITICAL),  # tracebacks; ours say it in a sentence
        ("alembic", logging.WARNING),
    ):
        logging.getLogger(name).setLevel(level)
    with store_errors(uri, "open the tracking store"):
        if is_database_server(uri):
            _try_database(uri)
        return MlflowClient(tracking_uri=uri)


def _try_database(uri: str) -> None:
    """Connects, and no more: MLflow would try ten times, for minutes, before it says why not."""
    import sqlalchemy

    limited = uri.startswith(("postgresql", "mysql")) and "connect_timeout" not in uri
    limit = {"connect_timeout": SECONDS_TO_ANSWER} if limited else {}
    engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool, connect_args=limit)
    engine.connect().close()


@contextmanager
def store_errors(
    uri: str, doing: str, seconds: int = SECONDS_TO_ANSWER, retries: int = 1
) -> Iterator[None]:
    """Turns MLflow's exceptions into ours: what could not be done, where, why, in one line.

    Args:
        uri: the store.
        doing: what is done.
        seconds: that a server may take to answer, unless the user has said otherwise
            (MLFLOW_HTTP_REQUEST_TIMEOUT).
        retries: at once, as where a connection was closed from lack of use; again unless the user
            has said otherwise (MLFLOW_HTTP_REQUEST_MAX_RETRIES).

    Raises:
        OutOfReach: the server, or the database, does not answer, or cannot at the moment.
        Refused: it does not let this user in.
        TrackingError: any other refusal.
        OSError: the disk of a local store.
    """
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with _patience(seconds, retries):
            yield
    except ModuleNotFoundError as error:  # the driver of a database
        raise TrackingError(
            f"cannot {doing} in {without_password(uri)}: {_no_driver(error)}"
        ) from error
    except (MlflowException, SQLAlchemyError, RequestException) as error:
        reason = without_password(str(error).strip())
        lines = reason.splitlines() or [type(error).__name__]
        where = without_password(uri)
        if is_server(uri):
            waited = os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT", seconds)
            raise _server_error(error, f"cannot {doing} in {where}", lines[0], waited) from error
        if re.search(r"disk is full|disk I/O error|readonly database|unable to open", reason):
            message = f"cannot {doing} in {where}: {lines[0]}"
            raise OSError(errno.ENOSPC if "disk" in reason else errno.EACCES, message) from error
        kind = _database_error(error, reason) if is_database_server(uri) else TrackingError
        raise kind(f"cannot {doing} in {where}: {clipped(lines[0], 400)}") from error


@contextmanager
def _patience(seconds: int, retries: int) -> Iterator[None]:
    """MLflow reads at each request how long to wait, and how often to ask again."""
    wanted = {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(seconds),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(retries),
    }
    ours = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


def _database_error(error: BaseException, said: str) -> type[TrackingError]:
    """Whether a database is away, refuses, or is asked for something wrong."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import DBAPIError, OperationalError

    if isinstance(error, MlflowException):
        away = error.error_code == "TEMPORARILY_UNAVAILABLE"
    else:
        lost = isinstance(error, DBAPIError) and error.connection_invalidated
        away = isinstance(error, OperationalError) or lost
    if not away:
        return TrackingError
    return Refused if _NO_ENTRY.search(said) else OutOfReach


def _server_error(
    error: BaseException, what: str, said: str, seconds: int | str
) -> OutOfReach | Refused | TrackingError:
    """Whether a server is away, refuses, or is asked for something wrong."""
    import requests
    from mlflow.exceptions import RestException

    status: int | None = None
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, requests.exceptions.SSLError):
            return TrackingError(f"{what}: no encrypted connection ({clipped(said, 400)})")
        late = isinstance(cause, requests.ConnectionError) and "timed out" in str(cause)
        if late or isinstance(cause, requests.Timeout):
            return OutOfReach(f"{what}: no answer in {seconds} s")
        if isinstance(cause, requests.exceptions.RetryError):
            found = re.search(r"too many (\d+) error", str(cause))
            return OutOfReach(f"{what}: it answers {found.group(1) if found else 'with errors'}")
        if isinstance(cause, requests.ConnectionError | requests.exceptions.ChunkedEncodingError):
            found = re.search(r"\] ([A-Z][\w ]+)|(Failed to resolve '[^']*')", str(cause))
            return OutOfReach(f"{what}: {found.group(1) or found.group(2) if found else said}")
        if isinstance(cause, requests.HTTPError) and cause.response is not None:
            status = cause.response.status_code
        elif isinstance(cause, RestException) and "error_code" in cause.json:
            status = cause.get_http_status_code()
        elif found := re.search(r"failed with error code (\d+) ", str(cause)):
            status = int(found.group(1))
        if status is not None:
            break
        cause = cause.__cause__ or cause.__context__
    if status in (408, 429) or (status is not None and status >= 500):
        return OutOfReach(f"{what}: it answers {status}")
    if status in (401, 403):
        return Refused(
            f"{what}: the server refuses ({status}). MLflow takes a login from the variables "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        )
    hint = (
        ""
        if isinstance(error, RestException) and "error_code" in error.json
        else ("; is it the address of an MLflow server?")
    )
    return TrackingError(f"{what}: {clipped(said, 400)}{hint}")


def without_password(text: str) -> str:
    """`scheme://user:password@host` and `scheme://host?password=…` without the password.

    >>> without_password("postgresql://me:secret@host/db"), without_password("a://h?password=x&y=1")
    ('postgresql://me:***@host/db', 'a://h?password=***&y=1')
    """
    return _PASSWORD.sub(lambda found: f"{found[1] or found[2]}***", str(text))


def server_name(uri: str) -> str:
    """The address of a server as it is kept and compared: without password."""
    return without_password(uri).rstrip("/")


def local_folder(artifact_uri: str) -> Path | None:
    """The folder behind a `file:` URI or plain path; None for a remote store."""
    parts = urlsplit(artifact_uri)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return None if "://" in artifact_uri or ":/" in artifact_uri else Path(artifact_uri)


def clipped(text: str, limit: int) -> str:
    """A text of at most `limit` characters; a longer one ends in `…`."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
