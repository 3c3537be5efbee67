from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from benchmarks.timing import meta
from dreamlib.config.factory import make_net
from dreamlib.config.load import load_config, preset_names
from dreamlib.diffusion.ema import Averaged, warm_decay
from dreamlib.diffusion.load_unet import load_checkpoint, load_unet
from dreamlib.diffusion.unet import Attention, UNet, time_embedding
from dreamlib.runs.checkpoints import newest_checkpoint
from dreamlib.utils.errors import CheckpointError, RunError
from tests.conftest import within


def net(**changes):
    settings = {"size": 16, "channels": 3, "widths": (8, 16), "blocks": 1, "heads": 2}
    return UNet(**settings | changes)


@pytest.mark.parametrize(
    "changes",
    [{}, {"patch": 2, "attention": (8,)}, {"channels": 1, "size": 32, "widths": (8, 8, 16)}],
)
def test_the_answer_has_the_inputs_shape_and_begins_with_zeros(changes):
    model = net(**changes)
    x = torch.randn(3, model.channels, model.size, model.size)
    assert torch.equal(model(x, torch.tensor([0, 5, 9])), torch.zeros_like(x))


def shapes_into(levels):
    """A list that fills with the shapes that come in, once the network is asked."""
    shapes = []
    for level in levels:
        level.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape)))
    return shapes


def test_skips_have_full_resolution():
    model = net()
    shapes = shapes_into(model.up)
    model(torch.randn(1, 3, 16, 16), torch.tensor([1]))
    assert shapes == [(1, 32, 8, 8), (1, 16, 16, 16)]


def test_time_changes_the_answer_and_images_do_not_mix():
    torch.manual_seed(0)
    model = net(attention=(8,))
    torch.nn.init.normal_(model.head.weight)
    x = torch.randn(2, 3, 16, 16)
    t = torch.tensor([3, 700])
    out = model(x, t)
    assert not torch.allclose(out, model(x, torch.tensor([3, 701])))
    assert_close(out[:1], model(x[:1], t[:1]), rtol=1e-4, atol=5e-5)


def test_attention_equals_its_definition():
    torch.manual_seed(0)
    layer = Attention(16, 4)
    x = torch.randn(2, 16, 5, 5)
    q, k, v = layer.qkv(layer.norm(x)).view(2, 3, 4, 4, 25).unbind(1)
    weights = torch.einsum("bhdi,bhdj->bhij", q, k).div(4**0.5).softmax(-1)
    h = torch.einsum("bhij,bhdj->bhdi", weights, v).reshape(2, 16, 5, 5)
    assert_close(layer(x), x + layer.proj(h), rtol=1e-4, atol=5e-5)


@pytest.mark.parametrize("autocast", [False, True])
def test_attention_hands_sdpa_contiguous_rows_in_float32(monkeypatch, autocast):
    """With stride(-1) != 1 SDPA falls back to its slow path without a word."""
    seen = []
    original = F.scaled_dot_product_attention

    def spy(*qkv):
        seen.extend([*qkv, original(*qkv)])
        return seen[-1]

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        Attention(16, 4)(torch.randn(2, 16, 4, 4))
    assert [x.stride(-1) for x in seen[:3]] == [1, 1, 1]
    assert {x.dtype for x in seen} == {torch.float32}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size": 18}, "take 16 or 20"),
        ({"widths": (8, 12)}, r"\[12\]"),
        ({"attention": (16, 5)}, r"\[5\].*\[16, 8\]"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_by_name(changes, words):
    with pytest.raises(ValueError, match=words):
        net(**changes)


def test_time_embedding_is_bounded_and_distinct():
    emb = time_embedding(torch.arange(1000), 32)
    assert emb.shape == (1000, 32)
    assert float(emb.abs().max()) <= 1
    assert float(torch.cdist(emb, emb).fill_diagonal_(9).min()) > 0.01


def test_ema_warms_up_and_follows_its_formula():
    assert [warm_decay(step, 0.999) for step in (0, 90)] == [0.1, 0.91]
    assert warm_decay(10**6, 0.999) == 0.999
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1)
    ema = Averaged(model, 0.9)
    expected = None
    for count in range(30):
        with torch.no_grad():
            model.weight.add_(torch.randn(1, 2))
        ema.update_parameters(model)
        weight = model.weight.detach().clone()
        decay = min(0.9, (1 + count) / (10 + count))
        expected = weight if expected is None else decay * expected + (1 - decay) * weight
        assert_close(ema.module.weight, expected)


@pytest.mark.parametrize("decay", [0.99, 0.999])
def test_averages_stop_as_short_of_still_weights_as_float32_makes_them(decay):
    """Half a last digit over (1 - decay), as docs/TRAINING.md says; no further, and never away."""
    model = torch.nn.Linear(100, 1, bias=False)
    target = torch.linspace(1, 1.99, 100)[None]
    ema = Averaged(model, lambda step: decay)
    model.weight.data.copy_(0.99 * target)
    ema.update_parameters(model)
    model.weight.data.copy_(target)
    for _ in range(round(12 / (1 - decay))):
        ema.update_parameters(model)
    off = float((ema.module.weight.detach() / target - 1).abs().max())
    unit = 2**-24 / (1 - decay)
    assert 0.5 * unit < off < 1.1 * unit


