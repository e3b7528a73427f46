"""Small networks, written to folders as a user would."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lmseg_core import LMSegConfig, LMSegForSemanticSegmentation, LMSegImageProcessor

BERT = {
    "model_type": "bert",
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 50,
}
GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 50}
LLAMA = {**BERT, "model_type": "llama"}
QWEN2 = {**LLAMA, "model_type": "qwen2", "num_key_value_heads": 2}
GEMMA3 = {
    **QWEN2,
    "model_type": "gemma3_text",
    "head_dim": 8,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "sliding_window": 4,
}


def _make_network(ndim: int = 2, lm: dict | None = None, **changes: object) -> LMSegForSemanticSegmentation:
    """Return a tiny random network with 2 bands and 3 classes, in evaluation mode."""
    torch.manual_seed(0)
    settings = {
        "ndim": ndim,
        "in_channels": 2,
        "widths": (8, 12, 16),
        "tile": (16,) * ndim,
        "bands": ("red", "green"),
        "id2label": {0: "a", 1: "b", 2: "c"},
        "colours": ("#000000", "#00ff00", "#0000ff"),
        "codes": (None, "4421005", None),
        "lm_config": lm,
    }
    return LMSegForSemanticSegmentation(LMSegConfig(**(settings | changes))).eval()


@pytest.fixture(scope="session")
def make_network() -> Callable[..., LMSegForSemanticSegmentation]:
    """Return the maker of tiny networks: make_network(ndim=2, lm=None, **changes of the configuration)."""
    return _make_network


@pytest.fixture(scope="session")
def language_models() -> dict[str, dict]:
    """Return a tiny configuration of each supported family."""
    return {"bert": BERT, "gpt2": GPT2, "llama": LLAMA, "qwen2": QWEN2, "gemma3": GEMMA3}


@pytest.fixture(scope="session")
def fixed_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a 2-D model with statistics of its own."""
    folder = tmp_path_factory.mktemp("fixed")
    _make_network().save_pretrained(folder)
    processor = LMSegImageProcessor(mode="fixed", scale=1e-4, image_mean=[0.1, 0.2], image_std=[0.05, 0.1])
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a 3-D model that wants the statistics of each image."""
    folder = tmp_path_factory.mktemp("image")
    _make_network(ndim=3).save_pretrained(folder)
    LMSegImageProcessor(mode="image").save_pretrained(folder)
    return folder
