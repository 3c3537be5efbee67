"""The numbers of other packages, offline: a stand-in extractor and a random Inception.

Each package gets the same images and does its own extraction and arithmetic.  Where it draws
subsets or an order, the same are drawn here, so that tolerances are those of rounding alone.
"""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dreamlib.metrics.features import extract
from dreamlib.metrics.frechet import frechet
from dreamlib.metrics.inception import InceptionExtractor
from dreamlib.metrics.inception_score import inception_score
from dreamlib.metrics.kid import kid
from dreamlib.metrics.prdc import prdc
from dreamlib.utils.rng import seeded
from tests.metrics.test_inception import weights as random_inception

SUBSETS, SUBSET = 20, 80
BATCH = 50  # of every extraction: the last bits of a float sum can depend on it


class StandIn(nn.Module):
    """Fixed random features of 8 x 8 pooled pixels, from uint8 or float [B,3,H,W] in [0, 255]."""

    num_features = 40  # where torchmetrics looks for it

    def __init__(self, dtype=torch.float32):
        super().__init__()
        rng = np.random.default_rng(0)
        weight = rng.standard_normal((3 * 8 * 8, self.num_features)) / 8
        self.register_buffer("weight", torch.from_numpy(weight).to(dtype))

    def forward(self, images):
        pixels = images.to(self.weight.dtype) / 255 - 0.5
        pooled = nn.functional.adaptive_avg_pool2d(pixels, 8).flatten(1)
        return (pooled @ self.weight).relu()


def pictures(n, key, contrast):
    """uint8 [n,32,32,3]: coarse patches of random brightness."""
    rng = np.random.default_rng(key)
    coarse = rng.standard_normal((n, 8, 8, 3)).repeat(4, 1).repeat(4, 2)
    fine = rng.standard_normal((n, 32, 32, 3))
    return (128 + contrast * coarse + 10 * fine).clip(0, 255).astype(np.uint8)


def tensor(images):
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


class Extractor:
    """The stand-in, as our own extraction calls it."""

    name, identity, dim = "standin", "standin-test", StandIn.num_features

    def __call__(self, images):
        return StandIn()(tensor(images))


def extracted(images):
    return extract(images, Extractor(), batch=BATCH)


def extracted_in_float64(images):
    return torch.cat([StandIn(torch.float64)(part) for part in tensor(images).split(BATCH)]).numpy()


@pytest.fixture(scope="module")
def gen():
    return pictures(200, 1, contrast=45)


@pytest.fixture(scope="module")
def real():
    return pictures(250, 2, contrast=40)


@pytest.fixture(scope="module")
def folders(gen, real, tmp_path_factory):
    """The same images as PNG files, in order."""
    made = []
    for images in (gen, real):
        folder = tmp_path_factory.mktemp("png")
        for i, image in enumerate(images):
            Image.fromarray(image).save(folder / f"{i:05}.png")
        made.append(str(folder))
    return made


def registered_with_torch_fidelity():
    """The stand-in under torch-fidelity's interface; it refuses a second registration."""
    base = pytest.importorskip("torch_fidelity.feature_extractor_base")
    registry = pytest.importorskip("torch_fidelity.registry")

    class Registered(base.FeatureExtractorBase):
        def __init__(self, name, features_list, **options):
            super().__init__(name, features_list)
            self.net = StandIn()

        @staticmethod
        def get_provided_features_list():
            return ("standin",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric):
            return "standin"

        @staticmethod
        def can_be_compiled():
            return False

        def forward(self, images):
            return (self.net(images),)

    if "standin" not in registry.FEATURE_EXTRACTORS_REGISTRY:
        registry.register_feature_extractor("standin", Registered)


class Images(torch.utils.data.Dataset):
    def __init__(self, images):
        self.images = tensor(images)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.images[i]


def torch_fidelity_scores(input1, input2):
    registered_with_torch_fidelity()
    metrics = pytest.importorskip("torch_fidelity.metrics")
    return metrics.calculate_metrics(
        input1=input1,
        input2=input2,
        cuda=False,
        batch_size=BATCH,
        isc=True,
        fid=True,
        kid=True,
        prc=True,
        feature_extractor="standin",
        kid_subsets=SUBSETS,
        kid_subset_size=SUBSET,
        save_cpu_ram=True,  # no worker processes
        cache=False,
        verbose=False,
    )


@pytest.fixture(scope="module")
def theirs(gen, real):
    torch.set_num_threads(1)
    return torch_fidelity_scores(Images(gen), Images(real))


