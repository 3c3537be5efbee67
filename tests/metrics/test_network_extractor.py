"""Networks in files: three formats agree, and every error says its remedy."""

from __future__ import annotations

import json
from hashlib import sha256

import numpy as np
import pytest
import torch
from torch import nn

from dreamlib.metrics.features import extract, metric_name
from dreamlib.metrics.network_extractor import Entry, file_extractor
from dreamlib.utils.errors import ConfigError, DataError, WeightsUnavailable

IMAGES = np.random.default_rng(0).integers(0, 256, (150, 16, 16, 3), np.uint8)
FEW = IMAGES[:5]
pytestmark = pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated, and still about


def conv(channels: int = 3) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(channels, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 12, 3, 2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


def save(net, path, channels=3, size=32):
    example = torch.zeros(2, channels, size, size)
    if path.suffix in (".pt", ".ts"):
        torch.jit.script(net).save(path)
        return
    batch = ({0: torch.export.Dim("batch")},)
    if path.suffix == ".pt2":
        torch.export.save(torch.export.export(net, (example,), dynamic_shapes=batch), path)
    else:
        torch.onnx.export(
            net, (example,), path, dynamic_shapes=batch, external_data=False, verbose=False
        )


@pytest.fixture
def made(tmp_path):
    """made("net.onnx", net, field=...) -> the file, saved with a card."""

    def make(file="net.ts", net=None, channels=3, **card):
        path = tmp_path / file
        save(net or conv(channels), path, channels)
        usual = {"name": "net", "sha256": sha256(path.read_bytes()).hexdigest(), "size": 32}
        path.with_name(f"{file}.json").write_text(json.dumps({**usual, **card}))
        return path

    return make


def test_three_formats_agree(made):
    pytest.importorskip("onnxruntime")
    found = []
    for name in ("net.pt", "net.ts", "net.pt2", "net.onnx"):
        extractor = file_extractor(made(name))
        assert metric_name(extractor) == "FD[net]"
        features = extractor(FEW)
        assert features.dtype == torch.float32
        assert features.shape == (5, 12)
        found.append(extract(IMAGES, extractor))
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=1e-5)
    assert found[0].std(0).min() > 1e-3


def test_pixels_enter_as_the_card_says():
    grey = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    card = {"size": 16, "resize": "native"}
    pixels = Entry(**card, mean=[0.5], std=[0.25])(grey)
    expected = (torch.arange(256).reshape(1, 1, 16, 16) / 255 - 0.5) / 0.25
    assert torch.equal(pixels, expected)
    half = [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]
    pixels = Entry(**card, mean=half[0], std=half[1], range=[-1.0, 1.0])(grey)
    assert pixels.shape == (1, 3, 16, 16)
    assert (pixels.min(), pixels.max()) == (-1, 1)
    assert torch.equal(Entry(**card, mean=[0.5], std=[0.25])(grey.repeat(3, -1)), expected)


@pytest.mark.parametrize("resize", ["clean", "bilinear", "bicubic", "tensorflow"])
@pytest.mark.parametrize("size", [11, 40])
def test_a_constant_stays_one_whatever_the_resizing(resize, size):
    if resize == "tensorflow":
        pytest.importorskip("torch_fidelity")
    entry = Entry(size=size, resize=resize, mean=[0.0] * 3, std=[1.0] * 3, range=[0.0, 255.0])
    pixels = entry(np.full((2, 16, 16, 3), 77, np.uint8))
    assert pixels.shape == (2, 3, size, size)
    torch.testing.assert_close(pixels, torch.full_like(pixels, 77))


def test_the_identity_changes_with_file_and_card(made):
    usual = file_extractor(made()).identity
    assert usual.startswith("net-")
    assert usual.endswith("-clean32")
    others = [{"size": 40}, {"resize": "bicubic"}, {"mean": [0.5] * 3}, {"range": [0.0, 255.0]}]
    for change in [*others, {"name": "other"}]:
        assert file_extractor(made(**change)).identity != usual
    net = conv()
    net[0].weight.data += 1
    assert file_extractor(made(net=net)).identity != usual


def test_kept_features_of_another_card_are_not_taken(made, tmp_path):
    one = extract(FEW, file_extractor(made()), cache=tmp_path / "kept")
    other = extract(FEW, file_extractor(made(mean=[0.1] * 3)), cache=tmp_path / "kept")
    assert abs(one - other).max() > 1e-3
    assert len(list((tmp_path / "kept").glob("*.npy"))) == 2


class Several(nn.Module):
    def forward(self, x):
        return {"logits": x.mean((2, 3))[:, :1], "features": x.mean((2, 3))}


