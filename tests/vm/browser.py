"""Chromium without a window, controlled through the Chrome DevTools Protocol:
https://chromedevtools.github.io/devtools-protocol/."""

import base64
import contextlib
import json
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from websockets.sync.client import ClientConnection, connect


class Page:
    """A page in the browser."""

    def __init__(self, connection: ClientConnection, url: str) -> None:
        self._connection = connection
        self._session: dict[str, str] = {}
        self._count = 0
        target = self._ask("Target.createTarget", url=url)["targetId"]
        session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._session = {"sessionId": session}

    def _ask(self, method: str, **params: object) -> dict[str, Any]:
        self._count += 1
        self._connection.send(json.dumps({"id": self._count, "method": method, "params": params, **self._session}))
        while True:
            message = json.loads(self._connection.recv(timeout=60))
            if message.get("id") == self._count:
                assert "error" not in message, message
                return dict(message["result"])

    def value(self, expression: str) -> Any:
        """Return the value of a JavaScript expression."""
        return self._ask("Runtime.evaluate", expression=expression)["result"].get("value")

    def wait_until(self, expression: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not self.value(expression):
            assert time.monotonic() < deadline, (
                f"{expression} is still not so; {self.value('document.body.innerText')}"
            )
            time.sleep(0.2)

    def type(self, text: str) -> None:
        """Press keys, with the codes of a keyboard."""
        for character in text:
            code = f"Key{character.upper()}" if character.isalpha() else ""
            self._ask("Input.dispatchKeyEvent", type="keyDown", key=character, code=code, text=character)
            self._ask("Input.dispatchKeyEvent", type="keyUp", key=character, code=code)

    def png(self) -> bytes:
        return base64.b64decode(self._ask("Page.captureScreenshot")["data"])


@contextlib.contextmanager
def browsing(url: str) -> Iterator[Page]:
    """Open a page in a browser, which ends with the block."""
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
        subprocess.Popen(
            ["chromium", "--headless", "--no-sandbox", "--remote-debugging-port=0", f"--user-data-dir={profile}"],
            stderr=subprocess.PIPE,
            text=True,
        ) as browser,
    ):
        try:
            assert browser.stderr
            said = ""
            while not (found := re.search(r"DevTools listening on (ws://\S+)", said)):
                line = browser.stderr.readline()
                assert line, f"chromium has ended: {said}"
                said += line
            with connect(found[1], max_size=None) as connection:
                yield Page(connection, url)
        finally:
            browser.terminate()
