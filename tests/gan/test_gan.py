"""The GAN's networks and losses: definitions, equal forms, derivatives, shapes."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from dreamlib.gan import losses as step
from dreamlib.gan import stylegan2
from dreamlib.gan.stylegan2 import Conv, Discriminator, Generator, Mapping, Modulated


def randn(*shape, key=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(key), dtype=torch.float64)


def noise_of(generator, rows=1, scale=0.0, key=9):
    """Noise for every layer: zeros, or `scale` times unit normals."""
    sizes = generator.synthesis.noise_sizes
    return [scale * randn(rows, 1, size, size, key=key + i) for i, size in enumerate(sizes)]


def in_double(module):
    """A module in float64 whose weights do not hang on what ran before."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for parameter in module.double().parameters():
            with torch.no_grad():
                parameter.copy_(torch.randn_like(parameter))
    return module


@pytest.fixture
def generator():
    return in_double(Generator(8, 3, [4, 6], z_dim=5, w_dim=7, mapping=2))


@pytest.fixture
def discriminator():
    return in_double(Discriminator(8, 3, [4, 6]))


# ------------------------------------------------------------------ filters


FILTERS = pytest.mark.parametrize(
    "taps", [[1.0, 1.0], [1.0, 3.0, 3.0, 1.0], [0.5, 1, 2, 2, 1, 0.5]]
)


@FILTERS
@pytest.mark.parametrize("change", [stylegan2.upsample, stylegan2.downsample])
def test_filters_preserve_a_constant(change, taps):
    out = change(torch.full((2, 3, 16, 16), 0.7, dtype=torch.float64), taps)
    inner = out[:, :, 2:-2, 2:-2]  # beyond the image lie zeros
    torch.testing.assert_close(inner, torch.full_like(inner, 0.7), atol=1e-12, rtol=0)


def test_filters_double_and_halve_a_slope_in_place():
    """Both are centred: a linear image stays the same linear image, at the new pixels' centres."""
    x = (torch.arange(16, dtype=torch.float64) + 0.5).expand(1, 1, 16, 16)
    wide = (torch.arange(32, dtype=torch.float64) + 0.5) / 2
    narrow = (torch.arange(8, dtype=torch.float64) + 0.5) * 2
    for change, expected in ((stylegan2.upsample, wide), (stylegan2.downsample, narrow)):
        row = change(x)[0, 0, 4]
        torch.testing.assert_close(row[2:-2], expected[2:-2], atol=1e-12, rtol=0)


def test_the_shortest_filter_repeats_pixels_and_takes_their_mean():
    x = randn(2, 3, 8, 8)
    repeated = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(stylegan2.upsample(x, [1, 1]), repeated)
    torch.testing.assert_close(stylegan2.downsample(x, [1, 1]), F.avg_pool2d(x, 2))


@FILTERS
def test_a_filtered_convolution_halves_and_an_upsampling_one_doubles(taps):
    x = randn(2, 3, 16, 16)
    assert Conv(3, 5, 3, down=taps).double()(x).shape == (2, 5, 8, 8)
    assert Conv(3, 5, 1, down=taps).double()(x).shape == (2, 5, 8, 8)
    up = Modulated(4, 3, 5, 3, up=taps).double()
    assert up(x, randn(2, 4)).shape == (2, 5, 32, 32)


@FILTERS
def test_an_upsampling_convolution_keeps_the_scale(taps):
    """With weights of one pixel it is the filter alone: a constant comes out as it was."""
    layer = Modulated(1, 1, 1, 3, up=taps, demodulate=False).double()
    with torch.no_grad():
        layer.style.weight.zero_()
        layer.weight.zero_()[0, 0, 1, 1] = 1 / layer.scale
    out = layer(torch.full((1, 1, 8, 8), 0.7, dtype=torch.float64), randn(1, 1))
    inner = out[:, :, 2:-2, 2:-2]
    torch.testing.assert_close(inner, torch.full_like(inner, 0.7), atol=1e-12, rtol=0)


# ------------------------------------------------------------------ modulation


def own_weights(layer, w):
    """The convolution's weights for every image, [B,O,I,k,k], by the paper's two equations."""
    style = layer.style(w)
    weight = (layer.weight * layer.scale)[None] * style[:, None, :, None, None]
    norm = weight.square().sum((2, 3, 4), keepdim=True) + stylegan2.EPS
    return weight * norm.rsqrt() if layer.demodulate else weight


