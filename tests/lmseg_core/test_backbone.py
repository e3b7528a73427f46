"""Backbones of transformers as the encoder: any grid, any number of bands, pretrained weights."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoBackbone, AutoConfig, AutoModel

from lmseg_core import LMSegForSemanticSegmentation, ModelError, load_backbone
from lmseg_core.backbone import BackboneEncoder, adapt_bands

Maker = Callable[..., LMSegForSemanticSegmentation]
WIDTHS = (6, 8, 8, 10, 12, 14)
BACKBONES = {
    "resnet": {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 10, 12, 14], "depths": [1, 1, 1, 1]},
    "convnext": {"model_type": "convnext", "hidden_sizes": [8, 10, 12, 14], "depths": [1, 1, 1, 1]},
    "swin": {
        "model_type": "swin",
        "embed_dim": 8,
        "depths": [1, 1, 1, 1],
        "num_heads": [1, 2, 2, 2],
        "window_size": 4,
        "image_size": 64,
    },
    "dinov2": {
        "model_type": "dinov2",
        "hidden_size": 16,
        "num_hidden_layers": 8,
        "num_attention_heads": 2,
        "patch_size": 14,
        "image_size": 70,
    },
}


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("size", [(64, 64), (45, 70)])
def test_features_form_a_pyramid_and_save_exactly(
    tmp_path: Path, name: str, size: tuple[int, int], make_network: Maker
) -> None:
    network = make_network(backbone_config=BACKBONES[name], widths=WIDTHS, in_channels=2)
    features = network.encoder(torch.randn(1, 2, 64, 96))
    assert [tuple(f.shape[1:]) for f in features] == [(w, 64 // 2**i, 96 // 2**i) for i, w in enumerate(WIDTHS)]
    x = torch.randn(2, 2, *size)
    logits = network(x).logits
    assert logits.shape == (2, 3, *size)
    network.save_pretrained(tmp_path)
    loaded = LMSegForSemanticSegmentation.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(x).logits, logits)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6, 13])
def test_a_grey_image_gives_the_same_response_with_any_number_of_bands(channels: int) -> None:
    torch.manual_seed(0)
    weight, grey = torch.randn(8, 3, 7, 7), torch.randn(1, 1, 20, 20)
    adapted = adapt_bands(weight, channels)
    assert adapted.shape == (8, channels, 7, 7)
    before = torch.nn.functional.conv2d(grey.expand(-1, 3, -1, -1), weight)
    after = torch.nn.functional.conv2d(grey.expand(-1, channels, -1, -1), adapted)
    assert torch.allclose(before, after, atol=1e-4)


@pytest.mark.parametrize("name", BACKBONES)
def test_pretrained_weights_meet_other_bands(tmp_path: Path, name: str, make_network: Maker) -> None:
    torch.manual_seed(4)
    theirs = AutoBackbone.from_config(AutoConfig.for_model(**BACKBONES[name])).eval()
    theirs.save_pretrained(tmp_path / "backbone")
    plain = make_network(widths=WIDTHS, in_channels=5, bands=list("abcde"))
    network = LMSegForSemanticSegmentation.with_backbone(plain.config, str(tmp_path / "backbone")).eval()
    assert plain.config.backbone_config is None
    grey = torch.randn(1, 1, 56, 56)  # a multiple of every patch
    with torch.no_grad():
        want = theirs(grey.expand(-1, 3, -1, -1)).feature_maps[-1]
        got = network.encoder.backbone(grey.expand(-1, 5, -1, -1)).feature_maps[-1]
    assert torch.allclose(want, got, atol=1e-4)
    network.save_pretrained(tmp_path / "network")
    x = torch.randn(1, 5, 64, 64)
    loaded = LMSegForSemanticSegmentation.from_pretrained(tmp_path / "network").eval()
    assert torch.equal(loaded(x).logits, network(x).logits)


def test_backbone_and_language_model_go_together(tmp_path: Path, make_network: Maker, language_models: dict) -> None:
    theirs = AutoBackbone.from_config(AutoConfig.for_model(**BACKBONES["resnet"]))
    theirs.save_pretrained(tmp_path)
    AutoModel.from_config(AutoConfig.for_model(**language_models["bert"])).save_pretrained(tmp_path / "lm")
    first = LMSegForSemanticSegmentation.with_backbone(make_network(widths=WIDTHS).config, str(tmp_path))
    network = LMSegForSemanticSegmentation.with_language_model(first.config, str(tmp_path / "lm"), 2)
    load_backbone(network, str(tmp_path))
    mine = network.encoder.backbone.state_dict()
    assert all(
        torch.equal(value, mine[key])
        for key, value in theirs.state_dict().items()
        if key in mine and value.shape == mine[key].shape
    )
    assert network(torch.randn(1, 2, 40, 40)).logits.shape == (1, 3, 40, 40)


@pytest.mark.parametrize(
    ("widths", "backbone", "message"),
    [
        (WIDTHS[:4], BACKBONES["resnet"], r"4 widths and a backbone with 4 features; give 6 widths"),
        (WIDTHS, {"model_type": "bert", "hidden_size": 8}, "of bert, which is no backbone; use one of"),
        (WIDTHS, {"model_type": "nothing"}, "backbone_config that transformers refuses"),
    ],
)
def test_what_is_no_backbone_is_refused(widths: tuple[int, ...], backbone: dict, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        BackboneEncoder(3, list(widths), 1, backbone)
    assert "\n" not in str(caught.value)
