"""Slices of a batch: the same bits by any number of threads, and the same gradient as one slice."""

from __future__ import annotations

from functools import reduce

import pytest
import torch

from dreamlib.training.diffusion import DiffusionTrainer
from dreamlib.training.slices import added, parts_of
from dreamlib.utils.threads import one_thread, side_by_side
from tests.conftest import train_for

SLICED = ["train.slices=3", "train.batch=7", "train.length=6"]


@pytest.fixture(autouse=True)
def _threads_come_back():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def ended(tiny, name, threads, *settings):
    """The weights, averaged and not, that a run ends with on so many threads."""
    torch.set_num_threads(threads)
    run = tiny(name, *settings)
    trainer = DiffusionTrainer(run)
    for _ in range(6):
        trainer.advance()
    assert torch.get_num_threads() == threads
    return [*trainer.net.state_dict().values(), *trainer.ema.module.state_dict().values()]


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["train.precision=bf16"],
        ["loss.name=conservative", "loss.start=1", "loss.ramp=1", "train.clip=0.1"],
        ["loss.name=paper", "train.micro=2"],
        ["net.dropout=0.2"],
        ["net.dropout=0.2", "loss.name=conservative", "loss.start=1", "loss.ramp=1"],
        ["net.dropout=0.2", "train.recompute=true"],
        ["train.optimizer=muon", "net.conditional=true"],
    ],
    ids=lambda settings: " ".join(settings) or "standard",
)
def test_the_bits_do_not_depend_on_the_threads(tiny, settings):
    one = ended(tiny, "one", 1, *SLICED, *settings)
    for threads in (2, 4):
        other = ended(tiny, f"with-{threads}", threads, *SLICED, *settings)
        assert all(torch.equal(a, b) for a, b in zip(one, other)), threads


def test_the_bits_of_the_demos_network(tiny):
    """Large enough for PyTorch to share its operators out between threads."""
    size = ["net.widths=[48, 96]", "net.attention=[]", "net.heads=4", "train.batch=32"]
    size += ["diffusion.steps=1000", "train.length=6"]
    one, two = (ended(tiny, f"by-{n}", n, *size, "train.slices=2") for n in (1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one, two))
    one, two = (ended(tiny, f"plain-{n}", n, *size) for n in (1, 2))
    if all(torch.equal(a, b) for a, b in zip(one, two)):
        pytest.skip("one slice has the same bits on this machine: nothing is shown")


@pytest.mark.parametrize("loss", ["standard", "conservative", "paper"])
def test_the_gradient_is_that_of_the_whole_batch(tiny, loss):
    found = {}
    settings = [f"loss.name={loss}", "loss.start=1", "loss.ramp=1", "train.batch=7"]
    for count in (1, 3, 7):
        trainer = DiffusionTrainer(tiny(f"by-{count}", *settings, f"train.slices={count}"))
        torch.manual_seed(0)
        for parameter in trainer.net.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        trainer.step, trainer.sharing.threads = 5, 2
        stats = trainer.accumulate(trainer.draw(5), 7)
        gradients = [p.grad.flatten() for p in trainer.net.parameters() if p.grad is not None]
        found[count] = torch.cat(gradients), stats["loss"]
    for count in (3, 7):
        for ours, whole in zip(found[count], found[1]):
            assert torch.allclose(ours, whole, rtol=1e-4, atol=1e-4 * float(whole.abs().max()))


def test_a_run_goes_on_with_other_threads(tiny):
    torch.set_num_threads(2)
    whole = tiny("whole", *SLICED)
    train_for(whole)
    broken = tiny("broken", *SLICED)
    train_for(broken, 3)
    torch.set_num_threads(1)
    train_for(broken)
    ours, theirs = broken.weights()[0], whole.weights()[0]
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_parts():
    sizes = [part.stop - part.start for part in parts_of(33, 4)]
    assert sizes == [8, 8, 8, 9]
    assert parts_of(2, 4) == [slice(0, 1), slice(1, 2)]


def test_an_error_in_a_slice_is_raised_when_all_have_ended():
    ended = []

    def work(part):
        if part == 0:
            raise RuntimeError("out of memory")
        ended.append(part)

    with pytest.raises(RuntimeError, match="out of memory"):
        side_by_side(work, range(4), 2)
    assert sorted(ended) == [1, 2, 3]


def test_torch_has_one_thread_meanwhile():
    torch.set_num_threads(2)
    with one_thread() as threads:
        assert (torch.get_num_threads(), threads) == (1, 2)
    assert torch.get_num_threads() == 2


def test_a_gradient_that_one_slice_lacks():
    parts = [[None, torch.ones(2)], [torch.ones(1), None], [torch.ones(1), torch.ones(2)]]
    total = reduce(added, parts)
    assert [t.tolist() for t in total] == [[2.0], [2.0, 2.0]]
