"""An extractor slot: features of any network, from a file with a card that says how to use it.

The card is a JSON file beside the network's, `net.onnx.json` for `net.onnx`.  Nothing of a file
is executed or parsed before its SHA-256 is the card's.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from dreamlib.metrics.features import full_precision
from dreamlib.metrics.inception import resize_clean
from dreamlib.utils.errors import ConfigError, DataError, WeightsUnavailable
from dreamlib.utils.files import fingerprint
from dreamlib.utils.images import to_rgb

FORMATS = {".pt": "TorchScript", ".ts": "TorchScript", ".pt2": "torch.export", ".onnx": "ONNX"}
Network = Callable[[Tensor], Any]
Resize = Literal["native", "clean", "bilinear", "bicubic", "tensorflow"]


class Entry(BaseModel):
    """How uint8 images enter a network: resized, scaled to `range`, then (x - mean) / std.

    resize: native = they have `size` pixels already; clean = as for FID (bicubic, antialiased, on
    floats); bilinear, bicubic = torchvision's, antialiased; tensorflow = TensorFlow 1's bilinear,
    as torch-fidelity does for every network.  One mean means a network of grey images.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    size: int = Field(ge=1, le=4096)  # pixels of each side
    resize: Resize = "clean"
    mean: list[float] = Field(default=[0.485, 0.456, 0.406], min_length=1, max_length=3)
    std: list[float] = [0.229, 0.224, 0.225]
    range: list[float] = Field(default=[0.0, 1.0], min_length=2, max_length=2)

    @model_validator(mode="after")
    def _fits(self) -> Entry:
        if len(self.mean) not in (1, 3) or len(self.std) != len(self.mean) or 0 in self.std:
            raise ValueError("mean and std need 1 or 3 numbers each, and std none that is 0")
        if self.range[0] >= self.range[1]:
            raise ValueError("range needs its smaller number first, as in [0.0, 1.0]")
        return self

    def __call__(self, images: np.ndarray) -> Tensor:
        """uint8 [B,H,W,1 or 3] -> float32 [B,1 or 3,size,size]; DataError for what does not fit."""
        low, high = self.range
        pixels = self._resized(self._channels(images)) / (255 / (high - low)) + low
        return _transforms().normalize(pixels, self.mean, self.std)

    def _channels(self, images: np.ndarray) -> np.ndarray:
        if len(self.mean) == 3:
            return to_rgb(images)
        if (images != images[..., :1]).any():
            raise DataError("the extractor takes grey images, and these have colours: see its mean")
        return images[..., :1]

    def _resized(self, images: np.ndarray) -> Tensor:
        if self.resize == "clean":
            resized = resize_clean(images, self.size)[..., : images.shape[-1]]
            return torch.from_numpy(resized).permute(0, 3, 1, 2).contiguous()
        side = [self.size, self.size]
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float().contiguous()
        if self.resize == "tensorflow":
            return _tensorflow()(pixels, size=tuple(side), align_corners=False)
        if self.resize != "native":
            mode = _transforms().InterpolationMode(self.resize)
            return _transforms().resize(pixels, side, mode, antialias=True).clamp(0, 255)
        if list(pixels.shape[2:]) != side:
            raise DataError(
                f"the extractor takes images of {self.size} pixels, and these have "
                f"{pixels.shape[2]}x{pixels.shape[3]}: set another resize than native in its card"
            )
        return pixels


class Card(Entry):
    """What the JSON beside a network's file says of it."""

    name: str = Field(pattern=r"^\w[\w.+-]*$", max_length=60)  # the word in FD[name]
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    output: int | str = 0  # which output is [B,dim]: its place, or its name

    @model_validator(mode="after")
    def _own_name(self) -> Card:
        if self.name in ("inception", "classifier"):
            raise ValueError(f"name: {self.name} is the name of another extractor")
        return self


class NetworkExtractor:
    """Features of `network`, fed with what `entry` makes of uint8 images.

    ConfigError where the network refuses a batch, gives no [B,dim], or gives other bits for its
    first batch when it is asked again; DataError for NaN and infinite features.
    """

    def __init__(
        self, name: str, identity: str, entry: Callable[[np.ndarray], Tensor], size: int,
        network: Network, *, output: int | str = 0, device: torch.device | str = "cpu",
    ):  # fmt: skip
        self.name, self.identity, self.entry, self.network = name, identity, entry, network
        self.output, self.device = output, torch.device(device)
        self.repeats = False  # whether a batch gave the same bits twice
        with full_precision():
            features = self._features(np.zeros((2, size, size, 3), np.uint8))
        self.dim = features.shape[1]

    def __call__(self, images: np.ndarray) -> Tensor:
        """uint8 [B,H,W,1 or 3] -> float32 [B,dim]."""
        features = self._features(images)
        if features.shape[1] != self.dim:
            raise ConfigError(
                f"{self.identity} gave {features.shape[1]} features, and {self.dim} before: it "
                "needs images of one size; set another resize than native in its card"
            )
        if not features.isfinite().all():
            raise DataError(
                f"{self.identity} gave NaN or infinite features: check mean, std and range in its "
                "card, and that its weights are whole and not in half precision"
            )
        if not self.repeats and not torch.equal(features, self._features(images)):
            raise ConfigError(
                f"{self.identity} is not deterministic, the same images gave other features: save "
                "it in evaluation mode (net.eval()), without dropout or random layers"
            )
        self.repeats = True
        return features

    @torch.inference_mode()
    def _features(self, images: np.ndarray) -> Tensor:
        pixels = self.entry(images).to(self.device)
        try:
            outputs = self.network(pixels)
        except Exception as error:  # every format has errors of its own
            raise ConfigError(
                f"{self.identity} refuses float32 images {list(pixels.shape)}: correct size and "
                f"mean in its card, or export it with a batch of any length ({_short(error)})"
            ) from error
        features = self._picked(outputs)
        if features.ndim == 4 and features.shape[2:] == (1, 1):
            features = features.flatten(1)
        if features.ndim != 2 or len(features) != len(images):
            raise ConfigError(
                f"{self.identity} gave {list(features.shape)}, not [{len(images)},features]: name "
                "another output in its card, or export it with pooling and a batch of any length"
            )
        return features.float()

    def _picked(self, outputs: Any) -> Tensor:
        if isinstance(outputs, Tensor):
            outputs = [outputs]
        there = list(outputs) if isinstance(outputs, Mapping) else list(range(len(outputs)))
        wanted = self.output
        if isinstance(wanted, int) and isinstance(outputs, Mapping) and wanted in range(len(there)):
            wanted = there[wanted]
        if wanted not in there:
            raise ConfigError(
                f"{self.identity} has no output {wanted!r}: set output in its card to one of "
                f"{', '.join(map(repr, there))}"
            )
        return outputs[wanted]


