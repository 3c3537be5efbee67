"""The small classifier: deterministic, it learns, and its files are trusted only when true."""

import itertools
import json
import logging
import shutil

import numpy as np
import pytest
import torch

from dreamlib.metrics.classifier import (
    Classifier,
    _batches,
    accuracy,
    load_or_train_classifier,
    train_classifier,
    weights_bytes,
)
from dreamlib.utils.errors import Interrupted
from tests.conftest import within

VALUES = (3, 2)
EPOCHS, FEW = 12, 2  # to learn; to tell whether weights are the same


def squares(n, key, size=16):
    """Noisy images of one square: labels are its colour (3) and whether it lies on the right."""
    rng = np.random.default_rng(key)
    images = rng.integers(0, 90, (n, size, size, 3), np.uint8)
    colour, right = rng.integers(0, 3, n), rng.integers(0, 2, n)
    rows, columns = rng.integers(0, 11, n), right * 8 + rng.integers(0, 4, n)
    for image, c, y, x in zip(images, colour, rows, columns):
        image[y : y + 5, x : x + 5, c] += 120
    return images, np.stack([colour, right], axis=1)


@pytest.fixture(scope="module")
def toy():
    return squares(640, 0)


@pytest.fixture(scope="module")
def trained(toy):
    return train_classifier(*toy, VALUES, epochs=EPOCHS)


@pytest.fixture(scope="module")
def begun(toy):
    return train_classifier(*toy, VALUES, epochs=FEW)


def test_learns_every_attribute(trained):
    assert min(accuracy(trained, *squares(500, 1))) > 0.95


def test_the_same_seed_gives_the_same_weights(toy, begun):
    with torch.random.fork_rng():
        torch.manual_seed(123)  # the global generator has no say
        again = train_classifier(*toy, VALUES, epochs=FEW)
    assert weights_bytes(again) == weights_bytes(begun)
    other = train_classifier(*toy, VALUES, epochs=FEW, seed=1)
    assert weights_bytes(other) != weights_bytes(begun)


def test_every_epoch_is_a_new_order_of_the_set():
    first, second = np.split(np.concatenate([*_batches(256, 2, 2, seed=0)]), 2)
    for epoch in (first, second):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(256))
    assert (first != second).any()
    assert (first != np.concatenate([*_batches(256, 1, 2, seed=1)])).any()
    (few,) = _batches(5, 1, 1, seed=0)
    np.testing.assert_array_equal(few, np.arange(5))


def test_training_leaves_global_state_alone(toy, begun):
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        again = train_classifier(*toy, VALUES, epochs=FEW)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.get_rng_state(), before)
    assert weights_bytes(again) == weights_bytes(begun)  # whatever the number of cores


