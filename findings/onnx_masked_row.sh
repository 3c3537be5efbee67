#!/bin/sh
# torch 2.13.0's ONNX exporter with onnxruntime 1.32.0, seen on 2026-12-01, Linux, Python 3.11.
#
# Guess: exported attention gives torch's values, with a mask too.
# Seen: a query that may look at nothing (the first one of "only what came before") gets zeros from torch
# and, exported at opset 18 or 20, the plain mean of ALL values, those forbidden to it included: a
# masked score is float32's least number, not minus infinity, and so many equal ones are an even
# softmax.  At opset 23, whose Attention is one operator, it is zeros again.  All other rows agree.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --disable-pip-version-check \
    'torch==2.13.0' 'numpy==2.4.6' 'onnx==1.23.2' 'onnxscript==0.7.2' 'onnxruntime==1.32.0' 2>/dev/null
"$place/venv/bin/python" - <<'PY' 2>/dev/null
import contextlib
import io

import onnxruntime
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention


class Attention(nn.Module):
    def forward(self, q, k, v, mask):
        return scaled_dot_product_attention(q, k, v, attn_mask=mask)


rng = torch.Generator().manual_seed(0)
inputs = dict(zip("qkv", torch.randn(3, 1, 1, 7, 8, generator=rng)))
inputs["mask"] = torch.ones(7, 7, dtype=torch.bool).tril(-1)  # only what came before
ours = Attention()(*inputs.values())
print(f"torch: the first query gets {ours[0, 0, 0].abs().max():.2f} at most")
first = {}
for opset in 18, 20, 23:
    with contextlib.redirect_stdout(io.StringIO()):
        program = torch.onnx.export(Attention(), tuple(inputs.values()), dynamo=True, verbose=False,
                                    opset_version=opset, input_names=list(inputs))
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(),
                                           providers=["CPUExecutionProvider"])
    given = {each.name: inputs[each.name].numpy() for each in session.get_inputs()}
    theirs = torch.from_numpy(session.run(None, given)[0])
    apart = (theirs - ours).abs().amax(-1).flatten()
    mean = float((theirs[0, 0, 0] - inputs["v"].mean(-2).flatten()).abs().max())
    first[opset] = float(apart[0])
    print(f"opset {opset}: the first row is {first[opset]:.2f} away from torch's and {mean:.1e} from the mean of all "
          f"values; the others {float(apart[1:].max()):.1e} from torch's")
    assert (mean < 1e-5) == (opset < 23) and float(apart[1:].max()) < 1e-5, "the behaviour has changed"
assert first[18] > 0.1 < first[20] and first[23] < 1e-5, "the behaviour has changed"
print("as stated")
PY
