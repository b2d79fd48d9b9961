"""A real browser for the tests of pages."""

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update",
    "--disable-background-networking", "--disable-sync", "--window-size=1300,900",
    "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",  # a camera that films a clock
]  # fmt: skip


class Browser:
    """Chromium driven over its debugging pipe: JSON messages ended by a zero byte, on descriptors 3 and 4."""

    ready = "true"  # what is true in the page once it can be used
    own: tuple[str, ...] = ("data:", "file:")  # how addresses begin that a page may ask for

    def __init__(self, executable: str, profile: Path) -> None:
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        shell = f'exec "$0" "$@" 3<&{to_read} 4>&{to_write}'
        command = ["bash", "-c", shell, executable, *FLAGS, f"--user-data-dir={profile}", "--remote-debugging-pipe"]
        self._process = subprocess.Popen(
            command, pass_fds=(to_read, to_write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(to_read)
        os.close(to_write)
        self._buffer, self._number, self.problems = b"", 0, []
        target = self.send("Target.createTarget", {"url": "about:blank"})["targetId"]
        self._session = self.send("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable", {})

    def send(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if hasattr(self, "_session"):
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            chunk = os.read(self._read, 1 << 16)
            assert chunk, "the browser has died"
            self._buffer += chunk
        text, self._buffer = self._buffer.split(b"\0", 1)
        message = json.loads(text)
        if message.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
            self.problems.append(message["params"])
        url = message.get("params", {}).get("request", {}).get("url", "")
        if message.get("method") == "Network.requestWillBeSent" and not url.startswith(self.own):
            self.problems.append(message["params"])
        return message

    def open(self, page: Path | str, fragment: str = "") -> None:
        address = page if isinstance(page, str) else page.resolve().as_uri()
        self.send("Page.navigate", {"url": "about:blank"})
        self.send("Page.navigate", {"url": address + fragment})
        self.wait(f"document.readyState === 'complete' && {self.ready}")

    def wait(self, condition: str) -> None:
        """Until a condition of the page holds."""
        for _ in range(400):
            if self.run(condition):
                return
            time.sleep(0.05)
        raise AssertionError(f"{condition} did not come true")

    def run(self, script: str) -> Any:
        answer = self.send("Runtime.evaluate", {"expression": script, "returnByValue": True, "awaitPromise": True})
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def set(self, element: str, value: Any) -> None:
        """What a user's hand on a control does."""
        self.run(
            f"(() => {{ const e = document.getElementById('{element}'); e.value = {json.dumps(value)};"
            " e.dispatchEvent(new Event('input')); e.dispatchEvent(new Event('change')); })()"
        )

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", {})["data"]))

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(10)


AnyBrowser = TypeVar("AnyBrowser", bound=Browser)


def started(kind: type[AnyBrowser], profile: Path) -> Iterator[AnyBrowser]:
    """A browser for the tests of a module; they are skipped where there is none."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    browser = kind(CHROMIUM, profile)
    yield browser
    browser.close()
