"""A publisher on this machine: an HTTP server that can be told how to misbehave."""

import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


@dataclass
class Publisher:
    """What the server offers and what it was asked.

    Attributes:
        address: "http://127.0.0.1:PORT".
        files: path → content.
        tags: path → ETag; sent, and honoured in If-Range, where given.
        cuts: path → after how many bytes each coming answer is cut off; one entry an answer.
        statuses: path → statuses of the coming answers, before the file is served.
        no_ranges: paths that are always served whole.
        chunked: paths served without a length.
        asked: (path, Range header or None) of each request, in order.
        sent: path → bytes of content sent.
        speaking: while it is clear, requests wait without an answer.
    """

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    cuts: dict[str, list[int]] = field(default_factory=dict)
    statuses: dict[str, list[int]] = field(default_factory=dict)
    no_ranges: set[str] = field(default_factory=set)
    chunked: set[str] = field(default_factory=set)
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    sent: Counter = field(default_factory=Counter)
    speaking: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    state = Publisher()
    state.speaking.set()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.close_connection = True
            path, wanted = self.path, self.headers.get("Range")
            state.asked.append((path, wanted))
            state.speaking.wait(60)
            if state.statuses.get(path):
                self.send_response(state.statuses[path].pop(0))
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if path not in state.files:
                self.send_error(404)
                return
            body, tag, begin = state.files[path], state.tags.get(path), 0
            same = self.headers.get("If-Range") in (None, tag)
            if wanted and same and path not in state.no_ranges:
                begin = int(wanted.removeprefix("bytes=").removesuffix("-"))
                if begin >= len(body):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(body)}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {begin}-{len(body) - 1}/{len(body)}")
            else:
                self.send_response(200)
            if tag:
                self.send_header("ETag", tag)
            rest = body[begin:]
            cut = state.cuts[path].pop(0) if state.cuts.get(path) else len(rest)
            if path in state.chunked:
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                self.wfile.write(b"%x\r\n%s\r\n" % (len(rest[:cut]), rest[:cut]))
                if cut >= len(rest):
                    self.wfile.write(b"0\r\n\r\n")
            else:
                self.send_header("Content-Length", str(len(rest)))
                self.end_headers()
                self.wfile.write(rest[:cut])
            state.sent[path] += len(rest[:cut])

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield state
    state.speaking.set()
    server.shutdown()
    server.server_close()
    thread.join()
