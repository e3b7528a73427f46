"""How far networks look, against formulas, and which of their layers look everywhere, by construction."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lmseg_core import LMSegForSemanticSegmentation, Locality, Predictor, locality_of, measure_locality

Maker = Callable[..., LMSegForSemanticSegmentation]


class Squeeze(nn.Module):
    """Channels weighed by their mean over the image (Hu et al. 2018), with no layer for the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mix(x.mean((2, 3))).sigmoid()[:, :, None, None]


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize(("kernels", "dilation"), [((3,), 1), ((3, 5, 7), 1), ((3, 3), 3)])
def test_a_stack_of_convolutions_looks_as_far_as_the_formula_says(
    ndim: int, kernels: tuple[int, ...], dilation: int
) -> None:
    torch.manual_seed(0)
    conv = {2: nn.Conv2d, 3: nn.Conv3d}[ndim]
    layers = [conv(2 if i == 0 else 3, 3, k, dilation=dilation, padding="same") for i, k in enumerate(kernels)]
    found = measure_locality(nn.Sequential(*layers), (2, *(40, 36, 33)[:ndim]))
    expected = sum(dilation * (k - 1) // 2 for k in kernels)
    assert found.extent == (expected,) * ndim
    assert all(1 <= radius <= expected for radius in found.radius)
    assert found.everywhere == ()


def test_axes_are_told_apart() -> None:
    torch.manual_seed(0)
    found = measure_locality(nn.Conv3d(1, 4, (1, 3, 9), padding="same"), (1, 16, 20, 24))
    assert found == Locality((0, 1, 4), (0, 1, 4), ())


def test_the_radius_holds_99_percent() -> None:
    """One row of known weights: its absolute sum decides."""
    conv = nn.Conv2d(1, 1, (1, 9), padding="same", bias=False)
    weights = torch.tensor([0.0, 0.001, 0.002, 0.1, 1.0, 0.1, 0.002, 0.001, 0.003])
    conv.weight.data = weights.view(1, 1, 1, 9)
    found = measure_locality(conv, (1, 20, 20))
    # Within 1: 1.2 of 1.209, which is 99.26 %.
    assert found.extent == (0, 4)
    assert found.radius == (0, 1)


@pytest.mark.parametrize("ndim", [2, 3])
def test_our_network_without_a_language_model_is_local(ndim: int, make_network: Maker) -> None:
    network = make_network(ndim)
    found = measure_locality(network, (2, *(64,) * ndim), network.config.multiple)
    assert found.everywhere == ()
    # What an input that differs only further away than that shows: nothing.
    x = torch.randn(1, 2, *(64,) * ndim)
    y = x.clone()
    far = 32 + found.extent[0] + 1
    y[:, :, far:] += 3
    with torch.inference_mode():
        middle = (0, slice(None), *(32,) * ndim)
        torch.testing.assert_close(network(x).logits[middle], network(y).logits[middle], rtol=0, atol=0)
    assert 8 < found.radius[0] <= found.extent[0] < 31


@pytest.mark.parametrize("lm", ["bert", "gpt2", "llama", "qwen2"])
def test_attention_is_named(lm: str, make_network: Maker, language_models: dict) -> None:
    network = make_network(lm=language_models[lm], lm_blocks=2)
    nn.init.normal_(network.bridge.gate.weight)
    found = measure_locality(network, (2, 32, 32), network.config.multiple)
    assert len(found.everywhere) == 2
    assert all(name.startswith(f"bridge.blocks.{i}.") for i, name in enumerate(found.everywhere))
    assert all("att" in name for name in found.everywhere)
    # The bottleneck's tokens carry every pixel to every other.
    assert found.extent == (16, 16)


def test_a_bridge_of_perceptrons_is_local(make_network: Maker) -> None:
    network = make_network(bridge="mlp", mlp_hidden=32)
    nn.init.normal_(network.bridge.gate.weight)
    assert measure_locality(network, (2, 32, 32), network.config.multiple).everywhere == ()


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (nn.GroupNorm(2, 4), "1"),
        (nn.InstanceNorm2d(4), "1"),
        (Squeeze(), "1"),
        (nn.Sequential(nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Upsample((32, 32))), "1.1"),
        (nn.BatchNorm2d(4), None),
        (nn.AvgPool2d(3, 1, 1), None),
    ],
    ids=["group norm", "instance norm", "squeeze", "global mean", "batch norm", "mean of 3"],
)
def test_norms_and_pools_that_look_everywhere_are_named(layer: nn.Module, name: str | None) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), layer, nn.ReLU())
    if isinstance(layer, nn.Sequential):  # its output has one size, whatever the input's
        layer[2] = nn.Identity()
    found = measure_locality(network, (2, 32, 32))
    assert found.everywhere == (() if name is None else (name,))


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("resnet", set()),
        ("convnext", set()),  # channels last
        # Global response normalisation: the whole image is in its mean. By the name of its layer where it is coarse.
        ("convnextv2", {"grn", "0"}),
        ("swin", set()),  # attention in windows
        ("dinov2", {"attention"}),
    ],
)
def test_backbones(kind: str, named: set[str], make_network: Maker) -> None:
    widths = {"hidden_sizes": [8, 10, 12, 14], "depths": [1, 1, 1, 1]}
    settings = {
        "resnet": {"embedding_size": 8, **widths},
        "convnext": widths,
        "convnextv2": widths,
        "swin": {"embed_dim": 8, "depths": [1] * 4, "num_heads": [1, 2, 2, 2], "window_size": 4, "image_size": 64},
        "dinov2": {
            "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "patch_size": 14, "image_size": 70,
        },
    }  # fmt: skip
    backbone = {"model_type": kind} | settings[kind]
    network = make_network(backbone_config=backbone, widths=(6, 8, 8, 10, 12, 14))
    for name, parameter in network.named_parameters():
        if ".grn." in name:
            nn.init.normal_(parameter)  # begins at zero, which looks nowhere
    found = measure_locality(network, (2, 64, 64), network.config.multiple)
    assert {name.rsplit(".", 1)[-1] for name in found.everywhere} == named


def test_the_network_is_left_as_it_was(make_network: Maker) -> None:
    network = make_network().train()
    network.head.weight.requires_grad_(False)
    before = {name: (p.requires_grad, p.clone()) for name, p in network.named_parameters()}
    first = measure_locality(network, (2, 32, 32), 4)
    assert network.training
    assert all(p.grad is None for p in network.parameters())
    assert all(
        p.requires_grad == before[name][0] and torch.equal(p, before[name][1]) for name, p in network.named_parameters()
    )
    assert measure_locality(network, (2, 32, 32), 4) == first


def test_a_predictor_s_network(fixed_folder: Path) -> None:
    predictor = Predictor.from_pretrained(fixed_folder)
    found = locality_of(predictor, (48, 64))
    assert len(found.extent) == len(found.radius) == 2
    assert found.everywhere == ()
