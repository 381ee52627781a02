"""A headless Chromium that shows pages, says what stands in them and takes pictures.

It is spoken to over two pipes, in the DevTools protocol: JSON texts that end in a zero byte.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next((found for name in NAMES if (found := shutil.which(name))), None)
WHY_NOT = f"no browser on the PATH: none of {', '.join(NAMES)}"
SECONDS = 30.0
PANEL = (("panelOpen_v1", "false"), ("fab.autoOpenedOnFirstLoad_v1", "true"))

TEXT = "document.body ? document.body.innerText : ''"
# How many pixels wide the pictures are that the server sent.
PICTURES = """[...document.querySelectorAll('img')]
    .filter(i => /artifact|^blob:/.test(i.src)).map(i => i.naturalWidth)"""


class Browser:
    """One browser with one page; use it as a context manager."""

    def __init__(self, profile: Path, width: int = 1600, height: int = 1000) -> None:
        """Starts it.

        Args:
            profile: a folder for what it keeps.
            width: of the window, in pixels.
            height: of the window.
        """
        assert CHROMIUM is not None, WHY_NOT
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()

        def wire() -> None:  # Chromium reads from 3 and writes to 4
            ends = os.dup(to_browser), os.dup(from_browser)
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        self._process = subprocess.Popen(
            [
                CHROMIUM,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--hide-scrollbars",
                "--disable-features=IsolateSandboxedIframes",  # reports are shown in such a frame
                f"--user-data-dir={profile}",
                f"--window-size={width},{height}",
                "--remote-debugging-pipe",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=wire,
            close_fds=False,
            start_new_session=True,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._number = 0
        self._rest = b""
        self._session: str | None = None
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        attached = self.ask("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        self.ask("Page.enable")
        # MLflow's assistant would take a third of the window.
        closed = "".join(f"localStorage.setItem('mlflow.assistant.{k}', '{v}');" for k, v in PANEL)
        self.ask("Page.addScriptToEvaluateOnNewDocument", source=f"try {{{closed}}} catch (e) {{}}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._write)  # without anyone to speak to it ends
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read)

    def ask(self, method: str, **arguments: Any) -> dict[str, Any]:
        """One command of the protocol, and what came back."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": arguments}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = json.loads(self._next())
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return dict(answer["result"])

    def _next(self) -> bytes:
        while b"\0" not in self._rest:
            more = os.read(self._read, 1 << 16)
            assert more, "the browser ended by itself"
            self._rest += more
        message, _, self._rest = self._rest.partition(b"\0")
        return message

    def evaluate(self, script: str, **where: Any) -> Any:
        """The value of a script in the page."""
        answer = self.ask("Runtime.evaluate", expression=script, returnByValue=True, **where)
        return answer["result"].get("value")

    def text(self) -> str:
        """What a person reads: the text of the page and of the pages in it."""
        children = self.ask("Page.getFrameTree")["frameTree"].get("childFrames", [])
        texts = [self.evaluate(TEXT)]
        for frame in (child["frame"]["id"] for child in children):
            world = self.ask("Page.createIsolatedWorld", frameId=frame)["executionContextId"]
            texts.append(self.evaluate(TEXT, contextId=world))
        return "\n".join(map(str, texts))

    def shows(self, address: str, *words: str) -> str:
        """The text of a page, once all these words stand in it.

        Raises:
            AssertionError: some do not, however long one waits.
        """
        self.ask("Page.navigate", url="about:blank")  # else a new #place is no new page
        self.ask("Page.navigate", url=address)
        return self.await_words(*words)

    def await_words(self, *words: str) -> str:
        """The text of the page that is open, once all these words stand in it."""
        end, text = time.monotonic() + SECONDS, ""
        while time.monotonic() < end:
            text = self.text()
            if all(word in text for word in words):
                return text
            time.sleep(0.1)
        missing = [word for word in words if word not in text]
        raise AssertionError(f"the page does not show {missing}: {text[:3000]}")

    def picture(self, path: Path) -> None:
        """Keeps what is in the window as a PNG."""
        shot = self.ask("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(shot["data"]))

    def await_pictures(self, count: int) -> list[int]:
        """The widths of the pictures of the page that is open, once so many have arrived."""
        end, widths = time.monotonic() + SECONDS, []
        while time.monotonic() < end:
            widths = [width for width in self.evaluate(PICTURES) if width]
            if len(widths) >= count:
                return widths
            time.sleep(0.1)
        raise AssertionError(f"{len(widths)} of {count} pictures arrived")
