"""`lmseg finetune` with every kind of language model, head, backbone and source."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import ResNetBackbone, ResNetConfig

from lmseg_core import LMSegForSemanticSegmentation, Predictor
from tests.flows.conftest import Cli
from tests.flows.training.small import write_config, write_raster

pytestmark = pytest.mark.usefixtures("quick_pictures")


@pytest.mark.parametrize("tune", ["frozen", "lora", "adalora", "dora", "prefix", "adapter", "full"])
def test_every_way_to_tune_a_language_model(tune: str, cli: Cli, desk: Path, bert: str) -> None:
    language = {"name": bert, "blocks": 1, "tune": tune, "rank": 2}
    config = write_config(desk, {"model.language_model": language, "model.save_as": "float16"})
    code, _, err = cli("finetune", config)
    assert code == 0, err
    assert (desk / "run" / "adapter" / "adapter.safetensors").exists()
    # The finished model loads where peft is not installed.
    loading = (
        "import sys; sys.modules['peft'] = None; import numpy as np; from lmseg_core import Predictor; "
        "p = Predictor.from_pretrained(sys.argv[1], device='cpu'); "
        "print(p(p.place(np.ones((2, 16, 16), np.float32))[None]).shape)"
    )
    if tune == "lora":
        done = subprocess.run(
            [sys.executable, "-c", loading, desk / "run" / "model"], capture_output=True, text=True, check=True
        )
        assert "[1, 2, 16, 16]" in done.stdout
    config_of = json.loads((desk / "run" / "model" / "config.json").read_text())
    assert (config_of["lm_adapter"] is None) == (tune in ("lora", "adalora", "dora"))
    assert Predictor.from_pretrained(desk / "run" / "model", device="cpu").channels == 2
    assert "bert" in (desk / "run" / "model" / "README.md").read_text()


def test_text_head_and_context(cli: Cli, desk: Path, bert: str) -> None:
    changes = {
        "model.text_head": bert,
        "model.context": "an image of July",
        "model.language_model": {"name": bert, "blocks": 1, "tune": "frozen"},
        "model.classes": [
            {"name": "dark", "synonyms": ["a"], "colour": "#000000"},
            {"name": "bright", "colour": "#FFFF00"},
        ],
    }
    assert cli("finetune", write_config(desk, changes))[0] == 0
    network = LMSegForSemanticSegmentation.from_pretrained(desk / "run" / "model")
    assert (network.config.head, network.config.text_size, network.config.context) == ("text", 16, "an image of July")
    assert float(network.stored_context.abs().sum()) > 0
    assert [entry.color for entry in network.config.classes] == ["#000000", "#ffff00"]
    # Other classes by their names, from the model that knows words.
    others = {
        "model.start": str(desk / "run" / "model"),
        "output": str(desk / "second"),
        "optimise.freeze": ["encoder"],
    }
    classes = [{"name": "july"}, {"name": "region"}]
    code, _, err = cli("finetune", write_config(desk, others | {"model.classes": classes}))
    assert (code, "text_head" in err) == (2, True)
    assert cli("finetune", write_config(desk, others | {"model.classes": classes, "model.text_head": bert}))[0] == 0
    second = LMSegForSemanticSegmentation.from_pretrained(desk / "second" / "model")
    assert [entry.name for entry in second.config.classes] == ["july", "region"]
    assert not torch.equal(second.head.embeddings, network.head.embeddings)
    assert float(second.head.embeddings.abs().sum()) > 0


def test_a_network_without_a_language_model_goes_on_with_one(cli: Cli, desk: Path, bert: str) -> None:
    assert cli("finetune", write_config(desk))[0] == 0
    changes = {
        "model.start": str(desk / "run" / "model"),
        "model.language_model": {"name": bert, "blocks": [0, 2], "tune": "lora"},
        "optimise.freeze": ["encoder"],
        "optimise.rates": {"bridge": 1e-4},
        "output": str(desk / "second"),
    }
    code, _, err = cli("finetune", write_config(desk, changes))
    assert code == 0, err
    before, after = (load_file(desk / name / "model" / "model.safetensors") for name in ("run", "second"))
    same = [name for name in before if torch.equal(before[name], after[name])]
    assert {name for name in before if name.startswith("encoder.")} <= set(same)
    assert any(name.startswith("bridge.blocks.1.") for name in after)


def test_a_backbone_with_a_language_model(cli: Cli, desk: Path, bert: str) -> None:
    torch.manual_seed(0)
    shape = ResNetConfig(embedding_size=4, hidden_sizes=[4, 6], depths=[1, 1], layer_type="basic", out_indices=[1, 2])
    ResNetBackbone(shape).save_pretrained(desk / "resnet")
    changes = {
        "model.backbone": str(desk / "resnet"),
        "model.language_model": {"name": bert, "blocks": 1, "tune": "frozen"},
        "model.config": {"widths": [4, 4, 4, 8]},
    }
    code, _, err = cli("finetune", write_config(desk, changes))
    assert code == 0, err
    assert Predictor.from_pretrained(desk / "run" / "model", device="cpu").channels == 2


@pytest.mark.parametrize("fusion", ["stack", "separate"])
def test_several_sources_of_which_some_are_missing(fusion: str, cli: Cli, desk: Path) -> None:
    for name in "ab":
        radar = np.random.default_rng(0).normal(size=(40, 40)).astype(np.float32)
        radar[:, :20] = np.nan  # beside its swath
        write_raster(desk / f"{name}_radar.tif", radar)
    pairs = {part: [{"image": [f"{name}.tif", f"{name}_radar.tif"], "label": f"{name}_labels.tif"}]
             for part, name in (("train", "a"), ("validation", "b"))}  # fmt: skip
    changes = {f"data.{part}": pair for part, pair in pairs.items()} | {
        "model.bands": ["a", "b", "radar"],
        "model.config": {"widths": [4, 8], "fusion": fusion},
        "augment.source_dropout": 0.5,
        "augment.brightness": 0.2,
        "optimise.steps": 8,
    }
    code, _, err = cli("finetune", write_config(desk, changes))
    assert code == 0, err
    network = LMSegForSemanticSegmentation.from_pretrained(desk / "run" / "model")
    assert (network.config.sources, network.config.fusion) == ([2, 1], fusion)
    changes["data.validation"] = [{"image": ["b_radar.tif", "b.tif"], "label": "b_labels.tif"}]
    code, _, err = cli("finetune", write_config(desk, changes | {"output": str(desk / "second")}))
    assert code == 2
    assert "sources of [1, 2] bands and the network of [2, 1]" in err
