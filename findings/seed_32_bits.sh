#!/bin/sh
# torch 2.13.0 on a CPU, NumPy 2.4.6, seen on 2026-12-01, Linux, Python 3.11.
#
# Guess: Generator.manual_seed takes 64 bits, so hashed seeds of a million images are a million seeds.
# Seen: initial_seed() gives all 64 back, but the numbers depend on the low 32 alone: s and s + 2^32
# draw the same.  Of 200,000 images with a 63-bit hash for a seed, several pairs begin from the same
# noise bit by bit (and a deterministic sampler makes the same image of them); with 64 bits the chance
# of one pair would be one in a billion.  NumPy's generators use the whole seed.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --disable-pip-version-check \
    'torch==2.13.0' 'numpy==2.4.6' 2>/dev/null
"$place/venv/bin/python" - <<'PY' 2>/dev/null
import numpy as np
import torch

COUNT = 200_000


def noise(seed):
    return torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(seed))


high = 5 + 2**32
assert torch.Generator().manual_seed(high).initial_seed() == high
print("s and s + 2^32 draw the same:", torch.equal(noise(5), noise(high)))
drawn = [np.random.default_rng(seed).standard_normal(9) for seed in (5, high)]
print("NumPy's too:", np.array_equal(*drawn))

seeds = [int(np.random.SeedSequence([1, image]).generate_state(1, np.uint64)[0]) >> 1 for image in range(COUNT)]
first, twins = {}, []
for image, seed in enumerate(seeds):
    if (other := first.setdefault(seed % 2**32, image)) != image:
        twins.append((other, image))
same = [torch.equal(noise(seeds[a]), noise(seeds[b])) for a, b in twins]
print(f"{len(set(seeds)):,} different seeds for {COUNT:,} images; {sum(same)} pairs of images have the same noise: "
      f"{twins}")
assert torch.equal(noise(5), noise(high)) and not np.array_equal(*drawn), "the behaviour has changed"
assert len(set(seeds)) == COUNT and twins and all(same), "the behaviour has changed"
print("as stated")
PY
