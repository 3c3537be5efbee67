#!/bin/sh
# onnxruntime 1.32.0 with torch 2.13.0, on CPUs, seen on 2026-12-01, Linux, Python 3.11.
#
# Guess: nearest-neighbour resizing only copies pixels, so the file that torch exports ("asymmetric",
# "floor") copies the same ones: pixel i comes from floor(i * in / out).
# Seen: of the sizes from 4 to 128, 470 pairs differ from that rule in onnxruntime, 188 others in torch.
# 28 to 32, what is done to Fashion-MNIST, is among them: onnxruntime divides by a rounded 32/28 and gets
# 6.99 where 7 is meant, so two rows and two columns, 12 % of the image, are their neighbours.  Torch's own
# are right there and wrong from 28 to 46.  Doubling and halving are exact in both.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --disable-pip-version-check \
    'torch==2.13.0' 'numpy==2.4.6' 'onnx==1.23.2' 'onnxscript==0.7.2' 'onnxruntime==1.32.0' 2>/dev/null
"$place/venv/bin/python" - <<'PY' 2>/dev/null
import contextlib
import io

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper
from torch.nn.functional import interpolate


def session(model):
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


class To32(torch.nn.Module):
    def forward(self, x):
        return interpolate(x, size=(32, 32), mode="nearest")


image = torch.rand(1, 1, 28, 28)
with contextlib.redirect_stdout(io.StringIO()):
    exported = torch.onnx.export(To32(), (image,), dynamo=True, verbose=False, input_names=["x"]).model_proto
theirs = session(exported).run(None, {"x": image.numpy()})[0]
other = float((theirs != To32()(image).numpy()).mean())
print(f"28 x 28 to 32 x 32, exported by torch: {other:.1%} of the pixels are others in onnxruntime")


def one_row(before, after):
    """The exporter's node, for a row of pixels: which pixel each comes from."""
    node = helper.make_node("Resize", ["x", "", "", "to"], ["y"], mode="nearest", nearest_mode="floor",
                            coordinate_transformation_mode="asymmetric")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, 1, size])
            for name, size in (("x", before), ("y", after))]
    to = helper.make_tensor("to", TensorProto.INT64, [4], [1, 1, 1, after])
    graph = helper.make_graph([node], "resize", ends[:1], ends[1:], [to])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return session(model).run(None, {"x": np.arange(before, dtype=np.float32).reshape(1, 1, 1, -1)})[0].ravel()


wrong = {"onnxruntime": set(), "torch": set()}
for before in range(4, 129):
    for after in range(4, 129):
        rule = np.arange(after) * before // after
        row = torch.arange(before).float().view(1, 1, 1, -1)
        if (one_row(before, after) != rule).any():
            wrong["onnxruntime"].add((before, after))
        if (interpolate(row, size=(1, after), mode="nearest").numpy().ravel() != rule).any():
            wrong["torch"].add((before, after))
for who, pairs in wrong.items():
    print(f"{who}: {len(pairs)} of 15625 pairs of sizes break the rule; of 28, to {sorted(b for a, b in pairs if a == 28)}")
assert 0.1 < other < 0.15 and (28, 32) in wrong["onnxruntime"] - wrong["torch"], "the behaviour has changed"
assert (28, 46) in wrong["torch"] - wrong["onnxruntime"], "the behaviour has changed"
assert len(wrong["onnxruntime"]) > 300 and len(wrong["torch"]) > 100, "the behaviour has changed"
assert not any(a in (b * 2, b / 2) for pairs in wrong.values() for a, b in pairs), "the behaviour has changed"
print("as stated")
PY
