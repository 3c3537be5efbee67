"""A small classifier of a labelled set: features where Inception's weights are absent or the images
too small for them, in a minute on one core.  Its distances never compare with FID.
"""

from __future__ import annotations

import hashlib
import io
import logging
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamlib.metrics.pairwise import blocks
from dreamlib.utils.context import progress, should_stop
from dreamlib.utils.errors import Interrupted
from dreamlib.utils.files import fingerprint, read_json, sweep, write_bytes, write_json
from dreamlib.utils.images import dequantise
from dreamlib.utils.rng import numpy_rng, seeded
from dreamlib.utils.threads import one_thread

log = logging.getLogger(__name__)

ARCHITECTURE = 1  # raise it when the network or its training changes: old files then go unused
FEATURES = 64
BATCH = 128
IMAGES_SEEN = 240_000  # sets the default number of epochs
PEAK_LR = 3e-3
KEEP_EVERY = 20.0  # seconds of training that a kill may take


def _block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class Classifier(nn.Module):
    """uint8 images [B,H,W,C] of 16 to 32 px -> 64 features and one linear head per attribute.

    The features end in a batch norm without scale, and in no ReLU: every one keeps unit variance
    on the training set, so that covariances have full rank, as the standard error of FD needs,
    and distances of differently trained classifiers stay on one scale (total variance 64).
    A 2 x 2 pool keeps coarse positions.
    """

    def __init__(self, channels: int, values: Sequence[int]):
        super().__init__()
        self.channels, self.values = channels, tuple(values)
        self.trunk = nn.Sequential(
            _block(channels, 32, stride=2),
            _block(32, 64, stride=2),
            _block(64, 64, stride=1),
            _block(64, 128, stride=2),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(4 * 128, FEATURES, bias=False),
            nn.BatchNorm1d(FEATURES, affine=False),
        )
        self.heads = nn.ModuleList(nn.Linear(FEATURES, count) for count in self.values)
        self.to(memory_format=torch.channels_last)  # 1.2 times as fast on CPU

    def forward(self, x: Tensor) -> list[Tensor]:
        """float32 [B,C,H,W] in [-1, 1] -> logits, one [B,K] per attribute; for training."""
        features = self.trunk(x)
        return [head(features) for head in self.heads]

    @torch.inference_mode()
    def features(self, images: np.ndarray | Tensor) -> Tensor:
        """uint8 [B,H,W,C] -> float32 [B,64], always in eval mode.  TypeError for other images."""
        self.eval()
        device = next(self.parameters()).device
        return self.trunk(_to_network(images, self.channels).to(device))

    @torch.inference_mode()
    def logits(self, images: np.ndarray | Tensor) -> list[Tensor]:
        """uint8 [B,H,W,C] -> float32 [B,K], one per attribute."""
        features = self.features(images)
        return [head(features) for head in self.heads]

    def predict(self, images: np.ndarray) -> np.ndarray:
        """uint8 [N,H,W,C] -> the likeliest value of each attribute, int16 [N,A]; in batches."""
        best = np.empty((len(images), len(self.values)), np.int16)
        for part in blocks(len(images), 500):
            logits = self.logits(np.array(images[part]))  # torch wants its own copy
            best[part] = torch.stack([each.argmax(dim=1) for each in logits], dim=1).cpu().numpy()
        return best


def train_classifier(
    images: np.ndarray,
    labels: np.ndarray,
    values: Sequence[int],
    *,
    seed: int = 0,
    epochs: int | None = None,
    part: Path | None = None,
) -> Classifier:
    """Fit a classifier; the same seed, data and library versions give the same weights.

    images uint8 [N,H,W,C] (a memmap is read by batch), labels int [N,A], values K per attribute.
    In the file `part` the state of training is kept, now and then and when asked to stop; the same
    call goes on from there, to the same weights.  TypeError for float images, ValueError for labels
    that do not fit, Interrupted when asked to stop.
    """
    _check_labels(images, labels, values)
    epochs = min(40, max(3, round(IMAGES_SEEN / len(images)))) if epochs is None else epochs
    with seeded("classifier weights", seed):
        net = Classifier(images.shape[-1], values).train()
    batches = max(1, len(images) // BATCH)
    total = epochs * batches
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.01)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LR, total_steps=total)
    parts = net, optimizer, rate
    begun, kept = _go_on(part, total, *parts), time.monotonic()
    advance = progress("classifier", total)
    advance(begun)
    # Layers this small gain little from a second thread and lose six-fold where cores are shared;
    # and one thread makes the weights independent of the number of cores.
    with one_thread():
        order = islice(_batches(len(images), epochs, batches, seed), begun, None)
        for done, picked in enumerate(order, begun):
            stop = should_stop()
            if part and (stop or time.monotonic() - kept > KEEP_EVERY):
                _keep(part, total, done, *parts)
                kept = time.monotonic()
            if stop:
                raise Interrupted(f"stopped after {done:,} of {total:,} batches of the classifier")
            _learn(net, optimizer, images[picked], labels[picked])
            rate.step()
            advance(1)
    return net.eval()


def _learn(
    net: Classifier, optimizer: torch.optim.Optimizer, images: np.ndarray, labels: np.ndarray
) -> None:
    """One step on the cross-entropy with label smoothing 0.1, summed over attributes."""
    pairs = zip(net(_to_network(images, net.channels)), torch.as_tensor(labels.T).long())
    losses = [F.cross_entropy(*pair, label_smoothing=0.1) for pair in pairs]
    optimizer.zero_grad()
    torch.autograd.backward(losses)
    optimizer.step()


