"""Pretrained weights: the right file or none, wherever it comes from and whatever goes wrong."""

import hashlib
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from dreamlib.config import factory as build
from dreamlib.metrics import pretrained_weights as pretrained
from dreamlib.metrics.pretrained_weights import ALEXNET, INCEPTION, Pretrained, find_weights, obtain
from dreamlib.utils import platform as host
from dreamlib.utils.errors import WeightsUnavailable
from tests.conftest import within

BODY = bytes(range(256)) * 9000  # 2.3 MB: three blocks, of which the last is not full
SHA256 = hashlib.sha256(BODY).hexdigest()
DIGITS = SHA256[:8]
NAME = f"network-{DIGITS}.pth"


def known(*urls, name=NAME):
    return Pretrained(name, SHA256, urls, "a test network", "Without it there is no test")


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.seen.append(self.path)
        if self.path == "/missing":
            self.send_error(404)
            return
        if self.path == "/slow":
            self.server.hold.wait(20)
        body = b"<html>quota</html>" if self.path == "/page" else BODY
        self.send_response(200)
        if self.path != "/unsized":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if self.path == "/cut" else body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.seen, server.hold = [], threading.Event()
    server.at = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.hold.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def closed():
    """An address of this machine at which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return f"http://127.0.0.1:{port}/good"


def put(folder, body=BODY, name=NAME):
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(body)
    return folder / name


# ------------------------------------------------------------------------- search


def test_the_first_true_file_is_taken(tmp_path):
    first, second = put(tmp_path / "first"), put(tmp_path / "second")
    search = [tmp_path, tmp_path / "none", first.parent, second.parent]
    assert find_weights(search, known()) == first
    assert find_weights(search[::-1], known()) == second


def test_the_file_itself_may_be_named(tmp_path):
    path = put(tmp_path / "a")
    freely = put(tmp_path / "b", name="my weights.bin")
    assert find_weights([path, freely], known()) == path
    assert find_weights([freely, path], known()) == freely


def test_the_file_of_another_network_is_not_meant_for_this_one(tmp_path):
    other = put(tmp_path / "a", b"another network", name=f"other-{'0' * 8}.pth")
    path = put(tmp_path / "b")
    assert find_weights([other, path.parent], known()) == path
    with pytest.raises(WeightsUnavailable, match="not found"):
        find_weights([other], known())


def test_a_file_with_another_hash_is_refused_not_passed_over(tmp_path, server):
    path, good = put(tmp_path / "a", BODY[:-1]), put(tmp_path / "b")
    found = hashlib.sha256(BODY[:-1]).hexdigest()
    words = rf"{path}.*{found}.*{SHA256}: name another place, or put"
    for place in (path, path.parent):
        with pytest.raises(WeightsUnavailable, match=words):
            find_weights([place, good.parent], known())
        with pytest.raises(WeightsUnavailable, match=words):
            obtain([place], known(server.at + "/good"), tmp_path / "c")
    assert server.seen == []


@pytest.mark.parametrize("file", [INCEPTION, ALEXNET])
def test_a_missing_file_names_the_remedy(tmp_path, file):
    with pytest.raises(WeightsUnavailable) as error:
        find_weights([tmp_path, tmp_path / "other"], file)
    text = str(error.value)
    for part in (file.filename, file.sha256, str(tmp_path / "other"), *file.urls, file.without):
        assert part in text
    for part in ("DREAMLIB_WEIGHTS", "evaluate.weights"):
        assert part in text
    with pytest.raises(WeightsUnavailable, match="no folder at all"):
        find_weights([], file)


def test_every_bit_of_the_hash_counts(tmp_path, monkeypatch):
    """A file whose hash only begins like the known one is another file."""
    path = put(tmp_path / "a")
    alike = replace(known(), sha256=SHA256[:8] + "0" * 56)
    with pytest.raises(WeightsUnavailable, match="another file"):
        find_weights([path], alike)


def test_the_known_files_are_named_by_their_hashes():
    for file in (INCEPTION, ALEXNET):
        assert Path(file.filename).stem.endswith(f"-{file.sha256[:8]}")
        assert all(url.startswith("https://") and file.sha256[:8] in url for url in file.urls)
    assert "evaluate.extractor=classifier" in INCEPTION.without


# ----------------------------------------------------------------------- download


def test_a_good_download_is_kept_and_used_again(tmp_path, server):
    home = tmp_path / "hub" / "checkpoints"
    file = known(server.at + "/good")
    assert obtain([tmp_path], file, home) == home / NAME
    assert (home / NAME).read_bytes() == BODY
    assert list(home.iterdir()) == [home / NAME]
    assert obtain([tmp_path], file, home) == home / NAME
    assert find_weights([home], file) == home / NAME
    assert server.seen == ["/good"]


def test_nothing_is_asked_for_when_the_file_is_there(tmp_path, server):
    path = put(tmp_path / "here")
    assert obtain([path.parent], known(server.at + "/good"), tmp_path / "hub") == path
    assert server.seen == []
    assert not (tmp_path / "hub").exists()
    put(tmp_path / "hub")  # comes last, wherever the search names it
    assert obtain([path.parent], known(server.at + "/good"), tmp_path / "hub") == path


def test_to_find_is_not_to_download(tmp_path, server):
    with pytest.raises(WeightsUnavailable, match="not found"):
        find_weights([tmp_path], known(server.at + "/good"))
    assert server.seen == []


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/page", "18 of 18 bytes came"),
        ("/cut", f"{len(BODY) // 2:,} of {len(BODY):,} bytes came"),
        ("/missing", "404"),
    ],
)
def test_a_bad_download_leaves_nothing(tmp_path, server, path, words):
    home = tmp_path / "hub"
    with pytest.raises(WeightsUnavailable) as error:
        obtain([tmp_path / "a"], known(server.at + path), home)
    text = str(error.value)
    for part in (words, server.at + path, str(tmp_path / "a"), str(home), NAME, DIGITS):
        assert part in text
    assert list(home.iterdir()) == []


def test_the_next_mirror_is_asked(tmp_path, server, closed):
    mirrors = [closed, *(server.at + path for path in ("/missing", "/cut", "/unsized", "/good"))]
    assert obtain([], known(*mirrors), tmp_path) == tmp_path / NAME
    assert server.seen == ["/missing", "/cut", "/unsized"]


def test_nothing_reachable(tmp_path, closed):
    with pytest.raises(WeightsUnavailable) as error:
        obtain([], known(closed, "gopher://nowhere", "no address"), tmp_path)
    text = str(error.value)
    for part in ("Connection refused", "unknown url type: gopher", "DREAMLIB_WEIGHTS", "no test"):
        assert part in text
    assert list(tmp_path.iterdir()) == []


def test_a_silent_server_is_not_waited_for(tmp_path, server, monkeypatch):
    monkeypatch.setattr(pretrained, "SECONDS", 0.2)
    with pytest.raises(WeightsUnavailable, match=r"timed? ?out"):
        obtain([], known(server.at + "/slow"), tmp_path)


def test_no_place_to_keep_it(tmp_path, server):
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsUnavailable, match=r"Downloads failed.*(Directory|Exists)"):
        obtain([], known(server.at + "/good"), tmp_path / "file" / "hub")
    assert server.seen == []


def test_many_at_once_all_get_the_whole_file(tmp_path, server):
    file = known(server.at + "/slow")

    def fetch(_):
        path = obtain([], file, tmp_path)
        return path, path.read_bytes() == BODY

    with ThreadPoolExecutor(6) as pool:
        jobs = [pool.submit(fetch, i) for i in range(6)]
        while len(server.seen) < 6:  # all have looked in vain and are on their way
            time.sleep(0.01)
        server.hold.set()
        assert [job.result() for job in jobs] == [(tmp_path / NAME, True)] * 6
    assert list(tmp_path.iterdir()) == [tmp_path / NAME]


def test_a_file_that_came_meanwhile_is_taken(tmp_path, server, monkeypatch):
    def fail(*args):
        put(tmp_path)  # as another process would
        raise ConnectionResetError("cut")

    monkeypatch.setattr(pretrained, "_download", fail)
    assert obtain([], known(server.at + "/good"), tmp_path) == tmp_path / NAME


def test_debris_of_a_killed_process_is_never_believed(tmp_path, server):
    put(tmp_path, BODY[:100], name=f".{NAME}.1.2.tmp")
    put(tmp_path, BODY[:100], name=f"{NAME}.0123.partial")  # torch.hub's
    assert obtain([tmp_path], known(server.at + "/good"), tmp_path) == tmp_path / NAME
    assert (tmp_path / NAME).read_bytes() == BODY


def test_progress_counts_the_blocks(tmp_path, server):
    opened, steps = [], []

    def progress(label, total):
        opened.append((label, total))
        return steps.append

    within(obtain, [], known(server.at + "/good"), tmp_path, progress=progress)
    assert opened == [("a test network, MiB", 3)]
    assert steps == [1, 1, 1]
    (tmp_path / NAME).unlink()
    within(
        obtain, [], known(server.at + "/unsized"), tmp_path, progress=progress
    )  # no total, no bar
    assert len(opened) == 1


# ------------------------------------------------------------------ host and build


def test_folders_come_in_order(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("DREAMLIB_WEIGHTS", str(tmp_path / "mine"))
    monkeypatch.setattr(host, "INPUTS", tmp_path / "input")
    for folder in ("input/b/deep", "input/a"):
        (tmp_path / folder).mkdir(parents=True)
        put(tmp_path / folder)
    hub = tmp_path / "torch" / "hub" / "checkpoints"
    fixed = [tmp_path / "named", tmp_path / "mine", hub]
    assert host.weight_folders(str(tmp_path / "named")) == fixed
    assert host.weights_cache() == hub
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    attached = [tmp_path / "input/a", tmp_path / "input/b/deep"]
    assert host.weight_folders(str(tmp_path / "named")) == fixed + attached
    monkeypatch.delenv("DREAMLIB_WEIGHTS")
    assert host.weight_folders() == [hub, *attached]


def test_the_cache_is_torchs(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCH_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    default = Path("~/.cache/torch/hub/checkpoints").expanduser()
    assert host.weights_cache() == default
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert host.weights_cache() == tmp_path / "torch/hub/checkpoints"
    assert host.weights_cache() == Path(torch.hub.get_dir()) / "checkpoints"


def test_the_extractor_asks_for_inception(tmp_path, monkeypatch):
    """`make_extractor` looks where host says, and may download to torch's own folder."""
    asked = []

    def instead(*args):
        asked.append(args)
        raise WeightsUnavailable("asked")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(build, "obtain", instead)

    class Config:
        class evaluate:
            extractor, weights = "inception", str(tmp_path / "named")

    with pytest.raises(WeightsUnavailable, match="asked"):
        build.make_extractor(Config, None, torch.device("cpu"))
    search, file, home = asked[0]
    assert search == host.weight_folders(str(tmp_path / "named"))
    assert (file, home) == (INCEPTION, tmp_path / "hub" / "checkpoints")
