#!/bin/sh
# torch 2.13.0's ONNX exporter with onnxruntime 1.32.0, seen on 2026-12-01, Linux, Python 3.11.
#
# Guess: len(x) and x.shape[0] are the same to an exporter that was told that the batch is open.
# Seen: len(x) is a plain number to it.  With Dim.AUTO the file's input stays open, and a batch of 5 comes back
# as 2 rows of 120 values instead of 5 rows of 48, without an error.  With a named Dim the file takes
# exactly the two images of the example, though torch.export alone refuses that: torch.onnx.export
# falls back to another way of tracing, which does not.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --disable-pip-version-check \
    'torch==2.13.0' 'numpy==2.4.6' 'onnx==1.23.2' 'onnxscript==0.7.2' \
    'onnxruntime==1.32.0' 2>/dev/null
"$place/venv/bin/python" - <<'PY' 2>/dev/null
import contextlib
import io
import warnings

import numpy as np
import onnxruntime
import torch
from torch import nn
from torch.export import Dim

warnings.simplefilter("ignore")


class Flat(nn.Module):
    def __init__(self, by_len):
        super().__init__()
        self.by_len = by_len

    def forward(self, x):
        return (2 * x).reshape(len(x) if self.by_len else x.shape[0], -1)


def five(by_len, dim):
    """The file's input, and the shape of what it makes of 5 images; 10 were not exported."""
    with contextlib.redirect_stdout(io.StringIO()):
        program = torch.onnx.export(Flat(by_len), (torch.randn(2, 3, 4, 4),), dynamo=True, verbose=False,
                                    input_names=["x"], dynamic_shapes={"x": {0: dim}})
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(),
                                           providers=["CPUExecutionProvider"])
    open_ = not isinstance(session.get_inputs()[0].shape[0], int)
    try:
        return open_, session.run(None, {"x": np.ones((5, 3, 4, 4), np.float32)})[0].shape
    except Exception as error:
        return open_, type(error).__name__


got = {}
for by_len in False, True:
    for name, dim in ("Dim.AUTO", Dim.AUTO), ("Dim('batch')", Dim("batch", min=1, max=100)):
        got[by_len, name] = five(by_len, dim)
        print(f"{'len(x)' if by_len else 'x.shape[0]'}, {name}: batch {'open' if got[by_len, name][0] else 'fixed'},"
              f" 5 images give {got[by_len, name][1]}")
assert got[False, "Dim.AUTO"] == got[False, "Dim('batch')"] == (True, (5, 48)), "the behaviour has changed"
assert got[True, "Dim.AUTO"] == (True, (2, 120)), "the behaviour has changed"
assert got[True, "Dim('batch')"] == (False, "InvalidArgument"), "the behaviour has changed"
print("as stated")
PY
