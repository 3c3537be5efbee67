#!/bin/sh
# torchvision 0.29.1 with torch 2.14.1, Pillow 13.0.0, seen on 2026-12-01, Linux, Python 3.11.
#
# Guess: ToTensor, Normalize(0.5, 0.5), then x * 0.5 + 0.5 and ToPILImage gives the image back.
# Seen: 63 of the 256 levels come back one darker, because ToPILImage multiplies by 255 and cuts the
# fraction off: k / 255 * 255 is k, but the detour by [-1, 1] leaves some values a bit below k.
# Without the detour all 256 survive, so a test of ToTensor and ToPILImage alone finds nothing.
# save_image, which adds 0.5 before the cut, and v2's to_dtype(scale=True) keep all of them.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --disable-pip-version-check \
    'torch==2.14.1' 'torchvision==0.29.1' 'numpy==2.4.6' 'pillow==13.0.0' 2>/dev/null
"$place/venv/bin/python" - "$place" <<'PY'
import sys

import numpy as np
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import v2
from torchvision.utils import save_image

levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
image = Image.fromarray(levels)
plain = transforms.ToTensor()(image)
back = transforms.Normalize(0.5, 0.5)(plain) * 0.5 + 0.5


def darker(result):
    difference = levels.astype(int) - np.asarray(result, dtype=int)
    assert set(np.unique(difference)) <= {0, 1}
    return int(difference.sum())


save_image(back, f"{sys.argv[1]}/saved.png")
seen = {
    "ToTensor, ToPILImage": darker(transforms.ToPILImage()(plain)),
    "... by way of [-1, 1]": darker(transforms.ToPILImage()(back)),
    "... to_pil_image of v2": darker(v2.functional.to_pil_image(back)),
    "... save_image": darker(Image.open(f"{sys.argv[1]}/saved.png").convert("L")),
    "... v2 to_dtype(scale=True)": darker(v2.functional.to_dtype(back, torch.uint8, scale=True)[0]),
}
for name, count in seen.items():
    print(f"{name}: {count} of 256 levels one darker")
assert list(seen.values()) == [0, 63, 63, 0, 0], "the behaviour has changed"
print("as stated")
PY
