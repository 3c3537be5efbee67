"""Firefox by WebDriver BiDi, which it speaks itself: as much as a page from a file needs."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.browser.pages import free_port, wait_for

SETTINGS = {
    "security.fileuri.strict_origin_policy": True,  # as readers have it; some drivers relax it
    "network.proxy.type": 1,  # nothing can be reached
    "network.proxy.http": "127.0.0.1",
    "network.proxy.http_port": 9,
    "network.proxy.ssl": "127.0.0.1",
    "network.proxy.ssl_port": 9,
    "remote.active-protocols": 1,
}


class Firefox:
    """A page: what it holds, what it logged, what it asked for."""

    def __init__(self, socket: Any):
        self.socket, self.number = socket, 0
        self.logged: list[str] = []
        self.asked: list[str] = []
        self.ask("session.new", capabilities={})
        self.ask("session.subscribe", events=["log.entryAdded", "network.beforeRequestSent"])
        self.context = self.ask("browsingContext.getTree")["contexts"][0]["context"]

    def ask(self, method: str, **params: Any) -> Any:
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": params}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == self.number:
                assert message["type"] == "success", message
                return message["result"]
            if message.get("method") == "log.entryAdded":
                self.logged.append(str(message["params"]["text"]))
            elif message.get("method") == "network.beforeRequestSent":
                self.asked.append(message["params"]["request"]["url"])

    def goto(self, address: str) -> None:
        self.ask("browsingContext.navigate", context=self.context, url=address, wait="complete")

    def evaluate(self, expression: str) -> Any:
        target = {"context": self.context}
        text = f"JSON.stringify({expression})"
        found = self.ask("script.evaluate", expression=text, target=target, awaitPromise=True)
        assert found["type"] == "success", found
        return json.loads(found["result"]["value"])

    def size(self, width: int, height: int) -> None:
        view = {"width": width, "height": height}
        self.ask("browsingContext.setViewport", context=self.context, viewport=view)

    def shoot(self, path: Path) -> None:
        shot = self.ask("browsingContext.captureScreenshot", context=self.context)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def firefox(home: Path) -> Iterator[Firefox]:
    from websocket import WebSocketException, create_connection

    profile, port = home / "profile", free_port()
    profile.mkdir(parents=True)
    lines = [f"user_pref({json.dumps(k)}, {json.dumps(v)});" for k, v in SETTINGS.items()]
    (profile / "user.js").write_text("\n".join(lines))
    command = ["firefox-esr", "--headless", "--no-remote", "--profile", str(profile)]
    process = subprocess.Popen(
        [*command, f"--remote-debugging-port={port}"],
        env=os.environ | {"HOME": str(home)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def connected() -> Any:
        try:
            address = f"ws://127.0.0.1:{port}/session"
            return create_connection(address, timeout=60, suppress_origin=True)
        except (OSError, WebSocketException):
            return None

    try:
        yield Firefox(wait_for(connected, 60, "for Firefox"))
    finally:
        process.terminate()
        process.wait(30)
