"""An exported network in onnxruntime beside torch; and what half precision and 8 bits cost.

    python -m benchmarks.exported runs/demo      # a scored run of faces16; about ten minutes

Writes exported.json; docs/SHARING.md has its tables.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.timing import interleave, machine, ratios, repeat, text
from dreamlib.config.factory import make_drawing, make_net
from dreamlib.config.load import load_config
from dreamlib.diffusion.denoiser import Denoiser
from dreamlib.evaluation.inputs import StudyInputs
from dreamlib.export.onnx import onnx_bytes
from dreamlib.metrics.frechet import frechet
from dreamlib.metrics.frechet_stats import frechet_difference
from dreamlib.report.texts import as_table
from dreamlib.runs.open import open_run
from dreamlib.sampling.image_store import Shards
from dreamlib.utils.files import write_json
from dreamlib.utils.platform import choose_precision

HERE = Path(__file__).parent
NETS = {"faces16": 16, "fashion-cpu": 32}
BATCHES = (1, 64)
CPU = torch.device("cpu")


def session_of(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class Exported(torch.nn.Module):
    """A session where a network is expected."""

    def __init__(self, path: Path):
        super().__init__()
        self.session = session_of(path)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        (output,) = self.session.run(None, {"x_t": x_t.numpy(), "t": t.numpy()})
        return torch.from_numpy(output)


@torch.inference_mode()
def speed(folder: Path, rounds: int) -> Iterator[dict[str, Any]]:
    """Seconds of a network pass by torch and by onnxruntime, in turns."""
    for preset, size in NETS.items():
        config = load_config(preset)
        channels = 1 if preset.startswith("fashion") else 3
        net, path = make_net(config, channels).eval(), folder / f"{preset}.onnx"
        path.write_bytes(onnx_bytes(net)[0])
        exported = Exported(path)
        for batch in BATCHES:
            x, t = torch.randn(batch, channels, size, size), torch.full((batch,), 500)
            many = max(1, 128 // batch)
            half = Denoiser(net, None, "eps", torch.bfloat16)  # type: ignore[arg-type]
            nets = {"torch fp32": net, "torch bf16": half, "onnxruntime": exported}
            calls: dict[str, Callable[[], Any]] = {
                name: partial(repeat, partial(each, x, t), many) for name, each in nets.items()
            }
            seconds = interleave(calls, rounds)
            per = {name: [s / many for s in each] for name, each in seconds.items()}
            yield {"preset": preset, "size": size, "batch": batch, "seconds": per}


def smaller(path: Path, folder: Path) -> dict[str, Path]:
    """The same network in half precision (sums in float32 stay where casts are) and in 8 bits."""
    import onnx
    from onnxruntime.quantization import quantize_dynamic
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    blocked = [*DEFAULT_OP_BLOCK_LIST, "Cast"]
    half = convert_float_to_float16(onnx.load(path), keep_io_types=True, op_block_list=blocked)
    onnx.save(half, folder / "fp16.onnx")
    quantize_dynamic(path, folder / "int8.onnx")
    return {"fp32": path, "fp16": folder / "fp16.onnx", "int8": folder / "int8.onnx"}


def variants(run_folder: Path, folder: Path, n: int) -> Iterator[dict[str, Any]]:
    """Size, speed at batch 1, and distance of n images beside float32's, of the same seeds."""
    run = open_run(run_folder, mirror="none")
    inputs, path = StudyInputs(run, (n,)), folder / "run.onnx"
    path.write_bytes(onnx_bytes(Shards(run).net.cpu())[0])
    real, first = inputs.features(inputs.reference), None
    paths, one = smaller(path, folder), (torch.randn(1, 3, 16, 16), torch.tensor([500]))
    nets = {name: Exported(each) for name, each in paths.items()}
    calls = {name: partial(repeat, partial(net, *one), 64) for name, net in nets.items()}
    seconds = interleave(calls, 7)
    for name, each in paths.items():
        draw = make_drawing(run.config, run.data, nets[name], choose_precision("fp32", CPU), CPU)
        images = draw(range(n))
        features = inputs.extractor(images).double().numpy()
        found: dict[str, Any] = {"name": name, "bytes": each.stat().st_size, "n": n}
        found |= {"fd": frechet(features, real), "seconds": [s / 64 for s in seconds[name]]}
        if first is None:
            first = features, images
        else:
            gap = frechet_difference(features, first[0], real, 0, paired=True)
            apart = np.abs(images.astype(int) - first[1])
            found |= {"difference": gap.value, "se": gap.se}
            found |= {"off by one": float((apart == 1).mean()), "worst": int(apart.max())}
        yield found


def table(found: dict[str, Any]) -> str:
    """Both tables, as in docs/SHARING.md."""
    rows = [
        (
            f"{each['size']} × {each['size']}",
            str(each["batch"]),
            f"{1000 * min(each['seconds']['onnxruntime']):.2f} ms",
            text(ratios(each["seconds"]["torch fp32"], each["seconds"]["onnxruntime"])),
            text(ratios(each["seconds"]["torch bf16"], each["seconds"]["onnxruntime"])),
        )
        for each in found["speed"]
    ]
    head = ("pixels", "batch", "onnxruntime", "times torch fp32", "times torch bf16")
    lines = []
    base = found["variants"][0]
    for each in found["variants"]:
        gap = f"{each['difference']:+.4f} ± {each['se']:.4f}" if "se" in each else "–"
        worst = (
            f"{100 * each['off by one']:.1f} %, at most {each['worst']}" if "se" in each else "–"
        )
        pace = text(ratios(base["seconds"], each["seconds"]))
        lines.append((each["name"], f"{each['bytes'] / 1e6:.1f} MB", pace, gap, worst))
    second = ("weights", "file", "times fp32's speed", "FD minus fp32's", "grey levels off")
    return f"{as_table(head, rows)}\n\n{as_table(second, lines)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--n", type=int, default=1000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = {
            "machine": machine(),
            "speed": list(speed(Path(folder), given.rounds)),
            "variants": list(variants(given.run, Path(folder), given.n)),
        }
    write_json(HERE / "exported.json", found)
    print(table(found))


if __name__ == "__main__":
    main()
