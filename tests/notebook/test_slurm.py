"""Jobs of a cluster: what is said of a queue, and a real Slurm on this one machine."""

from __future__ import annotations

import json
import re

import pytest

from dreamlib.notebook.runner import slurm
from dreamlib.notebook.runner.jobs import FAILED, UNFINISHED
from dreamlib.notebook.runner.slurm import Cluster, Work, options_of
from dreamlib.utils.errors import ConfigError


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
