#!/bin/sh
# torchvision 0.29.1 with torch 2.14.1, Pillow 13.0.0, seen on 2026-12-01, Linux, Python 3.11.
#
# Guess: turning grey images that were stored as RGB back to one channel gives the same grey: the
# three weights add up to 1.
# Seen: they add up to 0.9999 (0.2989 + 0.587 + 0.114) and the result is cut off, not rounded: for a
# uint8 tensor with equal channels, 255 of the 256 values come out one level darker, white is 254,
# and only 0 survives.  In transforms, transforms.v2 and functional alike.  The same transform on a
# Pillow image keeps every value, so a pipeline that changes from PIL to tensors shifts its data.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --disable-pip-version-check \
    'torch==2.14.1' 'torchvision==0.29.1' 'numpy==2.4.6' 'pillow==13.0.0' 2>/dev/null
"$place/venv/bin/python" - <<'PY'
import numpy as np
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import v2

grey = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)  # every value once
rgb = grey.expand(3, 16, 16).contiguous()
ways = {
    "transforms.Grayscale": transforms.Grayscale()(rgb),
    "v2.Grayscale": v2.Grayscale()(rgb),
    "v2.functional.rgb_to_grayscale": v2.functional.rgb_to_grayscale(rgb),
}
for name, result in ways.items():
    darker = int((grey.int() - result.int() == 1).sum())
    print(f"{name}, uint8 tensor: {darker} of 256 values one level darker, white is {result.max()}")
    assert (darker, int(result.max())) == (255, 254), "the behaviour has changed"
on_pillow = np.asarray(v2.Grayscale()(Image.fromarray(rgb.permute(1, 2, 0).numpy())))
wrong = int((on_pillow != grey[0].numpy()).sum())
print(f"v2.Grayscale, Pillow image: {wrong} of 256 values differ")
assert wrong == 0, "the behaviour has changed"
print("as stated")
PY
