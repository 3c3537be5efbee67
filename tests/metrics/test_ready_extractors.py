"""Ready extractors with random weights in local files: bit for bit what the libraries compute."""

from __future__ import annotations

import json
from hashlib import sha256
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from dreamlib.metrics.network_extractor import file_extractor
from dreamlib.metrics.ready_extractors import DINOV2_ENTRY, ready_extractor
from dreamlib.utils.errors import ConfigError, WeightsUnavailable

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
PLANES = torch.from_numpy(IMAGES).permute(0, 3, 1, 2).contiguous()
CPU = torch.device("cpu")
clip = pytest.importorskip("torch_fidelity.feature_extractor_clip")
dinov2 = pytest.importorskip("torch_fidelity.feature_extractor_dinov2")
pytestmark = pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated, and still about

HUB = """
import torch
dependencies = ["torch"]

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = torch.nn.Conv2d(3, {width}, 14, 14)
        self.norm = torch.nn.LayerNorm({width})
        self.attention = torch.nn.MultiheadAttention({width}, 4, batch_first=True)

    def forward(self, x):
        x = self.norm(self.patches(x).flatten(2).mT)
        return self.attention(x, x, x, need_weights=False)[0][:, 0]

def {arch}(*, pretrained=True, **more):
    net = Net()
    if pretrained:
        url = "https://dl.fbaipublicfiles.com/dinov2/{arch}/{arch}_pretrain.pth"
        net.load_state_dict(torch.hub.load_state_dict_from_url(url, map_location="cpu"))
    return net
"""


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """torch.hub's folder, empty, and no network."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))

    def refuse(*args, **more):
        raise URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr("torch.hub.urlopen", refuse)
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    return tmp_path / "hub"


def ready(name, hub, *search):
    return ready_extractor(name, list(search), hub / "checkpoints", CPU)


@pytest.mark.parametrize("letter", ["s", "b", "l"])
def test_dinov2_is_torch_fidelitys(hub, monkeypatch, letter):
    """The network is a stand-in, found and loaded as the real one; the pipeline is the real one."""
    name, arch = f"dinov2-vit-{letter}-14", f"dinov2_vit{letter}14"
    monkeypatch.delenv("XFORMERS_DISABLED", raising=False)
    with pytest.raises(WeightsUnavailable, match=f"{arch}_pretrain.pth .* was not found"):
        ready(name, hub)
    weights = hub / f"checkpoints/{arch}_pretrain.pth"
    width = {"s": 32, "b": 64, "l": 96}[letter]
    state = {}
    exec(HUB.format(width=width, arch=arch), state)  # the same program that torch.hub will find
    torch.manual_seed(1)
    torch.save(state["Net"]().state_dict(), weights)
    with pytest.raises(WeightsUnavailable, match="put a clone of facebookresearch/dinov2 at"):
        ready(name, hub)
    (hub / "facebookresearch_dinov2_main").mkdir()
    program = hub / "facebookresearch_dinov2_main/hubconf.py"
    program.write_text(HUB.format(width=width, arch=arch))
    extractor = ready(name, hub)
    (theirs,) = dinov2.FeatureExtractorDinoV2(name, ["dinov2"])(PLANES)
    assert extractor.dim == width
    assert torch.equal(extractor(IMAGES), theirs)
    digest = sha256(weights.read_bytes()).hexdigest()
    assert extractor.identity == f"{name}-{digest[:12]}-tensorflow224"


def clip_weights(vit: bool) -> dict[str, torch.Tensor]:
    """Random weights with the names, shapes and precision of OpenAI's file."""
    torch.manual_seed(2)
    shape = (2, 128, 16) if vit else ((1, 1, 1, 1), 64, None)
    net = clip.CLIPVisual(64, 64, *shape)
    clip.convert_weights(net)
    more = {"text_projection": torch.zeros(64, 64), "logit_scale": torch.zeros(())}
    return net.state_dict() | more | {"ln_final.weight": torch.ones(4)}


class Holder(nn.Module):
    """A module with these names of weights and no others, which torch.jit can script."""

    def __init__(self, weights=()):
        super().__init__()
        for name, value in dict(weights).items():
            *path, leaf = name.split(".")
            place = self
            for step in path:
                if not hasattr(place, step):
                    place.add_module(step, Holder())
                place = getattr(place, step)
            place.register_buffer(leaf, value)

    def forward(self, x: torch.Tensor):
        return x


