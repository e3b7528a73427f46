"""The network that settings describe."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from lmseg_core import LMSegForSemanticSegmentation, LMSegImageProcessor, ModelError
from lmseg_core.training.network import build, class_names, count
from lmseg_core.training.settings import Settings

Make = Callable[..., Settings]


def save(settings: Settings, folder: Path) -> str:
    build(settings).save_pretrained(folder)
    LMSegImageProcessor(mode="image").save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("bert")
    shape = BertConfig(vocab_size=9, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32)
    BertModel(shape).save_pretrained(folder)
    return str(folder)


def test_a_new_network_is_as_told(make_settings: Make) -> None:
    network = build(make_settings({"model.tile": [24, 32]}))
    assert (network.config.tile, network.config.bands, network.config.widths) == ([24, 32], ["a", "b"], [8, 12])
    assert class_names(make_settings().model) == ["below", "above"]
    trained, whole = count(network)
    assert trained == whole == sum(weight.numel() for weight in network.parameters())
    assert build(make_settings()).config.tile == [16, 16]


def test_sources_of_the_images_reach_the_network_and_may_be_told(make_settings: Make) -> None:
    assert build(make_settings(), (1, 1)).config.sources == [1, 1]
    assert build(make_settings()).config.sources is None
    config = {"widths": [8, 12], "sources": [1, 1], "fusion": "separate"}
    assert build(make_settings({"model.config": config})).config.fusion == "separate"


def test_a_start_gives_its_weights_and_takes_another_tile(make_settings: Make, tmp_path: Path) -> None:
    start = save(make_settings(), tmp_path / "first")
    first = LMSegForSemanticSegmentation.from_pretrained(start)
    second = build(make_settings({"model.start": start, "model.tile": [8, 8], "optimise.freeze": ["head"]}))
    assert second.config.tile == [8, 8]
    assert all(torch.equal(first.state_dict()[name], value) for name, value in second.state_dict().items())
    assert not any(weight.requires_grad for weight in second.head.parameters())
    assert class_names(make_settings({"model.start": start, "model.classes": []}).model) == ["below", "above"]


@pytest.mark.parametrize("pretrained", [True, False])
def test_a_start_may_get_a_language_model(make_settings: Make, tmp_path: Path, bert: str, pretrained: bool) -> None:
    start = save(make_settings(), tmp_path / "first")
    language = {"name": bert, "blocks": 2, "tune": "frozen", "pretrained": pretrained}
    network = build(make_settings({"model.start": start, "model.language_model": language}))
    first = LMSegForSemanticSegmentation.from_pretrained(start)
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in first.state_dict().items())
    theirs = BertModel.from_pretrained(bert).encoder.layer[-1].state_dict()
    mine = network.bridge.blocks[-1].state_dict()
    assert all(torch.equal(theirs[name], mine[name]) for name in theirs) == pretrained
    # The gate is shut: until it is trained, it predicts as before.
    image = torch.randn(1, 2, 16, 16)
    torch.testing.assert_close(network.eval()(pixel_values=image).logits, first.eval()(pixel_values=image).logits)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.start": "no-such-model"}, "no-such-model"),
        ({"model.backbone": "/no/such/folder"}, "model cannot be built"),
        ({"model.text_head": "/no/such/folder"}, "/no/such/folder cannot be used as a text encoder"),
        ({"model.config": {"widths": "wide"}}, "model"),
        ({"model.config": {"stride": 3}}, "stride 3"),
        ({"optimise.freeze": ["bridge"]}, "bridge, which this network lacks"),
        ({"optimise.freeze": ["encoder", "decoder", "head"]}, "nothing to train"),
    ],
)
def test_what_cannot_be_built_is_one_line(changes: dict[str, object], words: str, make_settings: Make) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        build(make_settings(changes))
    assert "\n" not in str(caught.value)
