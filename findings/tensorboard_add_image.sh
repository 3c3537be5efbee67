#!/bin/sh
# torch 2.13.0's SummaryWriter with tensorboard 2.21.0, seen on 2026-12-01, Linux, Python 3.11.
#
# Guess: add_image takes integers from 0 to 255 as what they are, and grids of images in [-1, 1]
# come out pale or are refused.
# Seen: only the type uint8 is taken as it is.  Any other array is multiplied by 255 and clipped: the
# values 0..255 as int64 or int32 become pure black and white (2 of 256 values left), with no
# warning, and images in [-1, 1] have their whole lower half black (129 values left).  Fractions are
# cut off, not rounded.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --disable-pip-version-check 'torch==2.13.0' \
    'tensorboard==2.21.0' 'numpy==2.4.6' 'pillow==13.0.0' 'setuptools<81' 2>/dev/null
"$place/venv/bin/python" - "$place/events" 2>/dev/null <<'PY'
import io
import sys

import numpy as np
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

levels = np.arange(256).reshape(16, 16)
given = {
    "uint8": levels.astype(np.uint8),
    "float32 in [0, 1]": (levels / 255).astype(np.float32),
    "int64": levels,
    "int32": levels.astype(np.int32),
    "float32 in [-1, 1]": (levels / 127.5 - 1).astype(np.float32),
}
with SummaryWriter(sys.argv[1]) as writer:
    for name, image in given.items():
        writer.add_image(name, image, 0, dataformats="HW")
events = EventAccumulator(sys.argv[1])
events.Reload()
left = {}
for name in given:
    data = events.Images(name)[0].encoded_image_string
    shown = np.asarray(Image.open(io.BytesIO(data)).convert("L"))
    left[name] = len(np.unique(shown))
    print(f"{name}: {left[name]} different values, {(shown == 0).mean():.0%} of the picture black, "
          f"{(shown == levels).sum()} of 256 as given")
assert list(left.values()) == [256, 256, 2, 2, 129], "the behaviour has changed"
print("as stated")
PY
