#!/bin/sh
# torchmetrics 1.9.0's KernelInceptionDistance (torch-fidelity 0.4.0 prints the same spread) with
# torch 2.13.0, seen on 2026-12-01, Linux, Python 3.11.
#
# Guess: KID comes as mean and sd over 100 subsets; the sd, or a tenth of it, is how far the mean
# would move with new images.
# Seen: neither.  With as many images as a subset takes (1,000 by default, 200 here, for speed) every
# subset is all of them: the sd is 0 to five digits, while KID itself varies by a third of its value.  With a
# fifth more images it is half of the truth, with five times as many over twice; and sd / sqrt(100), as
# if the subsets shared no image, is then a quarter.  The sd tells the subset's size, not the error.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --disable-pip-version-check \
    'torch==2.13.0' 'torchmetrics==1.9.0' 'numpy==2.4.6' 2>/dev/null
"$place/venv/bin/python" - <<'PY' 2>/dev/null
import statistics
import warnings

import torch
from torch import nn
from torchmetrics.image.kid import KernelInceptionDistance

warnings.simplefilter("ignore")
torch.manual_seed(0)
WIDTH, SHIFT, SUBSET = 64, 0.1, 200


class Features(nn.Module):
    """Takes features for images."""

    num_features = WIDTH

    def forward(self, x):
        return x.float()


def once(n, subsets):
    metric = KernelInceptionDistance(feature=Features(), subsets=subsets, subset_size=SUBSET)
    metric.update(torch.randn(n, WIDTH), real=True)
    metric.update(torch.randn(n, WIDTH) + SHIFT, real=False)
    return tuple(map(float, metric.compute()))


told = {}
for n, subsets, times in (200, 2, 60), (240, 100, 30), (1000, 100, 30):
    pairs = [once(n, subsets) for _ in range(times)]
    true = statistics.stdev(mean for mean, _ in pairs)
    told[n] = statistics.mean(sd for _, sd in pairs) / true
    print(f"{n} images: KID {statistics.mean(mean for mean, _ in pairs):.4f}, varies by {true:.4f} over new "
          f"images; the sd that is told is {told[n]:.4f} of that, sd / sqrt(100) {told[n] / 10:.3f}")
assert told[200] < 1e-3 and 0.3 < told[240] < 0.9, "the behaviour has changed"
assert 1.4 < told[1000] < 4, "the behaviour has changed"
print("as stated")
PY
