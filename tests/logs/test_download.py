"""The downloader against a publisher that misbehaves in each way that publishers do."""

import errno
import os
import resource
import socket
from pathlib import Path

import pytest

from recsys.logs import download as module
from recsys.logs.download import DownloadError, download, write_whole

CONTENT = bytes(range(256)) * 2_000  # 512,000 bytes


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fetch(publisher, target, **options):
    publisher.files.setdefault("/file", CONTENT)
    return download(publisher.address + "/file", target, pause_seconds=0.0, **options)


def test_whole_file_arrives_and_nothing_else(publisher, tmp_path):
    assert fetch(publisher, tmp_path / "f").read_bytes() == CONTENT
    assert names(tmp_path) == ["f"]


def test_an_existing_file_is_replaced(publisher, tmp_path):
    (tmp_path / "f").write_text("old")
    assert fetch(publisher, tmp_path / "f").read_bytes() == CONTENT


def test_file_without_a_length_arrives(publisher, tmp_path):
    publisher.chunked.add("/file")
    assert fetch(publisher, tmp_path / "f").read_bytes() == CONTENT


@pytest.mark.parametrize("tag", ['"v1"', None, 'W/"weak"'])
def test_cut_connection_goes_on_where_it_was_cut(publisher, tmp_path, tag):
    publisher.cuts["/file"] = [100_000, 7]
    if tag:
        publisher.tags["/file"] = tag
    assert fetch(publisher, tmp_path / "f").read_bytes() == CONTENT
    assert publisher.asked == [
        ("/file", None),
        ("/file", "bytes=100000-"),
        ("/file", "bytes=100007-"),
    ]
    assert publisher.sent["/file"] == len(CONTENT)


def test_cut_file_without_a_length_is_not_taken_for_whole(publisher, tmp_path):
    publisher.chunked.add("/file")
    publisher.cuts["/file"] = [100_000]
    assert fetch(publisher, tmp_path / "f").read_bytes() == CONTENT


def test_server_without_ranges_starts_again(publisher, tmp_path):
    publisher.no_ranges.add("/file")
    publisher.cuts["/file"] = [100_000, 50_000]
    assert fetch(publisher, tmp_path / "f").read_bytes() == CONTENT


def test_endless_cuts_end_in_an_error_and_keep_what_arrived(publisher, tmp_path):
    publisher.cuts["/file"] = [100_000] + [0] * 50
    with pytest.raises(DownloadError, match=r"100,000 of 512,000 bytes.*are kept in"):
        fetch(publisher, tmp_path / "f")
    assert len(publisher.asked) == 1 + module.ATTEMPTS - 1
    assert names(tmp_path) == ["f.part", "f.part.json"]
    publisher.cuts.clear()
    publisher.sent.clear()
    assert fetch(publisher, tmp_path / "f").read_bytes() == CONTENT
    assert publisher.sent["/file"] == len(CONTENT) - 100_000
    assert names(tmp_path) == ["f"]


def test_many_cuts_are_borne_while_each_attempt_brings_something(publisher, tmp_path):
    publisher.cuts["/file"] = [1_000] * (3 * module.ATTEMPTS)
    assert fetch(publisher, tmp_path / "f").read_bytes() == CONTENT
    assert publisher.sent["/file"] == len(CONTENT)


def test_endless_cuts_of_a_server_without_ranges_end_too(publisher, tmp_path):
    publisher.no_ranges.add("/file")
    publisher.cuts["/file"] = [100, 50] * 50
    with pytest.raises(DownloadError, match="gave up"):
        fetch(publisher, tmp_path / "f")


def cut_short(publisher, target, at=100_000):
    publisher.cuts["/file"] = [at] + [0] * 3
    with pytest.raises(DownloadError):
        fetch(publisher, target)
    publisher.cuts.clear()
    publisher.asked.clear()


def test_part_of_another_version_is_thrown_away(publisher, tmp_path):
    publisher.tags["/file"] = '"v1"'
    cut_short(publisher, tmp_path / "f")
    publisher.files["/file"], publisher.tags["/file"] = CONTENT[::-1], '"v2"'
    assert fetch(publisher, tmp_path / "f").read_bytes() == CONTENT[::-1]


def test_part_of_a_file_of_another_size_is_thrown_away(publisher, tmp_path):
    cut_short(publisher, tmp_path / "f")
    publisher.files["/file"] = CONTENT[::-1] + b"more"
    assert fetch(publisher, tmp_path / "f").read_bytes() == CONTENT[::-1] + b"more"


