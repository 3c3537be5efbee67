"""Processes and hosts that die or vanish in the middle of a training that they share."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from dreamlib.runs.checkpoints import newest_checkpoint
from dreamlib.runs.folder import RunDir
from tests.conftest import TINY

ROOT = Path(__file__).parents[2]
STEPS, KILLS = 400, 40
SETTINGS = [*TINY, "train.slices=4", "train.batch=9", "net.dropout=0.1", "train.save_minutes=0.002"]
ADDRESS, OTHER, PORT = "10.77.0.1", "10.77.0.2", "29511"
pytestmark = pytest.mark.slow


def command(folder, steps, *words, how=(), env=None):
    ours = [word for s in (*SETTINGS, f"train.length={steps}") for word in ("--set", s)]
    words = ["-m", "dreamlib", "train", str(folder), "--preset", "faces16", *ours, *words]
    data = {"OMP_NUM_THREADS": "1", "DREAMLIB_DATA": str(folder.parent / "data")}
    return subprocess.Popen(
        [*(how or [sys.executable]), *words],
        cwd=ROOT,
        env=os.environ | data | (env or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def saved(run):
    return max((int(p.stem[5:]) for p in run.checkpoints.glob("step-*.json")), default=-1)


def resumptions(run):
    return sum(event["event"] == "resumed" for event in run.read_events())


def until_it_saves(run, process, known, resumed=0):
    begun = time.monotonic()
    while process.poll() is None and (saved(run) <= known or resumptions(run) < resumed):
        assert time.monotonic() - begun < 120, "it does not train"
        time.sleep(0.02)


def assert_like(run, whole):
    ours, theirs = (load_file(r.weights / "ema.safetensors") for r in (run, whole))
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


def kill_some(process, rng):
    """A rank, torchrun, the command, or all of them -> those that are to end."""
    below = psutil.Process(process.pid).children(recursive=True)
    kinds = {p: "rank" if "RANK" in p.environ() else "torchrun" for p in below}
    who = rng.choice(["rank", "rank", "torchrun", "command", "all"])
    chosen = [p for p, kind in kinds.items() if kind == who]
    if who == "rank" and chosen:
        chosen = [rng.choice(chosen)]
    for victim in chosen or [*(below if who == "all" else ()), process]:
        victim.kill()
    return [*below, psutil.Process(process.pid)] if psutil.pid_exists(process.pid) else below


def test_forty_kills_by_any_number_of_processes_end_with_the_bits_of_one(tmp_path):
    rng, run, whole = random.Random(0), RunDir(tmp_path / "run"), RunDir(tmp_path / "whole")
    undisturbed = command(whole.folder, STEPS)
    for _ in range(KILLS):
        devices, known = rng.choice([1, 2, 2, 3, 4]), saved(run)
        words = [f"--devices={devices}"] if devices > 1 else []
        process = command(run.folder, STEPS, *words)
        until_it_saves(run, process, known)
        time.sleep(rng.uniform(0, 0.2))
        if process.poll() is not None:
            break
        ending = kill_some(process, rng)
        process.communicate(timeout=90)
        _, orphans = psutil.wait_procs(ending, timeout=60)
        assert orphans == []
        assert saved(run) > known
    last = command(run.folder, STEPS)
    for process in (last, undisturbed):
        out, _ = process.communicate(timeout=300)
        assert process.returncode == 0, out
    assert_like(run, whole)


def test_twenty_restarts_by_torchrun(tmp_path):
    run = RunDir(tmp_path / "run")
    process = command(run.folder, STEPS, "--devices=2", "--restarts=20")
    rng, came_through = random.Random(0), 0
    for _ in range(20):
        until_it_saves(run, process, saved(run), resumed=came_through)
        ranks = [p for p in psutil.Process(process.pid).children(recursive=True) if is_rank(p)]
        if process.poll() is not None or not ranks:
            break
        rng.choice(ranks).kill()
        came_through += 1
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    assert came_through == 20
    assert out.count("RESUMED at step") == 20
    assert run.status()["step"] == STEPS


def is_rank(process):
    try:
        return "RANK" in process.environ()
    except psutil.Error:
        return False


# ---------------------------------------------------------------------- two hosts


@pytest.fixture
def hosts():
    """Two network namespaces, joined by a cable."""
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("network namespaces need root and iproute2")
    names = {"one": ("dream-a", ADDRESS), "two": ("dream-b", OTHER)}
    script = ["link add dream-a type veth peer name dream-b"]
    for name, (link, address) in names.items():
        script += [f"netns add {name}", f"link set {link} netns {name}"]
        script += [f"-n {name} addr add {address}/24 dev {link}"]
        script += [f"-n {name} link set {each} up" for each in ("lo", link)]
    try:
        for line in script:
            if ip(line).returncode:
                pytest.skip("this kernel has no network namespaces")
        yield names
    finally:
        for name in names:
            ip(f"netns del {name}")


def ip(words):
    return subprocess.run(["ip", *words.split()], capture_output=True)


def on_both(hosts, folder, steps):
    """The command on each host; the second sees no run folder."""
    processes = []
    for node, (name, (link, _)) in enumerate(hosts.items()):
        torchrun = ["-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={node}"]
        torchrun += ["--nproc-per-node=1", f"--master-addr={ADDRESS}", f"--master-port={PORT}"]
        env = {"GLOO_SOCKET_IFNAME": link, "DREAMLIB_ANSWER_SECONDS": "10"}
        how = ["ip", "netns", "exec", name, sys.executable, *torchrun]
        place = folder if node == 0 else folder.parent / "not-here" / "run"
        process = command(place, steps, how=how, env=env)
        processes.append(process)
    return processes


def test_two_hosts_one_of_which_is_cut_off(hosts, tmp_path):
    run, whole = RunDir(tmp_path / "run"), RunDir(tmp_path / "whole")
    undisturbed = command(whole.folder, 120)
    both = on_both(hosts, run.folder, 120)
    until_it_saves(run, both[0], -1)
    ip("-n one link set dream-a down")
    out = [process.communicate(timeout=90)[0] for process in both]
    assert all(process.returncode for process in both)
    assert "another process of this training is gone" in out[0]
    assert newest_checkpoint(run.checkpoints).step < 120
    ip("-n one link set dream-a up")
    for process in [*on_both(hosts, run.folder, 120), undisturbed]:
        out, _ = process.communicate(timeout=200)
        assert process.returncode == 0, out
    assert_like(run, whole)
    assert not (tmp_path / "not-here").exists()