def file_extractor(path: Path, device: torch.device | str = "cpu") -> NetworkExtractor:
    """The network of a TorchScript, torch.export or ONNX file, as its card says.

    Its identity is name, hash of the file, hash of the rest of the card, and resize.
    WeightsUnavailable without the file, or for another file than the card's; ConfigError for a
    card that is missing or wrong, and for a file that cannot be loaded.
    """
    try:
        data = path.read_bytes()  # once: what is hashed is what is loaded
    except OSError as error:
        raise WeightsUnavailable(
            f"evaluate.extractor={path} cannot be read ({error.strerror}): check the path"
        ) from error
    digest = sha256(data).hexdigest()
    card = _card(Path(f"{path}.json"), path, digest)
    if card.sha256 != digest:
        raise WeightsUnavailable(
            f"{path} has the SHA-256 {digest}, and its card says {card.sha256}: it is damaged or "
            "another file; put the right one there, or the new hash into the card if you trust it"
        )
    device = torch.device(device)
    rest = fingerprint(card.model_dump(exclude={"name", "sha256"}))
    identity = f"{card.name}-{digest[:12]}-{rest[:6]}-{card.resize}{card.size}"
    try:
        network = LOADERS[FORMATS[path.suffix]](data, device)
    except ModuleNotFoundError as error:
        raise WeightsUnavailable(f"{path} needs {error.name}: pip install {error.name}") from error
    except Exception as error:  # every format has errors of its own
        raise ConfigError(
            f"{path} cannot be loaded as {FORMATS[path.suffix]}: save it again, as one file and "
            f"under its format's ending, of {', '.join(FORMATS)} ({_short(error)})"
        ) from error
    how = {"output": card.output, "device": device}
    return NetworkExtractor(card.name, identity, card, card.size, network, **how)


def _card(place: Path, path: Path, digest: str) -> Card:
    try:
        return Card.model_validate_json(place.read_bytes())
    except FileNotFoundError as error:
        usual = Card(name=path.stem.replace(" ", "_"), sha256=digest, size=224).model_dump()
        lines = ",\n".join(f'  "{key}": {json.dumps(value)}' for key, value in usual.items())
        raise ConfigError(
            f"{path} has no card: save this as {place}, with what your network was trained with:\n"
            f"{{\n{lines}\n}}"
        ) from error
    except (OSError, ValidationError) as error:
        why = error.errors()[0] if isinstance(error, ValidationError) else {}
        where = ".".join(map(str, why.get("loc", ())))
        raise ConfigError(
            f"{place} is no extractor's card, correct it ({where}: {why.get('msg', error)}); its "
            f"fields are {', '.join(Card.model_fields)}"
        ) from error


def _torchscript(data: bytes, device: torch.device) -> Network:
    net = torch.jit.load(io.BytesIO(data), map_location=device).eval()

    def run(pixels: Tensor) -> Any:
        # Later runs would be compiled, and may give other bits
        with torch.jit.optimized_execution(False):  # pyright: ignore
            return net(pixels)

    return run


def _exported(data: bytes, device: torch.device) -> Network:
    program = torch.export.load(io.BytesIO(data))
    if device.type != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    return program.module()


def _onnx(data: bytes, device: torch.device) -> Network:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # `extract` runs several batches side by side
    usable = onnxruntime.get_available_providers()
    gpu = device.type == "cuda" and "CUDAExecutionProvider" in usable
    providers: list[Any] = [("CUDAExecutionProvider", {"use_tf32": "0"})] if gpu else []
    session = onnxruntime.InferenceSession(
        data, options, providers=[*providers, "CPUExecutionProvider"]
    )
    (entry,), names = session.get_inputs(), [each.name for each in session.get_outputs()]

    def run(pixels: Tensor) -> dict[str, Tensor]:
        values = session.run(names, {entry.name: pixels.cpu().numpy()})
        return {name: torch.from_numpy(value) for name, value in zip(names, values)}

    return run


LOADERS = {"TorchScript": _torchscript, "torch.export": _exported, "ONNX": _onnx}


def _transforms() -> Any:
    from torchvision.transforms import functional  # brings scipy, where that is

    return functional


def _tensorflow() -> Callable[..., Tensor]:
    try:
        from torch_fidelity import interpolate_compat_tensorflow as resize
    except ModuleNotFoundError as error:
        raise WeightsUnavailable(
            "resize tensorflow, of DINOv2 and CLIP too, needs torch-fidelity: pip install "
            "torch-fidelity"
        ) from error
    return resize.interpolate_bilinear_2d_like_tensorflow1x


def _short(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
