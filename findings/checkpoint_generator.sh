#!/bin/sh
# torch 2.13.0's torch.utils.checkpoint, seen on 2026-12-01, Linux, Python 3.11.
#
# Guess: preserve_rng_state=True (the default) makes the recomputation draw what the first pass drew, or
# the check of what was recomputed notices.
# Seen: only the global generators are put back.  A block that draws its dropout from a torch.Generator
# of its own, as keyed training does, drops OTHER units in the recomputation: half of the mask differs,
# gradients are off by as much as they are large, nothing is raised in either mode, and the generator has
# moved twice as far.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --disable-pip-version-check \
    'torch==2.13.0' 'numpy==2.4.6' 2>/dev/null
"$place/venv/bin/python" - <<'PY' 2>/dev/null
import torch
from torch.utils.checkpoint import checkpoint


def gradient(own, recompute, reentrant=False):
    """Gradient of a weight behind dropout, and how often a mask was drawn."""
    torch.manual_seed(0)
    weight = torch.randn(256, 256, requires_grad=True)
    x = torch.randn(64, 256, requires_grad=True)
    generator = torch.Generator().manual_seed(0) if own else None
    masks = []

    def block(x):
        masks.append(torch.rand(64, 256, generator=generator) > 0.5)
        return ((x @ weight).tanh() * masks[-1]).square()

    torch.manual_seed(1)
    out = checkpoint(block, x, use_reentrant=reentrant) if recompute else block(x)
    out.sum().backward()
    return weight.grad, masks


off = {}
for own in False, True:
    right, _ = gradient(own, recompute=False)
    for reentrant in False, True:
        got, masks = gradient(own, True, reentrant)
        off[own, reentrant] = float((got - right).norm() / right.norm())
        print(f"{'a generator of its own' if own else 'the global generator'}, use_reentrant={reentrant}: "
              f"{(masks[0] != masks[1]).float().mean():.0%} of the mask differs, gradient off by "
              f"{off[own, reentrant]:.0%}")
assert off[False, False] == off[False, True] == 0, "the behaviour has changed"
assert off[True, False] > 0.2 < off[True, True], "the behaviour has changed"
print("as stated")
PY
