"""Muon against what it stands for: singular values through the same polynomial, and torch's own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from dreamlib.diffusion.muon import QUINTIC, ROUNDS, Muon, orthogonalise
from dreamlib.diffusion.unet import UNet


def matrices(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(3, 16, 40), (2, 40, 16), (1, 24, 24)])
def test_singular_values_go_through_the_polynomial_five_times(shape):
    x = matrices(*shape)
    u, sigma, v = torch.linalg.svd(x.double(), full_matrices=False)
    sigma = sigma / sigma.norm(dim=-1, keepdim=True)
    for _ in range(ROUNDS):
        a, b, c = QUINTIC
        sigma = a * sigma + b * sigma**3 + c * sigma**5
    assert_close(orthogonalise(x).double(), u @ torch.diag_embed(sigma) @ v, rtol=0, atol=2e-5)
    assert sigma.max() < 1.21


def test_a_few_strong_directions_do_not_drown_the_others():
    """What differs a thousandfold comes out alike, and what is no number stays none."""
    u, _, v = torch.linalg.svd(matrices(1, 32, 96), full_matrices=False)
    x = u @ torch.diag_embed(torch.logspace(0, -3, 32)[None]) @ v
    sigma = torch.linalg.svdvals(orthogonalise(x))[0]
    assert sigma[:24].min() > 0.6
    assert torch.isfinite(orthogonalise(torch.zeros(1, 8, 8))).all()
    assert torch.isnan(orthogonalise(torch.full((1, 8, 8), float("nan")))).all()


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3)
        self.inner = nn.Conv2d(16, 24, 1, bias=False)
        self.time = nn.Linear(16, 24)


def stepped(net, optimizer, steps=3):
    for step in range(steps):
        for k, weight in enumerate(net.parameters()):
            weight.grad = matrices(*weight.shape, seed=100 * step + k)
        optimizer.step()
    return dict(net.named_parameters())


def test_hidden_convolutions_are_torchs_muon_and_all_else_is_adamw():
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("torch has it from 2.9 on")
    net = Layers()
    adam, theirs = copy.deepcopy(net), nn.Linear(16, 24, bias=False)
    theirs.weight.data = net.inner.weight.data.flatten(1).clone()
    ours = stepped(net, Muon(net, 3e-3, 0.1, fused=True))
    usual = stepped(adam, torch.optim.AdamW(adam.parameters(), 3e-3, weight_decay=0.1, fused=True))
    for name in ("stem.weight", "stem.bias", "time.weight", "time.bias"):
        assert torch.equal(ours[name], usual[name])
    named = {"lr": 3e-3, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    optimizer, before = (
        torch.optim.Muon(theirs.parameters(), **named),
        theirs.weight.detach().clone(),
    )
    for step in range(3):
        theirs.weight.grad = matrices(24, 16, seed=100 * step + 2)
        optimizer.step()
    moved = ours["inner.weight"].detach().flatten(1) - before
    assert_close(
        moved, theirs.weight.detach() - before, rtol=0, atol=0.05 * float(moved.abs().max())
    )
    assert float(moved.square().mean().sqrt()) == pytest.approx(3 * 0.2 * 3e-3, rel=0.35)


def test_its_state_is_saved_and_goes_on_bit_for_bit():
    def net():
        torch.manual_seed(0)
        return UNet(size=16, channels=3, widths=[8, 16], heads=2)

    whole, half, other = net(), net(), net()
    expected = stepped(whole, Muon(whole, 1e-3, 0.01, fused=True), 4)
    first = Muon(half, 1e-3, 0.01, fused=True)
    stepped(half, first, 2)
    other.load_state_dict(half.state_dict())
    second = Muon(other, 1e-3, 0.01, fused=True)
    second.load_state_dict(first.state_dict())
    for step in (2, 3):
        for k, weight in enumerate(other.parameters()):
            weight.grad = matrices(*weight.shape, seed=100 * step + k)
        second.step()
    for name, value in other.named_parameters():
        assert torch.equal(value, expected[name]), name


def test_every_weight_has_one_rule():
    net = UNet(size=16, channels=3, widths=[8, 16], heads=2)
    groups = Muon(net, 1e-3, 0.01, fused=True).param_groups
    ruled = [id(w) for group in groups for w in group["params"]]
    assert sorted(ruled) == sorted(map(id, net.parameters()))
    hidden = {id(w) for w in groups[1]["params"]}
    names = {name for name, w in net.named_parameters() if id(w) in hidden}
    assert "down.0.blocks.0.conv1.weight" in names
    assert not [name for name in names if name.startswith(("stem", "head", "time"))]
