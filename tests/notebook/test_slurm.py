"""Jobs of a cluster: what is said of a queue, and a real Slurm on this one machine."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from dreamlib.notebook.runner import slurm
from dreamlib.notebook.runner.jobs import FAILED, UNFINISHED
from dreamlib.notebook.runner.slurm import Cluster, Work, options_of
from dreamlib.utils.errors import ConfigError
from tests.conftest import TINY

ROOT = Path(__file__).parents[2]
START = ROOT / "tests" / "slurm" / "start.sh"
STEPS = 2000  # longer than a job may take


def test_options():
    assert options_of("partition=gpu, time=120,mem=16GB") == {
        "partition": "gpu",
        "time": 120,
        "mem": "16GB",
    }
    for text, words in (("gpu", "reads NAME=value"), ("time=1h", "whole minutes")):
        with pytest.raises(ConfigError, match=words):
            options_of(text)


class Executor:
    """A cluster that numbers its jobs, and whose queue the test writes."""

    def __init__(self):
        self.submitted = []

    def update_parameters(self, **parameters):
        self.parameters = parameters

    def submit(self, work):
        self.submitted.append(work.name)
        return type("Job", (), {"job_id": str(len(self.submitted))})


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """(a cluster of one work, its executor, the queues that it will find, what was said)."""
    pytest.importorskip("submitit")
    said, executor, queues = [], Executor(), []
    work = Work("a", ("true",), tmp_path / "a" / "job.json")
    work.record.parent.mkdir()
    made = Cluster([work], {"time": 2}, tmp_path / "slurm", said.append)
    made.home.mkdir()
    monkeypatch.setattr(made, "_executor", lambda: executor)
    monkeypatch.setattr(slurm, "LOOK", 0.0)
    monkeypatch.setattr(slurm, "_queue", lambda: queues.pop(0)() if queues else {})
    monkeypatch.setattr(slurm, "_cancelled", lambda number: False)
    return made, executor, queues, said


def ended(cluster, code, queue=None):
    """A look at the queue by when the job has written its exit code."""

    def look():
        cluster.works[0].record.write_text(json.dumps({"code": code}))
        return queue or {}

    return look


def test_a_job_that_is_done_is_not_begun_again(cluster):
    made, executor, queues, said = cluster
    queues += [dict, lambda: {1: ("RUNNING", "None")}, ended(made, 0)]
    assert made.run() == 0
    assert executor.submitted == ["a"]
    assert said[-1] == "a: done, job 1"
    assert Cluster(made.works, {}, made.home, said.append).works[0].code() == 0


def test_a_pause_is_gone_on_with_and_a_silent_queue_is_waited_for(cluster):
    made, executor, queues, _ = cluster
    queues += [dict, lambda: None, ended(made, UNFINISHED), lambda: None, ended(made, 0)]
    assert made.run() == 0
    assert executor.submitted == ["a", "a"]


def test_jobs_that_end_without_a_word_are_begun_three_times(cluster):
    made, executor, _, said = cluster
    assert made.run() == FAILED
    assert executor.submitted == ["a"] * 3
    assert "3 jobs ended without a word: see" in said[-1]


def test_a_failure_is_not_repeated(cluster):
    made, executor, queues, said = cluster
    queues += [dict, ended(made, 2)]
    assert made.run() == FAILED
    assert executor.submitted == ["a"]
    assert "exit code 2" in said[-1]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (("PENDING", "JobHeldAdmin"), r"job 1 is held \(JobHeldAdmin\): scontrol release 1"),
        (("PENDING", "launch_failed_requeued_held"), "is held"),
        (("PENDING", "PartitionNodeLimit"), "cannot begin .*ask for less"),
    ],
)
def test_jobs_that_wait_for_a_person_are_named(cluster, row, words):
    made, _, queues, said = cluster
    queues += [dict, lambda: {1: row}]
    assert made.run() == UNFINISHED
    assert re.search(words, said[-1])


def test_a_cancelled_job_waits_for_the_command(cluster, monkeypatch):
    made, executor, queues, said = cluster
    monkeypatch.setattr(slurm, "_cancelled", lambda number: True)
    queues += [dict, dict]
    assert made.run() == UNFINISHED
    assert said[-1] == "a: cancelled; the same command begins it again"
    queues += [dict, ended(made, 0)]
    assert made.run() == 0
    assert executor.submitted == ["a", "a"]


# ---------------------------------------------------------------------- a real one


def start(folder, **knobs):
    network = {"http_proxy": "", "https_proxy": ""}  # Debian's packages are fetched
    done = subprocess.run(
        ["bash", str(START), str(folder)],
        env=os.environ | network | knobs,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.skip(f"no Slurm here (root, and Debian's packages): {done.stderr[-300:]}")


@pytest.fixture
def real(monkeypatch):
    """Slurm's daemons on this machine, and the environment of whoever calls them."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # munge wants all folders above it open
    start(folder, SLURMD_TIMEOUT="10", MAX_TIME="5")
    words = ["bash", "-c", f". {folder}/env; env -0"]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    for line in said.split("\0"):
        name, equals, value = line.partition("=")
        if equals and name in ("PATH", "LD_LIBRARY_PATH", "SLURM_CONF"):
            monkeypatch.setenv(name, value)
    yield folder
    subprocess.run([str(folder / "stop")], capture_output=True, timeout=120)
    shutil.rmtree(folder)