@pytest.mark.parametrize("name", ["clip-vit-b-32", "clip-rn50"])
def test_clip_is_torch_fidelitys(hub, monkeypatch, name):
    path = hub / "weights.pt"
    torch.jit.script(Holder(clip_weights("vit" in name))).save(path)
    with pytest.raises(WeightsUnavailable, match="is damaged or another file"):
        ready(name, hub, path)
    digest = sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(clip.MODEL_METADATA, name, {"hash": digest, "filename": "x"})
    extractor = ready(name, hub, path)
    own = {"feature_extractor_weights_path": str(path)}
    (theirs,) = clip.FeatureExtractorCLIP(name, ["clip"], **own)(PLANES)
    assert extractor.dim == 64
    assert torch.equal(extractor(IMAGES), theirs)
    assert extractor.identity == f"{name}-{digest[:12]}-tensorflow64"


@pytest.mark.parametrize(
    ("arch", "node"), [("resnet18", "flatten"), ("mobilenet_v3_small", "classifier.2")]
)
def test_torchvision_is_torchvisions(hub, arch, node):
    torch.manual_seed(3)
    net = torchvision.models.get_model(arch, weights=None).eval()
    path = hub / "own.pth"
    torch.save(net.state_dict(), path)
    extractor = ready(f"torchvision:{arch}", hub, path)
    transform = torchvision.models.get_model_weights(arch)["DEFAULT"].transforms()
    with torch.inference_mode():
        theirs = create_feature_extractor(net, {node: "f"})(transform(PLANES))["f"]
    assert torch.equal(extractor(IMAGES), theirs)
    assert extractor.name == arch


def test_torchvisions_older_weights_have_their_own_transforms(hub, monkeypatch):
    path = hub / "checkpoints/own.pth"
    torch.manual_seed(4)
    torch.save(torchvision.models.resnet50().state_dict(), path)
    older = torchvision.models.ResNet50_Weights.IMAGENET1K_V1
    digits = older.url.rpartition("-")[2].removesuffix(".pth")
    module = "dreamlib.metrics.ready_extractors.sha256_file"
    monkeypatch.setattr(module, lambda path: digits + 56 * "0")
    extractor = ready("torchvision:resnet50", hub, path)
    resized = older.transforms()(PLANES)
    assert torch.equal(extractor.entry(IMAGES), resized)
    newer = torchvision.models.ResNet50_Weights.IMAGENET1K_V2.transforms()(PLANES)
    assert not torch.equal(newer, resized)


def test_a_file_in_the_slot_is_torch_fidelitys_too(hub, monkeypatch):
    """DINOv2's pipeline, written in a card."""
    state = {}
    exec(HUB.format(width=32, arch="dinov2_vits14"), state)
    torch.manual_seed(1)
    path = hub / "net.pt"
    torch.jit.trace(state["Net"]().eval(), torch.zeros(2, 3, 224, 224), check_trace=False).save(
        path
    )
    card = DINOV2_ENTRY.model_dump() | {"name": "dino"}
    card["sha256"] = sha256(path.read_bytes()).hexdigest()
    path.with_name("net.pt.json").write_text(json.dumps(card))
    monkeypatch.setattr(torch.hub, "load", lambda *args: torch.jit.load(path))
    (theirs,) = dinov2.FeatureExtractorDinoV2("dinov2-vit-s-14", ["dinov2"])(PLANES)
    assert torch.equal(file_extractor(path)(IMAGES), theirs)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("resnet50", "there is no extractor resnet50: name .*torchvision:resnet50"),
        ("dinov2-vit-x-14", "is unknown: dinov2-vit-s-14, .*clip-vit-b-32.* are ready"),
        ("torchvision:resnet51", "has no network resnet51, but .*resnet50"),
        ("torchvision:squeezenet1_0", "ends in no linear layer: export its features"),
    ],
)
def test_unknown_names_say_the_known(hub, name, word):
    with pytest.raises(ConfigError, match=word):
        ready(name, hub)


def test_weights_of_another_network_are_refused(hub):
    torch.save({"a": torch.zeros(1)}, hub / "own.pth")
    with pytest.raises(WeightsUnavailable, match="does not hold the weights of resnet18: name"):
        ready("torchvision:resnet18", hub, hub / "own.pth")
    with pytest.raises(WeightsUnavailable, match=r"resnet18-f37072fd.pth .* no network"):
        ready("torchvision:resnet18", hub)
    (hub / "checkpoints/resnet18-f37072fd.pth").write_bytes(b"cut")
    with pytest.raises(WeightsUnavailable, match="is damaged or another file"):
        ready("torchvision:resnet18", hub)
