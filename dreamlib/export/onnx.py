"""A run's network as ONNX: one file for every batch size, compared with torch as it is made."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from dreamlib.diffusion.unet import UNet
from dreamlib.gan.sampling import draws
from dreamlib.gan.stylegan2 import Generator
from dreamlib.utils.errors import ConfigError, DreamlibError

OPSET = 20
OLDEST = (2, 6)  # torch whose exporter takes dynamic shapes
MOST = 65_536  # images of a batch, so that the exporter keeps the batch open
TOLERANCE = 1e-4  # of the largest output: float32, summed in another order


def onnx_bytes(net: UNet | Generator) -> tuple[bytes, float]:
    """A network that draws, on the CPU in eval mode, as an ONNX file; and the largest difference
    to torch.

    A U-Net takes x_t float [B,C,S,S], t int64 [B] and, where it knows labels, y int64 [B,A] (-1:
    not told), and gives what it predicts, [B,C,S,S].  A generator takes z [B,Z] and every layer's
    noise [B,1,n,n].  ConfigError without the packages; DreamlibError when onnxruntime does not
    compute what torch computes.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  torch's exporter needs it
    except ImportError as error:
        raise ConfigError(
            'ONNX needs onnx, onnxscript and onnxruntime: pip install "dreamlib[export]"'
        ) from error
    if tuple(map(int, torch.__version__.split(".")[:2])) < OLDEST:
        raise ConfigError(f"torch {torch.__version__} writes no such ONNX: --no-onnx, or torch 2.6")
    names, inputs, axes = _inputs(net, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own future
        program = torch.onnx.export(
            net,
            inputs,
            dynamo=True,
            external_data=False,
            opset_version=OPSET,
            input_names=names,
            output_names=["output"],
            dynamic_shapes=axes,
            verbose=False,
        )
    assert program is not None
    data = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return data, max(_difference(net, session, names, batch) for batch in (1, 3))


def _inputs(net: UNet | Generator, batch: int) -> tuple[list[str], tuple[Any, ...], Any]:
    """Names, values and open axes of the inputs."""
    free = {0: torch.export.Dim("batch", min=1, max=MOST)}
    if isinstance(net, Generator):
        z, noise = draws(net, 0, range(batch), torch.device("cpu"))
        names = ["z", *(f"noise_{i}" for i in range(len(noise)))]
        return names, (z, noise), {"z": free, "noise": [free] * len(noise)}
    rng = torch.Generator().manual_seed(0)
    x_t = torch.randn(batch, net.channels, net.size, net.size, generator=rng)
    values = [x_t, torch.arange(batch) * 7]
    if net.labels:
        values.append(torch.arange(batch)[:, None] % 2 - torch.ones(len(net.labels)).long())
    names = ["x_t", "t", "y"][: len(values)]
    return names, tuple(values), dict.fromkeys(names, free)


@torch.inference_mode()
def _difference(net: UNet | Generator, session: Any, names: list[str], batch: int) -> float:
    """The largest, of a batch of another size than the one that was exported."""
    _, inputs, _ = _inputs(net, batch)
    flat = [each for value in inputs for each in ([value] if isinstance(value, Tensor) else value)]
    theirs = session.run(None, {name: x.numpy() for name, x in zip(names, flat)})[0]
    ours = net(*inputs)
    apart = float((ours - torch.from_numpy(theirs)).abs().max())
    if not apart <= TOLERANCE * max(1.0, float(ours.abs().max())):
        raise DreamlibError(
            f"onnxruntime's output is {apart:.3g} away from torch's for a batch of {batch}: the "
            "model was not exported; --no-onnx, or another version of onnxruntime or torch"
        )
    return apart
