"""A real Chromium without a window, driven by its DevTools protocol."""

from __future__ import annotations

__all__ = ["Browser", "find_chromium", "open_browser"]

import asyncio
import base64
import contextlib
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp

from .servers import end_with_parent

_START_SECONDS = 60.0
_CALL_SECONDS = 30.0
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
)


def find_chromium() -> str | None:
    """Find Chromium's program; `None`: it is not installed."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


class Browser:
    """One tab.

    Parameters
    ----------
    port : `int`
        Where its DevTools listen.
    """

    def __init__(self, port: int):
        self._loop = asyncio.new_event_loop()
        self._number = 0
        self.complaints: list[str] = []
        """Errors and warnings of its console, uncaught errors, and requests that failed by our fault."""
        self._session = self._run(self._open_session())
        self._socket = self._run(self._connect(port))
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    async def _open_session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession()

    async def _connect(self, port: int) -> aiohttp.ClientWebSocketResponse:
        async with self._session.get(f"http://127.0.0.1:{port}/json") as answer:
            targets = await answer.json()
        url = next(t["webSocketDebuggerUrl"] for t in targets if t["type"] == "page")
        return await self._session.ws_connect(url, max_msg_size=64 << 20)

    def _run(self, task: Any) -> Any:
        return self._loop.run_until_complete(asyncio.wait_for(task, _CALL_SECONDS))

    def close(self) -> None:
        """Let go of the tab."""
        self._run(self._socket.close())
        self._run(self._session.close())
        self._loop.close()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol."""
        result: dict[str, Any] = self._run(self._call(method, parameters))
        return result

    async def _call(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        self._number += 1
        number = self._number
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = await self._socket.receive_json()
            if message.get("id") == number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return dict(message["result"])
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        parameters = message.get("params", {})
        if message["method"] == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(parameters["exceptionDetails"])[:1000])
        elif message["method"] == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning"):
            self.complaints.append(json.dumps(parameters["args"])[:1000])
        elif message["method"] == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
            self.complaints.append(f"{parameters['entry']['text']} {parameters['entry'].get('url', '')}")

    def go(self, url: str) -> None:
        """Load a page, without waiting for more than its beginning."""
        self.call("Page.navigate", url=url)

    def see(self, expression: str) -> Any:
        """Evaluate JavaScript in the page and return its value."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(json.dumps(result["exceptionDetails"])[:1000])
        return result["result"].get("value")

    def await_sight(self, expression: str, timeout: float = 20.0) -> Any:
        """Wait until JavaScript gives something true, and return that."""
        deadline = time.monotonic() + timeout
        while True:
            found = self.see(expression)
            if found:
                return found
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {timeout:g} s in vain for {expression}")
            time.sleep(0.1)

    def resize(self, width: int, height: int) -> None:
        """Give the tab a size, CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def scheme(self, name: str) -> None:
        """Prefer ``light`` or ``dark``."""
        features = [{"name": "prefers-color-scheme", "value": name}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def picture(self, path: Path) -> None:
        """Draw what the tab shows to a PNG file."""
        data = self.call("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))


@contextlib.contextmanager
def open_browser() -> Iterator[Browser]:
    """Start Chromium, and end it.

    Raises
    ------
    RuntimeError
        Raised if it is not installed, or does not start.
    """
    program = find_chromium()
    if program is None:
        raise RuntimeError("Chromium is needed: apt-get install chromium")
    with tempfile.TemporaryDirectory(prefix="ppd-browser-", ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [program, *_FLAGS, f"--user-data-dir={folder}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
        try:
            browser = Browser(_await_port(Path(folder), process))
            try:
                yield browser
            finally:
                browser.close()
        finally:
            process.terminate()
            try:
                process.wait(10.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10.0)


def _await_port(folder: Path, process: subprocess.Popen[bytes]) -> int:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError, ValueError, LookupError):
            return int((folder / "DevToolsActivePort").read_text().splitlines()[0])
        time.sleep(0.05)
    raise RuntimeError(f"Chromium did not start ({process.poll()}).")