def test_torch_fidelitys_frechet(theirs, gen, real):
    own = frechet(extracted(gen), extracted(real))
    # Their mean is float32.
    assert own == pytest.approx(theirs["frechet_inception_distance"], rel=7e-7)
    assert own > 0.01
    metric = pytest.importorskip("torch_fidelity.metric_fid")
    stats = [
        metric.fid_features_to_statistics(torch.from_numpy(extracted(images)))
        for images in (gen, real)
    ]
    (exact,) = metric.fid_statistics_to_metric(*stats, False).values()
    assert own == pytest.approx(exact, rel=1e-12)  # of float64 statistics


def test_torch_fidelitys_kernel_distance(theirs, gen, real):
    a, b = extracted(gen), extracted(real)
    rng = np.random.RandomState(2020)
    own = [
        kid(a[rng.choice(len(a), SUBSET, False)], b[rng.choice(len(b), SUBSET, False)]).value
        for _ in range(SUBSETS)
    ]
    # Their kernel is float32.
    mean, spread = np.mean(own), np.std(own)
    assert mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=0, abs=1e-7)
    assert spread == pytest.approx(theirs["kernel_inception_distance_std"], rel=0, abs=1e-7)
    assert mean > 1e-4
    metric = pytest.importorskip("torch_fidelity.metric_kid")
    in_float64 = metric.kid_features_to_metric(
        *(torch.from_numpy(features) for features in (a, b)),
        kid_subsets=SUBSETS,
        kid_subset_size=SUBSET,
        verbose=False,
    )
    assert mean == pytest.approx(in_float64["kernel_inception_distance_mean"], rel=0, abs=1e-12)
    # The whole sets have the same expectation, and a smaller error than their spread says.
    whole = kid(a, b)
    assert whole.value == pytest.approx(mean, abs=4 * spread / SUBSETS**0.5)
    assert whole.se < spread


def test_torch_fidelitys_inception_score(theirs, gen):
    order = np.random.RandomState(2020).permutation(len(gen))
    own = inception_score(extracted(gen), splits=10, order=order)
    assert own.value == theirs["inception_score_mean"]  # the same operations on the same features
    assert own.value > 1.005
    # They print the splits' own spread.
    assert own.se == pytest.approx(theirs["inception_score_std"] / 3, rel=1e-9)


def test_torch_fidelitys_precision_and_recall(theirs, gen, real):
    how = {"k": 3, "closed": True, "allow_unequal": True}
    precision, recall = prdc(extracted(gen), extracted(real), **how)[:2]
    # Their mean is float32; their first input is the generated one.
    assert precision.value == pytest.approx(theirs["precision"], abs=3e-8)
    assert recall.value == pytest.approx(theirs["recall"], abs=3e-8)
    assert abs(precision.value - recall.value) > 0.02  # so that an exchange would show


def test_torch_fidelity_sees_the_same_in_png_files(theirs, folders):
    assert torch_fidelity_scores(*folders) == theirs


