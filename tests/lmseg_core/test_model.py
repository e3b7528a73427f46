"""The network in two and three dimensions, and as a transformers model."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSemanticSegmentation

from lmseg_core import LMSegConfig, LMSegForSemanticSegmentation
from lmseg_core.blocks import resize
from lmseg_core.encoder import Encoder

Maker = Callable[..., LMSegForSemanticSegmentation]


@pytest.mark.parametrize("size", [(16, 16), (13, 18), (1, 5), (8, 12, 16), (7, 9, 10)])
def test_logits_have_the_size_of_the_input(size: tuple[int, ...], make_network: Maker) -> None:
    output = make_network(ndim=len(size))(torch.randn(2, 2, *size))
    assert output.logits.shape == (2, 3, *size)
    assert output.loss is None
    assert torch.isfinite(output.logits).all()


@pytest.mark.parametrize("lm", [None, "bert", "gpt2", "llama", "qwen2"])
@pytest.mark.parametrize("ndim", [2, 3])
def test_saving_and_loading_changes_no_bit(
    tmp_path: Path, ndim: int, lm: str | None, make_network: Maker, language_models: dict
) -> None:
    network = make_network(ndim, language_models[lm] if lm else None)
    if network.bridge is not None:
        torch.nn.init.normal_(network.bridge.gate.weight)
    x = torch.randn(1, 2, *(12,) * ndim)
    network.save_pretrained(tmp_path)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
    assert isinstance(loaded, LMSegForSemanticSegmentation)
    assert torch.equal(loaded.eval()(x).logits, network(x).logits)


def test_loss_ignores_255_and_falls_when_trained(make_network: Maker) -> None:
    network = make_network().train()
    x = torch.randn(2, 2, 16, 16)
    labels = (x[:, 0] > 0).long()
    labels[:, :4] = 255
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = network(x, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert network(x, labels=torch.full_like(labels, 255)).loss.item() == 0.0


def test_a_far_pixel_does_not_change_a_score(make_network: Maker) -> None:
    # A norm layer that looks at the tile would let every pixel change every other one, and leave seams.
    network = make_network()
    x = torch.randn(1, 2, 16, 128)
    y = x.clone()
    y[..., -8:] += 10.0
    before, after = network(x).logits, network(y).logits
    assert torch.allclose(before[..., :40], after[..., :40], atol=1e-6)
    assert not torch.allclose(before[..., -8:], after[..., -8:], atol=1e-2)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize(
    "changes",
    [
        {"stride": 2},
        {"stride": 4},
        {"decoder": "fcn"},
        {"decoder": "fcn", "stride": 2, "deep_supervision": 1},
        {"deep_supervision": 1, "dropout": 0.5},
    ],
)
def test_variants_fit_odd_sizes_and_save(tmp_path: Path, ndim: int, changes: dict, make_network: Maker) -> None:
    network = make_network(ndim, **changes)
    x = torch.randn(2, 2, *(13, 18, 7)[:ndim])
    logits = network(x).logits
    assert logits.shape == (2, 3, *x.shape[2:])
    assert torch.isfinite(logits).all()
    network.save_pretrained(tmp_path)
    loaded = LMSegForSemanticSegmentation.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(x).logits, logits)


@pytest.mark.parametrize("decoder", ["unet", "fcn"])
def test_coarser_stages_are_supervised_in_training_only(decoder: str, make_network: Maker) -> None:
    network = make_network(decoder=decoder, deep_supervision=2, widths=(8, 12, 16, 20), stride=2)
    x, labels = torch.randn(2, 2, 33, 64), torch.randint(0, 3, (2, 33, 64))
    assert network(x, labels=labels).auxiliary is None
    output = network.train()(x, labels=labels)
    assert [tuple(logits.shape) for logits in output.auxiliary] == [(2, 3, 9, 16), (2, 3, 5, 8)]
    output.loss.backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in network.auxiliary.parameters())


def test_parts_hold_every_parameter_once(make_network: Maker, language_models: dict) -> None:
    network = make_network(lm=language_models["bert"], deep_supervision=1)
    parts = network.parts()
    assert set(parts) == {"encoder", "bridge", "decoder", "head"}
    ids = [id(parameter) for part in parts.values() for parameter in part.parameters()]
    assert sorted(ids) == sorted(id(parameter) for parameter in network.parameters())
    assert "bridge" not in make_network().parts()


def test_a_ramp_stays_in_place_at_any_stride() -> None:
    # Patches averaged and interpolated back reproduce a linear ramp only where the centres of the cells agree.
    encoder = Encoder(2, 1, [1, 1], 1, stride=4)
    torch.nn.init.constant_(encoder.stem.weight, 1 / 64)
    torch.nn.init.zeros_(encoder.stem.bias)
    ramp = torch.arange(64.0).expand(1, 1, 64, 64)
    back = resize(encoder.stem(ramp), (64, 64))
    assert torch.allclose(back[..., 16:48, 16:48], ramp[..., 16:48, 16:48], atol=1e-4)


@pytest.mark.parametrize("decoder", ["unet", "fcn"])
def test_checkpointing_gives_the_same_gradient(decoder: str, make_network: Maker, language_models: dict) -> None:
    x, labels = torch.randn(2, 2, 16, 16), torch.randint(0, 3, (2, 16, 16))
    gradients = []
    for checkpointed in (False, True):
        network = make_network(lm=language_models["bert"], decoder=decoder).train()
        for module in network.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if checkpointed:
            network.gradient_checkpointing_enable()
        network(x, labels=labels).loss.backward()
        gradients.append([p.grad for p in network.parameters() if p.grad is not None])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("name", ["tiny", "small", "base"])
@pytest.mark.parametrize("ndim", [2, 3])
def test_presets_save_exactly(tmp_path: Path, name: str, ndim: int) -> None:
    config = LMSegConfig.preset(name, ndim=ndim, in_channels=2, stride=2, deep_supervision=1, bridge="mlp")
    network = LMSegForSemanticSegmentation(config).eval()
    torch.nn.init.ones_(network.bridge.gate.weight)
    x = torch.randn(1, 2, *(32,) * ndim)
    network.save_pretrained(tmp_path)
    loaded = LMSegForSemanticSegmentation.from_pretrained(tmp_path).eval()
    # As a processor that rounds by the place of the weights needs it; the file packs them.
    assert {tensor.data_ptr() % 64 for tensor in (*loaded.parameters(), *loaded.buffers()) if tensor.numel()} == {0}
    with torch.inference_mode():
        assert torch.equal(loaded(x).logits, network(x).logits)
