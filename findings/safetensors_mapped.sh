#!/bin/sh
# safetensors 0.8.0 with torch 2.13.0, seen on 2026-12-01, Linux, Python 3.11.
#
# Guess: once load_file has returned, the tensors are this process's own, as after torch.load: what
# happens to the file later does not matter.
# Seen: they are the file, mapped.  Another program that writes over the same file in place (as
# rsync --inplace does) changes the weights of the network that was loaded before, with
# no error; load_state_dict(assign=True) keeps it so.  save_file itself is harmless: it puts a new
# file in the place of the old one.  torch.load without mmap, and safetensors.torch.load(bytes), keep
# what was read.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --disable-pip-version-check \
    'torch==2.13.0' 'safetensors==0.8.0' 'numpy==2.4.6' 2>/dev/null
"$place/venv/bin/python" - "$place" 2>/dev/null <<'PY'
import sys
from pathlib import Path

import torch
from safetensors.torch import load, load_file, save_file

folder = Path(sys.argv[1])


def model(value):
    return {"weight": torch.full((512, 512), value)}


def in_place(path, source):
    with open(path, "r+b") as file:  # the same size, byte for byte over the old ones
        file.write(source.read_bytes())


one, two = folder / "one.safetensors", folder / "two.safetensors"
save_file(model(1.0), one)
save_file(model(2.0), two)
network = torch.nn.Linear(512, 512, bias=False, device="meta")
network.load_state_dict(load_file(one), assign=True)
copied = load(one.read_bytes())["weight"]
save_file(model(3.0), one)
after_save = network.weight.mean().item()
save_file(model(1.0), one)
network.load_state_dict(load_file(one), assign=True)
in_place(one, two)
after_write = network.weight.mean().item()

torch.save(model(1.0), folder / "one.pt")
torch.save(model(2.0), folder / "two.pt")
kept = torch.load(folder / "one.pt")["weight"]
in_place(folder / "one.pt", folder / "two.pt")
print(f"load_file, then save_file over it: the loaded weights are {after_save}")
print(f"load_file, then written over in place: the loaded weights are {after_write}")
print(f"load(bytes): {copied.mean().item()}; torch.load: {kept.mean().item()}")
assert (after_save, after_write) == (1.0, 2.0), "the behaviour has changed"
assert copied.mean() == 1 and kept.mean() == 1, "the behaviour has changed"
print("as stated")
PY
