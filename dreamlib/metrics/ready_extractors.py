"""Extractors that are known by name: torch-fidelity's DINOv2 and CLIP, torchvision's networks."""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dreamlib.metrics.network_extractor import Entry, NetworkExtractor
from dreamlib.metrics.pretrained_weights import Pretrained, obtain
from dreamlib.utils.errors import ConfigError, WeightsUnavailable
from dreamlib.utils.files import sha256_file
from dreamlib.utils.images import to_rgb

TORCHVISION = "torchvision:"
WITHOUT = "A network in a file of your own (evaluate.extractor=FILE) needs no such file"
DINOV2 = "https://dl.fbaipublicfiles.com/dinov2/{0}/{0}_pretrain.pth"
# torch-fidelity scales mean and std, and not the pixels; the bits are those of these products.
DINOV2_ENTRY = Entry(
    size=224,
    resize="tensorflow",
    mean=[255 * 0.485, 255 * 0.456, 255 * 0.406],
    std=[255 * 0.229, 255 * 0.224, 255 * 0.225],
    range=[0.0, 255.0],
)


def ready_extractor(
    name: str, search: Sequence[Path], download_to: Path, device: torch.device
) -> NetworkExtractor:
    """`dinov2-vit-b-14`, `clip-vit-b-32` and the others of torch-fidelity, `torchvision:resnet50`.

    Weights are the file that `search` begins with, whatever its hash (but CLIP's, which are
    TorchScript, must have the known one), else found or downloaded as `obtain` does.  ConfigError
    for unknown names, WeightsUnavailable without weights or torch-fidelity.
    """
    if not name.startswith(("dinov2-", "clip-", TORCHVISION)):
        raise ConfigError(
            f"there is no extractor {name}: name inception, dinov2-vit-b-14, clip-vit-b-32, "
            "torchvision:resnet50 or their like, or a file: .pt, .ts, .pt2, .onnx"
        )
    make = _torchvision if name.startswith(TORCHVISION) else _torch_fidelity
    return make(name, search, download_to, device)


def _torch_fidelity(
    name: str, search: Sequence[Path], download_to: Path, device: torch.device
) -> NetworkExtractor:
    try:
        from torch_fidelity import feature_extractor_clip as clip
        from torch_fidelity import feature_extractor_dinov2 as dinov2
    except (ModuleNotFoundError, ImportError) as error:
        raise WeightsUnavailable(
            f"evaluate.extractor={name} needs torch-fidelity 0.4: pip install torch-fidelity"
        ) from error
    if name in dinov2.MODEL_METADATA:
        return _dinov2(name, dinov2.MODEL_METADATA[name], search, download_to, device)
    if name not in clip.MODEL_METADATA:
        known = ", ".join([*dinov2.MODEL_METADATA, *clip.MODEL_METADATA])
        raise ConfigError(f"evaluate.extractor={name} is unknown: {known} are ready")
    digest = clip.MODEL_METADATA[name]["hash"]
    file = Pretrained(f"{name}-{digest}.pt", digest, (clip.MODEL_URLS[name],), name, WITHOUT)
    path = str(obtain(search, file, download_to))  # its hash is known before it is loaded
    net = clip.FeatureExtractorCLIP(name, ["clip"], feature_extractor_weights_path=path).to(device)
    identity = f"{name}-{digest[:12]}-tensorflow{net.resolution}"
    return NetworkExtractor(name, identity, _planes, 32, net, device=device)


def _dinov2(
    name: str, arch: str, search: Sequence[Path], download_to: Path, device: torch.device
) -> NetworkExtractor:
    path = _weights(name, "", DINOV2.format(arch), search, download_to)
    os.environ.setdefault("XFORMERS_DISABLED", "1")  # as torch-fidelity: other kernels, other bits
    try:
        net = torch.hub.load("facebookresearch/dinov2", arch, pretrained=False)
    except (OSError, ImportError, RuntimeError) as error:
        raise WeightsUnavailable(
            f"DINOv2's program cannot be had ({error}): put a clone of facebookresearch/dinov2 at "
            f"{Path(torch.hub.get_dir()) / 'facebookresearch_dinov2_main'}. {WITHOUT}"
        ) from error
    assert isinstance(net, nn.Module)
    return _of_weights(name, net, path, DINOV2_ENTRY, "tensorflow224", device)


def _torchvision(
    name: str, search: Sequence[Path], download_to: Path, device: torch.device
) -> NetworkExtractor:
    """The layer before the last linear one, after the transforms that belong to the weights."""
    from torchvision import models

    arch = name.removeprefix(TORCHVISION)
    try:
        weights, net = models.get_model_weights(arch), models.get_model(arch, weights=None)
    except ValueError as error:
        known = ", ".join(models.list_models(module=models))
        raise ConfigError(f"torchvision has no network {arch}, but {known}") from error
    linear = [key for key, layer in net.named_modules() if isinstance(layer, nn.Linear)]
    if not linear:
        raise ConfigError(f"{arch} ends in no linear layer: export its features to a file instead")
    usual = weights["DEFAULT"]
    digits = usual.url.rpartition("-")[2].partition(".")[0]
    path = _weights(name, digits, usual.url, search, download_to)
    digits = sha256_file(path)[:8]  # an older file of torchvision's has transforms of its own
    transform = next((each for each in weights if f"-{digits}." in each.url), usual).transforms()

    def entry(images: np.ndarray) -> Tensor:
        return transform(_planes(images))

    return _of_weights(arch, net, path, entry, "torchvision", device, linear[-1])


def _weights(name: str, digits: str, url: str, search: Sequence[Path], download_to: Path) -> Path:
    """The file that is named, whatever its hash, or else one whose hash begins with `digits`."""
    if search and search[0].is_file():
        return search[0]
    file = Pretrained(url.rpartition("/")[2], digits, (url,), name, WITHOUT)
    return obtain(search, file, download_to)


def _of_weights(
    name: str, net: nn.Module, path: Path, entry: Any, resize: str, device: torch.device,
    last: str = "",
) -> NetworkExtractor:  # fmt: skip
    """`net` with the weights at `path`, and without its layer `last`."""
    try:
        net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, TypeError, AttributeError, pickle.UnpicklingError) as error:
        raise WeightsUnavailable(
            f"{path} does not hold the weights of {name}: name their file by evaluate.weights"
        ) from error
    if last:
        parent, _, child = last.rpartition(".")
        setattr(net.get_submodule(parent), child, nn.Identity())
    net = net.float().eval().requires_grad_(False).to(device)
    identity = f"{name}-{sha256_file(path)[:12]}-{resize}"
    return NetworkExtractor(name, identity, entry, 32, net, device=device)


def _planes(images: np.ndarray) -> Tensor:
    """uint8 [B,H,W,1 or 3] -> uint8 [B,3,H,W]."""
    return torch.from_numpy(to_rgb(images)).permute(0, 3, 1, 2).contiguous()
