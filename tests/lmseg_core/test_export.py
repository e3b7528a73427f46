"""Networks leave torch with free sizes: torch.export, and ONNX beside onnxruntime."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch.export import Dim

from lmseg_core import LMSegForSemanticSegmentation

Maker = Callable[..., LMSegForSemanticSegmentation]
RESNET = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 16],
    "depths": [1, 1],
    "layer_type": "basic",
}
VARIANTS = {
    "2D": {},
    "3D": {"ndim": 3},
    "stride 2, FCN": {"stride": 2, "decoder": "fcn"},
    "two sources": {"sources": (1, 1), "fusion": "separate"},
    "text head": {"head": "text", "text_size": 8},
    "MLP in 3D": {"ndim": 3, "bridge": "mlp", "mlp_hidden": 16},
    "BERT": {"lm": "bert", "lm_prefix": 2},
    "backbone": {"backbone_config": RESNET, "widths": (8, 8, 12, 16)},
}
SIZES = ((1, 17, 40, 19), (3, 33, 24, 21), (2, 64, 48, 32))  # (B, *S), above the coarsest stage's multiple


@pytest.fixture(params=VARIANTS)
def network(request: pytest.FixtureRequest, make_network: Maker, language_models: dict) -> LMSegForSemanticSegmentation:
    changes = dict(VARIANTS[request.param])
    return make_network(lm=language_models.get(changes.pop("lm", "")), **changes)


def inputs(network: LMSegForSemanticSegmentation) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = [(b, 2, *sides[: network.config.ndim]) for b, *sides in SIZES]
    return [torch.randn(size, generator=generator) for size in sizes]


def free(network: LMSegForSemanticSegmentation) -> tuple[dict[int, Dim]]:
    """Any batch, and any size of more than one cell of the coarsest stage."""
    sides = {axis + 2: Dim(f"side{axis}", min=network.config.multiple + 1) for axis in range(network.config.ndim)}
    return ({0: Dim("batch", min=1), **sides},)


def test_an_exported_program_takes_any_size(network: LMSegForSemanticSegmentation) -> None:
    example, *others = inputs(network)[::-1]
    program = torch.export.export(network, (example,), dynamic_shapes=free(network)).module()
    for x in (example, *others):
        with torch.no_grad():
            torch.testing.assert_close(program(x).logits, network(x).logits, rtol=1e-4, atol=1e-5)


def test_onnxruntime_gives_the_same_logits_at_any_size(network: LMSegForSemanticSegmentation, tmp_path: Path) -> None:
    example, *others = inputs(network)[::-1]
    path = tmp_path / "network.onnx"
    torch.onnx.export(
        network,
        (example,),
        path,
        dynamo=True,
        dynamic_shapes=free(network),
        input_names=["pixel_values"],
        output_names=["logits"],
        verbose=False,
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for x in (example, *others):
        (logits,) = session.run(["logits"], {"pixel_values": x.numpy()})
        with torch.no_grad():
            expected = network(x).logits.numpy()
        np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)