def test_an_output_has_a_place_or_a_name(made):
    for output, width in (("features", 3), ("logits", 1), (1, 3)):
        path = made("net.pt2", Several(), output=output)
        assert file_extractor(path).dim == width
    with pytest.raises(ConfigError, match=r"has no output 'pool': set output .* 'logits', 'feat"):
        file_extractor(made("net.pt2", Several(), output="pool"))
    with pytest.raises(ConfigError, match="has no output 2"):
        file_extractor(made("net.pt2", Several(), output=2))


class Noisy(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)) + torch.rand(3)


class Half(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)).log()


class Map(nn.Module):
    def forward(self, x):
        return x


class Wide(nn.Module):
    def forward(self, x):
        return x.flatten(1)


def test_a_network_that_is_not_deterministic_is_refused(made):
    with pytest.raises(ConfigError, match=r"is not deterministic.*net\.eval\(\)"):
        extract(IMAGES, file_extractor(made(net=Noisy())))


def test_features_that_are_not_numbers_are_refused(made):
    with pytest.raises(DataError, match="NaN or infinite features: check mean, std and range"):
        extract(IMAGES, file_extractor(made(net=Half())))


def test_shapes_that_do_not_fit_are_said(made):
    with pytest.raises(ConfigError, match=r"gave \[2, 3, 32, 32\], not .* another output"):
        file_extractor(made(net=Map()))
    with pytest.raises(ConfigError, match=r"refuses float32 images \[2, 1, 32, 32\]: correct size"):
        file_extractor(made(mean=[0.5], std=[0.5]))
    native = file_extractor(made(resize="native"))
    with pytest.raises(DataError, match="takes images of 32 pixels, and these have 16x16"):
        native(IMAGES)
    extractor = file_extractor(made(net=Wide()))
    extractor.entry = Entry(size=8)
    with pytest.raises(ConfigError, match="gave 192 features, and 3072 before"):
        extractor(FEW)
    grey = file_extractor(made(channels=1, mean=[0.5], std=[0.5]))
    with pytest.raises(DataError, match="takes grey images, and these have colours"):
        grey(FEW)


def test_a_missing_card_is_printed_to_be_copied(made):
    path = made()
    card = path.with_name("net.ts.json")
    card.unlink()
    with pytest.raises(ConfigError, match="has no card: save this as") as caught:
        file_extractor(path)
    card.write_text(str(caught.value).split("\n", 1)[1])
    assert file_extractor(path).name == "net"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"size": "32"}, "size"),
        ({"std": [1, 0, 1]}, "std"),
        ({"mean": [0.5, 0.5]}, "mean"),
        ({"range": [1, 0]}, "range"),
        ({"resize": "lanczos"}, "resize"),
        ({"name": "inception"}, "another extractor"),
        ({"name": "a]b"}, "name"),
        ({"layer": 3}, "layer"),
    ],
)
def test_a_wrong_card_says_the_field(made, change, word):
    with pytest.raises(ConfigError, match=f"is no extractor's card, correct it .*{word}"):
        file_extractor(made(**change))


def test_nothing_is_loaded_before_its_hash_is_right(made, monkeypatch):
    path = made()
    monkeypatch.setattr(torch.jit, "load", lambda *a, **k: pytest.fail("loaded"))
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(WeightsUnavailable, match=r"its card says .* damaged or another file; put"):
        file_extractor(path)


def test_files_that_are_missing_or_of_another_kind(made, tmp_path):
    pytest.importorskip("onnxruntime")
    with pytest.raises(WeightsUnavailable, match=r"cannot be read .*: check the path"):
        file_extractor(tmp_path / "no.onnx")
    path = made()
    for name, kind in (("net.pt2", "torch.export"), ("net.onnx", "ONNX")):
        for old, new in ((path, tmp_path / name), (f"{path}.json", tmp_path / f"{name}.json")):
            new.write_bytes((tmp_path / old).read_bytes())
        with pytest.raises(ConfigError, match=f"cannot be loaded as {kind}: save it again"):
            file_extractor(tmp_path / name)


def test_a_batch_of_fixed_length_is_said(made):
    path = made("net.pt2")
    net = torch.export.export(conv(), (torch.zeros(1, 3, 32, 32),))
    torch.export.save(net, path)
    card = path.with_name("net.pt2.json")
    facts = json.loads(card.read_text()) | {"sha256": sha256(path.read_bytes()).hexdigest()}
    card.write_text(json.dumps(facts))
    with pytest.raises(ConfigError, match="export it with a batch of any length"):
        file_extractor(path)


def test_onnx_without_its_library(made, monkeypatch):
    pytest.importorskip("onnxscript")
    path = made("net.onnx")
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(WeightsUnavailable, match="pip install onnxruntime"):
        file_extractor(path)
