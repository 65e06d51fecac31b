"""Headless Chromium over its debugging pipe: the DevTools protocol without a port, and without a library."""

import base64
import io
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# SwiftShader draws WebGL2 on the processor. The others keep Chromium from talking to anybody; root needs no-sandbox.
FLAGS = [
    "--headless",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
]
PATIENCE = 120.0  # seconds; processors of test machines are busy
KEYS = {"ArrowUp": 38, "ArrowDown": 40, "ArrowLeft": 37, "ArrowRight": 39, "Home": 36, "End": 35, "Tab": 9, "Enter": 13}


class Browser:
    """One tab. Use it in a `with` block.

    Args:
        folder: for its profile.
        flags: beside `FLAGS`.

    Attributes:
        events: what Chromium reported, by method and parameters.
    """

    def __init__(self, folder: Path, *flags: str) -> None:
        assert CHROMIUM is not None
        to_read, own_write = os.pipe()
        own_read, to_write = os.pipe()
        # Chromium reads descriptor 3 and writes 4
        shell = f'exec "$@" 3<&{to_read} 4>&{to_write} 2>/dev/null'
        words = [CHROMIUM, *FLAGS, *flags, "--remote-debugging-pipe", f"--user-data-dir={folder}"]
        self._process = subprocess.Popen(["bash", "-c", shell, "bash", *words], pass_fds=(to_read, to_write))
        os.close(to_read)
        os.close(to_write)
        self._read, self._write = own_read, own_write
        self._buffer = b""
        self._numbers = itertools.count(1)
        self._session: dict[str, str] = {}
        self.events: list[tuple[str, dict[str, Any]]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *problem: object) -> None:
        self._process.terminate()
        self._process.wait(30)
        os.close(self._read)
        os.close(self._write)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the protocol, and its answer."""
        number = next(self._numbers)
        os.write(
            self._write,
            json.dumps({"id": number, "method": method, "params": parameters, **self._session}).encode() + b"\0",
        )
        while True:
            message = self._message()
            if message.get("id") == number:
                assert "error" not in message, (method, message["error"])
                return message["result"]
            if "method" in message:
                self.events.append((message["method"], message["params"]))

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            assert select.select([self._read], [], [], PATIENCE)[0], "Chromium says nothing"
            chunk = os.read(self._read, 1 << 20)
            assert chunk, "Chromium has gone"
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def js(self, expression: str) -> Any:
        """The value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, expression: str) -> None:
        """Until the expression is true."""
        end = time.monotonic() + PATIENCE
        while not self.js(expression):
            assert time.monotonic() < end, f"never true: {expression}"
            time.sleep(0.05)

    def open(self, page: Path, width: int = 1280, height: int = 900) -> None:
        """Show a page in a window of so many pixels."""
        self.resize(width, height)
        self.call("Page.navigate", url=page.resolve().as_uri())
        self.wait("document.readyState == 'complete' && !!document.body.dataset.state")

    def resize(self, width: int, height: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def press(self, key: str, shift: bool = False) -> None:
        """A key, for what has the focus."""
        code = KEYS.get(key, ord(key.upper()[0]))
        text = {"text": key} if len(key) == 1 else {}
        common = {"key": key, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
        self.call("Input.dispatchKeyEvent", type="keyDown", **common, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def box(self, selector: str) -> tuple[float, float, float, float]:
        """Left, top, width, height of an element."""
        found = self.js(
            f"(({{x, y, width, height}}) => [x, y, width, height])"
            f"(document.querySelector({selector!r}).getBoundingClientRect())"
        )
        return tuple(found)

    def click(self, x: float, y: float) -> None:
        """The left button, at a place of the window."""
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def wheel(self, x: float, y: float, by: float) -> None:
        self.call("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=by)

    def picture(self, selector: str) -> np.ndarray:
        """(height, width, 3) uint8, what is seen of an element."""
        self.js("new Promise((painted) => requestAnimationFrame(() => requestAnimationFrame(painted)))")
        x, y, width, height = self.box(selector)
        clip = {"x": round(x), "y": round(y), "width": round(width), "height": round(height), "scale": 1}
        png = base64.b64decode(self.call("Page.captureScreenshot", format="png", clip=clip)["data"])
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
