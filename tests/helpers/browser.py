"""A headless Chromium controlled over its DevTools pipe, which renders pages as a reader's browser does."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MISSING = (
    "no Chromium here for the tests of the page; Debian: apt-get install --no-install-recommends chromium"
)
PATIENCE_S = 120.0


def chromium() -> str:
    """Return the path of the browser; empty if there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), "")


class Tab:
    """One open page: its requests, its errors and warnings, its rendering."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, from_browser
        self._rest, self._number, self._session = b"", 0, ""
        self.requests: list[str] = []
        self.complaints: list[str] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def open(self, path: Path, width: int = 1280, height: int = 800, scheme: str = "light") -> None:
        """Show a file in a window of that size and colour scheme; return once it is loaded."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.send(
            "Emulation.setEmulatedMedia",
            media="",
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )
        self.requests, self.complaints = [], []
        self.send("Page.navigate", url=path.resolve().as_uri())
        deadline = time.monotonic() + PATIENCE_S
        while self.ask("location.href") == "about:blank" or self.ask("document.readyState") != "complete":
            assert time.monotonic() < deadline, "the page never finished loading"
            time.sleep(0.05)

    def ask(self, expression: str) -> Any:
        """Return the value of a JavaScript expression in the page."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def screenshot(self, whole: bool = False) -> bytes:
        """Return a PNG of the window, or of the whole page."""
        return base64.b64decode(
            self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        )

    def pdf(self) -> bytes:
        """Return the page as printed on A4."""
        return base64.b64decode(
            self.send("Page.printToPDF", printBackground=True, paperWidth=8.27, paperHeight=11.69)["data"]
        )

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one DevTools command and return its answer; events in between are recorded."""
        self._number += 1
        session = {"sessionId": self._session} if self._session else {}
        os.write(
            self._to,
            json.dumps({"id": self._number, "method": method, "params": params, **session}).encode() + b"\0",
        )
        while True:
            message = self._next()
            if message.get("id") == self._number:
                assert "error" not in message, f"{method}: {message['error']}"
                result: dict[str, Any] = message["result"]
                return result
            self._note(message.get("method", ""), message.get("params", {}))

    def _note(self, event: str, params: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif event == "Log.entryAdded" and params["entry"]["level"] in ("warning", "error"):
            self.complaints.append(params["entry"]["text"])
        elif event in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
            self.complaints.append(json.dumps(params))

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE_S
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._from], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"Chromium sent nothing for {PATIENCE_S:.0f} s"
            received = os.read(self._from, 1 << 20)
            assert received, "Chromium ended"
            self._rest += received
        text, self._rest = self._rest.split(b"\0", 1)
        message: dict[str, Any] = json.loads(text)
        return message


@contextmanager
def browsing(profile: Path) -> Iterator[Tab]:
    """Yield a browser tab with an empty profile. It may read files only: every host name resolves to
    nowhere.
    """
    to_read, to_write = _pipe()
    from_read, from_write = _pipe()

    def at_three_and_four() -> None:
        os.dup2(to_read, 3)
        os.dup2(from_write, 4)

    flags = [
        "--headless=new",
        "--remote-debugging-pipe",
        f"--user-data-dir={profile}",
        "--no-first-run",
        "--disable-gpu",
        "--disable-dev-shm-usage",
    ]
    flags += [
        "--disable-background-networking",
        "--disable-component-update",
        "--host-resolver-rules=MAP * ~NOTFOUND",
    ]
    flags += ["--no-sandbox"] if os.geteuid() == 0 else []
    with (profile / "browser.log").open("wb") as log:
        process = subprocess.Popen(
            [chromium(), *flags], stdout=log, stderr=log, preexec_fn=at_three_and_four, close_fds=False
        )
    os.close(to_read)
    os.close(from_write)
    try:
        tab = Tab(to_write, from_read)
        yield tab
    finally:
        os.close(to_write)  # it ends when its pipe closes
        os.close(from_read)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _pipe() -> tuple[int, int]:
    """Make a pipe with both ends above 10, closed in child processes, so that they do not collide with 3 and
    4.
    """
    ends = os.pipe()
    moved = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends:
        os.close(end)
    return moved[0], moved[1]
