"""Several sources: a missing one changes nothing by what its channels hold."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lmseg_core import LMSegForSemanticSegmentation, LMSegImageProcessor, ModelError, Predictor

Maker = Callable[..., LMSegForSemanticSegmentation]


@pytest.fixture(params=["stack", "separate"])
def fused(request: pytest.FixtureRequest, make_network: Maker) -> LMSegForSemanticSegmentation:
    return make_network(in_channels=5, bands=list("abcde"), sources=(2, 1, 2), fusion=request.param)


def test_a_missing_source_says_nothing(fused: LMSegForSemanticSegmentation) -> None:
    x = torch.randn(2, 5, 13, 18)
    full = fused(x).logits
    mask = torch.tensor([[True, False, True], [True, True, True]])
    masked = fused(x, source_mask=mask).logits
    assert torch.isfinite(masked).all()
    assert torch.equal(masked[1], fused(x, source_mask=torch.ones(2, 3, dtype=torch.bool)).logits[1])
    assert not torch.allclose(masked[0], full[0], atol=1e-4)
    for held in (math.nan, 1e30, math.inf):
        other = x.clone()
        other[0, 2] = held
        assert torch.equal(fused(other, source_mask=mask).logits, masked)
    other[0, 2] = math.nan
    assert torch.equal(fused(other).logits, masked)  # all NaN: missing without being told
    assert torch.isfinite(fused(torch.full_like(x, math.nan)).logits).all()


def test_separate_features_are_the_mean_of_those_present(make_network: Maker) -> None:
    network = make_network(sources=(1, 1), fusion="separate")
    x = torch.randn(1, 2, 16, 16)
    both, first, second = (
        network.encoder(x, torch.tensor([present])) for present in ([True, True], [True, False], [False, True])
    )
    for mean, a, b in zip(both, first, second, strict=True):
        assert torch.allclose(mean, (a + b) / 2, atol=1e-6)


def test_fused_networks_save_exactly(tmp_path: Path, fused: LMSegForSemanticSegmentation) -> None:
    x = torch.randn(1, 5, 16, 16)
    fused.save_pretrained(tmp_path)
    loaded = LMSegForSemanticSegmentation.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(x).logits, fused(x).logits)


def test_a_predictor_notices_what_is_missing(tmp_path: Path, fused: LMSegForSemanticSegmentation) -> None:
    fused.save_pretrained(tmp_path)
    LMSegImageProcessor(mode="image").save_pretrained(tmp_path)
    model = Predictor.from_pretrained(tmp_path, device="cpu").with_statistics([3.3] * 5, [2.0] * 5)
    values = np.random.default_rng(0).normal(3, 2, (5, 16, 16)).astype(np.float32)
    values[2] = np.nan
    scores = model(model.place(values.copy())[None])
    x = torch.from_numpy((values - np.float32(3.3)) / 2)[None]
    mask = torch.tensor([[True, False, True]])
    assert torch.allclose(scores, fused(x, source_mask=mask).logits.softmax(1), atol=1e-5)


def test_masks_that_do_not_fit_are_refused(fused: LMSegForSemanticSegmentation, make_network: Maker) -> None:
    with pytest.raises(ModelError, match=r"source_mask has shape \(1, 2\); give \(1, 3\)"):
        fused(torch.randn(1, 5, 8, 8), source_mask=torch.ones(1, 2, dtype=torch.bool))
    with pytest.raises(ModelError, match="no sources; leave it out"):
        make_network()(torch.randn(1, 2, 8, 8), source_mask=torch.ones(1, 1, dtype=torch.bool))