def test_reads_a_memmap_and_reports_progress(toy, begun, tmp_path):
    images, labels = toy
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    seen = []

    def progress(label, total):
        seen.append(total)
        return lambda count: seen.append(-count)

    same = within(train_classifier, mapped, labels, VALUES, epochs=FEW, progress=progress)
    assert weights_bytes(same) == weights_bytes(begun)
    assert sum(seen) == 0
    assert seen[0] == FEW * (640 // 128)
    np.testing.assert_array_equal(same.predict(mapped), begun.predict(images))


def test_shapes_and_types(toy, trained):
    images = toy[0][:7]
    features = trained.features(images)
    assert features.shape == (7, 64)
    assert features.dtype == torch.float32
    logits = trained.logits(images)
    assert [tuple(each.shape) for each in logits] == [(7, 3), (7, 2)]
    predicted = trained.predict(images)
    assert predicted.dtype == np.int16
    assert predicted.shape == (7, 2)
    np.testing.assert_array_equal(predicted, np.stack([x.argmax(1) for x in logits], 1))


@pytest.mark.parametrize(("size", "channels"), [(16, 1), (28, 1), (32, 3)])
def test_every_size_of_the_contract(size, channels):
    net = Classifier(channels, (10,))
    assert net.features(np.zeros((2, size, size, channels), np.uint8)).shape == (2, 64)


def test_features_are_always_of_eval_mode(toy, trained):
    images = toy[0][:9]
    want = trained.features(images)
    trained.train()
    assert torch.equal(trained.features(images), want)


def test_features_have_unit_variance_and_full_rank(toy, trained):
    # The batch norm's running statistics lag behind, hence the wide band.
    cov = np.cov(trained.features(toy[0]).double().numpy().T)
    assert 0.5 < np.trace(cov) / 64 < 1.5
    assert np.linalg.eigvalsh(cov)[0] > 1e-6


def test_wrong_input_is_refused(toy, trained):
    images, labels = toy
    with pytest.raises(TypeError, match="uint8"):
        trained.features(images[:2].astype(np.float32))
    with pytest.raises(ValueError, match=r"\[B,H,W,3\]"):
        trained.features(images[:2, ..., :1])
    for wrong, message in [
        (labels[:, 0], "one column per attribute"),
        (labels[:-1], "one column per attribute"),
        (labels.astype(float), "integers"),
        (labels + 1, r"0\.\.K-1"),
        (labels - 1, r"0\.\.K-1"),
    ]:
        with pytest.raises(ValueError, match=message):
            train_classifier(images, wrong, VALUES)


@pytest.fixture
def load(toy, tmp_path, monkeypatch):
    """`load_or_train_classifier` on 256 toy images, at one epoch."""
    images, labels = toy[0][:256], toy[1][:256]

    def short(*args, **named):
        return train_classifier(*args, **named, epochs=1)

    monkeypatch.setattr("dreamlib.metrics.classifier.train_classifier", short)

    def load(key=None, seed=0, **more):
        held_out = squares(64, 2)
        where = tmp_path / "kept"
        return load_or_train_classifier(
            where, key or {"data": "a"}, images, labels, VALUES, held_out, seed=seed, **more
        )

    load.folder = tmp_path / "kept"
    return load


def forbid_training(monkeypatch):
    def refuse(*args, **named):
        raise AssertionError("trained again")

    monkeypatch.setattr("dreamlib.metrics.classifier.train_classifier", refuse)


def test_reloaded_features_are_bit_identical(load, toy, monkeypatch):
    first = load()
    (card,) = load.folder.glob("*.json")
    forbid_training(monkeypatch)
    before = torch.get_rng_state()
    again = load()
    assert torch.equal(torch.get_rng_state(), before)
    assert not again.training
    assert torch.equal(again.features(toy[0][:50]), first.features(toy[0][:50]))
    text = json.loads(card.read_text())
    assert len(text["accuracy"]) == 2
    assert (text["n"], text["n_held_out"]) == (256, 64)
    assert {"key", "seconds", "sha256"} <= {*text}


def test_other_data_or_seed_is_another_classifier(load):
    load()
    load(key={"data": "b"})
    load(seed=1)
    assert len([*load.folder.glob("*.safetensors")]) == 3


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_a_damaged_file_is_trained_again(load, caplog, suffix):
    first = load()
    (path,) = load.folder.glob("*.safetensors")
    damaged = path.with_suffix(suffix)
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 128  # in the card: no longer UTF-8
    damaged.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        again = load()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert path.name in caplog.text
    assert weights_bytes(again) == weights_bytes(first) == path.read_bytes()


def test_interrupted_training_goes_on_and_ends_in_the_same_weights(load, tmp_path, monkeypatch):
    """Asked to stop, or killed behind a kept state; never from a state that is not whole."""
    want = weights_bytes(load())
    shutil.rmtree(load.folder)
    calls = itertools.count()
    with pytest.raises(Interrupted, match="stopped after 1 of 2 batches of the classifier"):
        within(load, should_stop=lambda: next(calls) == 1)
    (part,) = load.folder.iterdir()
    kept, steps = part.read_bytes(), []
    assert weights_bytes(within(load, progress=lambda what, total: steps.append)) == want
    assert steps == [1, 1]  # what was done, and the rest
    assert sorted(path.suffix for path in load.folder.iterdir()) == [".json", ".safetensors"]
    for damaged in (kept[:-1], kept[:40], b""):
        shutil.rmtree(load.folder)
        load.folder.mkdir()
        part.write_bytes(damaged)
        assert weights_bytes(load()) == want
    monkeypatch.setattr("dreamlib.metrics.classifier.KEEP_EVERY", -1.0)
    shutil.rmtree(load.folder)
    calls = itertools.count()

    def killed():
        if next(calls) == 1:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        within(load, should_stop=killed)
    monkeypatch.setattr("dreamlib.metrics.classifier.torch.__version__", "another")
    steps.clear()
    assert weights_bytes(within(load, progress=lambda what, total: steps.append)) == want
    assert steps == [0, 1, 1]  # another torch begins anew


def test_a_file_without_card_is_trained_again(load):
    first = load()
    (card,) = load.folder.glob("*.json")
    want = json.loads(card.read_text())["sha256"]
    card.unlink()
    (path,) = load.folder.glob("*.safetensors")
    path.write_bytes(b"half a file")
    assert weights_bytes(load()) == weights_bytes(first)
    assert json.loads(card.read_text())["sha256"] == want
