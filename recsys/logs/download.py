"""Download one file over HTTP: it goes on where it was cut off, and arrives whole or not at all.

What has arrived stands beside the target as `<name>.part`, with a note `<name>.part.json` of what
it is a part of. The target itself appears only when every byte is there and the caller's check has
passed, so nobody ever reads half a file or a log-in page under the name of a data set.
"""

from __future__ import annotations

import http.client
import json
import queue
import re
import secrets
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from recsys.logs.errors import LogError
from recsys.logs.files import sync

CONNECT_SECONDS = 5.0
STALL_SECONDS = 20.0
ATTEMPTS = 4
_BLOCK = 1 << 16
_RETRY_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})


class DownloadError(LogError):
    """A file could not be downloaded, or what arrived is not what was asked for."""


class _Interrupted(Exception):
    """The transfer broke in a way that may heal: the next attempt goes on from here."""


def download(
    url: str,
    target: Path,
    *,
    check: Callable[[Path], object] | None = None,
    connect_seconds: float = CONNECT_SECONDS,
    stall_seconds: float = STALL_SECONDS,
    attempts: int = ATTEMPTS,
    pause_seconds: float = 0.5,
) -> Path:
    """Fetch `url` into `target`, resuming what an earlier call had to leave.

    Args:
        url: an http or https address; redirects are followed.
        target: the file to write; replaced if it exists. Its folder must exist.
        check: called with the whole file before it gets its name; raises ValueError when the
            content is not what was wanted. The file is then removed, since resuming it is useless.
        connect_seconds: how long until the first answer must be there, name look-up and redirects
            included. A publisher out of reach is given up after this one wait, without a retry,
            so that the caller can turn to a mirror.
        stall_seconds: how long the transfer may stand still before it counts as cut off.
        attempts: how many attempts in a row may bring nothing new.
        pause_seconds: wait before the second attempt; doubled before each one after it.

    Returns:
        `target`.

    Raises:
        DownloadError: out of reach, refused, or cut off too often. What has arrived is kept.
        ValueError: whatever `check` raised.
        OSError: the file could not be written (disk full); what has arrived is kept.
    """
    if not url.startswith(("http://", "https://")):
        raise DownloadError(f"{url!r} is not an http or https address")
    part, note = _part(target), _note(target)
    fruitless, answered, most = 0, False, _size(part)
    while True:
        try:
            _receive(url, part, note, connect_seconds, stall_seconds)
            break
        except _Interrupted as error:
            answered = True
            problem = str(error)
        except TimeoutError as error:
            if not answered:
                raise DownloadError(f"{url}: {error}") from None
            problem = str(error)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code not in _RETRY_STATUS:
                raise DownloadError(f"{url}: HTTP {error.code} {error.reason}") from None
            answered = True
            problem = f"HTTP {error.code} {error.reason}"
        except urllib.error.URLError as error:
            if not answered:
                raise DownloadError(f"{url}: cannot be reached ({error.reason})") from None
            problem = str(error.reason)
        fruitless = 1 if _size(part) > most else fruitless + 1
        most = max(most, _size(part))
        if fruitless >= attempts:
            raise DownloadError(
                f"{url}: {problem}; gave up after {attempts} attempts that brought nothing new. "
                f"{_size(part):,} bytes are kept in {part}, the next call goes on from there"
            )
        time.sleep(pause_seconds * 2 ** (fruitless - 1))
    try:
        if check is not None:
            check(part)
    except ValueError:
        part.unlink(missing_ok=True)
        note.unlink(missing_ok=True)
        raise
    sync(part)
    part.replace(target)
    note.unlink(missing_ok=True)
    return target


def write_whole(target: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file aside of `target`, then give it that name: whole or not at all.

    Args:
        target: the file that shall appear, or be replaced.
        write: gets a path in the same folder and writes the content there.

    Raises:
        Whatever `write` raises; nothing is left behind then.
    """
    aside = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        write(aside)
        sync(aside)
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)


def _receive(
    url: str, part: Path, note: Path, connect_seconds: float, stall_seconds: float
) -> None:
    """One attempt: ask for what is missing and append it. Returns when the file is complete."""
    have, known = _size(part), _read_note(note, url)
    request = urllib.request.Request(
        url, headers={"User-Agent": "recsys-download", "Accept-Encoding": "identity"}
    )
    if have and known is not None:
        request.add_header("Range", f"bytes={have}-")
        if known.validator:
            request.add_header("If-Range", known.validator)
    try:
        response = _open(request, connect_seconds, stall_seconds)
    except urllib.error.HTTPError as error:
        if error.code == 416 and request.has_header("Range"):
            # Nothing lies behind what we have: either it is all, or it is of another file.
            error.close()
            if known is not None and known.total == have:
                return
            part.unlink()
            raise _Interrupted("what had arrived did not fit the file any more") from None
        raise
    except (urllib.error.URLError, TimeoutError):
        raise
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(f"the connection broke ({_words(error)})") from None
    with response:
        if response.status == 206:
            begin, total = _content_range(response)
            if begin != have or known is None or known.total not in (None, total):
                part.unlink(missing_ok=True)
                raise _Interrupted("the server sent another range than the one asked for")
        else:
            length = response.headers.get("Content-Length")
            total = int(length) if length is not None and length.isdigit() else None
            known = _Note(url, _validator(response), total)
            note.write_text(json.dumps(asdict(known)), encoding="utf-8")
        with part.open("ab" if response.status == 206 else "wb") as file:
            while True:
                # Only the reading is retried: a full disk must come out as what it is.
                try:
                    block = response.read1(_BLOCK)
                except (OSError, http.client.HTTPException) as error:
                    raise _Interrupted(f"the connection broke ({_words(error)})") from None
                if not block:
                    break
                file.write(block)
    have = _size(part)
    if total is not None and have != total:
        raise _Interrupted(f"the connection ended after {have:,} of {total:,} bytes")


def _open(
    request: urllib.request.Request, connect_seconds: float, stall_seconds: float
) -> http.client.HTTPResponse:
    """Open `request`; a server that has not answered after `connect_seconds` is out of reach.

    The wait stands in a thread because the socket's own time-out covers neither the name look-up
    nor the sum over a host's several addresses.
    """
    answers: queue.SimpleQueue[http.client.HTTPResponse | BaseException] = queue.SimpleQueue()

    def work() -> None:
        try:
            answers.put(urllib.request.urlopen(request, timeout=stall_seconds))
        except BaseException as error:  # raised again by the one who waits
            answers.put(error)

    threading.Thread(target=work, name="recsys-download", daemon=True).start()
    try:
        answer = answers.get(timeout=connect_seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {connect_seconds:g} s") from None
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _part(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def _note(target: Path) -> Path:
    return target.with_name(f"{target.name}.part.json")


@dataclass(frozen=True)
class _Note:
    """What a part is a part of: the server's mark of the version and the size, where it said so."""

    url: str
    validator: str | None
    total: int | None


def _read_note(path: Path, url: str) -> _Note | None:
    """The note beside a part, or None when the part must not be resumed from `url`."""
    try:
        note = _Note(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return note if note.url == url else None


def _validator(response: http.client.HTTPResponse) -> str | None:
    """What tells this version of the file from a later one; weak tags may not be used for it."""
    tag = response.headers.get("ETag")
    if tag and not tag.startswith("W/"):
        return tag
    return response.headers.get("Last-Modified")


def _content_range(response: http.client.HTTPResponse) -> tuple[int, int | None]:
    match = re.fullmatch(
        r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip()
    )
    if match is None:
        return -1, None
    return int(match[1]), None if match[2] == "*" else int(match[2])


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__