def test_averages_go_on_where_they_were_saved():
    torch.manual_seed(0)
    model, again = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    whole, resumed = Averaged(model, 0.9), Averaged(again, 0.9)
    for step in range(6):
        if step == 3:
            state = whole.state_dict()
            resumed.load_state_dict({name: value.clone() for name, value in state.items()})
        with torch.no_grad():
            model.weight.add_(torch.randn(1, 2))
        for ema in (whole, resumed) if step >= 3 else (whole,):
            ema.update_parameters(model)
    assert torch.equal(whole.module.weight, resumed.module.weight)
    assert int(whole.n_averaged) == int(resumed.n_averaged) == 6


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_has_a_network_of_its_resolution(preset):
    config = load_config(preset)
    with meta():
        model = make_net(config, channels=3, labels=(10,))
        x = torch.empty(2, 3, config.data.size, config.data.size)
        if config.model == "gan":
            noise = [torch.empty(2, 1, n, n) for n in model.synthesis.noise_sizes]
            assert model(torch.empty(2, config.gan.z), noise).shape == x.shape
            return
        assert model(x, torch.empty(2, dtype=torch.int64)).shape == x.shape
    assert len(model.labels) == config.net.conditional


def test_28_pixels_become_14_and_7():
    model = net(size=28, channels=1)
    shapes = shapes_into([*model.down, model.middle])
    assert model(torch.randn(1, 1, 28, 28), torch.tensor([1])).shape == (1, 1, 28, 28)
    assert [shape[-1] for shape in shapes] == [28, 14, 7]


def grown(**changes):
    """With a head that is not zero, so that gradients reach every layer."""
    torch.manual_seed(0)
    model = net(attention=(8,), dropout=0.2, **changes)
    torch.nn.init.normal_(model.head.weight)
    return model


def gradients(model):
    """Gradients of a step with dropout, and the bytes that autograd kept for it."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(2)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model(x, torch.tensor([1, 5, 9, 30]))
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    out.square().mean().backward()
    held = sum(size for pointer, size in kept.items() if pointer not in weights)
    return [p.grad for p in model.parameters()], held


def test_recomputing_gives_the_same_gradients_with_less_memory():
    plain, much = gradients(grown())
    again, little = gradients(grown(recompute=True))
    for ours, theirs in zip(again, plain):
        assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert little < 0.5 * much


def test_channels_last_gives_the_same_answer():
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([1, 5])
    model = grown().eval()
    expected = model(x, t)
    assert_close(model.to(memory_format=torch.channels_last)(x, t), expected, rtol=1e-4, atol=5e-5)


def test_labels_change_the_answer_and_untold_ones_do_not():
    model = grown(labels=(3, 4)).eval()
    x, t = torch.randn(3, 3, 16, 16), torch.tensor([1, 5, 9])
    told = torch.tensor([[0, 0], [2, 3], [-1, 1]])
    out = model(x, t, told)
    other = told.clone()
    other[1, 1] = 2
    changed = (model(x, t, other) != out).flatten(1).any(1)
    assert changed.tolist() == [False, True, False]
    assert torch.equal(model(x, t), model(x, t, torch.full_like(told, -1)))
    with pytest.raises(ValueError, match="1 labels for a network that knows 2"):
        model(x, t, told[:, :1])


def test_group_norm_keeps_float32_statistics_under_autocast():
    """Values around 300: bfloat16 there has a grain of 2, far above their spread of 1."""
    layer = torch.nn.GroupNorm(8, 16)
    x = (300 + torch.randn(2, 16, 32, 32)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        ours = layer(x).float()
    assert_close(ours, layer(x.float()), rtol=0.01, atol=0.02)


def test_a_run_gives_its_averaged_weights_back(trained):
    heard = []
    model = within(load_unet, trained.folder, say=heard.append)
    weights = trained.weights()[0]
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert not model.training
    assert "averaged weights of step 8" in heard[0]
    with pytest.raises(RunError, match="no weights yet"):
        load_unet(trained.folder / "checkpoints")


def test_a_checkpoint_gives_averaged_or_raw_weights(trained, tmp_path):
    path, heard = newest_checkpoint(trained.dir.checkpoints).path, []
    smooth = within(load_checkpoint, path, say=heard.append).state_dict()
    raw = within(load_checkpoint, path, averaged=False, say=heard.append).state_dict()
    weights = trained.weights()[0]
    assert all(torch.equal(value, weights[name]) for name, value in smooth.items())
    assert any(not torch.equal(value, weights[name]) for name, value in raw.items())
    assert "averaged weights of step 8" in heard[0]
    assert "not averaged" in heard[1]
    with pytest.raises(CheckpointError, match="no manifest"):
        load_checkpoint(tmp_path / "step-00000001.pt")
    broken = tmp_path / path.name
    broken.write_bytes(path.read_bytes()[:-1] + b"?")
    broken.with_suffix(".json").write_text(path.with_suffix(".json").read_text())
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(broken)