def _keep(part: Path, total: int, done: int, *parts: Any) -> None:
    """The state behind `done` batches, behind a hash of itself."""
    memory, states = io.BytesIO(), [each.state_dict() for each in parts]
    torch.save([str(torch.__version__), total, done, *states], memory)
    data = memory.getvalue()
    write_bytes(part, hashlib.sha256(data).digest() + data)


def _go_on(part: Path | None, total: int, *parts: Any) -> int:
    """Load what `_keep` kept -> the batches done; 0 where that is nothing, damaged, or another
    torch's, whose weights would be others."""
    data = part.read_bytes() if part and part.is_file() else b""
    if hashlib.sha256(data[32:]).digest() != data[:32]:
        return 0
    version, wanted, done, *states = torch.load(io.BytesIO(data[32:]), weights_only=True)
    if (version, wanted) != (str(torch.__version__), total):
        return 0
    for each, state in zip(parts, states):
        each.load_state_dict(state)
    return done


def _batches(n: int, epochs: int, batches: int, seed: int) -> Iterator[np.ndarray]:
    """Each epoch's order in parts of equal size (the last few are left to other epochs), sorted
    inside each part because a memmap reads forwards faster."""
    size = min(n, BATCH)
    for epoch in range(epochs):
        order = numpy_rng("classifier order", seed, epoch).permutation(n)
        yield from np.sort(order[: batches * size].reshape(batches, size), axis=1)


def accuracy(classifier: Classifier, images: np.ndarray, labels: np.ndarray) -> list[float]:
    """Share of right answers per attribute, each in [0, 1]; images [N,H,W,C], labels [N,A]."""
    _check_labels(images, labels, classifier.values)
    return (classifier.predict(images) == labels).mean(axis=0).tolist()


def weights_bytes(classifier: Classifier) -> bytes:
    """The weights as safetensors, byte for byte the same for the same weights."""
    state = {name: value.contiguous() for name, value in classifier.state_dict().items()}
    return safetensors.torch.save(state)


def load_or_train_classifier(
    folder: Path,
    key: dict[str, Any],
    images: np.ndarray,
    labels: np.ndarray,
    values: Sequence[int],
    held_out: tuple[np.ndarray, np.ndarray],
    *,
    seed: int = 0,
) -> Classifier:
    """The classifier of this data, from `folder` where it was trained before, bit for bit.

    `key` says what the data is (a fingerprint of images and labels).  `classifier-<12 hex of all
    that decides the weights>.safetensors` has a .json card with its sha256 and the accuracy per
    attribute on `held_out`, an (images, labels) pair.  Damaged files are trained anew.
    """
    settings = {"architecture": ARCHITECTURE, "values": [*values], "seed": seed}
    full_key = {**key, **settings, "shape": [*images.shape[1:]]}
    path = Path(folder) / f"classifier-{fingerprint(full_key)[:12]}.safetensors"
    if weights := _kept_weights(path):
        with seeded("classifier weights", seed):
            classifier = Classifier(images.shape[-1], values)
        classifier.eval().load_state_dict(safetensors.torch.load(weights))
        return classifier
    sweep(folder)
    start, part = time.monotonic(), path.with_suffix(".part")
    classifier = train_classifier(images, labels, values, seed=seed, part=part)
    data = weights_bytes(classifier)
    card = {
        "key": full_key,
        "accuracy": accuracy(classifier, *held_out),
        "n": len(images),
        "n_held_out": len(held_out[0]),
        "seconds": round(time.monotonic() - start, 1),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    write_bytes(path, data)
    write_json(path.with_suffix(".json"), card)  # last: weights without a true card are not trusted
    part.unlink(missing_ok=True)
    return classifier


def _kept_weights(path: Path) -> bytes:
    """What the file at `path` holds, where its card vouches for it; else nothing."""
    card = card_of(path)
    if card is None:
        return b""
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() == card.get("sha256"):
        return data
    log.warning("%s is not what its card says: the classifier is trained again", path)
    return b""


def card_of(path: Path) -> dict[str, Any] | None:
    """The JSON card beside a kept file; {}, which vouches for nothing, where it is no JSON, and
    None where file or card is missing: such a file was never finished."""
    card = path.with_suffix(".json")
    if not (path.is_file() and card.is_file()):
        return None
    try:
        facts = read_json(card)
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}


def _to_network(images: np.ndarray | Tensor, channels: int) -> Tensor:
    if images.ndim != 4 or images.shape[-1] != channels:
        raise ValueError(f"images are [B,H,W,{channels}], got {tuple(images.shape)}")
    return dequantise(images).contiguous(memory_format=torch.channels_last)


def _check_labels(images: np.ndarray, labels: np.ndarray, values: Sequence[int]) -> None:
    if labels.shape != (want := (len(images), len(values))):
        raise ValueError(f"labels must be {want}, one column per attribute, got {labels.shape}")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels are integers, got {labels.dtype}")
    if (labels < 0).any() or (labels >= np.asarray(values)).any():
        raise ValueError(f"labels must lie in 0..K-1 with K = {tuple(values)} per attribute")
