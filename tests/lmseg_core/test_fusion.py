"""Several sources: a missing one changes nothing by what its channels hold."""

import math
import pickle
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


@pytest.fixture(params=["fixed", "image"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, fused: LMSegForSemanticSegmentation) -> Path:
    """The network in a folder, with statistics of its own or of each image."""
    fused.head.weight.data /= 8  # logits of a hundred would round by as much as is compared
    fused.save_pretrained(tmp_path)
    own = {"image_mean": [3.3, 2.0, 9.0, 4.0, 5.0], "image_std": [2.0] * 5} if request.param == "fixed" else {}
    LMSegImageProcessor(mode=request.param, **own).save_pretrained(tmp_path)
    return tmp_path


def _bound(model: Predictor) -> Predictor:
    means = dict(zip("abcde", [3.3, 2.0, 9.0, 4.0, 5.0], strict=True))
    return (
        model.with_statistics([means[b] for b in model.bands], [2.0] * model.channels)
        if model.needs_statistics
        else model
    )


@pytest.mark.parametrize(
    ("absent", "kept"), [([1], [0, 1, 3, 4]), ([0], [2, 3, 4]), ([2, 0], [2]), ((0, 1), [3, 4]), ([], [0, 1, 2, 3, 4])]
)
def test_a_predictor_does_without_sources(
    folder: Path, fused: LMSegForSemanticSegmentation, absent: list[int], kept: list[int]
) -> None:
    model = _bound(Predictor.from_pretrained(folder, device="cpu").without(absent))
    assert (model.channels, model.sources) == (len(kept), (2, 1, 2))
    assert model.bands == tuple("abcde"[c] for c in kept)
    block = np.random.default_rng(0).integers(0, 9, (5, 16, 16)).astype(np.uint16)
    placed = model.place(block[kept])
    assert (placed.dtype, placed.shape[0]) == (torch.uint16, len(kept))
    mean = np.array([3.3, 2.0, 9.0, 4.0, 5.0], np.float32).reshape(5, 1, 1)
    mask = torch.tensor([[number not in absent for number in range(3)]] * 2)
    for held in (0.0, math.nan, 1e30):
        whole = np.full((5, 16, 16), held, np.float32)
        whole[kept] = block[kept]
        x = torch.from_numpy((whole - mean) / 2)[None].repeat(2, 1, 1, 1)
        expected = fused(x, source_mask=mask).logits.softmax(1)
        assert torch.allclose(model(torch.stack([placed, placed])), expected, atol=1e-5)


def test_a_predictor_without_sources_travels_and_has_a_digest_of_its_own(folder: Path) -> None:
    full = Predictor.from_pretrained(folder, device="cpu")
    models = [_bound(full.without(absent)) for absent in ((), (0,), (1,), (2,), (0, 2))]
    assert len({model.digest for model in models}) == len(models)
    assert models[0].digest == _bound(full).digest
    assert _bound(full.without([2, 0, 2])).digest == models[-1].digest
    for model in models:
        got = pickle.loads(pickle.dumps(model))
        assert (got.digest, got.channels, got.bands) == (model.digest, model.channels, model.bands)
        x = torch.rand(1, model.channels, 16, 16)
        assert torch.equal(got(x), model(x))


def test_what_a_predictor_cannot_do_without_is_refused(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, make_network: Maker
) -> None:
    model = Predictor.from_pretrained(folder)
    with pytest.raises(ModelError, match="needs one of its 3 sources; give at least one"):
        model.without((0, 1, 2))
    with pytest.raises(ModelError, match="has 3 sources and cannot do without source 4"):
        model.without((3,))
    with pytest.raises(ModelError, match=r"call without\(\) before with_statistics\(\)"):
        model.with_statistics([1.0] * 5, [1.0] * 5).without((0,))
    with pytest.raises(ModelError, match="expects 3 bands \\(c, d, e\\) over 2 axes"):
        _bound(model.without((0,))).place(np.zeros((5, 16, 16), np.uint8))
    if model.needs_statistics:
        with pytest.raises(ModelError, match="give one finite value for each of its 3 bands"):
            model.without((0,)).with_statistics([1.0] * 5, [1.0] * 5)
    plain = tmp_path_factory.mktemp("plain")
    make_network().save_pretrained(plain)
    LMSegImageProcessor(mode="image").save_pretrained(plain)
    with pytest.raises(ModelError, match="has 0 sources and cannot do without source 1"):
        Predictor.from_pretrained(plain).without((0,))


def test_masks_that_do_not_fit_are_refused(fused: LMSegForSemanticSegmentation, make_network: Maker) -> None:
    with pytest.raises(ModelError, match=r"source_mask has shape \(1, 2\); give \(1, 3\)"):
        fused(torch.randn(1, 5, 8, 8), source_mask=torch.ones(1, 2, dtype=torch.bool))
    with pytest.raises(ModelError, match="no sources; leave it out"):
        make_network()(torch.randn(1, 2, 8, 8), source_mask=torch.ones(1, 1, dtype=torch.bool))
