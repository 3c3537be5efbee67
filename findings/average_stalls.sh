#!/bin/sh
# torch 2.13.0's AveragedModel, diffusers 0.42.1's EMAModel, ema-pytorch 0.8.3, seen on 2026-12-01.
#
# Guess: a float32 average (EMA) of weights that no longer change arrives at them to float32's 1e-7.
# Seen: it stops short: as soon as (1 - decay) times the distance is less than half of a weight's last
# digit, the update rounds to nothing.  With 0.9999 the averages stay off by up to 6e-4 of the weight for
# ever, with 0.999 by 6e-5; the same rule in float64 arrives to 6e-9.  All three libraries alike,
# whatever form their formula has, and each factor of ten in 1 - decay makes it ten times larger.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --disable-pip-version-check \
    'torch==2.13.0' 'numpy==2.4.6' 'diffusers==0.42.1' 'ema-pytorch==0.8.3' 2>/dev/null
"$place/venv/bin/python" - <<'PY' 2>/dev/null
import torch
from diffusers.training_utils import EMAModel
from ema_pytorch import EMA
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

begin = torch.linspace(1, 2, 1001)[:1000].view(-1, 1)
off = {}
for decay in 0.999, 0.9999:
    net = nn.Linear(1, 1000, bias=False)
    net.weight.data.copy_(begin * 0.98)
    by_torch = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(decay))
    by_diffusers = EMAModel(net.parameters(), decay=decay, min_decay=decay)
    by_ema = EMA(net, beta=decay, min_value=decay, update_every=1, update_after_step=0)
    exact = net.weight.detach().double()  # the same rule in float64
    for step in range(int(15 / (1 - decay))):
        if step == 3:  # the first updates copy
            net.weight.data.copy_(begin)
        exact.lerp_(net.weight.detach().double(), 1 - decay)
        by_torch.update_parameters(net)
        by_diffusers.step(net.parameters())
        by_ema.update()
    ends = {"float64": exact, "torch": by_torch.module.weight, "diffusers": by_diffusers.shadow_params[0],
            "ema-pytorch": by_ema.ema_model.weight}
    for name, weight in ends.items():
        off[decay, name] = float((weight.detach().double() / begin - 1).abs().max())
    print(f"decay {decay}, {step + 1:,} updates, off by at most: "
          + ", ".join(f"{name} {off[decay, name]:.1e}" for name in ends))
for name in "torch", "diffusers", "ema-pytorch":
    assert 3e-4 < off[0.9999, name] < 1e-3 and 3e-5 < off[0.999, name] < 1e-4, "the behaviour has changed"
assert off[0.9999, "float64"] < 1e-7, "the behaviour has changed"
print("as stated")
PY