def watching(batch, home, *words):
    command = [sys.executable, "-m", "dreamlib", "notebooks", "--batch", str(batch)]
    command += ["--out", str(home), "--slurm", ",".join(["partition=short", *words])]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "DREAMLIB_DATA": str(home / "data")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def write_batch(path, seeds, steps):
    own = [setting for setting in TINY if "length" not in setting]
    defaults = {"notebooks": ["03_training"], "preset": "faces16"}
    defaults["set"] = [*own, f"train.length={steps}", "train.save_minutes=0.05", "train.slices=2"]
    runs = [{"name": f"r{seed}", "set": [f"train.seed={seed}"]} for seed in range(seeds)]
    path.write_text(yaml.safe_dump({"defaults": defaults, "runs": runs}))


def job_of(home, run):
    book = home / "slurm" / "jobs.json"
    return json.loads(book.read_text())[run]["id"] if book.exists() else 0


def running(number):
    """How often the job has been begun, while it runs; None while it does not."""
    said = subprocess.run(["scontrol", "show", "job", str(number)], capture_output=True, text=True)
    again = re.search(r"Restarts=(\d+)", said.stdout)
    return int(again[1]) if again and "JobState=RUNNING" in said.stdout else None


def until(true, what, seconds=400):
    begun = time.monotonic()
    while not true():
        assert time.monotonic() - begun < seconds, what
        time.sleep(0.5)


def trains(home, run):
    """Whether a process is at work on a run, in a job that runs."""
    path = home / run / f"{home.name}-{run}" / "status.json"
    status = json.loads(path.read_text()) if path.exists() else {"state": ""}
    fresh = status["state"] == "running" and time.time() - status["time"] < 20
    return fresh and running(job_of(home, run)) is not None


def node():
    said = subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True)
    return said.stdout.strip()


def slurmd(folder):
    return int((folder / "slurmd.pid").read_text())


def back(folder):
    """slurmd again, as start.sh has it."""
    script = f'. {folder}/env; slurmd-wlm -N "$(hostname -s)" -d "$(command -v slurmstepd-wlm)"'
    subprocess.run(["bash", "-c", script], check=True)
    until(lambda: Path(f"/proc/{slurmd(folder)}").exists(), "slurmd does not begin")
    until(lambda: node() in ("idle", "mixed", "allocated"), "the node does not come back")


def weights(home, run):
    return load_file(home / run / f"{home.name}-{run}" / "weights" / "ema.safetensors")


@pytest.mark.slow
def test_runs_longer_than_their_limit_through_failures_end_with_the_local_bits(real, tmp_path):
    batch, home, local = tmp_path / "b.yaml", tmp_path / "cluster", tmp_path / "local"
    write_batch(batch, 4, STEPS)
    watched = watching(batch, home, "time=2", "cpus_per_task=1", "signal_delay_s=30")
    try:
        for failure in (gone_briefly, gone_for_long, killed_with_its_step, preempted):
            until(lambda: any(trains(home, f"r{i}") for i in range(4)), "no run trains")
            failure(real, home)
        out, _ = watched.communicate(timeout=2400)
        while watched.returncode == UNFINISHED:  # a held job, unless its old process finished
            held = re.findall(r"scontrol release (\d+)", out)  # as it says
            subprocess.run(["scontrol", "release", *held], check=True)
            watched = watching(batch, home, "time=2", "cpus_per_task=1", "signal_delay_s=30")
            out, _ = watched.communicate(timeout=2400)
    finally:
        watched.kill()
    assert watched.returncode == 0, out
    for run in ("r0", "r1", "r2", "r3"):
        events = home / run / f"{home.name}-{run}" / "events.jsonl"
        steps = [json.loads(line) for line in events.read_text().splitlines()]
        saved = [event["step"] for event in steps if event["event"] == "saved"]
        assert saved == sorted(set(saved)), "a step was trained twice"
    write_batch(batch, 1, STEPS)
    words = ["-m", "dreamlib", "notebooks", "--batch", str(batch), "--out", str(local)]
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True, capture_output=True)
    ours, theirs = weights(home, "r0"), weights(local, "r0")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def gone_briefly(folder, home):
    os.kill(slurmd(folder), signal.SIGKILL)
    time.sleep(1)
    back(folder)


def gone_for_long(folder, home):
    """Longer than its timeout, while the old process lives on."""
    os.kill(slurmd(folder), signal.SIGKILL)
    until(lambda: "down" in node(), "Slurm does not miss it")
    back(folder)


def killed_with_its_step(folder, home):
    os.kill(slurmd(folder), signal.SIGKILL)
    subprocess.run(["pkill", "-KILL", "-f", "slurmstepd"], check=False)
    until(lambda: "down" in node(), "Slurm does not miss it")
    back(folder)


def preempted(folder, home):
    number = next(n for i in range(4) if running(n := job_of(home, f"r{i}")) is not None)
    subprocess.run(["scontrol", "requeue", str(number)], check=True)


@pytest.mark.slow
def test_a_cancelled_job_and_one_that_is_too_large_are_named(real, tmp_path):
    batch, home = tmp_path / "b.yaml", tmp_path / "cluster"
    write_batch(batch, 1, 10**5)
    watched = watching(batch, home, "time=2", "cpus_per_task=1")
    until(lambda: running(job_of(home, "r0")) is not None, "it does not run")
    subprocess.run(["scancel", str(job_of(home, "r0"))], check=True)
    out, _ = watched.communicate(timeout=200)
    assert watched.returncode == UNFINISHED, out
    assert "r0: cancelled; the same command begins it again" in out
    watched = watching(batch, home, "time=2", "cpus_per_task=4096")
    out, _ = watched.communicate(timeout=200)
    assert watched.returncode == 2, out
    assert "Slurm refuses r0" in out
