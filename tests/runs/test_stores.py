"""Stores by URL: real servers on this machine, and one set of rules for all of them."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from dreamlib.runs.folder import RunDir
from dreamlib.runs.lock import RemoteOwner
from dreamlib.runs.mirror import cloud
from dreamlib.runs.mirror.restore import bring_run
from dreamlib.runs.mirror.store import MARKER, Mirror
from dreamlib.runs.mirror.stores import open_store
from dreamlib.runs.open import open_run
from dreamlib.utils.errors import ConfigError, MirrorError, RunError
from tests.conftest import TINY, train_for, within
from tests.runs.test_mirror import advance, push
from tests.runs.test_mirror import run as run
from tests.stand_ins import servers
from tests.training.test_train import assert_same_state, final_state


@pytest.fixture(scope="module")
def s3():
    """Moto's S3 server, for all tests here."""
    pytest.importorskip("moto")
    pytest.importorskip("obstore")
    with servers.s3() as reached:
        yield reached


@pytest.fixture
def bucket(s3, monkeypatch, request):
    """-> the address of an empty place in it."""
    set_all(monkeypatch, s3[1])
    return f"{s3[0]}/{abs(hash(request.node.nodeid))}"


def set_all(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def webdav(tmp_path, monkeypatch):
    pytest.importorskip("webdav4")
    pytest.importorskip("wsgidav")
    with servers.webdav(tmp_path / "served") as (url, variables):
        set_all(monkeypatch, variables)
        yield url


@pytest.fixture
def sftp(tmp_path, monkeypatch):
    pytest.importorskip("paramiko")
    if reason := servers.no_sshd():
        pytest.skip(reason)
    with servers.sftp(tmp_path / "ssh") as (url, variables):
        set_all(monkeypatch, variables)
        yield url


class Hub:
    """What huggingface_hub's API of buckets does, in memory; its files travel by path or bytes."""

    def __init__(self):
        self.files, self.fails = {}, None

    def _check(self, name):
        if self.fails:
            raise self.fails
        assert name == "me/models"

    def batch_bucket_files(self, name, *, add=(), delete=()):
        self._check(name)
        for source, path in add:
            self.files[path] = source if isinstance(source, bytes) else Path(source).read_bytes()
        for path in delete:
            self.files.pop(path, None)

    def download_bucket_files(self, name, files, *, raise_on_missing_files=False):
        self._check(name)
        for path, target in files:
            if path not in self.files:
                raise EntryNotFoundError(f"404 for {path}")
            Path(target).write_bytes(self.files[path])

    def list_bucket_tree(self, name, prefix=None, *, recursive=None):
        self._check(name)
        under = (prefix or "") + "/"
        folders = {path.rpartition("/")[0] for path in self.files}
        yield from (SimpleNamespace(path=path) for path in folders if path.startswith(under))
        for path, data in list(self.files.items()):
            if path.startswith(under):
                yield SimpleNamespace(path=path, size=len(data))


class EntryNotFoundError(Exception):
    """The Hub's, by name."""


@pytest.fixture
def hub(monkeypatch):
    made = Hub()
    monkeypatch.setattr(cloud, "library", lambda *words: SimpleNamespace(HfApi=lambda: made))
    return "hf://buckets/me/models/runs of mine"


@pytest.fixture(params=["bucket", "webdav", "sftp", "hub", "folder"])
def home(request, tmp_path):
    """The address of an empty store, of every kind."""
    if request.param == "folder":
        return tmp_path / "drive" if (tmp_path / "drive").mkdir() else tmp_path / "drive/dreamlib"
    return request.getfixturevalue(request.param)


def test_five_calls(home):
    store = open_store(home)
    assert store.list("runs/x") == {}
    with pytest.raises(FileNotFoundError):
        store.read("runs/x/nothing")
    big = os.urandom(6 << 20)  # more than one part
    parts = [big[i : i + 100_000] for i in range(0, len(big), 100_000)]
    told = store.create("runs/x/deep/er/big~1.bin", iter(parts), len(big))
    assert bool(told) == str(home).startswith("s3://")  # S3 answers with a hash
    store.create("runs/x/empty", iter(()), 0)
    tag = store.replace("runs/x/a.json", b"first", "" if store.lease else None)
    assert store.list("runs/x/") == {
        "runs/x/deep/er/big~1.bin": len(big),
        "runs/x/empty": 0,
        "runs/x/a.json": 5,
    }
    assert b"".join(store.read("runs/x/deep/er/big~1.bin")[1]) == big
    assert store.read("runs/x/a.json")[0] == tag
    assert store.replace("runs/x/a.json", b"second!", tag) != tag or not store.lease
    if store.lease:
        for known in (tag, ""):  # neither what has changed since, nor what is there
            with pytest.raises(FileExistsError, match="another machine wrote there"):
                store.replace("runs/x/a.json", b"third", known)
    assert b"".join(store.read("runs/x/a.json")[1]) == b"second!"
    store.create("runs/x/empty", iter([b"no more"]), 7)  # over what was cut
    assert store.list("runs/x")["runs/x/empty"] == 7
    for name in ("runs/x/empty", "runs/x/empty", "runs/never"):
        store.delete(name)
    assert sorted(store.list("runs")) == ["runs/x/a.json", "runs/x/deep/er/big~1.bin"]


def test_an_object_that_is_replaced_while_it_is_read_is_not_mixed(bucket):
    store, size = open_store(bucket), 12 << 20
    store.replace("runs/x/a.bin", b"a" * size)
    blocks = store.read("runs/x/a.bin")[1]
    first = next(blocks)
    store.replace("runs/x/a.bin", b"b" * size)
    assert first + b"".join(blocks) == b"a" * size


def test_generations_come_back(home, run, tmp_path):
    mirror = Mirror(home, "run")
    for step in (2, 3, 4, 5, 6):
        advance(run, step)
        push(mirror, run)
    assert mirror.generations()[0].step == 6
    assert len(mirror.generations()) <= 6
    back = RunDir(tmp_path / "elsewhere" / "run")
    assert within(bring_run, Mirror(home, "run"), back, say=print)
    names = [name for name in run.to_mirror() if name != "run.json"]
    assert {n: (back.folder / n).read_bytes() for n in names} == {
        n: (run.folder / n).read_bytes() for n in names
    }
    assert not any(name.endswith(".part") for name in mirror.store.list(""))


@pytest.mark.parametrize("more", [-1, 0, 1, cloud.SINGLE])
def test_s3_confirms_what_came_and_nothing_else(bucket, more):
    store, size = open_store(bucket), cloud.SINGLE + more
    content = os.urandom(size)
    assert store.create("a", [content[:7], content[7:]], size)
    tag, altered = cloud.Tag(), content[:-1] + bytes([content[-1] ^ 1])
    assert list(tag.hashing([altered])) == [altered]
    assert store.read("a")[0].strip('"') != tag.text(size)


def test_what_s3_confirms_is_not_fetched_again(bucket, run, monkeypatch):
    mirror, read = Mirror(bucket, "run"), []
    fetch = mirror.store.read
    monkeypatch.setattr(mirror.store, "read", lambda name: (read.append(name), fetch(name))[1])
    push(mirror, run)
    assert {name.rpartition("/")[2].partition("-")[0] for name in read} <= {"dreamlib", "manifest"}
    monkeypatch.setattr(cloud.Tag, "text", lambda tag, size: "another server's way")
    advance(run, 9)
    push(mirror, run)
    assert any("checkpoints/step-00000009" in name for name in read)


def test_a_damaged_copy_is_passed_over(home, run, tmp_path):
    mirror, said = Mirror(home, "run", settle=0.0), []
    for step in (2, 3):
        advance(run, step)
        newest = push(mirror, run)
    entry = newest.files["checkpoints/step-00000003.pt"]
    mirror.store.create(mirror.under + entry["name"], [bytes(entry["size"])], entry["size"])
    assert within(bring_run, Mirror(home, "run"), RunDir(tmp_path / "b" / "run"), say=said.append)
    assert any(text.startswith("BROUGHT step 2") for text in said), said
    push(Mirror(home, "run"), run)  # and put right by the next copy
    assert within(bring_run, Mirror(home, "run"), RunDir(tmp_path / "c" / "run"), say=said.append)
    assert said[-1].startswith("BROUGHT step 3")


def test_one_owner(home, run):
    """Of two machines that claim at once, one is refused where the store holds a lease."""
    mirror = Mirror(home, "run")
    if isinstance(mirror.home, Path):
        pytest.skip("a folder has an owner of its own")
    mirror.attach()
    name = f"{mirror.under}owner.json"
    a, b = (RemoteOwner(mirror.store, name, mirror.holds_lease) for _ in "ab")
    a._read(), b._read()
    a.beat()
    if mirror.holds_lease():
        with pytest.raises(RunError, match="another session took this run over"):
            b.beat()
        assert not a.lease_lost()
        a.beat()
    b.claim(take_over=True)
    assert a.lease_lost()
    b.release()
    assert a._read()["released"]


def test_a_store_that_overwrites_holds_no_lease(bucket):
    mirror = Mirror(bucket, "run")
    mirror.attach()
    assert mirror.holds_lease()
    replace = mirror.store.replace
    mirror.lease = None
    mirror.store.replace = lambda name, data, known=None: replace(name, data)  # heeds no condition
    assert not mirror.holds_lease()
    assert MARKER in mirror.store.list("")


def test_a_run_survives_its_disk(home, tmp_path, data_home, trained, monkeypatch):
    monkeypatch.setenv("DREAMLIB_DATA", str(data_home))
    said: list[str] = []

    def machine(name):
        where = {"mirror": home, "say": said.append}
        return open_run(tmp_path / name / "run", "faces16", overrides=TINY, **where)

    train_for(machine("a"), 5)
    # another machine, without the packed images
    monkeypatch.setenv("DREAMLIB_DATA", str(tmp_path / "b" / "data"))
    again = machine("b")
    assert any(text.startswith("BROUGHT step 5 from generation") for text in said), said
    assert any("brought the packed images" in text for text in said), said
    assert train_for(again) == [6, 7, 8]
    assert_same_state(final_state(again), final_state(trained))
    assert again.dir.status()["mirrored"] == 8


def test_of_two_mirrors_one_may_fail(bucket, tmp_path, data_home, trained, monkeypatch):
    import boto3

    monkeypatch.setenv("DREAMLIB_DATA", str(data_home))
    said: list[str] = []
    lost = boto3.resource("s3", region_name="us-east-1").create_bucket(Bucket="soon-lost")

    def machine(name):
        where = {"mirror": ["s3://soon-lost", bucket], "say": said.append}
        return open_run(tmp_path / name / "run", "faces16", overrides=TINY, **where)

    train_for(machine("a"), 5)
    assert not any("MIRROR FAILS" in text for text in said)
    lost.objects.all().delete()
    lost.delete()
    again = machine("b")
    assert train_for(again) == [6, 7, 8]
    assert any("BROUGHT step 5" in text and bucket in text for text in said)
    (fails,) = [text for text in said if text.startswith("MIRROR FAILS")]
    assert "there is no such bucket: make it, or correct the address" in fails
    assert_same_state(final_state(again), final_state(trained))
    status = again.dir.status()
    assert (status["mirror"], status["mirrored"]) == (bucket, 8)
    assert [one["mirror"] for one in status["other_mirrors"]] == ["s3://soon-lost"]
    # where nothing else has the run, a fresh start would bury it
    with pytest.raises(MirrorError, match=r"there is no such bucket.* may be on it"):
        open_run(tmp_path / "c" / "run", "faces16", mirror="s3://soon-lost")


@pytest.mark.parametrize(
    ("home", "words"),
    [
        ("ftp://x/y", "no store is known by ftp://; there are s3, gs"),
        ("sftp://me:secret@x/y", "a password in an address gets into logs"),
        ("hf://datasets/me/x", "is no bucket: hf://buckets/OWNER/NAME"),
    ],
)
def test_an_address_that_cannot_be(home, words):
    with pytest.raises(ConfigError, match=words) as caught:
        open_store(home)
    assert "secret" not in str(caught.value)


def test_a_store_that_does_not_answer_is_no_fresh_start(monkeypatch, tmp_path):
    pytest.importorskip("obstore")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{servers.free_port()}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.setenv(name, "us-east-1")
    with pytest.raises(MirrorError, match=r"cannot be read .it does not answer.* may be on it"):
        bring_run(Mirror("s3://bucket/x", "run"), RunDir(tmp_path / "run"))


def test_a_wrong_password_is_told_and_training_goes_on(webdav, tmp_path, data_home, monkeypatch):
    monkeypatch.setenv("DREAMLIB_DATA", str(data_home))
    said: list[str] = []

    def machine():
        where = {"mirror": webdav, "say": said.append}
        return open_run(tmp_path / "run", "faces16", overrides=TINY, **where)

    train_for(machine(), 3)
    monkeypatch.setenv("DREAMLIB_MIRROR_PASSWORD", "revoked in the meantime")
    assert train_for(machine()) == [4, 5, 6, 7, 8]
    (fails,) = [text for text in said if text.startswith("MIRROR FAILS")]
    assert "its keys are refused, or may not do that: give others" in fails
    assert "revoked" not in "".join(said)
    with pytest.raises(MirrorError, match=r"its keys are refused.* may be on it"):
        open_run(tmp_path / "b" / "run", "faces16", mirror=webdav)


def test_an_unknown_host_is_told(sftp, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))  # whose known hosts are none
    with pytest.raises(OSError, match="its host key is not known: connect once by `sftp`"):
        open_store(sftp).list("")


