"""A tiny run that trains in seconds, and one torch thread: tests share two cores with others."""

from __future__ import annotations

import gc
import itertools
import pickle
import shutil
import signal
import sys
from functools import partial
from hashlib import sha256

import pytest
import torch
from filelock import FileLock

from dreamlib.runs.open import open_run
from dreamlib.runs.run import Run
from dreamlib.training import base
from dreamlib.training.train import train
from dreamlib.utils.context import using
from tests.forked import Server

# What nbformat imports builds a grammar of web addresses (seconds, in every process) unless this
# package is missing; no notebook's schema asks for it.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]

# A preview is drawn like any images, and costs a tiny run as much as its steps: four of them, at
# two stages, show it all.
base.PREVIEWS = 4
PREVIEW_STEPS = base.BaseTrainer.preview_steps


def few_previews(trainer):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "STAGES", (0.25, 1.0))
        return PREVIEW_STEPS(trainer)


base.BaseTrainer.preview_steps = few_previews

TINY = [
    "loss.name=conservative",
    "loss.min_snr=null",
    "diffusion.prediction=eps",
    "train.optimizer=adamw",
    "train.slices=1",
    "train.lr=2e-3",
    "sample.eta=0",
    "sample.sigma_min=0.02",
    "data.train=120",
    "data.reference=60",
    "data.floor=60",
    "net.widths=[8, 16]",
    "net.attention=[8]",
    "net.heads=2",
    "diffusion.steps=40",
    "train.length=8",
    "train.batch=6",
    "train.warmup=2",
    "train.log_every=4",
    "train.precision=fp32",
    "train.device=cpu",
    "sample.sampler=ddim",
    "sample.spacing=uniform",
    "sample.steps=4",
    "sample.batch=8",
    "sample.shard=10",
    "evaluate.n=[20, 60]",
    "evaluate.reference=60",
]


def within(function, *values, progress=None, say=None, should_stop=None, **named):
    """What a function answers within a context of these."""
    with using(progress=progress, say=say, should_stop=should_stop):
        return function(*values, **named)


def train_for(run, steps=None):
    """Take so many steps, or all, and leave -> which were taken."""
    return [tick.step for tick in itertools.islice(train(run), steps)]


def copy_of(run, folder):
    """A run of the same files elsewhere."""
    shutil.copytree(run.folder, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DREAMLIB_DATA", str(run.data.folder.parent))
        return open_run(folder, say=lambda text: None)


def pytest_collection_finish():
    """What is imported by now stays: the collector need not look through it every time."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def heard():
    """Signals that whoever started the tests ignores (nohup, a shell's &) are heard meanwhile."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    usual |= {signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.getsignal(number) for number in usual}
    for number, handler in before.items():
        if handler is signal.SIG_IGN:
            signal.signal(number, usual[number])
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_mirror(monkeypatch):
    monkeypatch.delenv("DREAMLIB_MIRROR", raising=False)


@pytest.fixture(autouse=True)
def _not_on_colab(monkeypatch, tmp_path):
    """The tests' machine is nobody's platform; those of a platform pretend to be on one."""
    monkeypatch.setattr("dreamlib.install.COLAB", tmp_path / "no-colab")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """Downloads fail at once, wherever the tests run; servers of the tests' own are reached."""
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")


@pytest.fixture(scope="session")
def common(tmp_path_factory, request):
    """A folder of all workers."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if hasattr(request.config, "workerinput") else folder


@pytest.fixture(scope="session")
def server(common):
    with FileLock(common / "forked.lock"):
        server = Server(common)
    yield server
    server.leave()


@pytest.fixture
def quick_python(server, monkeypatch):
    """`sys.executable -m ...` needs no imports: see tests/forked.py."""
    monkeypatch.setattr(sys, "executable", str(server.interpreter))


@pytest.fixture(scope="session")
def once(common):
    """once(name, make) -> what `make()` returned in the first of the workers that asked for it."""

    def get(name, make):
        path = common / f"{name}.pickle"
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                path.write_bytes(pickle.dumps(make()))
        return pickle.loads(path.read_bytes())

    return get


@pytest.fixture(scope="session")
def counted_once(once):
    """What networks are made of and cost is counted by one of the workers, for all of them."""
    from benchmarks import timing

    count = timing._counted

    def counted(config):
        name = f"counted-{sha256(config.encode()).hexdigest()[:16]}"
        return once(name, partial(count, config))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "_counted", counted)
        yield


@pytest.fixture(scope="session")
def data_home(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def tiny(tmp_path, data_home, monkeypatch):
    """open_tiny(name, *more overrides) -> a Run under tmp_path; packed images are shared."""
    monkeypatch.setenv("DREAMLIB_DATA", str(data_home))

    def open_tiny(name: str = "run", *more: str) -> Run:
        return open_run(tmp_path / name, "faces16", overrides=[*TINY, *more], say=lambda text: None)

    return open_tiny


@pytest.fixture
def every_stage(monkeypatch):
    """Previews when users have them."""
    monkeypatch.setattr(base.BaseTrainer, "preview_steps", PREVIEW_STEPS)


@pytest.fixture(scope="session")
def trained(tmp_path_factory, data_home):
    """One tiny finished run for everything that only reads it."""
    patch = pytest.MonkeyPatch()
    patch.setenv("DREAMLIB_DATA", str(data_home))
    folder = tmp_path_factory.mktemp("runs") / "trained"
    torch.set_num_threads(1)
    run = open_run(folder, "faces16", overrides=TINY, say=lambda text: None)
    with pytest.MonkeyPatch.context() as previews:
        previews.setattr(base.BaseTrainer, "preview_steps", PREVIEW_STEPS)
        train_for(run)
    yield run
    patch.undo()
