"""Adapters start as nothing, train only what they should, and save, load and fold in exactly."""

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lmseg_core import Adapter, LMSegForSemanticSegmentation, LMSegImageProcessor, ModelError, Predictor
from lmseg_core.adapters import adapt, load_adapter, merge, orthogonality, ranks, save_adapter, update_rank
from lmseg_core.training.average import Average

Maker = Callable[..., LMSegForSemanticSegmentation]
METHODS = ["frozen", "lora", "dora", "adalora", "adapter", "prefix", "full"]
FAMILIES = ["bert", "gpt2", "llama"]


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 2, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def bridged(make_network: Maker, language_models: dict) -> Callable[[str], LMSegForSemanticSegmentation]:
    """Return the maker of a network whose gate is open, so that the language model has a say."""

    def make(family: str) -> LMSegForSemanticSegmentation:
        network = make_network(lm=language_models[family])
        torch.nn.init.normal_(network.bridge.gate.weight)
        return network

    return make


def adapter(method: str) -> Adapter:
    return Adapter(method, rank=4, total_steps=20 if method == "adalora" else None)


def shake(network: LMSegForSemanticSegmentation) -> None:
    """Change everything that is trained in the bridge, as training would."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in network.bridge.parameters():
            if parameter.requires_grad:
                parameter += torch.randn_like(parameter) * 0.1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_starts_as_nothing_and_saves_exactly(
    tmp_path: Path, family: str, method: str, bridged: Callable, x: torch.Tensor
) -> None:
    network = bridged(family)
    before = network(x).logits
    adapt(network, adapter(method))
    if method != "prefix":  # its tokens are there from the start
        assert torch.allclose(network(x).logits, before, atol=1e-5)
    shake(network)
    after = network(x).logits
    assert not torch.allclose(after, before, atol=1e-3)
    network.save_pretrained(tmp_path)
    loaded = LMSegForSemanticSegmentation.from_pretrained(tmp_path).eval()
    assert loaded.config.lm_adapter["method"] == method
    assert torch.equal(loaded(x).logits, after)
    trained = [{n for n, p in m.named_parameters() if p.requires_grad} for m in (network, loaded)]
    assert trained[0] == trained[1]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_only_the_adapter_is_trained_and_saved_and_put_back(
    tmp_path: Path, family: str, method: str, bridged: Callable, x: torch.Tensor
) -> None:
    network = bridged(family)
    base = copy.deepcopy(network)
    own = {id(parameter) for parameter in network.bridge.blocks.parameters()}
    adapt(network, adapter(method))
    trained = [p for p in network.bridge.blocks.parameters() if id(p) in own and p.requires_grad]
    assert len(trained) == (len(own) if method == "full" else 0)
    network(x).logits.square().sum().backward()
    assert network.bridge.enter.weight.grad.abs().max() > 0  # gradients pass the frozen blocks
    shake(network)
    save_adapter(network, tmp_path)
    listed = json.loads((tmp_path / "adapter.json").read_text())["tensors"]
    assert {"gate.weight", "enter.weight", "leave.bias", "norm.weight"} <= set(listed)
    if method != "full":
        assert not any(name.endswith(("query.weight", "base_layer.weight", "norm1.weight")) for name in listed)
    load_adapter(base, tmp_path)
    assert torch.equal(base(x).logits, network(x).logits)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["lora", "dora", "adalora"])
def test_merging_leaves_plain_weights_that_say_the_same(
    tmp_path: Path, family: str, method: str, bridged: Callable, x: torch.Tensor
) -> None:
    network = bridged(family)
    names = set(network.state_dict())
    adapt(network, adapter(method))
    shake(network)
    before = network(x).logits
    merge(network)
    assert set(network.state_dict()) == names
    assert torch.allclose(network(x).logits, before, atol=1e-5)
    network.save_pretrained(tmp_path)
    loaded = LMSegForSemanticSegmentation.from_pretrained(tmp_path).eval()
    assert loaded.config.lm_adapter is None
    assert torch.equal(loaded(x).logits, network(x).logits)


def test_adalora_gives_up_rank_where_it_matters_least(tmp_path: Path, bridged: Callable, x: torch.Tensor) -> None:
    network = bridged("bert")
    adapt(network, adapter("adalora"))
    count = len(ranks(network))
    assert set(ranks(network).values()) == {0}  # every singular value starts at zero
    optimiser = torch.optim.Adam((p for p in network.parameters() if p.requires_grad), lr=1e-2)
    totals = []
    for step in range(1, 21):
        (network(x).logits.square().mean() + 0.5 * orthogonality(network)).backward()
        optimiser.step()
        update_rank(network, step)
        optimiser.zero_grad()
        totals.append(sum(ranks(network).values()))
    assert max(totals) > totals[-1]
    assert totals[-1] <= 4 * count
    network.save_pretrained(tmp_path)
    again = LMSegForSemanticSegmentation.from_pretrained(tmp_path)
    update_rank(again, 19)  # a run that goes on keeps what was cut
    assert ranks(again) == ranks(network)


def test_other_methods_have_no_ranks(bridged: Callable) -> None:
    network = bridged("bert")
    adapt(network, adapter("lora"))
    update_rank(network, 1)
    assert ranks(network) == {}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"method": "ia3"}, 'method "ia3"; use frozen, lora'),
        ({"method": "lora", "rank": 0}, "rank 0"),
        ({"method": "lora", "dropout": 1.0}, "dropout 1.0"),
        ({"method": "adalora"}, "total_steps None; give the number of steps"),
    ],
)
def test_wrong_adapters_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Adapter(**wrong)


def test_what_does_not_fit_is_refused(tmp_path: Path, bridged: Callable, make_network: Maker) -> None:
    with pytest.raises(ModelError, match='bridge "none"; adapters need a language model'):
        adapt(make_network(), adapter("lora"))
    network = bridged("bert")
    with pytest.raises(ModelError, match="no adapter to save"):
        save_adapter(network, tmp_path)
    with pytest.raises(ModelError, match="holds no adapter"):
        load_adapter(network, tmp_path)
    adapt(network, adapter("lora"))
    with pytest.raises(ModelError, match="already has the adapter"):
        adapt(network, adapter("lora"))
    save_adapter(network, tmp_path)
    with pytest.raises(ModelError, match="load it onto the network that it was trained on"):
        load_adapter(bridged("llama"), tmp_path)
    other = bridged("bert")
    adapt(other, adapter("dora"))
    with pytest.raises(ModelError, match="the network already has"):
        load_adapter(other, tmp_path)


def test_peft_is_loaded_only_where_an_adapter_needs_it() -> None:
    code = "import lmseg_core.model, sys; sys.exit('peft' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_peft_the_way_to_it_is_told() -> None:
    code = (
        "import sys; sys.modules['peft'] = None\n"  # what an import of a missing package meets
        "from lmseg_core import LMSegConfig, LMSegForSemanticSegmentation, Adapter, ModelError\n"
        "from lmseg_core.adapters import adapt\n"
        "lm = dict(model_type='bert', hidden_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)\n"
        "network = LMSegForSemanticSegmentation(LMSegConfig(widths=(4, 8), lm_config=lm, lm_blocks=1))\n"
        "adapt(network, Adapter('lora'))"
    )
    failed = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert "needs peft, which is not installed; pip install 'lmseg[train]'" in failed.stderr


def test_prefix_tokens_that_are_there_are_the_ones_trained(
    tmp_path: Path, make_network: Maker, language_models: dict, x: torch.Tensor
) -> None:
    network = make_network(lm=language_models["bert"], lm_prefix=4)
    torch.nn.init.normal_(network.bridge.gate.weight)
    before = network(x).logits
    adapt(network, adapter("prefix"))
    assert torch.equal(network(x).logits, before)
    network.save_pretrained(tmp_path)
    assert torch.equal(LMSegForSemanticSegmentation.from_pretrained(tmp_path).eval()(x).logits, before)


@pytest.mark.parametrize("method", ["lora", "dora", "adalora", "adapter", "prefix"])
def test_a_predictor_folds_adapters_in(tmp_path: Path, method: str, bridged: Callable, x: torch.Tensor) -> None:
    network = bridged("bert")
    adapt(network, adapter(method))
    shake(network)
    network.save_pretrained(tmp_path)
    LMSegImageProcessor(mode="image").save_pretrained(tmp_path)
    model = Predictor.from_pretrained(tmp_path, device="cpu").with_statistics([0, 0], [1, 1])
    assert torch.allclose(model(x), network(x).logits.softmax(1), atol=1e-5)
    assert not any("lora" in name for name in model._network.state_dict())


def test_averaged_weights_have_no_rank_that_was_cut(bridged: Callable, x: torch.Tensor) -> None:
    network = bridged("bert").train()
    adapt(network, Adapter("adalora", rank=2, total_steps=20))
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimiser, average = torch.optim.AdamW(trained, lr=1e-2), Average(network, 0.9)
    for step in range(1, 21):
        network(x).logits.square().mean().backward()
        optimiser.step()
        update_rank(network, step)
        optimiser.zero_grad()
        average.update(network)
    left = ranks(network)
    assert sum(left.values()) == 2 * len(left)
    with average.swapped(network):
        assert ranks(network) == left