ANSWERS = {
    "Server returned non-2xx status code: 403 Forbidden: <Code>AccessDenied</Code>": "keys are ref",
    "status code: 400 Bad Request: <Code>ExpiredToken</Code>": "its keys have expired",
    "status code: 403 Forbidden: <Code>RequestTimeTooSkewed</Code>": "this machine's clock is",
    "received 507 (Full)": "it is full",
    "size mismatch in put!  100000 != 300000": "it may be full, or beyond a quota",
    "received 401 (Not Authorized)": "keys are refused",
    "Client error '403 ' for url": "keys are refused",
    "status code: 404 Not Found: <Code>NoSuchBucket</Code>": "there is no such bucket",
    "429 Client Error: Too Many Requests for url": "it asks to wait",
    "401 Client Error: Unauthorized for url": "keys are refused",
}


def test_a_full_sftp_server_may_be_full(sftp, tmp_path, monkeypatch):
    """Its only word is "Failure", without a number."""
    store = open_store(sftp)
    held = store.files
    monkeypatch.setattr(held, "posix_rename", Mock(side_effect=OSError("Failure")))
    with pytest.raises(OSError, match="it may be full, or beyond a quota"):
        store.create("a.pt", [b"x"], 1)


@pytest.mark.parametrize("words", ANSWERS)
def test_every_refusal_is_one_sentence(hub, words, monkeypatch):
    store = open_store(hub)
    store.api.fails = RuntimeError(words)
    for call in (
        lambda: store.list("runs"),
        lambda: store.read("a 404 Not Found"),
        lambda: store.replace("a", b""),
        lambda: store.delete("a"),
        lambda: store.create("a", [b"x"], 1),
    ):
        with pytest.raises(OSError, match=ANSWERS[words]) as caught:
            call()
        assert caught.value.errno not in (errno.ENOENT, None)
        assert str(caught.value.filename).startswith(hub)
