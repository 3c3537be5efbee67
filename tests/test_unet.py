from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from dreamlib.diffusion.ema import averaged, warm_decay
from dreamlib.diffusion.unet import Attention, UNet, time_embedding


def net(**changes):
    settings = {"size": 16, "channels": 3, "widths": (8, 16), "blocks": 1, "heads": 2}
    return UNet(**settings | changes)


@pytest.mark.parametrize(
    "changes",
    [{}, {"patch": 2, "attention": (8,)}, {"channels": 1, "size": 32, "widths": (8, 8, 16)}],
)
def test_the_answer_has_the_inputs_shape(changes):
    model = net(**changes)
    x = torch.randn(3, model.channels, model.size, model.size)
    assert model(x, torch.tensor([0, 5, 9])).shape == x.shape


def test_it_begins_by_predicting_zero():
    assert not net()(torch.randn(2, 3, 16, 16), torch.tensor([1, 2])).any()


def test_skips_have_full_resolution():
    model, seen = net(), []
    for level in model.up:
        level.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    model(torch.randn(1, 3, 16, 16), torch.tensor([1]))
    assert [tuple(shape) for shape in seen] == [(1, 32, 8, 8), (1, 16, 16, 16)]


def test_time_changes_the_answer_and_images_do_not_mix():
    torch.manual_seed(0)
    model = net(attention=(8,))
    torch.nn.init.normal_(model.head.weight)
    x = torch.randn(2, 3, 16, 16)
    t = torch.tensor([3, 700])
    out = model(x, t)
    assert not torch.allclose(out, model(x, torch.tensor([3, 701])))
    assert_close(out[:1], model(x[:1], t[:1]), rtol=1e-4, atol=1e-5)


def test_attention_equals_its_definition():
    torch.manual_seed(0)
    layer = Attention(16, 4)
    x = torch.randn(2, 16, 5, 5)
    q, k, v = layer.qkv(layer.norm(x)).view(2, 3, 4, 4, 25).unbind(1)
    weights = torch.einsum("bhdi,bhdj->bhij", q, k).div(4**0.5).softmax(-1)
    h = torch.einsum("bhij,bhdj->bhdi", weights, v).reshape(2, 16, 5, 5)
    assert_close(layer(x), x + layer.proj(h), rtol=1e-4, atol=1e-5)


def test_attention_hands_sdpa_contiguous_rows(monkeypatch):
    """With stride(-1) != 1 SDPA falls back to its slow path without a word."""
    strides = []
    original = F.scaled_dot_product_attention

    def spy(q, k, v):
        strides.extend([q.stride(-1), k.stride(-1), v.stride(-1)])
        return original(q, k, v)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    Attention(16, 4)(torch.randn(2, 16, 4, 4))
    assert strides == [1, 1, 1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size": 18}, "multiple of 4"),
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
    ema = averaged(model, 0.9)
    expected = None
    for count in range(30):
        with torch.no_grad():
            model.weight.add_(torch.randn(1, 2))
        ema.update_parameters(model)
        weight = model.weight.detach().clone()
        decay = min(0.9, (1 + count) / (10 + count))
        expected = weight if expected is None else decay * expected + (1 - decay) * weight
        assert_close(ema.module.weight, expected)


def test_attention_is_float32_under_autocast(monkeypatch):
    dtypes = []
    original = F.scaled_dot_product_attention

    def spy(q, k, v):
        out = original(q, k, v)
        dtypes.extend([q.dtype, out.dtype])
        return out

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    with torch.autocast("cpu", torch.bfloat16):
        Attention(16, 4)(torch.randn(2, 16, 4, 4))
    assert dtypes == [torch.float32, torch.float32]
