"""A real headless browser, driven over its own pipe (Chrome DevTools Protocol).

There is nothing to install but the browser itself, and no port is opened.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ANSWERS_WITHIN = 300.0
"""Seconds after which a browser is taken for stuck, on however busy a machine."""

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


def found() -> str | None:
    """Path of a browser, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def browser() -> Iterator[Tab]:
    """A browser with one empty tab."""
    path = found()
    assert path is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        theirs_in, ours_out = _pipe()
        ours_in, theirs_out = _pipe()
        arguments = [
            *(path, "--headless", "--remote-debugging-pipe", f"--user-data-dir={profile}"),
            *("--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"),
            *("--force-color-profile=srgb", "--disable-dev-shm-usage", "about:blank"),
        ]
        null = os.open(os.devnull, os.O_RDWR)
        process = os.posix_spawn(
            path,
            arguments,
            {**os.environ, "HOME": profile},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, theirs_in, 3),
                (os.POSIX_SPAWN_DUP2, theirs_out, 4),
                *((os.POSIX_SPAWN_DUP2, null, stream) for stream in (0, 1, 2)),
            ],
        )
        for end in (theirs_in, theirs_out, null):
            os.close(end)
        try:
            yield Tab(ours_in, ours_out)
        finally:
            os.close(ours_out)
            os.close(ours_in)
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)


def _pipe() -> tuple[int, int]:
    """A pipe whose ends are not among the numbers the browser wants for itself."""
    ends = os.pipe()
    moved = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends:
        os.close(end)
    return moved[0], moved[1]


class Tab:
    """One tab. Events are kept as they come: script errors, log entries, requests."""

    def __init__(self, incoming: int, outgoing: int) -> None:
        self.incoming, self.outgoing = incoming, outgoing
        self.buffer, self.count = b"", 0
        self.events: list[dict[str, Any]] = []
        self.session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self.count += 1
        message: dict[str, Any] = {"id": self.count, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.outgoing, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self.count:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.incoming], [], [], ANSWERS_WITHIN)
            assert ready, "the browser does not answer"
            chunk = os.read(self.incoming, 1 << 16)
            assert chunk, "the browser ended"
            self.buffer += chunk
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def open(self, page: Path) -> None:
        """Load a page and wait until it is there."""
        self.events = [e for e in self.events if e["method"] != "Page.loadEventFired"]
        self.call("Page.navigate", url=page.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive())

    def run(self, script: str) -> Any:
        """Value of an expression in the page; an error in it fails the test."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def pointer(self, kind: str, x: float, y: float, pressed: bool = False) -> None:
        """Move, press or release the mouse, as the window system would."""
        button = "none" if kind == "mouseMoved" and not pressed else "left"
        self.call(
            "Input.dispatchMouseEvent",
            type=kind,
            x=x,
            y=y,
            button=button,
            buttons=int(pressed),
            clickCount=int(kind != "mouseMoved"),
        )

    def click(self, x: float, y: float) -> None:
        """Press and release."""
        self.pointer("mouseMoved", x, y)
        self.pointer("mousePressed", x, y, pressed=True)
        self.pointer("mouseReleased", x, y)

    def size(self, width: int, height: int) -> None:
        """Size of the window."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def prefer(self, scheme: str) -> None:
        """What `prefers-color-scheme` is: light or dark."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def screenshot(self, file: Path) -> None:
        """What the window shows, as PNG."""
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def requests(self) -> list[str]:
        """Addresses the page asked for, itself and `data:` left out."""
        sent = [e for e in self.events if e["method"] == "Network.requestWillBeSent"]
        urls = [event["params"]["request"]["url"] for event in sent]
        return [url for url in urls if not url.startswith(("data:", "file:", "about:"))]

    def errors(self) -> list[Any]:
        """Script errors and everything the browser logged as an error."""
        return [
            event["params"]
            for event in self.events
            if event["method"] == "Runtime.exceptionThrown"
            or (
                event["method"] == "Log.entryAdded"
                and event["params"]["entry"]["level"] in ("error", "warning")
            )
        ]