def test_part_longer_than_the_file_is_thrown_away(publisher, tmp_path):
    cut_short(publisher, tmp_path / "f")
    publisher.files["/file"] = b"short"
    assert fetch(publisher, tmp_path / "f").read_bytes() == b"short"


def test_part_from_another_address_is_thrown_away(publisher, tmp_path):
    cut_short(publisher, tmp_path / "f")
    publisher.files["/other"] = CONTENT[::-1]
    download(publisher.address + "/other", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT[::-1]
    assert publisher.asked == [("/other", None)]


@pytest.mark.parametrize("note", ["", "[]", '{"url": 1}', "{"])
def test_part_with_a_spoilt_note_is_thrown_away(publisher, tmp_path, note):
    (tmp_path / "f.part").write_bytes(b"of what?")
    (tmp_path / "f.part.json").write_text(note)
    assert fetch(publisher, tmp_path / "f").read_bytes() == CONTENT


def test_part_that_is_already_whole_is_not_fetched_again(publisher, tmp_path):
    cut_short(publisher, tmp_path / "f")
    (tmp_path / "f.part").write_bytes(CONTENT)
    assert fetch(publisher, tmp_path / "f").read_bytes() == CONTENT
    assert publisher.asked == [("/file", f"bytes={len(CONTENT)}-")]


def test_wrong_content_is_removed_and_the_old_file_stays(publisher, tmp_path):
    (tmp_path / "f").write_text("old")

    def check(path: Path) -> None:
        assert path.read_bytes() == CONTENT
        raise ValueError("this is not it")

    with pytest.raises(ValueError, match="this is not it"):
        fetch(publisher, tmp_path / "f", check=check)
    assert (tmp_path / "f").read_text() == "old"
    assert names(tmp_path) == ["f"]


def test_missing_file_is_not_asked_for_twice(publisher, tmp_path):
    with pytest.raises(DownloadError, match=r"/none: HTTP 404"):
        download(publisher.address + "/none", tmp_path / "f")
    assert len(publisher.asked) == 1
    assert names(tmp_path) == []


def test_busy_server_is_asked_again(publisher, tmp_path):
    publisher.statuses["/file"] = [503, 429]
    assert fetch(publisher, tmp_path / "f").read_bytes() == CONTENT
    publisher.statuses["/file"] = [503] * 50
    with pytest.raises(DownloadError, match="HTTP 503"):
        fetch(publisher, tmp_path / "f")


def test_closed_port_is_out_of_reach_at_the_first_attempt(tmp_path, monkeypatch):
    monkeypatch.setattr(module.time, "sleep", lambda seconds: pytest.fail("waited for a retry"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(DownloadError, match="cannot be reached"):
        download(f"http://127.0.0.1:{port}/f", tmp_path / "f")
    assert names(tmp_path) == []


@pytest.mark.timeout(15)
def test_silent_server_is_out_of_reach_at_the_first_attempt(publisher, tmp_path):
    publisher.speaking.clear()
    with pytest.raises(DownloadError, match=r"no answer within 0\.2 s"):
        fetch(publisher, tmp_path / "f", connect_seconds=0.2)
    assert len(publisher.asked) == 1


def test_only_the_web_is_read(tmp_path):
    with pytest.raises(DownloadError, match="not an http or https address"):
        download((tmp_path / "f").as_uri(), tmp_path / "g")


def test_full_disk_comes_out_as_such_and_the_part_is_kept(publisher, tmp_path):
    publisher.tags["/file"] = '"v1"'
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
        with pytest.raises(OSError) as caught:
            fetch(publisher, tmp_path / "f")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert not (tmp_path / "f").exists()
    assert fetch(publisher, tmp_path / "f").read_bytes() == CONTENT
    assert publisher.sent["/file"] < 2 * len(CONTENT)


def test_write_whole_leaves_the_old_file_when_writing_fails(tmp_path):
    (tmp_path / "f").write_text("old")

    def write(path: Path) -> None:
        path.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError):
        write_whole(tmp_path / "f", write)
    assert names(tmp_path) == ["f"]
    assert (tmp_path / "f").read_text() == "old"
    write_whole(tmp_path / "f", lambda path: path.write_text("new"))
    assert (tmp_path / "f").read_text() == "new"
    assert names(tmp_path) == ["f"]