def update(metric, gen, real):
    """A torchmetrics metric that has seen both sets."""
    for images, is_real in ((gen, False), (real, True)):
        for part in tensor(images).split(BATCH):
            metric.update(part, real=is_real)
    return metric


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torchmetrics_frechet(dtype, gen, real):
    module = pytest.importorskip("torchmetrics.image.fid")
    metric = module.FrechetInceptionDistance(feature=StandIn(dtype), normalize=False)
    # The result is cast to the features' type, and its moments are raw sums.
    rel, ours = (2e-7, extracted) if dtype == torch.float32 else (4e-9, extracted_in_float64)
    value = float(update(metric, gen, real).compute())
    assert value == pytest.approx(frechet(ours(gen), ours(real)), rel=rel)


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance`:UserWarning")
def test_torchmetrics_kernel_distance(gen, real):
    module = pytest.importorskip("torchmetrics.image.kid")
    metric = update(
        module.KernelInceptionDistance(
            feature=StandIn(torch.float64), subsets=SUBSETS, subset_size=SUBSET
        ),
        gen,
        real,
    )
    with seeded("parity", 0):  # it draws from torch's global generator
        mean, spread = metric.compute()
    with seeded("parity", 0):  # of the real images first
        drawn = [[torch.randperm(n)[:SUBSET].numpy() for n in (250, 200)] for _ in range(SUBSETS)]
    a, b = extracted_in_float64(gen), extracted_in_float64(real)
    own = [kid(a[of_gen], b[of_real]).value for of_real, of_gen in drawn]
    assert np.mean(own) == pytest.approx(float(mean), abs=1e-12)
    assert np.std(own) == pytest.approx(float(spread), abs=1e-12)


@pytest.mark.filterwarnings("ignore:Metric `InceptionScore`:UserWarning")
def test_torchmetrics_inception_score(gen):
    module = pytest.importorskip("torchmetrics.image.inception")
    metric = module.InceptionScore(feature=StandIn(torch.float64), splits=10)
    for part in tensor(gen).split(BATCH):
        metric.update(part)
    with seeded("parity", 1):
        mean, spread = metric.compute()
    with seeded("parity", 1):
        order = torch.randperm(len(gen)).numpy()
    own = inception_score(extracted_in_float64(gen), splits=10, order=order)
    assert own.value == pytest.approx(float(mean), rel=1e-12)
    assert own.se == pytest.approx(float(spread) / 10**0.5, rel=1e-9)


@pytest.fixture(scope="module")
def clean_features(folders):
    """What clean-fid reads and extracts from the PNG files, its resizing left out."""
    fid = pytest.importorskip("cleanfid.fid")
    torch.set_num_threads(1)
    return [
        fid.get_folder_features(
            folder,
            model=StandIn(),
            num_workers=0,
            batch_size=BATCH,
            device=torch.device("cpu"),
            custom_fn_resize=lambda image: image.astype(np.float32),
            verbose=False,
        )
        for folder in folders
    ]


def test_clean_fid_extracts_the_same_features(clean_features, gen, real):
    for found, images in zip(clean_features, (gen, real)):
        np.testing.assert_array_equal(found, extracted(images))


@pytest.mark.filterwarnings("ignore:The `disp` argument:DeprecationWarning")
def test_clean_fids_frechet(clean_features):
    scipy = pytest.importorskip("scipy")
    if tuple(map(int, scipy.__version__.split(".")[:2])) >= (1, 18):
        pytest.skip("clean-fid 0.1.35 unpacks a second value that scipy 1.18 no longer returns")
    fid = pytest.importorskip("cleanfid.fid")
    # Its mean is float32.
    assert frechet(*clean_features) == pytest.approx(fid.fid_from_feats(*clean_features), rel=7e-7)


def test_clean_fids_kernel_distance(clean_features, monkeypatch):
    fid = pytest.importorskip("cleanfid.fid")
    # It draws from NumPy's global generator; this one can be drawn from twice.
    monkeypatch.setattr(fid.np.random, "choice", np.random.RandomState(3).choice)
    want = fid.kernel_distance(*clean_features, num_subsets=SUBSETS, max_subset_size=SUBSET)
    a, b = clean_features
    rng = np.random.RandomState(3)
    drawn = [[rng.choice(len(x), SUBSET, replace=False) for x in (b, a)] for _ in range(SUBSETS)]
    own = [kid(a[of_a], b[of_b]).value for of_b, of_a in drawn]
    assert np.mean(own) == pytest.approx(want, rel=0, abs=1e-7)  # its kernel is float32


weights = random_inception


@pytest.fixture(scope="module")
def large():
    """Two images that every package's resizing leaves alone."""
    return np.random.default_rng(5).integers(0, 256, (2, 299, 299, 3), np.uint8)


@pytest.fixture(scope="module")
def own_features(weights, large):
    torch.set_num_threads(1)
    features = InceptionExtractor(weights)(large)
    assert features.std() > 0.01  # the random network says something
    return features


def assert_same_features(own, found):
    # 0 was measured on contiguous images; another layout in memory is summed in another order.
    torch.testing.assert_close(found, own, rtol=1e-5, atol=1e-5 * float(own.max()))
    assert (own[0] - own[1]).abs().max() > 1e-3 * float(own.max())  # far above that tolerance


def test_torchmetrics_inception(weights, large, own_features):
    module = pytest.importorskip("torchmetrics.image.fid")
    pytest.importorskip("torch_fidelity")
    metric = module.FrechetInceptionDistance(
        feature=2048, feature_extractor_weights_path=str(weights)
    )
    with torch.inference_mode():
        assert_same_features(own_features, metric.inception(tensor(large)))


@pytest.fixture
def clean_fids_inception(weights, monkeypatch):
    """clean-fid's copy of pytorch-fid's network, with our file in place of its download."""
    module = pytest.importorskip("cleanfid.inception_pytorch")
    state = torch.load(weights, weights_only=True)
    monkeypatch.setattr(module, "load_state_dict_from_url", lambda *args, **options: state)
    return lambda **options: module.InceptionV3(resize_input=False, **options).eval()


@pytest.mark.filterwarnings("ignore:The parameter 'pretrained':UserWarning")
@pytest.mark.filterwarnings("ignore:Arguments other than a weight enum:UserWarning")
@torch.inference_mode()
def test_pytorch_fids_inception(large, own_features, clean_fids_inception):
    pixels = tensor(large).float()
    (found,) = clean_fids_inception(normalize_input=False)((pixels - 128) / 128)
    assert_same_features(own_features, found[..., 0, 0])
    # Its own scaling of the pixels, 2 v / 255 - 1, is the one thing that differs.
    (scaled,) = clean_fids_inception()(pixels / 255)
    torch.testing.assert_close(
        scaled[..., 0, 0], own_features, rtol=0, atol=0.02 * float(own_features.max())
    )
    assert not torch.equal(scaled, found)