@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize(("kernel", "up"), [(1, ()), (3, ()), (3, (1, 3, 3, 1)), (3, (1, 1))])
def test_scaling_the_input_equals_weights_of_ones_own(kernel, demodulate, up):
    layer = in_double(Modulated(7, 5, 6, kernel, up=up, demodulate=demodulate))
    x, w = randn(4, 5, 8, 8), randn(4, 7, key=1)
    weights = own_weights(layer, w)
    images, shape = x.reshape(1, 20, 8, 8), (4, 6, 16, 16) if up else (4, 6, 8, 8)
    if up:
        filters = weights.transpose(1, 2).reshape(20, 6, kernel, kernel)
        grouped = F.conv_transpose2d(images, filters, stride=2, groups=4)
        grouped = stylegan2.blur(grouped, up, grow=-1, gain=4.0)
    else:
        filters = weights.reshape(24, 5, kernel, kernel)
        grouped = F.conv2d(images, filters, padding=kernel // 2, groups=4)
    torch.testing.assert_close(layer(x, w), grouped.reshape(shape), atol=1e-10, rtol=1e-10)


def test_mapping_forgets_the_length_of_z():
    mapping, z = in_double(Mapping(5, 7, 3)), randn(4, 5)
    torch.testing.assert_close(mapping(z), mapping(3 * z), atol=1e-6, rtol=1e-6)


def test_equalised_layers_begin_with_unit_variance():
    """Weights are unit normals; outputs of unit inputs have about unit variance."""
    torch.manual_seed(0)
    linear = stylegan2.Linear(512, 512, lr_mul=0.01)
    assert (linear.weight * linear.lr_mul).std().item() == pytest.approx(1, rel=0.02)
    assert linear(torch.randn(64, 512)).std().item() == pytest.approx(1, rel=0.05)
    assert Conv(64, 64, 3)(torch.randn(4, 64, 16, 16)).std().item() == pytest.approx(1, rel=0.1)


def test_an_image_hangs_on_its_own_row_only(generator):
    z = randn(4, 5)
    together = generator(z, noise_of(generator))
    for row in range(4):
        torch.testing.assert_close(
            generator(z[row : row + 1], noise_of(generator))[0], together[row]
        )


def test_truncation_draws_towards_the_mean(generator):
    z = randn(4, 5)
    generator.w_mean.copy_(generator.mapping(randn(100, 5, key=2)).mean(0))
    mean = generator.synthesis(generator.spread(generator.w_mean[None]), noise_of(generator))
    still = generator(z, noise_of(generator), truncation=0.0)
    torch.testing.assert_close(still, mean.expand_as(still))
    near = generator(z, noise_of(generator), truncation=0.5) - mean
    assert near.norm() < (generator(z, noise_of(generator)) - mean).norm()


def test_noise_enters_by_a_learned_strength():
    generator = Generator(8, 3, [4, 6], z_dim=5, w_dim=7, mapping=2)
    z = torch.randn(2, 5)

    one, two = ([n.float() for n in noise_of(generator, 2, 1.0, key=key)] for key in (0, 10))
    assert torch.equal(generator(z, one), generator(z, two))  # it begins at zero
    generator.synthesis.convs[0].strength.data.fill_(1.0)
    assert not torch.equal(generator(z, one), generator(z, two))
    assert torch.equal(generator(z, one), generator(z, [*two[:2], one[2]]))  # of that layer only


def test_mixing_takes_the_first_layers_from_the_first():
    one, two = torch.zeros(3, 4, 2), torch.ones(3, 4, 2)
    mixed = step.mix(one, two, torch.tensor([0, 1, 4]))[:, :, 0]
    assert mixed.tolist() == [[1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 0, 0]]


# ------------------------------------------------------------------ discriminator


def test_minibatch_std_by_hand():
    x = torch.zeros(8, 2, 1, 2, dtype=torch.float64)
    x[:4, 0, 0, 0] = torch.tensor([1.0, 1.0, 3.0, 3.0])  # standard deviation 1
    x[4:, 1, 0, 1] = torch.tensor([0.0, 0.0, 0.0, 8.0])  # sqrt(12)
    out = stylegan2.minibatch_std(x)
    assert out.shape == (8, 3, 1, 2)
    torch.testing.assert_close(out[:, :2], x)
    # the others of each group's four values differ by nothing but eps
    assert out[:4, 2].flatten().tolist() == pytest.approx([(1 + 3e-4) / 4] * 8, abs=1e-6)
    assert out[4:, 2].flatten().tolist() == pytest.approx([(12**0.5 + 3e-4) / 4] * 8, abs=1e-6)


def test_a_batch_may_pass_in_slices_of_whole_groups(discriminator):
    x = randn(8, 3, 8, 8)
    parts = torch.cat([discriminator(x[:4]), discriminator(x[4:])])
    torch.testing.assert_close(discriminator(x), parts)
    with pytest.raises(ValueError, match="whole groups of 4"):
        discriminator(x[:6])


# ------------------------------------------------------------------ derivatives


def test_derivatives_of_the_generator(generator):
    generator.synthesis.first.strength.data.fill_(0.5)
    noise = noise_of(generator, 2, 1.0)

    def image(z, scale):
        return generator(z, [scale * each for each in noise])

    z, scale = randn(2, 5).requires_grad_(), randn(()).requires_grad_()
    assert torch.autograd.gradcheck(image, (z, scale))


def test_derivatives_of_the_discriminator_twice(discriminator):
    """R1 differentiates a gradient."""
    x = randn(4, 3, 8, 8).requires_grad_()
    assert torch.autograd.gradcheck(discriminator, (x,), fast_mode=True)
    assert torch.autograd.gradgradcheck(discriminator, (x,), fast_mode=True)


def test_derivatives_of_the_generator_twice(generator):
    """Path lengths differentiate a gradient, too."""

    def image(w):
        return generator.synthesis(generator.spread(w), noise_of(generator))

    assert torch.autograd.gradgradcheck(image, (randn(2, 7).requires_grad_(),), fast_mode=True)


# ------------------------------------------------------------------ losses


def test_losses_are_the_logistic_ones():
    real, fake = randn(5), randn(5, key=1)
    d = -torch.log(torch.sigmoid(real)) - torch.log(1 - torch.sigmoid(fake))
    torch.testing.assert_close(step.discriminator_loss(real, fake), d)
    torch.testing.assert_close(step.generator_loss(fake), -torch.log(torch.sigmoid(fake)))


def test_r1_is_the_squared_gradient_of_every_image(discriminator):
    x = randn(4, 3, 8, 8).requires_grad_()
    found = step.r1(discriminator(x), x)
    # Images of a group see each other (minibatch std): the gradient is that of the summed logits.
    h, total = 1e-6, torch.zeros(4, dtype=torch.float64)
    flat = x.detach().flatten(1)
    for k in range(flat.shape[1]):
        nudge = torch.zeros_like(flat)
        for row in range(4):
            nudge.zero_()[row, k] = h
            up, down = ((flat + s * nudge).view_as(x) for s in (1, -1))
            slope = (discriminator(up).sum() - discriminator(down).sum()) / (2 * h)
            total[row] += slope.detach() ** 2
    torch.testing.assert_close(found.detach(), total, rtol=1e-6, atol=1e-8)


def test_lazy_settings_of_adam():
    lr, betas = step.lazy(16, 0.0025, (0.0, 0.99))
    assert lr == pytest.approx(0.0025 * 16 / 17)
    assert betas == (0.0, pytest.approx(0.99 ** (16 / 17)))
    # Seventeen steps of the lazy player (sixteen and the regulariser's) forget as sixteen do.
    assert betas[1] ** 17 == pytest.approx(0.99**16)
    assert step.lazy(0, 0.0025, (0.0, 0.99)) == (0.0025, (0.0, 0.99))


def test_path_length_is_that_of_the_jacobian(generator):
    w, y = randn(2, 7).requires_grad_(), randn(2, 3, 8, 8, key=1)

    def image(w):
        return generator.synthesis(generator.spread(w), noise_of(generator))

    found = step.path_length(image(w), w, y)
    h, jty = 1e-6, torch.zeros(2, 7, dtype=torch.float64)
    for k in range(7):
        nudge = torch.zeros(7, dtype=torch.float64)
        nudge[k] = h
        moved = (image(w + nudge) - image(w - nudge)).detach() / (2 * h)
        jty[:, k] = (moved * y).sum((1, 2, 3))
    torch.testing.assert_close(found.detach(), jty.norm(dim=1), rtol=1e-7, atol=1e-8)


def test_weights_of_the_regularisers():
    assert step.r1_weight(256, 32) == pytest.approx(0.4096)
    size = 1024
    expected = math.log(2) / (size**2 * (math.log(size) - math.log(2)))
    assert step.path_weight(size) == pytest.approx(expected)


def test_an_average_halves_in_its_half_life():
    batch, images = 32, 10_000
    steps = images / batch
    assert step.decay(batch, images) ** steps == pytest.approx(0.5)
    assert step.half_life(100_000, images, 0.05) == 5_000
    assert step.half_life(10**9, images, 0.05) == images
    assert step.half_life(0, images, None) == images
    assert step.decay(batch, 0) == 0.0  # before the first image: take the weights as they are


# ------------------------------------------------------------------ shapes


@pytest.mark.parametrize(
    ("size", "widths", "generators", "discriminators"),
    [
        (64, (128, 256, 256, 512, 512), 15_081_880, 15_164_545),
        (128, (64, 128, 256, 256, 512, 512), 15_324_125, 15_283_265),
        (256, (32, 64, 128, 256, 256, 512, 512), 15_417_602, 15_312_929),
    ],
)
def test_sizes(size, widths, generators, discriminators):
    with torch.device("meta"):
        g, d = Generator(size, 3, widths), Discriminator(size, 3, widths)
        noise = [torch.empty(4, 1, side, side) for side in g.synthesis.noise_sizes]
        images = g(torch.empty(4, 512), noise)
        assert images.shape == (4, 3, size, size)
        assert d(images).shape == (4,)
    count = [sum(p.numel() for p in net.parameters()) for net in (g, d)]
    assert count == [generators, discriminators]


@pytest.mark.parametrize(("size", "widths"), [(64, (8, 8)), (24, (8, 8, 8)), (16, ())])
def test_sizes_that_do_not_fit_are_refused(size, widths):
    with pytest.raises(ValueError, match="one width for each"):
        Generator(size, 3, widths)
    with pytest.raises(ValueError, match="one width for each"):
        Discriminator(size, 3, widths)
