#!/bin/sh
# torchmetrics 1.9.0's BootStrapper around FrechetInceptionDistance, torch 2.13.0, seen on 2026-12-01.
#
# Guess: the bootstrap's interval says how sure an FID is, so it lies around the FID.
# Seen: it lies above it and does not hold it.  An FID of two sets of one law is all bias; resampled sets
# have fewer different images, so the bias comes a second time: 1.25 becomes 2.4, with a 95 % interval
# from 2.2 to 2.6.  Four times the images make both numbers smaller and change nothing: 0.31, and 0.56 to
# 0.65.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --disable-pip-version-check \
    'torch==2.13.0' 'torchmetrics==1.9.0' 'numpy==2.4.6' 'scipy==1.17.1' 2>/dev/null
"$place/venv/bin/python" - <<'PY' 2>/dev/null
import warnings

import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.wrappers import BootStrapper

warnings.simplefilter("ignore")
torch.manual_seed(0)
WIDTH = 32


class Features(nn.Module):
    """Takes features for images."""

    num_features = WIDTH

    def forward(self, x):
        return x.flatten(1).float()


for n in 500, 2000:
    plain = FrechetInceptionDistance(feature=Features(), input_img_size=(WIDTH, 1, 1))
    many = BootStrapper(
        FrechetInceptionDistance(feature=Features(), input_img_size=(WIDTH, 1, 1)),
        num_bootstraps=100, quantile=torch.tensor([0.025, 0.975]), sampling_strategy="multinomial",
    )
    for real in True, False:
        images = torch.randn(n, WIDTH, 1, 1)
        plain.update(images, real=real)
        many.update(images, real=real)
    value, told = float(plain.compute()), many.compute()
    low, high = told["quantile"].tolist()
    print(f"{n} against {n} of one law: FID {value:.2f}; bootstrap mean {float(told['mean']):.2f}, 95 % interval "
          f"{low:.2f} to {high:.2f}")
    assert value < low and 1.6 < float(told["mean"]) / value < 2.4, "the behaviour has changed"
print("as stated")
PY
