"""Pushing to a stand-in of the Hub: what it is sent, and what is said when it refuses."""

from __future__ import annotations

import base64
import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from dreamlib.export.hub import push
from dreamlib.utils.errors import ConfigError, DreamlibError
from tests.conftest import within

hub = pytest.importorskip("huggingface_hub")
TOKEN = "hf_stand_in"


class Stand(BaseHTTPRequestHandler):
    """As much of the Hub's interface as an upload of small files needs."""

    refuse = 0

    def log_message(self, *args):
        pass

    def answer(self, value, status=200):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if status >= 400:
            self.send_header("X-Error-Message", value["error"])
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.server.asked.append(("GET", self.path, b""))
        if "/tree/" in self.path:
            return self.answer([{"type": "file", "path": "model.onnx", "size": 1, "oid": "0"}])
        self.answer(
            {"sha": "0" * 40, "siblings": [], "id": "owner/name", "private": self.server.private}
        )

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append(("POST", self.path, body))
        self.server.tokens.append(self.headers.get("Authorization"))
        if self.refuse:
            return self.answer({"error": "no right to write here"}, self.refuse)
        if self.path.endswith("/preupload/main"):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                for file in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        if "/commit/" in self.path:
            return self.answer(
                {
                    "success": True,
                    "commitOid": "0" * 40,
                    "commitUrl": f"{self.server.address}/owner/name/commit/0",
                }
            )
        return self.answer({"url": f"{self.server.address}/owner/name", "name": "owner/name"})


@contextmanager
def standing(monkeypatch, refuse=0, private=True):
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Now", (Stand,), {"refuse": refuse}))
    server.asked, server.tokens, server.private = [], [], private
    server.address = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.address)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    (folder / "unet").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# model\n")
    (folder / "unet" / "config.json").write_text("{}")
    return folder


def test_files_go_where_they_belong(model, monkeypatch):
    said = []
    with standing(monkeypatch) as server:
        address = within(push, model, "owner/name", private=True, say=said.append)
    assert address == f"{server.address}/owner/name"
    made = next(json.loads(b) for _, path, b in server.asked if path == "/api/repos/create")
    assert made.get("private") is True or made.get("visibility") == "private"  # older, newer
    lines = next(body for _, path, body in server.asked if "/commit/main" in path).splitlines()
    kinds = {json.loads(line)["value"]["path"]: json.loads(line)["key"] for line in lines[1:]}
    assert kinds.pop("model.onnx") == "deletedFile"  # of an export before, and not of this one
    assert set(kinds.values()) == {"file"}
    sent = {line["value"]["path"]: line["value"] for line in map(json.loads, lines[1:])}
    assert kinds.keys() == {"README.md", "unet/config.json"}
    assert base64.b64decode(sent["unet/config.json"]["content"]) == b"{}"
    assert set(server.tokens) == {f"Bearer {TOKEN}"}
    assert not any(TOKEN in text for text in said)
    assert not any(TOKEN in path.read_text() for path in model.rglob("*") if path.is_file())


def test_a_dry_run_sends_nothing(model, monkeypatch):
    said = []
    with standing(monkeypatch) as server:
        told = within(push, model, "owner/name", dry_run=True, say=said.append)
    assert not server.asked
    assert "2 files" in told
    assert any("unet/config.json" in text for text in said)


def test_a_public_model_does_not_become_private_by_itself(model, monkeypatch):
    with standing(monkeypatch, private=False) as server:
        with pytest.raises(ConfigError, match="is public"):
            push(model, "owner/name", private=True)
        assert not any("/commit/" in path for _, path, _ in server.asked)
        push(model, "owner/name")


def test_strangers_stay_here(model, monkeypatch):
    (model / "diary.txt").write_text("mine")
    with standing(monkeypatch) as server:
        push(model, "owner/name")
    assert not any(b"diary" in body for _, _, body in server.asked)


def test_refusals(model, tmp_path, monkeypatch):
    with standing(monkeypatch, refuse=403), pytest.raises(DreamlibError, match="no right to write"):
        push(model, "owner/name")
    with standing(monkeypatch) as server:
        pass
    assert not server.asked
    with pytest.raises(DreamlibError, match="could not be reached"):
        push(model, "owner/name")
    with pytest.raises(ConfigError, match="owner/name"):
        push(model, "name")
    with pytest.raises(ConfigError, match="no name for a model"):
        push(model, "owner/na--me")
    with pytest.raises(ConfigError, match="dreamlib export"):
        push(tmp_path / "empty", "owner/name")
    monkeypatch.setattr(hub, "get_token", lambda: None)
    with pytest.raises(ConfigError, match="HF_TOKEN"):
        push(model, "owner/name")
