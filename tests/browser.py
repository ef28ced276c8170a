"""A headless Chromium, driven through its DevTools protocol over a pair of pipes."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

CHROMIUM: Final = shutil.which("chromium") or shutil.which("chromium-browser")
_FLAGS: Final = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-extensions",
    "--disable-sync", "--no-default-browser-check", "--remote-debugging-pipe",
)  # fmt: skip
_START: Final = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); "
    "os.execv(sys.argv[3], sys.argv[3:])"
)
_KEYS: Final = {
    "Enter": 13, "Tab": 9, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39,
    "ArrowDown": 40, "Home": 36, "End": 35,
}  # fmt: skip
_TYPED: Final = {"Enter": "\r"}
_PATIENCE: Final = 60  # s


class Page:
    """One page; :attr:`complaints` are its errors and its refused or failed requests."""

    def __init__(self, to: int, back: int) -> None:
        self._to, self._back, self._said, self._last = to, back, b"", 0
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._loaded = False
        self._session: dict[str, str] = {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> Any:
        """What the browser answers to a command."""
        self._last += 1
        number = self._last
        message = {"id": number, "method": method, "params": params, **self._session}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            said = self._hear()
            if said.get("id") == number:
                assert "error" not in said, said
                return said["result"]

    def _hear(self) -> dict[str, Any]:
        until = time.monotonic() + _PATIENCE
        while b"\0" not in self._said:
            ready, _, _ = select.select([self._back], [], [], max(0, until - time.monotonic()))
            heard = os.read(self._back, 1 << 20) if ready else b""
            assert heard, "the browser says nothing"
            self._said += heard
        first, _, self._said = self._said.partition(b"\0")
        said: dict[str, Any] = json.loads(first)
        self._note(said.get("method", ""), said.get("params", {}))
        return said

    def _note(self, event: str, params: dict[str, Any]) -> None:
        self._loaded |= event == "Page.loadEventFired"
        if event == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        if event in ("Runtime.exceptionThrown", "Log.entryAdded", "Network.loadingFailed",
                     "Page.javascriptDialogOpening"):  # fmt: skip
            self.complaints.append(f"{event}: {json.dumps(params)}")
        if event == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.complaints.append(f"{event}: {json.dumps(params)}")

    def open(self, path: Path) -> None:
        """Shows a file, loaded wholly."""
        self.complaints.clear()
        self.requests.clear()
        self._loaded = False
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not self._loaded:
            self._hear()

    def run(self, script: str) -> Any:
        """The value of an expression."""
        said = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in said, said
        return said["result"].get("value")

    def press(self, *keys: str) -> None:
        """Keys, one after another, as a person presses them."""
        for key in keys:
            code = _KEYS[key]
            typed = {"text": _TYPED[key]} if key in _TYPED else {}
            named = {"key": key, "code": key, "windowsVirtualKeyCode": code}
            self.call("Input.dispatchKeyEvent", type="keyDown", **named, **typed)
            self.call("Input.dispatchKeyEvent", type="keyUp", **named)

    def size(self, width: int, height: int) -> None:
        """The window's, in CSS px."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=width < 600)  # fmt: skip

    def colours(self, scheme: str) -> None:
        """What the system prefers, light or dark."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def picture(self, *, whole: bool = False) -> bytes:
        """A screenshot, PNG."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        return base64.b64decode(shot["data"])


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """A page of a browser of its own, whose profile is an empty folder."""
    assert CHROMIUM
    theirs, to = os.pipe()
    back, answers = os.pipe()
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (theirs, answers)]  # 3 and 4 stay free
    process = subprocess.Popen(
        [sys.executable, "-c", _START, *map(str, ends), CHROMIUM, *_FLAGS,
         f"--user-data-dir={profile}"],
        pass_fds=ends, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    for end in (theirs, answers, *ends):
        os.close(end)
    try:
        yield Page(to, back)
    finally:
        process.kill()
        process.wait()
        os.close(to)
        os.close(back)
