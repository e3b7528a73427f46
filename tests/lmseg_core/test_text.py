"""The text head follows its class names; texts become vectors; a stored context is used by itself."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoConfig, AutoModel, CLIPModel, PreTrainedTokenizerFast

from lmseg_core import LMSegForSemanticSegmentation, LMSegImageProcessor, ModelError, Predictor, TextEncoder

Maker = Callable[..., LMSegForSemanticSegmentation]
WORDS = ["<pad>", "<unk>", "<end>", "water", "forest", "lake", "an", "image", "of", "a", "region", "the"]


def write_tokenizer(folder: Path, pad: bool) -> None:
    words = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    special = {"unk_token": "<unk>", "eos_token": "<end>"} | ({"pad_token": "<pad>"} if pad else {})
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)


@pytest.fixture(params=["bert", "gpt2", "clip"])
def text_folder(request: pytest.FixtureRequest, tmp_path: Path, language_models: dict) -> Path:
    """Return the folder of a tiny random language model, or CLIP model, with its tokenizer."""
    torch.manual_seed(0)
    folder = tmp_path / request.param
    if request.param == "clip":
        tower = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        text = tower | {"vocab_size": 50, "max_position_embeddings": 16, "eos_token_id": 2, "bos_token_id": 1}
        vision = tower | {"image_size": 16, "patch_size": 8}
        config = AutoConfig.for_model("clip", text_config=text, vision_config=vision, projection_dim=24)
        CLIPModel(config).save_pretrained(folder)
    else:
        AutoModel.from_config(AutoConfig.for_model(**language_models[request.param])).save_pretrained(folder)
    write_tokenizer(folder, pad=request.param != "gpt2")
    return folder


@pytest.fixture
def open_network(make_network: Maker) -> LMSegForSemanticSegmentation:
    network = make_network(head="text", text_size=6, id2label={0: "a", 1: "b", 2: "c"}, deep_supervision=1)
    network.set_classes(["a", "b", "c"], torch.randn(3, 6))
    return network.eval()


def test_text_becomes_vectors(text_folder: Path) -> None:
    encoder = TextEncoder.from_pretrained(str(text_folder))
    rows = encoder.classes(["water", "forest"])
    assert rows.shape == (2, encoder.size)
    assert torch.allclose(rows.norm(dim=1), torch.ones(2), atol=1e-5)
    assert torch.allclose(encoder.classes(["forest"])[0], rows[1], atol=1e-5)  # padding has no say
    assert not torch.allclose(encoder.classes(["water"], {"water": ["lake"]})[0], rows[0], atol=1e-4)
    assert not torch.allclose(encoder.classes(["water"], templates=["the {}"])[0], rows[0], atol=1e-4)
    tokens = encoder.tokens("an image of the lake")
    assert tokens.shape == (1, 5, encoder.token_size)


def test_a_language_model_is_averaged_over_its_tokens(tmp_path: Path, language_models: dict) -> None:
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(**language_models["bert"])).eval()
    model.save_pretrained(tmp_path)
    write_tokenizer(tmp_path, pad=True)
    row = TextEncoder.from_pretrained(str(tmp_path)).classes(["lake"], templates=["the {}"])[0]
    ids = torch.tensor([[WORDS.index("the"), WORDS.index("lake")]])
    mean = model(ids).last_hidden_state.mean(1)[0]
    assert torch.allclose(row, mean / mean.norm(), atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["water", " "],), "class 1 has no name"),
        ((["water", "water"],), 'two classes have the name "water"'),
        (([],), "no class names"),
        ((["water"], {"lake": ["water"]}), 'synonyms are given for "lake", which is none of water'),
        ((["water"], None, ["an image"]), "each with"),
    ],
)
def test_wrong_names_are_refused(tmp_path: Path, language_models: dict, arguments: tuple, message: str) -> None:
    AutoModel.from_config(AutoConfig.for_model(**language_models["bert"])).save_pretrained(tmp_path)
    write_tokenizer(tmp_path, pad=True)
    with pytest.raises(ModelError, match=message):
        TextEncoder.from_pretrained(str(tmp_path)).classes(*arguments)


def test_a_folder_without_a_text_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be used as a text encoder") as caught:
        TextEncoder.from_pretrained(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ndim", [2, 3])
def test_logits_are_scaled_cosines(tmp_path: Path, ndim: int, make_network: Maker) -> None:
    network = make_network(ndim, head="text", text_size=6)
    network.set_classes(["a", "b", "c"], torch.randn(3, 6))
    torch.nn.init.normal_(network.head.bias)
    x = torch.randn(1, 2, *(8,) * ndim)
    embedding = network.decoder(network.encoder(x))[0]
    names = network.head.project(network.head.embeddings)
    for k in range(3):
        cosine = torch.cosine_similarity(embedding, names[k].view(1, -1, *[1] * ndim), dim=1)
        want = network.head.tau.exp() * cosine + network.head.bias[k]
        assert torch.allclose(network(x).logits[:, k], want, atol=1e-4)
    network.save_pretrained(tmp_path)
    loaded = LMSegForSemanticSegmentation.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(x).logits, network(x).logits)


def test_the_vocabulary_is_swapped(tmp_path: Path, open_network: LMSegForSemanticSegmentation) -> None:
    torch.nn.init.normal_(open_network.head.bias)
    x = torch.randn(1, 2, 16, 16)
    before, old = open_network(x).logits, open_network.head.embeddings
    embeddings = torch.cat([old[2:], torch.randn(1, 6), old[:1], torch.randn(1, 6)])
    open_network.set_classes(["c", "reed", "a", "sand"], embeddings)
    after = open_network(x).logits
    assert after.shape == (1, 4, 16, 16)
    assert torch.allclose(after[:, 0], before[:, 2], atol=1e-5)
    assert torch.allclose(after[:, 2], before[:, 0], atol=1e-5)
    assert [entry.name for entry in open_network.config.classes] == ["c", "reed", "a", "sand"]
    assert open_network.config.classes[0].color == "#0000ff"  # classes that were there keep their colour
    open_network.save_pretrained(tmp_path)
    loaded = LMSegForSemanticSegmentation.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(x).logits, after)
    auxiliary = open_network.train()(x).auxiliary
    assert [tuple(logits.shape) for logits in auxiliary] == [(1, 4, 8, 8)]


def test_swaps_that_do_not_fit_are_refused(open_network: LMSegForSemanticSegmentation, make_network: Maker) -> None:
    with pytest.raises(ModelError, match=r'head "closed", whose classes are fixed'):
        make_network().set_classes(["a"], torch.randn(1, 6))
    with pytest.raises(ModelError, match="class 1 has no name"):
        open_network.set_classes(["a", ""], torch.randn(2, 6))
    with pytest.raises(ModelError, match=r"shape \(2, 5\); 2 classes need \(2, 6\)"):
        open_network.set_classes(["a", "b"], torch.randn(2, 5))


def test_a_stored_context_is_used_by_itself(tmp_path: Path, make_network: Maker, language_models: dict) -> None:
    network = make_network(lm=language_models["bert"], context_size=5)
    torch.nn.init.normal_(network.bridge.gate.weight)
    x, tokens = torch.randn(1, 2, 16, 16), torch.randn(1, 4, 5)
    without, told = network(x).logits, network(x, context=tokens).logits
    assert not torch.allclose(told, without, atol=1e-4)
    network.set_context("two lakes", tokens)
    assert torch.equal(network(x).logits, told)
    network.save_pretrained(tmp_path)
    LMSegImageProcessor(mode="image").save_pretrained(tmp_path)
    loaded = LMSegForSemanticSegmentation.from_pretrained(tmp_path).eval()
    assert loaded.config.context == "two lakes"
    assert torch.equal(loaded(x).logits, told)
    model = Predictor.from_pretrained(tmp_path, device="cpu").with_statistics([0, 0], [1, 1])
    assert torch.allclose(model(x), told.softmax(1), atol=1e-5)
    with pytest.raises(ModelError, match=r"takes \(1, T, 5\)"):
        network.set_context("two lakes", torch.randn(1, 4, 6))
    with pytest.raises(ModelError, match='bridge "none"; leave it out'):
        make_network()(x, context=tokens)
