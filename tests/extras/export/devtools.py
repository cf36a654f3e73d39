"""Headless Chromium, driven through its DevTools protocol over a pipe: real pointer and key events, screenshots.

`python -m tests.extras.export.devtools docs/demo.html docs/demo.png` draws a digit on the
page, for the picture in the README.
"""

import base64
import contextlib
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.drawings import STROKES, smooth

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
TIMEOUT = 60  # seconds
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-extensions"),
    "--remote-debugging-pipe",
)


class Page:
    """A tab of a browser, with what its console and its network reported."""

    def __init__(self, profile):
        self.read, write_there = os.pipe()
        read_there, self.write = os.pipe()
        # The browser reads commands from descriptor 3 and writes to 4.
        theirs = tuple(fcntl.fcntl(descriptor, fcntl.F_DUPFD, 50) for descriptor in (read_there, write_there))
        command = f'exec "$@" 3<&{theirs[0]} 4>&{theirs[1]}'
        arguments = ["bash", "-c", command, "bash", BROWSER, *OPTIONS, f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(arguments, pass_fds=theirs, stderr=subprocess.DEVNULL)
        for descriptor in (read_there, write_there, *theirs):
            os.close(descriptor)
        self.numbers, self.buffer, self.session = itertools.count(1), b"", None
        self.console, self.requests, self.loaded = [], [], False
        targets = self.send("Target.getTargets")["targetInfos"]
        target = next(target["targetId"] for target in targets if target["type"] == "page")
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method, **parameters):
        """Send a command and return its result; events that arrive meanwhile are noted."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": parameters}
        message |= {"sessionId": self.session} if self.session else {}
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self.write, data[:65536]) :]
        while True:
            reply = self._receive()
            if reply.get("id") == number:
                assert "error" not in reply, (method, reply["error"])
                return reply["result"]

    def _receive(self):
        deadline = time.monotonic() + TIMEOUT
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.read], [], [], max(0, deadline - time.monotonic()))
            assert ready, "the browser does not answer"
            content = os.read(self.read, 1 << 20)
            assert content, "the browser has ended"
            self.buffer += content
        message, _, self.buffer = self.buffer.partition(b"\0")
        message = json.loads(message)
        method, parameters = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.console.append(parameters["exceptionDetails"].get("exception", {}).get("description", "exception"))
        elif method in ("Runtime.consoleAPICalled", "Log.entryAdded"):
            self.console.append(json.dumps(parameters))
        elif method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method == "Page.loadEventFired":
            self.loaded = True
        return message

    def open(self, address, width=1200, height=900, scheme="light", phone=False):
        metrics = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone}
        self.send("Emulation.setDeviceMetricsOverride", **metrics)
        self.send("Emulation.setTouchEmulationEnabled", enabled=phone)
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.loaded = False
        self.send("Page.navigate", url=address)
        while not self.loaded:
            self._receive()

    def evaluate(self, expression):
        """The value of an expression in the page; a promise is awaited."""
        result = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def settle(self):
        """Wait until the page has drawn what the last event scheduled."""
        self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def drag(self, points, touch=False):
        """Press at the first point, move through the others, and release; in pixels of the window."""
        if touch:
            events = [("touchStart", points[0]), *(("touchMove", point) for point in points[1:])]
            for kind, (x, y) in events:
                self.send("Input.dispatchTouchEvent", type=kind, touchPoints=[{"x": x, "y": y}])
            self.send("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        else:
            events = [("mousePressed", points[0]), *(("mouseMoved", point) for point in points[1:])]
            for kind, (x, y) in [*events, ("mouseReleased", points[-1])]:
                self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)
        self.settle()

    def draw_digit(self, digit, touch=False):
        """Draw a digit on the canvas #paper with a mouse or a finger."""
        box = "document.getElementById('paper').getBoundingClientRect()"
        x, y, width, height = self.evaluate(f"(box => [box.x, box.y, box.width, box.height])({box})")
        for stroke in STROKES[digit]:
            points = smooth(stroke, 6)
            self.drag([(x + width * (0.25 + 0.5 * u), y + height * (0.15 + 0.7 * v)) for u, v in points], touch)

    def click(self, selector):
        x, y = self.evaluate(
            f"(box => [box.x + box.width / 2, box.y + box.height / 2])"
            f"(document.querySelector({json.dumps(selector)}).getBoundingClientRect())"
        )
        self.drag([(x, y)])

    def press(self, key, modifiers=0):
        code = {" ": 32, "Tab": 9, "Delete": 46, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
        fields = {"key": key, "windowsVirtualKeyCode": code.get(key, ord(key[0].upper())), "modifiers": modifiers}
        for kind in ("rawKeyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, **fields)

    def screenshot(self):
        """The whole page as a PNG."""
        return base64.b64decode(self.send("Page.captureScreenshot", captureBeyondViewport=True)["data"])

    def close(self):
        with contextlib.suppress(OSError, AssertionError):
            self.session = None
            self.send("Browser.close")
        self.process.wait(TIMEOUT)
        os.close(self.read)
        os.close(self.write)


def main(source, target):
    with tempfile.TemporaryDirectory() as profile:
        page = Page(profile)
        try:
            page.open(Path(source).resolve().as_uri(), 1130, 940)
            page.draw_digit(4)
            Path(target).write_bytes(page.screenshot())
        finally:
            page.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
