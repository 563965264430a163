"""A Chromium without a window, driven through its DevTools protocol over a pipe: the standard library is enough."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from select import select
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ANSWER_LIMIT = 240.0  # seconds, on two cores that do much else

_START = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execvp(sys.argv[3], sys.argv[3:])
"""


def find_chromium() -> str | None:
    """Path of the browser named by $CHROMIUM, or of the first one on the PATH."""
    return next(filter(None, map(shutil.which, filter(None, (os.environ.get("CHROMIUM"), *NAMES)))), None)


def _moved_up(descriptor: int) -> int:
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD, 10)
    os.close(descriptor)
    return moved


class BrowserError(AssertionError):
    """What the page threw, or the browser refused."""


class Page:
    """One page. Its console's errors, and exceptions that nobody caught, are in ``errors``."""

    def __init__(self, executable: str, profile: Path) -> None:
        reads, sends = os.pipe()
        receives, writes = os.pipe()
        # The browser reads from descriptor 3 and writes to 4; higher ones are not in the way of these two
        reads, writes = (_moved_up(descriptor) for descriptor in (reads, writes))
        command = [executable, "--headless=new", "--no-sandbox", "--remote-debugging-pipe", "--disable-gpu"]
        command += ["--no-first-run", "--disable-dev-shm-usage", "--hide-scrollbars", f"--user-data-dir={profile}"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, str(reads), str(writes), *command],
            pass_fds=(reads, writes),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(reads)
        os.close(writes)
        self._out, self._in, self._buffer, self._number, self._session = os.fdopen(sends, "wb"), receives, b"", 0, ""
        self.errors: list[str] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def close(self) -> None:
        try:
            session, self._session = self._session, ""
            self.send("Browser.close")
            self._session = session
            self._process.wait(10)
        except (OSError, BrowserError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        with suppress(OSError):
            self._out.close()
        os.close(self._in)

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The browser's answer to a command; what it reports meanwhile is kept."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._out.write(json.dumps(message).encode() + b"\0")
        self._out.flush()
        limit = time.monotonic() + ANSWER_LIMIT
        while True:
            answer = self._receive(limit)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise BrowserError(f"{method}: {answer['error']['message']}")
                return dict(answer["result"])
            self._note(answer)

    def _receive(self, limit: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select([self._in], [], [], max(0.0, limit - time.monotonic()))
            part = os.read(self._in, 1 << 20) if ready else b""
            if not part:
                raise BrowserError("the browser does not answer")
            self._buffer += part
        message, self._buffer = self._buffer.split(b"\0", 1)
        return dict(json.loads(message))

    def _note(self, event: Mapping[str, Any]) -> None:
        details = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            thrown = details["exceptionDetails"]
            self.errors.append(thrown.get("exception", {}).get("description", thrown["text"]))
        elif event.get("method") == "Runtime.consoleAPICalled" and details["type"] in ("error", "assert"):
            words = " ".join(str(a.get("value", a.get("description", ""))) for a in details["args"])
            frames = details.get("stackTrace", {}).get("callFrames", [])
            self.errors.append(" ".join([words, *(frame["url"] for frame in frames)]))
        elif event.get("method") == "Log.entryAdded" and details["entry"]["level"] == "error":
            self.errors.append(f"{details['entry']['text']} {details['entry'].get('url', '')}")

    def run(self, script: str) -> Any:
        """The JSON value of an expression, or of the promise that it gives."""
        # Kept by a name of the page: the browser collects a promise that only we wait for
        kept = f"globalThis.awaited = ({script})"
        result = self.send("Runtime.evaluate", expression=kept, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            thrown = result["exceptionDetails"]
            raise BrowserError(thrown.get("exception", {}).get("description", thrown["text"]))
        return result["result"].get("value")

    def wait_for(self, script: str, seconds: float = 240.0) -> Any:
        """The first value of an expression that is true in JavaScript's sense; an error counts as not yet."""
        limit, problem = time.monotonic() + seconds, "it is false"
        while time.monotonic() < limit:
            try:
                if value := self.run(script):
                    return value
            except BrowserError as error:
                problem = str(error)
            time.sleep(0.1)
        raise BrowserError(f"not within {seconds:.0f} s: {script} ({problem})")

    def open(self, url: str) -> None:
        self.send("Page.navigate", url=url)

    def resize(self, width: int, height: int, scale: float = 1.0) -> None:
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False
        )

    def press(self, key: str, code: int) -> None:
        """A key of the keyboard, by its DevTools name and Windows key code."""
        for kind in ("rawKeyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)
            if kind == "rawKeyDown" and key == "Enter":
                self.send("Input.dispatchKeyEvent", type="char", text="\r", key=key)

    def screenshot(self, path: Path, clip: Mapping[str, float] | None = None) -> None:
        """A picture of the page, or of the rectangle x, y, width, height of it, in the form that the file ends with."""
        options: dict[str, Any] = {"clip": {**clip, "scale": 1}} if clip else {}
        if path.suffix == ".webp":
            options["quality"] = 90
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(
            base64.b64decode(self.send("Page.captureScreenshot", format=path.suffix[1:], **options)["data"])
        )


@contextmanager
def browser(executable: str, profile: Path) -> Iterator[Page]:
    page = Page(executable, profile)
    try:
        yield page
    finally:
        page.close()
